"""`--import`: classes of the user's own modules in every command, and in no file of somebody else."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import openedm as package
from openedm.cli import data as data_commands
from openedm.cli import inference
from openedm.cli.main import COMMANDS, GROUPS
from openedm.ground.choices import class_path, subclasses
from openedm.networks import Network
from openedm.training import find_checkpoint

PLAIN = """
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, c_noise, condition=None, augment=None):
        return self.net(x)
"""

OLD_FORM = '''
from dataclasses import dataclass

import torch
from torch import nn

from openedm.networks import Network


class Conv(nn.Module):
    def __init__(self, channels, out):
        super().__init__()
        self.net = nn.Conv2d(channels + 1, out, 3, padding=1)

    def forward(self, x, c_noise, condition=None, augment=None):
        return self.net(torch.cat([x, c_noise.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1))


@dataclass(frozen=True)
class {name}(Network):
    """A network of the user's own.

    Args:
        width: its width.
    """

    width: int = 8

    def build(self, event_shape, *, condition_shape=None, num_classes=0, augment_dim=0, out_channels=None, seed=None):
        torch.manual_seed(seed or 0)
        return Conv(event_shape[0], out_channels or event_shape[0])
'''
QUICK = ["--options.images=32", "--options.batch_size=16", "--options.rampup=0", "--options.validate_every=0"]
QUICK += ["--options.snapshot_every=0", "--tracker=none", "--data=Arrays", "--data.path=x.npy"]

Run = Callable[..., SimpleNamespace]


def forget(module: str) -> None:
    """As in a new process: the module is not imported, and its classes are not defined."""
    sys.modules.pop(module, None)
    for cls in [c for c in subclasses(Network) if class_path(c).startswith(f"{module}.")]:
        cls.__bases__ = (Forgotten,)


class Forgotten:
    """A base of classes that are no longer choices."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module and some pictures; what is imported in it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_net.py").write_text(OLD_FORM.replace("{name}", "MyNet"))
    np.save("x.npy", np.random.default_rng(0).uniform(-1, 1, (32, 1, 16, 16)).astype("f4"))
    yield tmp_path
    forget("own_net")


@pytest.mark.parametrize("given", ["own_net", "own_net.py", "./own_net.py"])
def test_an_own_network_of_the_first_form_is_trained_sampled_described_and_scored(
    given: str, folder: Path, openedm: Run
) -> None:
    trained = openedm("train", "run", "--import", given, "--network", "MyNet", "--network.width=4", *QUICK)
    assert trained.status == 0, trained.err
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["import"] == [given]
    others = {
        "sample": ["sample", "run", "s", "--seeds=0-3", "--nfe=4"],
        "info": ["info", "run"],
        "likelihood": ["likelihood", "run", "--data=Arrays", "--data.path=x.npy", "--num=1"],
    }
    for arguments in others.values():
        forget("own_net")
        refused = openedm(*arguments)
        assert refused.status == 1
        assert refused.err.count("\n") == 1
        assert "'own_net.MyNet'" in refused.err
        assert "--import own_net" in refused.err
        assert "own_net" not in sys.modules
        done = openedm(*arguments, f"--import={given}")
        assert done.status == 0, done.err
    assert f"--import {given}" in done.out or f"--import {given}" in openedm("info", "run").out


