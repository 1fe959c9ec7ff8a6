"""Commands as users type them, and two tiny runs that many tests share."""

import contextlib
import io
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState, GradientState

from openedm.cli.main import main
from openedm.generation import fitted_files
from openedm.sampling import auto

UNET = ["--network=DDPMpp", "--network.model_channels=8", "--network.channel_mult=[1]", "--network.num_blocks=1"]
MLP = ["--data=Toy", "--data.num_samples=300", "--network=MLP", "--network.width=16", "--network.num_blocks=1"]
QUIET = ["--options.validate_every=0", "--options.snapshot_every=0", "--tracker=none"]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its devices and processes in singletons: every test starts without."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels are fitted with one step of Levenberg–Marquardt, for tests of what becomes of them."""
    for module in (auto, fitted_files):
        monkeypatch.setattr(module, "fit_levels", partial(module.fit_levels, iterations=1))
    monkeypatch.setattr(fitted_files, "fit_solver", partial(fitted_files.fit_solver, iterations=2))


@pytest.fixture(scope="session")
def openedm() -> Callable[..., SimpleNamespace]:
    """`openedm("sample", …)`: the exit status of a command, and what it printed to `out` and `err`."""

    def run(*arguments: object) -> SimpleNamespace:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as exit_:
                status = exit_.code
            finally:
                _forget()
        return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture(scope="session")
def digits_run(openedm: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional U-Net on digits, after 10 steps."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    sizes = ["--options.images=640", "--options.batch_size=64", "--options.rampup=0", "--options.checkpoint_every=320"]
    assert openedm("train", run, *UNET, *sizes, *QUIET).status == 0
    return run


@pytest.fixture(scope="session")
def toy_run(openedm: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional MLP on two moons, after 10 steps."""
    run = tmp_path_factory.mktemp("runs") / "toy"
    sizes = ["--options.images=640", "--options.batch_size=64", "--options.rampup=0", "--conditional=false"]
    assert openedm("train", run, *MLP, *sizes, *QUIET).status == 0
    return run


@pytest.fixture
def default_hangup():
    """SIGHUP has its default action, also where the tests run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
