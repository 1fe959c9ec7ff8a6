"""A comparison as text, Markdown, CSV or JSON."""

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args

from openedm.comparing.comparison import Comparison, Number
from openedm.ground import checks

__all__ = ["Format", "formatted", "to_dict"]

Format = Literal["text", "markdown", "csv", "json"]

COUNTS = ("parameters", "images of training", "evaluations a sample")
MISSING = "–"


def formatted(comparison: Comparison, form: Format = "text", width: int = 120) -> str:
    """The comparison as text for terminals (no wider than `width` where columns are narrow enough), a Markdown table,
    CSV with a line a column, or JSON; without a newline at the end.

    Raises:
        ValueError: the format is none of these.
    """
    checks.one_of("format", form, get_args(Format))
    if form == "json":
        return json.dumps(to_dict(comparison), indent=2, ensure_ascii=False)
    if form == "csv":
        return _csv(comparison)
    rows = _rows(comparison)
    if form == "markdown":
        lines = [
            "| | " + " | ".join(map(_escaped, comparison.columns)) + " |",
            "|---|" + "---|" * len(comparison.columns),
        ]
        lines += [f"| {name} | {' | '.join(map(_escaped, cells))} |" for name, cells in rows]
        notes = [f"- {note}" for note in comparison.notes]
        return "\n".join([*lines, *(["", *notes] if notes else [])])
    notes = [textwrap.fill(f"({note})", width, subsequent_indent=" ") for note in comparison.notes]
    return "\n".join([_blocks(comparison.columns, rows, width), *notes])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _rows(comparison: Comparison) -> list[tuple[str, Sequence[str]]]:
    """The rows of the table: options that differ, then numbers."""
    rows: list[tuple[str, Sequence[str]]] = list(comparison.options.items())
    for name, numbers in comparison.numbers.items():
        shown = f"{name} (not comparable)" if name in comparison.incomparable else name
        shown = shown.replace("seconds of training", "time of training")
        shown += ", × 1000" if name == "kernel distance" else ""
        rows.append((shown, [_cell(name, number) for number in numbers]))
    return rows


def _cell(name: str, number: Number | None) -> str:
    if number is None:
        return MISSING
    scale, unit = _scale(name, number.value)
    value, low, high, floor = (None if x is None else scale * x for x in number[:4])
    assert value is not None
    text = f"{value:,.0f}" if name in COUNTS else _digits(value)
    if number.spread and high is not None and high > value:
        text += f" ± {_digits(high - value, 2)}"
    elif not number.spread and low is not None and high is not None:
        text += f" [{_digits(low)}, {_digits(high)}]"
    return f"{text}{unit}" if floor is None else f"{text}, real {_digits(floor)}"


def _scale(name: str, value: float) -> tuple[float, str]:
    """What a number is multiplied by, and its unit."""
    if name == "seconds of training":
        return (1, " s") if value < 120 else (1 / 60, " min") if value < 7200 else (1 / 3600, " h")
    return (1000 if name == "kernel distance" else 1), ""


def _digits(value: float, digits: int = 3) -> str:
    """A number to some digits, without an exponent where it is a number of everyday size.

    >>> _digits(1412.3), _digits(0.01234), _digits(150.2, 2)
    ('1,412', '0.0123', '150')
    """
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.{digits}g}"


def _blocks(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int) -> str:
    """The table, in several blocks of columns where one would be wider than `width`."""
    first = max((len(name) for name, _ in rows), default=0)
    widths = [max(len(column), *(len(cells[i]) for _, cells in rows)) for i, column in enumerate(columns)]
    blocks, start = [], 0
    while start < len(columns):
        stop, used = start, first
        while stop < len(columns) and (stop == start or used + 2 + widths[stop] <= width):
            used += 2 + widths[stop]
            stop += 1
        lines = [("", columns), *rows]
        blocks.append(
            "\n".join(
                f"{name:<{first}}  {'  '.join(f'{cells[i]:>{widths[i]}}' for i in range(start, stop))}".rstrip()
                for name, cells in lines
            )
        )
        start = stop
    return "\n\n".join(blocks)


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data, one mapping a column, ready for JSON."""
    return {
        "columns": [
            {
                "name": column,
                "paths": [str(entry.run.path) for entry in comparison.entries[i]],
                "options": {name: texts[i] for name, texts in comparison.options.items()},
                "numbers": {
                    name: number._asdict()
                    for name, numbers in comparison.numbers.items()
                    if (number := numbers[i]) is not None
                },
            }
            for i, column in enumerate(comparison.columns)
        ],
        "incomparable": dict(comparison.incomparable),
        "notes": list(comparison.notes),
    }


def _csv(comparison: Comparison) -> str:
    """A line a column: options, numbers, and the ends of intervals and floors where there are some."""
    file = io.StringIO()
    parts = {
        name: [p for p in ("low", "high", "floor") if any(n is not None and getattr(n, p) is not None for n in numbers)]
        for name, numbers in comparison.numbers.items()
    }
    header = ["name", *comparison.options]
    for name, found in parts.items():
        header += [name, *(f"{name}, {part}" for part in found)]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for i, column in enumerate(comparison.columns):
        row: list[Any] = [column, *(texts[i] for texts in comparison.options.values())]
        for name, found in parts.items():
            number = comparison.numbers[name][i]
            row += ["" if number is None else getattr(number, part) for part in ("value", *found)]
        writer.writerow(row)
    return file.getvalue().rstrip("\n")
