"""One writer at a time: locks on the folders and files that are written, which say who holds them.

| what is written | its lock file |
|---|---|
| a folder that fills up: a run, a folder of pictures, shards, a store | FOLDER/.openedm.lock |
| a file or folder that appears complete: a report, an npz file, a checkpoint, a posterior | PARENT/.NAME.lock |

A lock is the kernel's, `flock` on the lock file: it ends with the process that holds it, however that ends, so that a
lock file that a killed process left blocks nobody. The file holds the host, the process, the start and the command of
its holder for the message that others get; where nobody holds the lock, that is out of date and means nothing. The
file is removed when the lock is released.

It holds on local file systems, on NFS (Linux turns `flock` into locks of the server), CephFS, GPFS and SMB, between
all hosts; on Lustre and BeeGFS where they are mounted with locks of the whole cluster, else between the processes of
one host, as on FUSE file systems such as sshfs. Where there is no `flock` at all a warning says that nothing is locked;
on systems without it, such as Windows, nothing is.

Of the processes that `torchrun` started the first one holds the lock for all of them. A process that a dead `torchrun`
left behind still holds it, because it still writes.
"""

import errno
import json
import os
import shlex
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from openedm.ground.disks import explain_write_errors

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LOCK",
    "LockedError",
    "hold_file",
    "hold_folder",
    "is_first_process",
    "locked_file",
    "locked_folder",
    "until_the_end",
]

LOCK = ".openedm.lock"
"""The name of the lock file in a folder that fills up."""
MARK = b'{"openedm_lock": 1'
MAX_COMMAND = 120
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where launchers say which of several processes this one is, as accelerate reads it."""

_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""The locks of this thread, which may take them again."""
_stack: ContextVar[ExitStack | None] = ContextVar("stack", default=None)
_open: set[int] = set()


class LockedError(ValueError):
    """Something is being written by another process, or by another part of this one."""


def is_first_process() -> bool:
    """Whether this process is the only one of its command, or the first of those that a launcher started."""
    return next((os.environ[name] for name in RANKS if os.environ.get(name)), "0") == "0"


@contextmanager
def until_the_end() -> Iterator[None]:
    """A block, such as a command, at whose end `hold_file` and `hold_folder` release what they lock in it."""
    with ExitStack() as stack:
        token = _stack.set(stack)
        try:
            yield
        finally:
            _stack.reset(token)


def hold_file(path: Path, name: str = "") -> bool:
    """Lock a file until the end of the surrounding `until_the_end`; whether there is one, and this process locks."""
    return _hold(locked_file(path, name))


def hold_folder(path: Path, name: str = "") -> bool:
    """Lock a folder until the end of the surrounding `until_the_end`; whether there is one, and this process locks."""
    return _hold(locked_folder(path, name))


def _hold(lock: AbstractContextManager[None]) -> bool:
    stack = _stack.get()
    if stack is not None:
        stack.enter_context(lock)
    return stack is not None and is_first_process()


@contextmanager
def locked_folder(path: Path, name: str = "", *, nested: bool = True) -> Iterator[None]:
    """Lock a folder that the block fills. It is made if need be, and removed at the end if it is still empty.

    Args:
        path: the folder.
        name: the name of the argument, for messages.
        nested: whether a thread that holds the lock may take it again, as a command and the function that it calls do.

    Raises:
        LockedError: another process, or another thread of this one, holds the lock; the message says which.
        OSError: the folder cannot be written.
    """
    with _locked(path / LOCK, f"{name}={path}" if name else str(path), nested):
        yield


@contextmanager
def locked_file(path: Path, name: str = "") -> Iterator[None]:
    """Lock a file, or a folder that appears complete, while the block makes it. Arguments and errors as above."""
    with _locked(path.with_name(f".{path.name}.lock"), f"{name}={path}" if name else str(path)):
        yield


@contextmanager
def _locked(path: Path, what: str, nested: bool = True) -> Iterator[None]:
    key = path.parent.resolve() / path.name
    if key in _held.get() and not nested:
        raise LockedError(f"{what} is being written by this process already")
    if fcntl is None or key in _held.get() or not is_first_process():
        yield
        return
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        with explain_write_errors(path.parent):
            descriptor = _acquire(path, what)
        try:
            _held.set(_held.get() | {key})
            yield
        finally:
            _held.set(_held.get() - {key})
            _release(descriptor, path)
    finally:
        with suppress(OSError):  # not empty: something was written
            for folder in made:
                folder.rmdir()


def _acquire(path: Path, what: str) -> int:
    """Open and lock the file; the descriptor."""
    for _ in range(1000):  # each time, the file or its folder was removed by a process that ended
        with suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _opened(path, what)
            try:
                if _is_locked(descriptor, path, what) and _is_at(path, descriptor):
                    _describe_holder(descriptor)
                    _open.add(descriptor)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    raise ValueError(f"{what} cannot be locked: {path} is removed again and again")


UNKNOWN = "another process"


def _opened(path: Path, what: str) -> int:
    # Without following a link or waiting for a pipe that somebody else may have put there.
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY | flags)  # of another user; the kernel locks it all the same
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.pread(descriptor, len(MARK), 0) not in (b"", MARK):
        os.close(descriptor)
        raise ValueError(f"{what} cannot be locked: {path} is not a lock file of openedm, move it away")
    return descriptor


def _is_locked(descriptor: int, path: Path, what: str) -> bool:
    """Lock it, with a warning where that cannot be done; LockedError if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise LockedError(
                f"{what} is being written by {_holder_soon(descriptor)}: wait for it, stop it, or choose another name"
            ) from error
        if error.errno not in UNSUPPORTED:
            raise
        warnings.warn(f"{path.parent} has no locks: a second command that writes there is not refused", stacklevel=2)
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file of a descriptor is still at a path: it was not removed before it was locked."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    return False


def _describe_holder(descriptor: int) -> None:
    program = Path(sys.argv[0]).name if sys.argv else "python"
    program = "openedm" if program in ("main.py", "__main__.py") else program  # python -m openedm
    command = shlex.join([program, *sys.argv[1:]])
    content = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": command if len(command) <= MAX_COMMAND else f"{command[:MAX_COMMAND]}…",
    }
    with suppress(OSError):  # a full disk, a file of another user: the message then names no holder
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, MARK + b", " + json.dumps(content).encode()[1:], 0)


def _holder_soon(descriptor: int) -> str:
    """Who holds the lock; a process that has just taken it gets 0.2 seconds to write that down."""
    for _ in range(20):
        if (holder := _holder(descriptor)) != UNKNOWN:
            return holder
        time.sleep(0.01)
    return UNKNOWN


def _holder(descriptor: int) -> str:
    """Who holds the lock, as far as the file tells it."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        process, host = int(found["process"]), str(found["host"])
        if host == socket.gethostname():
            with suppress(PermissionError):  # it is another user's
                os.kill(process, 0)  # an error if there is no such process: the text is of an earlier one
        text = f"process {process} on {host} since {found['started']} ({found['command']})"
        return "".join(c if c.isprintable() else "?" for c in text)
    except (KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError):
        return UNKNOWN


def _release(descriptor: int, path: Path) -> None:
    """Remove the file while nobody else can hold its lock, then release it."""
    if descriptor not in _open:  # in a forked process, which has forgotten it
        return
    _open.discard(descriptor)
    with suppress(OSError):
        if _is_at(path, descriptor):
            path.unlink()
    with suppress(OSError):
        os.close(descriptor)


def _forget() -> None:
    """In a forked process: its copies of descriptors would hold locks of a parent that was killed."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
