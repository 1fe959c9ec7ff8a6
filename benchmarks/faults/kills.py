"""SIGKILL at random moments; then the same command again, until it ends, and a comparison with a run without kills."""

import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.faults.commands import CASES, Case, renamed
from benchmarks.faults.processes import Command, Ended, content

HEADER = ("command", "kills", "lost", "different", "left over")


def whole(case: Case, folder: Path) -> tuple[dict[str, str], Ended]:
    """What a command writes that nothing happens to, and how it ended."""
    folder.mkdir(parents=True)
    ended = Command(case.arguments, folder).wait()
    if ended.status:
        raise RuntimeError(f"{case.name} does not run: {ended.printed}")
    return renamed(case, content(folder, case.readers)), ended


def run(root: Path, count: int, seed: int, only: list[str]) -> list[dict[str, Any]]:
    """One row a command, `count` kills in all: half at moments of time, half before events that change files."""
    cases = [case for case in CASES if not only or case.name in only]
    rows = []
    for number, case in enumerate(cases):
        tries = count // len(cases) + (number < count % len(cases))
        rows.append(_case(case, root / case.name.replace(" ", "-"), tries, random.Random(seed + number)))
        print(*(rows[-1][name] for name in ("command", "kills", "lost", "different", "left over")), flush=True)
        for problem in rows[-1]["problems"]:
            print("   ", problem, flush=True)
    return rows


def _case(case: Case, root: Path, wanted: int, draw: random.Random) -> dict[str, Any]:
    expected, ended = whole(case, root / "whole")
    row: dict[str, Any] = {"command": case.name, "kills": 0, "lost": 0, "different": 0, "left over": 0}
    row |= {"seconds": ended.seconds, "events": ended.events, "problems": []}
    for number in range(3 * wanted):  # some end before they are killed
        if row["kills"] >= wanted:
            break
        folder = root / f"try-{number}"
        folder.mkdir()
        kills, moments, last = _killed(case, folder, ended, draw, at_events=number >= wanted)
        row["kills"] += kills
        found = renamed(case, content(folder, case.readers))
        names = {
            "lost": [name for name in expected if name not in found],
            "different": [name for name in expected if name in found and found[name] != expected[name]],
            "left over": [name for name in found if name not in expected],
        }
        # Killed when all was written, a command that overwrites nothing says so.
        failed = last.status != 0 and not (last.is_one_line and "exists already" in last.printed and found == expected)
        names["lost"] += ["the command does not go on"] if failed else []
        for what, which in names.items():
            row[what] += bool(which)
        if any(names.values()):
            row["problems"].append(f"{folder.name}, killed at {moments}: {names}; {last.printed[-300:]!r}")
        else:
            shutil.rmtree(folder)
    return row


def _killed(case: Case, folder: Path, whole: Ended, draw: random.Random, at_events: bool) -> tuple[int, str, Ended]:
    """Kill the command one to three times, then let it end; how often, when, and how it ended.

    A moment of time that the first run came to may be later than the end of another; an event surely comes.
    """
    moments: list[str] = []
    for again in range(draw.choice((1, 1, 2, 3))):
        arguments = [*case.arguments, *(case.again if again else [])]
        if at_events or draw.random() < 0.5:
            at: float = draw.randint(1, whole.events)
            ended, moment = Command(arguments, folder, dies_at=int(at)).wait(), f"event {at}"
        else:
            at = draw.uniform(0.1 * whole.seconds, whole.seconds)
            ended, moment = Command(arguments, folder).wait(at), f"{at:.3f} s"
        if ended.status != -9:
            return len(moments), ", ".join(moments), ended
        moments.append(moment)
    return len(moments), ", ".join(moments), Command([*case.arguments, *case.again], folder).wait()
