"""`openedm COMMAND …`: finds the command, reads its arguments, runs it, and turns errors into one clear line."""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

# Idle OpenMP threads sleep instead of spinning: on a machine that runs anything else, several times faster. Read by the
# OpenMP runtime when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = {
    "train": "train a denoiser on images, arrays or toy data",
    "sample": "draw samples from a checkpoint",
    "evaluate": "score samples against real data",
    "likelihood": "how probable data are under a trained model",
    "suggest": "which noise levels suit your data",
    "toy": "figures that explain diffusion, in one and two dimensions",
    "info": "describe a checkpoint",
    "demo": "train, sample and score on the digits that ship with scikit-learn, in minutes",
}

USAGE = """usage: openedm COMMAND [options]

The design space of diffusion models (Karras et al. 2022) as replaceable objects.

commands:
{commands}

openedm COMMAND --help describes a command and all of its options.
openedm --version prints the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
        print(USAGE.format(commands=rows))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from openedm import __version__

        print(f"openedm {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(
            f"openedm: error: command must be one of {', '.join(COMMANDS)}, got {arguments[0]!r}{hint}", file=sys.stderr
        )
        return 2
    try:
        return _run(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(name: str, arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    from openedm.cli.parsing import explain, parse

    module = importlib.import_module(f"openedm.cli.{name}")
    command = getattr(module, name)
    try:
        values = parse(f"openedm {name}", command, getattr(module, "spelled_out", list)(arguments))
        status = command(**values)
    except ArgumentError as error:
        print(f"openedm {name}: error: {explain(command, str(error))}", file=sys.stderr)
        print(f"openedm {name} --help describes all options", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("OPENEDM_TRACEBACK"):
            raise
        print(f"openedm {name}: error: {error}", file=sys.stderr)
        return 1
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
