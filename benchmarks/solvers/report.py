"""The numbers as tables and as a figure."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.solvers.methods import OURS
from matplotlib.figure import Figure

from openedm.plots.style import GREY, SHADE, line_style, plain

Row = Mapping[str, Any]

COLUMNS = 4
MARKED = 1.5
"""A step to one evaluation more that makes the error larger than so many times is marked."""


def short(value: float | None) -> str:
    """Two digits, exponents without padding.

    >>> short(0.0123), short(1.5), short(None)
    ('1.2e-2', '1.5', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if 0.095 <= abs(value) < 99.5 or value == 0:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def title(row: Row) -> str:
    """Library and solver."""
    return f"{row['library']}: {row['solver']}" if row["library"] else row["solver"]


def print_accuracy(rows: Sequence[Row], key: str = "budget") -> None:
    """A table a problem: RMS (median) @ evaluations, for each budget; then the best of either side, by the median."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        budgets = list(dict.fromkeys(row[key] for row in mine))
        print(f"\n{problem}, by {key}: rms (median{'' if key == 'budget' else ', worst'}) @NFE")
        width = 24 if key == "budget" else 42
        print(f"{'':46}" + "".join(f"{budget:<{width}g}" for budget in budgets))
        for name in dict.fromkeys(map(title, mine)):
            cells = {row[key]: row for row in mine if title(row) == name}
            print(
                f"{name:<46}" + "".join(f"{_cell(cells.get(budget), key != 'budget'):<{width}}" for budget in budgets)
            )
        if key == "budget":
            for side in ("peer", OURS):
                found = [best(mine, budget, side) for budget in budgets]
                print(f"{f'best median, {side}':<46}" + "".join(f"{_named(row):<24}" for row in found))


def _cell(row: Row | None, worst: bool) -> str:
    if row is None or "median" not in row:
        return "failed" if row is not None and "failed" in row else "-"
    if not math.isfinite(row["median"]):
        return f"{row['median']} @{row['nfe']}"
    of_all = f", {short(row['worst'])}" if worst else ""
    mean = f" mean {row['mean_nfe']:.0f}" if round(row["mean_nfe"]) != row["nfe"] else ""
    return f"{short(row['rms'])} ({short(row['median'])}{of_all}) @{row['nfe']}{mean}"


def _named(row: Row | None) -> str:
    return "-" if row is None else f"{short(row['median'])} {row['solver']}"[:23]


def best(rows: Sequence[Row], budget: float, side: str) -> Row | None:
    """The row with the lowest median among openedm's, or among the peers', at a budget; never one that exceeds it."""
    candidates = [
        row
        for row in rows
        if row["budget"] == budget
        and (row["library"] == OURS) == (side == OURS)
        and row.get("nfe", math.inf) <= budget
        and math.isfinite(row.get("median", math.nan))
    ]
    return min(candidates, key=lambda row: row["median"], default=None)


def print_rises(rows: Sequence[Row]) -> None:
    """A table a solver of what one evaluation more makes of the median error, for each problem; * above `MARKED`."""
    for name in dict.fromkeys(map(title, rows)):
        mine = [row for row in rows if title(row) == name]
        problems = list(dict.fromkeys(row["problem"] for row in mine))
        print(f"\n{name}: median error at n + 1 evaluations, divided by that at n; * above {MARKED}")
        print(f"{'n':<6}{'mean':<8}" + "".join(f"{problem[:12]:<13}" for problem in problems))
        for nfe in dict.fromkeys(row["nfe"] for row in mine):
            cells = {row["problem"]: row["ratio"] for row in mine if row["nfe"] == nfe}
            texts = [_marked(cells[problem]) if problem in cells else "-" for problem in problems]
            print(f"{nfe:<6}{geometric_mean(list(cells.values())):<8.2f}" + "".join(f"{text:<13}" for text in texts))
        counts = [sum(row["ratio"] > limit for row in mine) for limit in (1.0, MARKED)]
        mean = geometric_mean([row["ratio"] for row in mine])
        print(f"geometric mean {mean:.3f}; of {len(mine)}, {counts[0]} above 1 and {counts[1]} above {MARKED}")
        for row in mine:
            if row["ratio"] > MARKED:
                later = lower_again([each for each in mine if each["problem"] == row["problem"]], row["nfe"])
                end = "" if later is None else f", lower again from {later}"
                print(f"  {row['problem']}: {row['ratio']:.2f} from {row['nfe']} to {row['nfe'] + 1}{end}")


def lower_again(rows: Sequence[Row], nfe: int) -> int | None:
    """The first number of evaluations with an error below that at `nfe`, from the ratios of one solver and problem.

    None where the numbers that were measured do not reach it.

    >>> lower_again([{"nfe": 9, "ratio": 3.0}, {"nfe": 10, "ratio": 0.5}, {"nfe": 11, "ratio": 0.5}], 9)
    12
    """
    ratios = {row["nfe"]: row["ratio"] for row in rows}
    error, reached = 1.0, nfe
    while reached in ratios:
        error *= ratios[reached]
        reached += 1
        if error < 1:
            return reached
    return None


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm.

    >>> geometric_mean([0.5, 8.0])
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))


def _marked(ratio: float) -> str:
    return f"{ratio:.2f}{'*' if ratio > MARKED else ''}"


def print_distributions(rows: Sequence[Row]) -> None:
    """A table a problem of energy distances at each budget."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        budgets = list(dict.fromkeys(row["budget"] for row in mine if "budget" in row))
        floor = mine[0]
        print(f"\n{problem}: energy distance to the distribution; * stochastic")
        print(f"of exact samples: {short(floor['energy_distance'])} ± {short(floor['deviation'])}")
        print(f"{'':48}" + "".join(f"{budget:<10g}" for budget in budgets))
        for name in dict.fromkeys(title(row) for row in mine[1:]):
            cells = {row["budget"]: row for row in mine[1:] if title(row) == name}
            mark = "* " if next(iter(cells.values()))["stochastic"] else "  "
            values = [short(cells.get(budget, {}).get("energy_distance")) for budget in budgets]
            print(f"{mark + name:<48}" + "".join(f"{value:<10}" for value in values))


def print_overhead(rows: Sequence[Row]) -> None:
    """A table of microseconds an evaluation at each size."""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    print("\nµs an evaluation with a denoiser that does nothing: minimum, median; peak memory in states")
    print(f"{'':46}" + "".join(f"{'×'.join(map(str, shape)):<24}" for shape in shapes) + "memory")
    for name in dict.fromkeys(map(title, rows)):
        cells = {tuple(row["shape"]): row for row in rows if title(row) == name}
        numbers = [f"{cells[shape]['minimum_us']:.0f}, {cells[shape]['median_us']:.0f}" for shape in shapes]
        memory = cells[shapes[0]]["peak_states"]
        held = "-" if memory is None or not math.isfinite(memory) else f"{memory:.1f}"
        print(f"{name:<46}" + "".join(f"{text:<24}" for text in numbers) + held)


def figure(rows: Sequence[Row], floors: Mapping[str, float], shown: Sequence[str], titles: Mapping[str, str]) -> Figure:
    """The median error against the evaluations, a picture a problem: openedm's solvers in colour over all of the peers.

    Args:
        rows: of `accuracy` at budgets.
        floors: of each problem, how well the reference solution is known.
        shown: which of openedm's solvers are drawn.
        titles: one line about each problem.
    """
    problems = list(floors)
    columns = min(COLUMNS, len(problems))
    lines = math.ceil(len(problems) / columns)
    drawn = Figure(figsize=(3.1 * columns, 2.6 * lines + 0.9), layout="constrained")
    grid = drawn.subplots(lines, columns, squeeze=False, sharex=True)
    ours = [name for name in shown if any(title(row) == f"{OURS}: {name}" for row in rows)]
    everywhere = sorted({row["budget"] for row in rows})
    for axes, problem in zip(grid.flat, problems, strict=False):
        mine = [row for row in rows if row["problem"] == problem]
        plain(axes)
        axes.set(xscale="log", yscale="log")
        axes.set_title(textwrap.fill(titles[problem], 38), fontsize=9)
        axes.axhspan(floors[problem] / 1e3, floors[problem], color=SHADE, zorder=0.5)
        for name in dict.fromkeys(title(row) for row in mine if row["library"] != OURS):
            axes.plot(*_line(mine, name), color=SHADE, linewidth=0.8, label="each peer", zorder=1)
        budgets = list(dict.fromkeys(row["budget"] for row in mine))
        envelope = [row for row in (best(mine, budget, "peer") for budget in budgets) if row is not None]
        if envelope:
            axes.plot(
                [row["nfe"] for row in envelope],
                [row["median"] for row in envelope],
                color=GREY,
                linewidth=2.2,
                linestyle="--",
                label="best peer at each budget",
            )
        for i, name in enumerate(ours):
            axes.plot(
                *_line(mine, f"{OURS}: {name}"), label=name, **line_style(i) | {"markersize": 3.5, "linewidth": 1.2}
            )
        positive = [row["median"] for row in mine if row.get("median", 0) > 0]
        if positive:
            axes.set_ylim(max(min(positive) / 2, 1e-9), min(max(positive) * 2, 3))
        axes.set_xticks(everywhere, map(str, everywhere), fontsize=8)
        axes.set_xticks([], minor=True)
    for axes in grid.flat[len(problems) :]:
        axes.remove()
    for axes in grid.flat[max(len(problems) - columns, 0) : len(problems)]:  # with nothing below
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("network evaluations (NFE)", fontsize=9)
    handles = dict(zip(*reversed(grid.flat[0].get_legend_handles_labels()), strict=True))
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    drawn.supylabel("median distance to the exact solution", fontsize=10)
    return drawn


def _line(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    found = [row for row in rows if title(row) == name and math.isfinite(row.get("median", math.nan))]
    return [row["nfe"] for row in found], [row["median"] for row in found]
