"""Two processes with the same command at the same time: one goes on, the other says why it does not."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import CASES, Case, renamed
from benchmarks.faults.kills import whole
from benchmarks.faults.processes import Command, content

HEADER = ("command", "starts", "one went on", "told why", "different", "left over")
REASONS = ("is being written by process ", "exists already", "already has ")
"""The last two where the first had ended before the second looked."""


def run(root: Path, count: int, seed: int, only: list[str]) -> list[dict[str, Any]]:
    """One row a command, `count` double starts in all: half at once, half within a third of the time it takes."""
    cases = [case for case in CASES if not only or case.name in only]
    rows = []
    for number, case in enumerate(cases):
        tries = count // len(cases) + (number < count % len(cases))
        rows.append(_case(case, root / case.name.replace(" ", "-"), tries, random.Random(seed + number)))
    return rows


def _case(case: Case, root: Path, tries: int, draw: random.Random) -> dict[str, Any]:
    expected, ended = whole(case, root / "whole")
    row: dict[str, Any] = dict.fromkeys(HEADER, 0) | {"command": case.name, "problems": []}
    for number in range(tries):
        folder = root / f"try-{number}"
        folder.mkdir()
        first = Command(case.arguments, folder)
        time.sleep(draw.choice((0.0, draw.uniform(0.0, ended.seconds / 3))))
        second = Command(case.arguments, folder)
        both = sorted((second.wait(), first.wait()), key=lambda end: end.status)
        found = renamed(case, content(folder, case.readers))
        told = both[1].is_one_line and any(reason in both[1].printed for reason in REASONS)
        counts = {
            "one went on": both[0].status == 0 and both[1].status != 0,
            "told why": told,
            "different": any(found.get(name) != digest for name, digest in expected.items()),
            "left over": any(name not in expected for name in found),
        }
        row["starts"] += 1
        for name, value in counts.items():
            row[name] += value
        if list(counts.values()) == [True, True, False, False]:
            shutil.rmtree(folder)
        else:
            row["problems"].append(f"{folder.name}: {counts}; {[(end.status, end.printed[-300:]) for end in both]}")
    return row
