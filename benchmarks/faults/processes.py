"""Commands of openedm in processes of their own, forked from one that has imported everything: 0.1 s instead of 3."""

import contextlib
import hashlib
import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from openedm.cli.main import COMMANDS, GROUPS, main

WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod"}
"""Events of the interpreter at which files change; opening a file to write is another."""
COUNTED = "\nevents that changed files: "


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: its exit status, negative for the signal that killed it.
        printed: what it printed, errors too.
        seconds: that it took.
        events: how often it changed files; 0 if it was killed.
        peak: the most memory that it had, in bytes.
    """

    status: int
    printed: str
    seconds: float
    events: int = 0
    peak: int = 0

    @property
    def is_one_line(self) -> bool:
        """Whether it failed as promised: with a line of its own, and no traceback."""
        return self.status > 0 and ": error: " in self.printed and "Traceback" not in self.printed


def import_commands() -> None:
    """Import here what every command would import in its process."""
    for group in ("", "data.", "inference."):
        package = importlib.import_module(f"openedm.cli.{group}".rstrip("."))
        names = COMMANDS.keys() - GROUPS.keys() if not group else package.COMMANDS
        for name in names:
            importlib.import_module(f"openedm.cli.{group}{name}")
    importlib.import_module("torch.utils.tensorboard")


class Command:
    """A command that runs in a forked process, in a session of its own, in a folder.

    Args:
        arguments: as typed.
        folder: where it runs; what it prints is kept beside it.
        dies_at: it kills itself at so many events that change files; 0 for never.
        before: called in the process before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        dies_at: int = 0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self._output = folder.parent / f"{folder.name}-{time.monotonic_ns()}.txt"
        sys.stdout.flush()
        self._started = time.monotonic()
        with warnings.catch_warnings():  # of threads, which the new process does not need
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process = os.fork()
        if self.process == 0:
            _run(arguments, folder, self._output, dies_at, before)

    def kill(self) -> None:
        """Kill the process and those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def wait(self, seconds: float = 300.0) -> Ended:
        """How it ended; it is killed after so many seconds."""
        deadline = self._started + seconds
        while (found := os.wait4(self.process, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # its workers, if it was killed
        printed = self._output.read_text(errors="replace") if self._output.exists() else ""
        printed, _, events = printed.partition(COUNTED)
        self._output.unlink(missing_ok=True)
        return Ended(
            os.waitstatus_to_exitcode(found[1]),
            printed,
            time.monotonic() - self._started,
            int(events.partition("\n")[0] or 0),
            1024 * found[2].ru_maxrss,
        )


def _run(arguments: Sequence[str], folder: Path, output: Path, dies_at: int, before: Callable[[], object]) -> None:
    """The life of the forked process."""
    status = 99
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(folder)
        torch.set_num_threads(1)  # those of the process that was forked are not there
        before()
        count = _watched(dies_at)
        try:
            status = main(list(arguments))
        except SystemExit as ended:
            status = int(ended.code or 0)
        sys.stderr.flush()
        print(f"{COUNTED}{count()}", flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watched(dies_at: int) -> Callable[[], int]:
    """Kill this process at this event that changes files, before it happens; returns how many there were so far."""
    process, seen = os.getpid(), 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        # What the interpreter compiles is written by the first command alone, and no later one would come to as many.
        compiles = bool(arguments) and "__pycache__" in str(arguments[0])
        if (opens or event in WRITING) and not compiles and os.getpid() == process:
            seen += 1
            if seen == dies_at:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: seen


def content(folder: Path, readers: Mapping[str, Callable[[Path], bytes | None]]) -> dict[str, str]:
    """The digest of every file of a folder by its path, hidden ones too.

    Args:
        folder: the folder.
        readers: by a part of a path, what counts of such a file: bytes, or None for nothing.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if path.name.startswith("."):
                found[name] = "folder"
            continue
        read = next((read for part, read in readers.items() if part in name), Path.read_bytes)
        if (data := read(path)) is not None:
            found[name] = hashlib.sha256(data).hexdigest()
    return found
