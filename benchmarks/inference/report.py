"""The rows as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.inference.methods import METHODS, OURS

Row = Mapping[str, Any]


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none.

    >>> number(0.52345, ".3f"), number(None, ".3f")
    ('0.523', '-')
    """
    return "-" if value is None else format(value, form)


def accuracy(row: Row | None) -> str:
    """C2ST, mean ± standard deviation over observations; how many of them are missing, and why.

    >>> accuracy({"c2st_mean": 0.52, "c2st_sd": 0.01, "c2st": [0.51, 0.53]})
    '0.520 ± 0.010'
    >>> accuracy({"c2st_mean": 0.52, "c2st_sd": None, "c2st": [0.52, None], "stalled": 1})
    '0.520, stalled 1/2'
    >>> accuracy({"failed": "ValueError"})
    'failed'
    """
    if row is None:
        return "-"
    scores = row.get("c2st", [])
    missing = sum(score is None for score in scores)
    why = "stalled" if row.get("stalled") == missing else "failed"
    if row.get("c2st_mean") is None:
        return f"{why} {missing}/{missing}" if why == "stalled" and missing else "failed"
    text = f"{row['c2st_mean']:.3f}" + (f" ± {row['c2st_sd']:.3f}" if row.get("c2st_sd") is not None else "")
    return text + (f", {why} {missing}/{len(scores)}" if missing else "")


def ratio(row: Row, ours: Row | None) -> str:
    """How many times openedm's sampling time a method takes."""
    if ours is None or not ours.get("sample_cpu") or row.get("sample_cpu") is None:
        return "-"
    return f"{row['sample_cpu'] / ours['sample_cpu']:.2g}×"


HEADER = f"{'':<20}{'C2ST':<28}{'train, CPU s':>14}{'stopped':>10}{'draw, CPU s':>13}{'of ours':>9}{'MiB':>7}"


def line(row: Row, ours: Row | None) -> str:
    """A method on a task."""
    return (
        f"{METHODS[row['method']].title:<20}{accuracy(row):<28}{number(row.get('train_cpu'), '.1f'):>14}"
        f"{'by ' + row['stopped'] if 'stopped' in row else '-':>10}{number(row.get('sample_cpu'), '.2f'):>13}"
        f"{ratio(row, ours):>9}{number(row.get('peak_mib'), '.0f'):>7}"
    )


def find(rows: Sequence[Row], task: str, method: str) -> Row | None:
    """The row of a method on a task."""
    return next((row for row in rows if (row["task"], row["method"]) == (task, method)), None)


def print_tables(rows: Sequence[Row]) -> None:
    """A table a task, then C2ST of all."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    for task in names:
        print(f"\n{task}\n{HEADER}")
        for row in rows:
            if row["task"] == task:
                print(line(row, find(rows, task, OURS)))
                if "failed" in row:
                    print(f"{'':<20}{row['failed']}")
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    print("\n" + f"{'C2ST':<26}" + "".join(f"{METHODS[name].title:<28}" for name in methods))
    for task in names:
        print(f"{task:<26}" + "".join(f"{accuracy(find(rows, task, name)):<28}" for name in methods))