def test_in_python_importing_the_module_suffices(folder: Path, openedm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert openedm("train", "run", "--import=own_net", "--network=MyNet", *QUICK).status == 0
    forget("own_net")
    with pytest.raises(ValueError, match=r"--import own_net, in Python, import own_net before"):
        package.load_denoiser("run")
    monkeypatch.syspath_prepend(str(folder))
    importlib.import_module("own_net")
    assert type(package.load_denoiser("run").network).__name__ == "Conv"


def test_a_file_of_options_may_import(folder: Path, openedm: Run) -> None:
    (folder / "mine.yaml").write_text("import: own_net\nnetwork:\n  class_path: MyNet\n  init_args: {width: 3}\n")
    assert openedm("train", "run", "--config=mine.yaml", *QUICK).status == 0
    written = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert written["import"] == ["own_net"]
    assert written["network"] == {"class_path": "own_net.MyNet", "init_args": {"width": 3}}


def test_the_configuration_of_a_run_imports_nothing(folder: Path, openedm: Run) -> None:
    assert openedm("train", "run", "--import=own_net", "--network=own_net.MyNet", *QUICK).status == 0
    forget("own_net")
    refused = openedm("train", "again", "--config=run/config.yaml", "--tracker=none")
    assert refused.status == 1
    assert "--import own_net" in refused.err
    assert "own_net" not in sys.modules
    assert openedm("train", "again", "--config=run/config.yaml", "--import=own_net").status == 0


@pytest.mark.parametrize("command", ["sample", "info", "likelihood", "evaluate", "convert", "ema"])
def test_no_file_of_a_checkpoint_imports_a_module(command: str, folder: Path, openedm: Run, toy_run: Path) -> None:
    (folder / "mischief.py").write_text("from pathlib import Path; Path('imported').touch()")
    shutil.copytree(toy_run, "run")
    for file in ("config.json", "training.json"):
        path = find_checkpoint("run") / file
        path.write_text(path.read_text().replace("openedm.networks.MLP", "mischief.MLP"))
    (folder / "run" / "config.yaml").write_text("import: [mischief]\n")
    arguments = {
        "sample": ["run", "out", "--format=npz"],
        "likelihood": ["run", "--data=Toy"],
        "evaluate": ["run", "--data=Toy"],
        "convert": ["run", "out.safetensors"],
        "ema": ["run", "out"],
    }
    assert openedm(command, *arguments.get(command, ["run"])).status == 1
    assert not (folder / "imported").exists()


ALL = [name for name in COMMANDS if name not in GROUPS]
ALL += [f"data {name}" for name in data_commands.COMMANDS] + [f"inference {name}" for name in inference.COMMANDS]


@pytest.mark.parametrize("command", ALL)
def test_every_command_imports_and_says_so(command: str, folder: Path, openedm: Run) -> None:
    assert "--import MODULE" in openedm(*command.split(" "), "--help").out
    (folder / "counted.py").write_text("from pathlib import Path; Path('imported').touch()")
    openedm(*command.split(" "), "--import", "counted", "--help")
    assert (folder / "imported").exists()
    sys.modules.pop("counted")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no_such", r"there is no module 'no_such' in the current folder or on the path: give the file"),
        ("no_such.py", r"the file no_such.py does not exist"),
        ("own_net.MyNet", r"own_net.MyNet is not a module but a name in one: --import own_net"),
        ("broken", r"broken cannot be imported: ZeroDivisionError"),
        ("needs", r"needs cannot be imported: No module named 'no_such_thing'"),
        ("random.py", r"another module is called 'random': rename random.py"),
        ("--seeds=0", r"--import must be followed by a module or a .py file"),
    ],
)
def test_what_cannot_be_imported_is_an_error_of_one_line(given: str, message: str, folder: Path, openedm: Run) -> None:
    (folder / "broken.py").write_text("1 / 0")
    (folder / "needs.py").write_text("import no_such_thing")
    (folder / "random.py").write_text("")
    result = openedm("info", "run", "--import", given)
    assert result.status == 1
    assert result.err.startswith("openedm info: error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("given", ["own_plain", "./own_plain.py"])
@pytest.mark.parametrize("name", ["Plain", "own_plain.Plain"])
def test_a_class_of_modules_is_found_by_its_name_in_what_was_imported(
    name: str, given: str, folder: Path, openedm: Run
) -> None:
    (folder / "own_plain.py").write_text(PLAIN)
    try:
        trained = openedm("train", "run", "--import", given, "--network", name, *QUICK)
        assert trained.status == 0, trained.err
        assert "ModuleNetwork(name='own_plain.Plain')" in trained.out
    finally:
        forget("own_plain")
    refused = openedm("train", "other", "--network", "Plain", *QUICK)
    assert refused.status == 2
    assert "of a module of your own: --import MODULE" in refused.err
