"""Single bits flipped in files of every kind: an error, a warning, or what was written; never something else."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.faults.kinds import EXPECTED, SAID, Kind, make

HEADER = ("file", "bytes", "flips", "error", "warning", "unchanged", "different", "ms")


def outcome(kind: Kind, wanted: bytes) -> tuple[str, str]:
    """What reading a changed file ends in: error, warning, unchanged, different or other; and the message."""
    SAID.clear()
    try:
        found = kind.read()
    except EXPECTED as error:
        return "error", str(error)
    except Exception as error:
        return "other", repr(error)
    if found == wanted:
        return "unchanged", ""
    return ("warning", SAID[0]) if SAID else ("different", "")


def flip(kind: Kind, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """A row: what `count` flips of single bits of a file end in."""
    whole = kind.file.read_bytes()
    wanted, counts, problems = kind.read(), Counter[str](), []
    started = time.process_time()
    for bit in rng.choice(8 * len(whole), count, replace=8 * len(whole) < count).tolist():
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        kind.file.write_bytes(changed)
        ended, message = outcome(kind, wanted)
        counts[ended] += 1
        if ended in ("different", "other"):
            problems.append(f"{kind.name}: bit {bit}: {ended} {message[:200]}")
    kind.file.write_bytes(whole)
    milliseconds = round(1e3 * (time.process_time() - started) / count, 1)
    row = {"file": kind.name, "bytes": len(whole), "flips": count, **{name: counts[name] for name in HEADER[3:7]}}
    return {**row, "ms": milliseconds, "problems": problems}


def run(root: Path, count: int, seed: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each kind of file that this library writes with a digest or a checksum."""
    shutil.rmtree(root / "kinds", ignore_errors=True)
    kinds = [kind for kind in make(root / "kinds", protected_only=True) if not only or kind.name in only]
    return [flip(kind, count, np.random.default_rng((seed, i))) for i, kind in enumerate(kinds)]
