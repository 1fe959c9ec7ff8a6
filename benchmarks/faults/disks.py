"""Disks that are full or read-only: one line that says so, nothing half-written, and all goes on with more space.

A disk is a small tmpfs in a mount namespace of its own; where that is not allowed, a limit on the size of files.
"""

import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import CASES, Case, renamed
from benchmarks.faults.kills import whole
from benchmarks.faults.processes import Command, Ended, content

HEADER = ("command", "failed", "in one line", "lost", "different", "left over")
NEWNS, NEWUSER = 0x20000, 0x10000000
READ_ONLY, REMOUNT, RECURSIVE_PRIVATE = 1, 32, 0x4000 | 0x40000
PAGE = 4096
REMEDIES = ("write to another", "choose a folder that you may write to")


def run(root: Path, count: int, seed: int, only: list[str]) -> list[dict[str, Any]]:
    """One row a command, `count` disks in all: one in four read-only, the others of random sizes, mostly too small."""
    cases = [case for case in CASES if not only or case.name in only]
    rows = []
    for number, case in enumerate(cases):
        tries = count // len(cases) + (number < count % len(cases))
        rows.append(_case(case, root / case.name.replace(" ", "-"), tries, random.Random(seed + number)))
    return rows


def _case(case: Case, root: Path, tries: int, draw: random.Random) -> dict[str, Any]:
    expected, _ = whole(case, root / "whole")
    needed = sum(path.stat().st_size for path in (root / "whole").rglob("*") if path.is_file())
    row: dict[str, Any] = dict.fromkeys(HEADER, 0) | {"command": case.name, "problems": [], "bytes": needed}
    for number in range(tries):
        size = 0 if number % 4 == 3 else PAGE * draw.randint(1, max(1, needed // PAGE))
        folder = root / f"try-{number}"
        folder.mkdir()
        tried = _in_another_process(lambda folder=folder, size=size: _on_small_disk(case, folder, size, expected))
        shutil.rmtree(folder)
        if tried["status"] == 0:  # there was enough
            continue
        row["failed"] += 1
        for name in HEADER[2:]:
            row[name] += tried[name]
        if not tried["in one line"] or tried["lost"] or tried["different"] or tried["left over"]:
            row["problems"].append(f"{tried['disk']} of {size} bytes: {tried}")
    return row


def _on_small_disk(case: Case, folder: Path, size: int, expected: dict[str, str]) -> dict[str, Any]:
    """Run the command on a disk of `size` bytes (0: a read-only one), then with enough space, and compare."""
    try:
        _own_namespace()
        _mount(folder, size or 2**28, READ_ONLY if size == 0 else 0)
        disk, limit = "tmpfs", None
    except OSError:
        disk, limit = "limit of file sizes", size or PAGE
    first = Command(case.arguments, folder, before=lambda: _limit(limit)).wait()
    half = [name for name in content(folder, case.readers) if name not in expected and not _resumed(case, name)]
    if disk == "tmpfs":
        _mount(folder, 2**28, REMOUNT)
    last = Command([*case.arguments, *case.again], folder).wait() if first.status else first
    found = renamed(case, content(folder, case.readers))
    return {
        "disk": disk,
        "status": first.status,
        "in one line": _says_why(first),
        "lost": int(last.status != 0 or bool(expected.keys() - found.keys())),
        "different": int(any(found[name] != digest for name, digest in expected.items() if name in found)),
        "left over": int(bool(found.keys() - expected.keys()) or bool(half)),
        "printed": [first.printed[-400:], last.printed[-400:], half[:3], sorted(found.keys() - expected.keys())[:3]],
    }


def _says_why(ended: Ended) -> bool:
    last = ended.printed.strip().rpartition("\n")[2]
    return ended.is_one_line and ": error: " in last and any(remedy in last for remedy in REMEDIES)


def _resumed(case: Case, name: str) -> bool:
    """Whether a file is there to go on from: parts of an npz file, of a conversion, checkpoints, simulations."""
    parts = ("s.npz.parts/", "shards/.", "run/", "store/part-", "store/running.json")
    return any(part in name for part in parts) and not name.endswith(".tmp")


def _limit(size: int | None) -> None:
    if size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _own_namespace() -> None:
    """Mounts of this process are seen by nobody else, and end with it."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(NEWNS) != 0:
        if libc.unshare(NEWUSER | NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if libc.mount(b"none", b"/", None, RECURSIVE_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def _mount(folder: Path, size: int, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def _in_another_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function returns, called in a forked process."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException), os.fdopen(writer, "w") as file:
            try:
                json.dump(work(), file)
            except BaseException:
                traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return dict(json.loads(text))
