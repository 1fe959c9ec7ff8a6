import importlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import warnings

import pytest

import openedm as package
from openedm.cli import main as module
from openedm.cli.main import COMMANDS, GROUPS, one_line_warnings
from openedm.cli.parsing import options_of


def test_without_a_command_it_explains_itself_and_fails(openedm):
    result = openedm()
    assert result.status == 2
    assert result.out == openedm("--help").out == openedm("-h").out


def test_help_names_every_command_with_a_line_on_it(openedm):
    result = openedm("--help")
    assert result.status == 0
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", result.out, re.MULTILINE)


def test_the_version_is_the_packages(openedm):
    result = openedm("--version")
    assert (result.status, result.out) == (0, f"openedm {package.__version__}\n")


def test_a_warning_is_one_line_without_a_place_in_the_code():
    with one_line_warnings("openedm train"):
        shown = [warnings.formatwarning("two\n lines", kind, "x.py", 3) for kind in (UserWarning, FutureWarning)]
    assert shown[0] == "openedm train: warning: two lines\n"
    assert shown[1].startswith("x.py:3: FutureWarning")
    assert warnings.formatwarning("two", UserWarning, "x.py", 3).startswith("x.py:3: UserWarning")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trian", "train"), ("sampel", "sample"), ("eval", "evaluate"), ("inof", "info"), ("xyz", None)],
)
def test_an_unknown_command_is_an_error_that_suggests_the_nearest(typed, meant, openedm):
    result = openedm(typed, "run")
    assert result.status == 2
    hint = f"; did you mean {meant!r}?" if meant else ""
    assert result.err == f"openedm: error: command must be one of {', '.join(COMMANDS)}, got {typed!r}{hint}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in GROUPS])
def test_the_help_of_a_command_says_something_on_every_argument(name, openedm):
    result = openedm(name, "--help")
    assert result.status == 0
    assert result.out.startswith(f"usage: openedm {name} ")
    command = getattr(importlib.import_module(f"openedm.cli.{name}"), name)
    printed = "".join(result.out.split())
    assert "".join(command.__doc__.partition("\n\n")[0].split()) in printed
    for option in options_of(command):  # choices of one form, such as --options, are their fields
        assert f"--{option}" in result.out or option.upper() in result.out, option


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train"], 2, "the following arguments are required: out"),
        (["train", "run", "--netwrk=MLP"], 2, "unrecognized arguments: --netwrk=MLP"),
        (
            ["train", "run", "--network=MPL"],
            2,
            "network must be the name of a class, got MPL .known: .*DDPMpp, .*MLP, .*NCSNpp",
        ),
        (["train", "run", "--options.images=few"], 2, "options\\.images must be an integer, got few"),
        (["sample", "run", "out", "--format=gif"], 2, "format must be one of 'png', 'npz', 'grid'.* got gif"),
        (
            ["sample", "run", "out", "--sampler.solver=Huen"],
            2,
            "sampler.solver must be the name of a class, got Huen .*did you mean Heun",
        ),
        (["info"], 2, "the following arguments are required: checkpoint"),
        (["train", "run", "--network=MLP", "--network.width=x"], 2, "network MLP: width must be an integer, got x"),
        (["sample", "run", "out", "--sampler=fast"], 2, "sampler must be given by its options, which --sampler.help l"),
        (["train", "run", "--options.image=5"], 2, r"unrecognized arguments: --options.image=5; did you"),
        (["train", "run", "--data.path", "\udcff"], 2, r"data\.path must be text in UTF-8, got '.udcff': rename"),
    ],
)
def test_arguments_that_cannot_be_read_end_with_status_2_and_one_line(arguments, status, message, openedm, tmp_path):
    result = openedm(*arguments)
    assert result.status == status
    (line,) = result.err.splitlines()
    assert re.fullmatch(f"openedm {arguments[0]}: error: {message}.*", line)
    hint = f" (openedm {arguments[0]} --help describes all options)"
    assert line.endswith(hint) != ("did you mean" in line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "run", "--options.images=0"], "images must be >= 1, got 0"),
        (
            ["train", "run", "--data=Toy", "--network=DDPMpp"],
            "got (2,) for DDPMpp; networks for samples of this shape: ",
        ),
        (["train", "run", "--data=ImageFolder", "--data.path=nowhere"], "nowhere"),
        (
            ["train", "run", "--network=DDPMpp", "--network.model_channels=8", "--options.accumulate=3"],
            "batch_size must be a multiple of processes × accumulate = 3",
        ),
        (["sample", "nowhere", "out"], "nowhere does not exist"),
        (["info", "nowhere"], "nowhere does not exist"),
        (["evaluate", "nowhere"], "got 'nowhere', which does not exist"),
    ],
)
def test_values_that_make_no_sense_end_with_status_1_one_line_and_nothing_written(
    arguments, message, openedm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = openedm(*arguments)
    assert result.status == 1
    assert result.err.startswith(f"openedm {arguments[0]}: error: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_of_an_error_is_there_for_those_who_ask(openedm, monkeypatch):
    monkeypatch.setenv("OPENEDM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        openedm("info", "nowhere")


def test_control_c_at_any_time_ends_with_status_130(openedm, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.importlib, "import_module", interrupted)
    result = openedm("info", "run")
    assert (result.status, result.err) == (130, "interrupted\n")


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_at_any_time_ends_a_command_as_control_c_does_with_its_own_status(name, status, openedm, monkeypatch):
    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(module.importlib, "import_module", lambda *_: os.kill(os.getpid(), getattr(signal, name)))
    result = openedm("info", "run")
    assert (result.status, result.err) == (status, f"stopped by {name}\n")
    assert signal.getsignal(getattr(signal, name)) is before


@pytest.mark.parametrize(
    "arguments", [["train", "", "--data=Toy"], ["sample", "", "out"], ["info", ""], ["evaluate", "a", "--out="]]
)
def test_an_empty_name_such_as_a_variable_that_is_not_set_is_refused(arguments, openedm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = openedm(*arguments)
    assert result.status == 2
    assert "must not be empty, got '': is a variable of the shell not set?" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("encoding", "errors", "shown"),
    [
        ("ascii", "surrogateescape", b"\\u03c3 \\udcff\n"),
        ("utf-8", "strict", "σ \\udcff\n".encode()),
        ("utf-8", "surrogateescape", "σ ".encode() + b"\xff\n"),
    ],
)
def test_any_terminal_shows_any_character(encoding, errors, shown, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, errors=errors))
    monkeypatch.setattr(module, "_dispatch", lambda _: bool(sys.stdout.write("σ \udcff\n")) - 1)
    assert module.main([]) == 0
    assert written.getvalue() == shown


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("change", ["", "main._dispatch = lambda arguments: sys.exit(print(arguments))"])
def test_an_output_that_nobody_reads_ends_a_command_without_a_word(change, buffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffered)
    reader, writer = os.pipe()
    os.close(reader)
    code = f"import sys; from openedm.cli import main; {change}\nsys.exit(main.main(['--help']))"
    finished = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (141, b"")


def test_what_needs_no_torch_does_not_wait_for_it():
    code = "import sys; from openedm.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert finished.returncode == 0


def test_the_package_is_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["openedm", "--version"])
    monkeypatch.delitem(sys.modules, "openedm.__main__", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("openedm", run_name="__main__")
    assert stopped.value.code == 0
    assert "openedm" in capsys.readouterr().out
