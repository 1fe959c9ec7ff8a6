"""`python -m benchmarks.recorded write FILE.npz` and `python -m benchmarks.recorded compare FILE.npz`."""

import argparse
import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmarks.recorded import options
from benchmarks.recorded.groups import GROUPS, Group, difference, recorded
from benchmarks.recorded.storage import Arrays, load, save


class Row(NamedTuple):
    """How a group compares.

    Attributes:
        arrays: how many there were before.
        identical: how many of them agree in every bit.
        close: how many more agree within the tolerance.
        missing: the names that are not there now.
        came: how many names are new.
        worst: the largest relative difference, and its name.
    """

    arrays: int
    identical: int
    close: int
    missing: list[str]
    came: int
    worst: tuple[float, str]

    @property
    def agrees(self) -> bool:
        """Whether nothing is missing or differs by more than the tolerance."""
        return self.identical + self.close == self.arrays


def compared(group: Group, before: Arrays, now: Arrays) -> Row:
    """One row of the table."""
    common = [name for name in before if name in now]
    found = {name: difference(group, before[name], now[name]) for name in common}
    worst = max(((value, name) for name, value in found.items()), default=(0.0, ""))
    return Row(
        arrays=len(before),
        identical=sum(value == 0 for value in found.values()),
        close=sum(0 < value <= group.tolerance_of(name) for name, value in found.items()),
        missing=[name for name in before if name not in now],
        came=len(now.keys() - before.keys()),
        worst=worst if worst[0] > 0 else (0.0, ""),
    )


def write(file: Path, names: list[str]) -> int:
    """Record the groups of these names, and the option names."""
    groups = {}
    for name in names:
        started = time.perf_counter()
        groups[name] = recorded(GROUPS[name])
        print(f"{name:<18}{len(groups[name]):>6} arrays {time.perf_counter() - started:7.1f} s", flush=True)
    save(file, groups)
    text = json.dumps(options.names(), indent=1) + "\n"
    file.with_suffix(".json").write_text(text, encoding="utf-8")
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
    return 0


def compare(file: Path, names: list[str], other: Path | None) -> int:
    """Compare a recording with the library as it is now, or with another recording; 1 if they differ."""
    before, agree = load(file), True
    against = None if other is None else load(other)
    heads = f"{'arrays':>7}{'identical':>10}{'close':>7}{'beyond':>7}{'missing':>8}{'new':>5}"
    print(f"{'group':<18}{heads}  worst difference")
    for name in names:
        if name not in before:
            print(f"{name:<18} is not in {file}")
            continue
        try:
            now = recorded(GROUPS[name]) if against is None else against.get(name, {})
        except Exception:
            traceback.print_exc()
            print(f"{name:<18} failed", flush=True)
            agree = False
            continue
        agree &= _print_row(name, compared(GROUPS[name], before[name], now))
    changes = _option_changes(file, other)
    print("\n".join(["", "option names:", *changes] if changes else ["", "option names: no difference"]))
    return 0 if agree else 1


def _print_row(name: str, row: Row) -> bool:
    beyond = row.arrays - row.identical - row.close - len(row.missing)
    worst = f"{row.worst[0]:.1e} {row.worst[1]} (tolerance {GROUPS[name].tolerance:.0e})" if row.worst[1] else ""
    numbers = f"{row.arrays:>7}{row.identical:>10}{row.close:>7}{beyond:>7}{len(row.missing):>8}{row.came:>5}"
    print(f"{name:<18}{numbers}  {worst}", flush=True)
    for missing in row.missing[:5]:
        print(f"  missing: {missing}")
    return row.agrees


def _option_changes(file: Path, other: Path | None) -> list[str]:
    before = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    now = options.names() if other is None else json.loads(other.with_suffix(".json").read_text(encoding="utf-8"))
    return options.differences(before, now)


def main() -> int:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorded", description=__doc__)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path, help="the recording; option names stand beside it, in FILE.json")
    parser.add_argument("other", type=Path, nargs="?", help="compare: another recording instead of the library now")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # Sums over several threads come in another order.
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if arguments.action == "write":
        return write(arguments.file, arguments.groups)
    return compare(arguments.file, arguments.groups, arguments.other)


if __name__ == "__main__":
    sys.exit(main())
