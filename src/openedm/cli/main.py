"""`openedm COMMAND …`: find the command, parse its arguments, run it, and print errors on one line."""

import codecs
import difflib
import importlib
import io
import os
import select
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from openedm.cli import data, inference
from openedm.cli.explaining import TRACEBACK, describe_error, name_option
from openedm.cli.helping import help_for, parser_of_all
from openedm.cli.signals import Stopped, stopped_by_signals
from openedm.ground.locks import is_first_process, until_the_end

COMMANDS = {
    "train": "train a denoiser on images, arrays or toy data",
    "distill": "turn a trained denoiser into a model of one or two evaluations",
    "sample": "draw samples from a checkpoint",
    "evaluate": "score samples against real data",
    "compare": "compare runs, checkpoints and ways of sampling, in one table and one figure",
    "sweep": "train all combinations of some choices, and compare them",
    "likelihood": "compute log-likelihoods of data under a trained model",
    "suggest": "suggest noise levels for your data",
    "data": "prepare training data; has sub-commands",
    "inference": "fit and sample posteriors of a simulator's parameters; has sub-commands",
    "paper": "draw figures after those of the paper, and print its Table 1, in a minute",
    "explore": "open a page in the browser where design choices and trained runs are tried",
    "toy": "draw figures that explain diffusion, in one and two dimensions",
    "convert": "convert published EDM networks into checkpoints, without running code from the files, and back",
    "push": "upload a denoiser to the model hub with a model card, or write its files into a folder",
    "ema": "rebuild an average of any width of a run's weights",
    "info": "describe a checkpoint or a preset",
    "verify": "check whether the files of a run, or of any other folder, are as they were written",
    "demo": "train, sample and score on the digits that ship with scikit-learn, in minutes",
}

GROUPS = {"data": data.COMMANDS, "inference": inference.COMMANDS}
"""The commands that have sub-commands."""

USAGE = """usage: {program} COMMAND [options]

{about}

commands:
{commands}

{program} COMMAND --help describes a command and all of its options."""

ABOUT = {
    "openedm": "The design space of diffusion models (Karras et al. 2022) as replaceable objects.",
    "openedm data": "Prepare training data.",
    "openedm inference": "Simulation-based inference: from a simulator and observations to posteriors.",
}


UNREAD = 128 + 13
"""The status of a command whose output nobody reads any more: that of a process that SIGPIPE ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    0 done, 1 failed, 2 wrong arguments, 130 interrupted, 143 ended by SIGTERM, 129 by SIGHUP, 141 the output was
    closed, as by `openedm info RUN | head -1`.
    """
    _print_all_characters()
    try:
        try:
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        finally:  # --help exits
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        return UNREAD


def _print_all_characters() -> None:
    """What a terminal cannot show, such as σ in ASCII or a file name that is not UTF-8, is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or not _is_utf8(stream.encoding)):
            stream.reconfigure(errors="backslashreplace")


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _is_unread() -> bool:
    """Whether nobody reads the output any more; what is left of it is then discarded."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not poll.poll(0):  # of events that are always reported: an error, or that the other end is closed
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        from openedm import __version__

        print(f"openedm {__version__}")
        return 0
    if arguments[:1] == ["--completion"]:
        return _print_completion(arguments[1:])
    name, rest = arguments[:1], arguments[1:]
    if not name or name[0] not in GROUPS:
        return _command("openedm", COMMANDS, arguments)
    return _command(f"openedm {name[0]}", GROUPS[name[0]], rest)


def _print_completion(shells: Sequence[str]) -> int:
    """Print the script that completes commands and options in a shell."""
    import shtab

    if len(shells) != 1 or shells[0] not in shtab.SUPPORTED_SHELLS:
        allowed, given = ", ".join(shtab.SUPPORTED_SHELLS), " ".join(shells) or "nothing"
        print(f"openedm: error: --completion must be followed by one of {allowed}, got {given}", file=sys.stderr)
        return 2
    print(shtab.complete(parser_of_all(COMMANDS, GROUPS), shells[0]))
    return 0


def _command(program: str, commands: Mapping[str, str], arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<12}{text}" for name, text in commands.items())
        print(USAGE.format(program=program, about=ABOUT[program], commands=rows))
        if program == "openedm":
            print(
                "openedm --version prints the version, openedm --completion bash (or zsh, tcsh) a script for the shell."
            )
        return 0 if arguments else 2
    if arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(commands)
        print(f"{program}: error: command must be one of {known}, got {arguments[0]!r}{hint}", file=sys.stderr)
        return 2
    page = help_for(f"{program} {arguments[0]}".partition(" ")[2], arguments[1:])
    if page is not None:
        print(page, end="")
        return 0
    try:
        with stopped_by_signals(first_process=is_first_process()):
            return _run(f"{program} {arguments[0]}", arguments[1:])
    except Stopped as stopped:
        print(f"stopped by {signal.Signals(stopped.number).name}", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(program: str, arguments: list[str]) -> int:
    configure_process()
    from jsonargparse import ArgumentError

    from openedm.cli.gathering import given
    from openedm.cli.importing import recorded
    from openedm.cli.parsing import explain, options_of, parse

    path = program.split(" ")[1:]
    recorded.set(())
    given.set(())
    values: dict[str, Any] = {}
    module = importlib.import_module(".".join(["openedm.cli", *path]))
    command = getattr(module, path[-1])
    try:
        with one_line_warnings(program), until_the_end():
            values = parse(program, command, arguments)
            configure_process(values.values())
            status = command(**values)
    except ArgumentError as error:
        text = explain(command, str(error))
        hint = "" if "did you mean" in text else f" ({program} --help describes all options)"
        print(f"{program}: error: {text}{hint}", file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        if os.environ.get(TRACEBACK):
            raise
        text = name_option(describe_error(error, options_of(command)), values, given.get())
        print(f"{program}: error: {text}", file=sys.stderr)
        return 1
    return int(status or 0)


@contextmanager
def one_line_warnings(program: str) -> Iterator[None]:
    """Warnings of this package as lines of the command, without the place in the code, in the block."""
    formatted = warnings.formatwarning

    def one_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        if category not in (UserWarning, RuntimeWarning) or os.environ.get(TRACEBACK):
            return formatted(message, category, *place, **more)
        return f"{program}: warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def configure_process(options: Iterable[object] = ()) -> None:
    """Set the options of the process; no other function of the package changes them.

    Args:
        options: the values of a command's options, once they are known. If one of them has a true `full_float32`, GPUs
            convolve in float32, because the rounding of TF32 is larger than the accuracy of the result.
    """
    # Idle OpenMP threads sleep instead of spinning: on a machine with other load this is several times faster. The
    # OpenMP runtime reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from openedm.ground.devices import keep_freed_memory, use_full_float32

    keep_freed_memory()
    if any(getattr(option, "full_float32", False) for option in options):
        use_full_float32()


if __name__ == "__main__":
    sys.exit(main())
