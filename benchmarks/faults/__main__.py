"""What happens where processes are killed, two write at once, disks are full or files are damaged: a table and JSON.

    python -m benchmarks.faults [--what kills flips lines …] [--kills 100] [--only train fit] [--out faults.json]

Every command runs as users type it, in a process of its own, and what it has written at the end is compared bit by bit
with what it writes where nothing happens; files are flipped and mutated, and wrong lines parsed, in this process. The
last lines say what was lost, different or left over; the exit status is
1 if anything was.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.common import machine, write_json
from benchmarks.faults import commands, disks, flips, kills, lines, memory, mutations, writers
from benchmarks.faults.processes import import_commands

PARTS = {"kills": kills, "writers": writers, "disks": disks, "flips": flips, "mutations": mutations}
PARTS |= {"lines": lines, "memory": memory}
"""By the name of a part its module: `run(root, count, seed, only)` gives rows, `HEADER` the columns of the table."""
COUNTS = {"kills": 100, "writers": 50, "disks": 60, "flips": 1000, "mutations": 100_000, "lines": 400}
COUNTS |= {"memory": 250}
IN_PROCESSES = ("kills", "writers", "disks")
"""The parts that start commands, which need something to read."""


def table(header: tuple[str, ...], rows: list[dict[str, object]]) -> str:
    """The columns of the header, the first flush left and the others right."""
    cells = [header, *(tuple(str(row.get(name, "")) for name in header) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--what", nargs="+", choices=PARTS, default=list(PARTS))
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"how many (default {count})")
    parser.add_argument("--only", nargs="*", default=[], help="names of commands, such as train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="a new folder for all files, instead of one that is removed")
    given = parser.parse_args()
    import_commands()
    found: dict[str, object] = {"machine": machine(), "seed": given.seed}
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        for name in given.what:
            if name in IN_PROCESSES:
                commands.prepare(root / name / "inputs")
            rows = PARTS[name].run(root / name, getattr(given, name), given.seed, given.only)
            print(f"\n{name}\n{table(PARTS[name].HEADER, rows)}\n", flush=True)
            print("\n".join(problem for row in rows for problem in row["problems"][:5]))
            failed += sum(len(row["problems"]) for row in rows)
            found[name] = rows
    if given.out is not None:
        write_json(given.out, found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
