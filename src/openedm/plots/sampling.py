"""Figures of sampling: paths of x(t) = s(t) (y + σ(t) n) in one and two dimensions, and errors against evaluations.

In one dimension the density of x(t) is drawn behind the paths: p(x/s; σ)/s, each time scaled to its own maximum.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from openedm.ground import checks
from openedm.plots.style import (
    COLOURS,
    GREY,
    MARKERS,
    evenly,
    format_sigma,
    line_style,
    number_log_ticks,
    plain,
    shrunk,
)
from openedm.sampling import Sampler, State
from openedm.schedules import Scaling, Schedule

__all__ = [
    "Errors",
    "LogProb",
    "Run",
    "density_of_x",
    "error_versus_nfe",
    "nearest_state",
    "trajectories_1d",
    "trajectories_2d",
]

LogProb = Callable[[Tensor, float], Tensor]
"""ln p(x; σ) of x (points, 1) at one noise level σ > 0, such as `exact.GaussianMixture.log_prob`."""

Errors = Mapping[str, Sequence[tuple[int, float]]]
"""For each solver: (network evaluations, error), in increasing number of evaluations."""

TIMES, POSITIONS = 160, 301
SHADES = np.linspace(0.04, 1, 13)
"""Densities between which the shade changes."""
FOLLOWED = 6


class Run(NamedTuple):
    """The states of one sampling run, and the sampler that says what they stand for.

    Attributes:
        sampler: gives σ(t) and s(t).
        states: in the order of sampling, from noise to data.
    """

    sampler: Sampler
    states: Sequence[State]

    @property
    def scaling(self) -> Scaling:
        """s, the schedule's own unless the sampler says otherwise."""
        return self.sampler.schedule.scaling if self.sampler.scaling is None else self.sampler.scaling

    @property
    def curve(self) -> tuple[Schedule, Scaling]:
        """σ(t) and s: runs that agree in them can share their axes."""
        return self.sampler.schedule, self.scaling

    def ends(self, sigma: float) -> tuple[float, float]:
        """The least and the largest x(t) at noise levels up to `sigma`."""
        near = [state for state in self.states if state.sigma <= sigma] or self.states
        return min(float(state.x.min()) for state in near), max(float(state.x.max()) for state in near)

    def below(self, sigma: float) -> list[State]:
        """The states at noise levels up to `sigma`, and the last one before them, where the paths enter the panel."""
        first = next((i for i, state in enumerate(self.states) if state.sigma <= sigma), 0)
        return list(self.states[max(first - 1, 0) :])

    def turning(self) -> tuple[Float64[np.ndarray, "turns"], Float64[np.ndarray, "turns"]]:
        """Noise levels, and the angle by which paths (t, x) of one dimension have turned down to each, in radians.

        It is the mean over paths. Each axis is in units of its range, so that a path that is straight in t turns by 0.
        """
        t = np.array([state.time for state in self.states])
        x = torch.stack([state.x[:, 0].double() for state in self.states]).numpy()
        across, along = np.diff(x, axis=0) / np.ptp(x), np.diff(t)[:, None] / np.ptp(t)
        angles = np.arctan2(across, np.broadcast_to(-along, across.shape))
        turned = np.abs(np.diff(angles, axis=0)).cumsum(0).mean(1)
        return np.array([state.sigma for state in self.states[1:-1]]), turned


def trajectories_1d(
    runs: Mapping[str, Run],
    log_prob: LogProb,
    *,
    sigma_shown: Sequence[float] = (3.0,),
    lines: int = 32,
    against: Literal["time", "log_sigma"] = "time",
) -> Figure:
    """x(t) over the density of x(t): one column of panels for each run, one row for each range of noise levels.

    As Figure 3 of Karras et al. 2022: the straighter the paths in t, the fewer steps a solver needs.

    Args:
        runs: a title and a run of one-dimensional samples for each column.
        log_prob: ln p(x; σ) of the data, for the density behind the paths.
        sigma_shown: the highest noise level that each row shows.
        lines: how many samples of a run are drawn, evenly chosen from the batch; ≥ 1.
        against: what the horizontal axis is: t from 0, or σ from the run's lowest level, logarithmic.

    Raises:
        ValueError: no runs, no ranges, states of other than one dimension, or a value out of its range.
    """
    _check_runs(runs, 1)
    checks.at_least("lines", lines, 1)
    checks.one_of("against", against, ("time", "log_sigma"))
    checks.at_least("the number of sigma_shown", len(sigma_shown), 1)
    for i, sigma in enumerate(sigma_shown):
        checks.positive(f"sigma_shown[{i}]", sigma)
    rows, columns = len(sigma_shown), len(runs)
    figure = Figure(figsize=(1.4 + 3.0 * columns, 0.5 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, sigma in zip(grid, sigma_shown, strict=True):
        for axes, run in zip(row, runs.values(), strict=True):
            alike = [other for other in runs.values() if other.curve == run.curve]
            _draw_1d(axes, run, log_prob, min(sigma, run.states[0].sigma), _window_1d(alike, sigma), lines, against)
            name = type(run.sampler.schedule).__name__
            time = f"time t of the {name} schedule, up to σ = {format_sigma(sigma)}"
            axes.set_xlabel(time if against == "time" else "noise level σ (data units)", fontsize=9)
        row[0].set_ylabel("x(t)")
    for title, top in zip(runs, grid[0], strict=True):
        top.set_title(title, fontsize=11)
    _density_key(figure, grid)
    return figure


def _density_key(figure: Figure, grid: np.ndarray) -> None:
    """What the shades behind the paths mean."""
    shades = ScalarMappable(Normalize(-0.1, 1.7), "Blues")
    bar = figure.colorbar(shades, ax=grid, boundaries=SHADES, ticks=(0.04, 0.52, 1), aspect=30, pad=0.05)
    bar.ax.set_yticklabels(["0.04", "0.5", "1"], fontsize=8)
    bar.set_label("density of x(t), relative to its maximum", fontsize=9)
    bar.outline.set_visible(False)


def density_of_x(
    run: Run, log_prob: LogProb, sigmas: Float64[Tensor, "levels"], positions: Float64[Tensor, "positions"]
) -> Float64[Tensor, "positions levels"]:
    """The density of x(t), p(x/s; σ) divided by its maximum over x, at each noise level.

    Args:
        run: gives s.
        log_prob: ln p(x; σ).
        sigmas: noise levels > 0.
        positions: values of x(t).
    """
    columns = []
    for sigma, scale in zip(sigmas.tolist(), run.scaling.scale(sigmas).tolist(), strict=True):
        log_density = log_prob((positions / scale)[:, None], sigma)
        columns.append((log_density - log_density.max()).exp())
    return torch.stack(columns, 1)


def _window_1d(runs: Sequence[Run], sigma: float) -> tuple[float, float]:
    """What all paths at noise levels up to `sigma` fit in: around 0 if they are on both sides of it."""
    lows, highs = zip(*(run.ends(sigma) for run in runs), strict=True)
    low, high = min(lows), max(highs)
    if low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
    margin = 0.025 * (high - low)
    return low - margin, high + margin


def _draw_1d(
    axes: Axes,
    run: Run,
    log_prob: LogProb,
    highest: float,
    window: tuple[float, float],
    lines: int,
    against: str,
) -> None:
    states = run.below(highest)
    drawn = evenly(len(states[0].x), lines)
    paths = torch.stack([s.x[drawn, 0].double().cpu() for s in states]).numpy()
    places, sigmas = _horizontal(run, highest, against)
    positions = torch.linspace(*window, POSITIONS, dtype=torch.float64)
    density = density_of_x(run, log_prob, sigmas, positions).numpy()
    filled = axes.contourf(places, positions.numpy(), density, SHADES, cmap="Blues", vmin=-0.1, vmax=1.7, extend="max")
    filled.set_rasterized(True)
    across = [s.time if against == "time" else max(s.sigma, places[0]) for s in states]
    axes.plot(across, paths, color=COLOURS[1], linewidth=0.8)
    scale = "linear" if against == "time" else "log"
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xscale=scale, xlim=(0 if against == "time" else places[0], places[-1]), ylim=window)
    if against == "log_sigma":
        number_log_ticks(axes.xaxis)


def _horizontal(run: Run, highest: float, against: str) -> tuple[Float64[np.ndarray, "n"], Float64[Tensor, "n"]]:
    """Where the density is drawn: places on the horizontal axis, evenly spaced there, and the noise levels at them."""
    lowest = min([highest / 500, *(s.sigma for s in run.states if s.sigma > 0)])
    fractions = torch.linspace(0, 1, TIMES, dtype=torch.float64)
    if against == "log_sigma":
        sigmas = lowest * (highest / lowest) ** fractions
        return sigmas.numpy(), sigmas
    first, last = run.sampler.schedule.time(torch.tensor([lowest, highest], dtype=torch.float64))
    times = first + (last - first) * fractions
    return times.numpy(), run.sampler.schedule.sigma(times)


def trajectories_2d(
    runs: Mapping[str, Run],
    *,
    sigmas: Sequence[float] = (0.0, 0.1, 0.3, 0.7, math.inf),
    sigma_data: float = 1.0,
    location: float | Sequence[float] = 0.0,
    lines: int = 60,
) -> Figure:
    """Points at several noise levels, one row a run, and the paths that they take.

    So that every level fits the same window, points are shown at m + (x/s − m)/√(1 + σ²/σ_data²) with m the location of
    the data: with their spread divided by what the noise added to it. Six samples keep their colour and marker, in all
    panels and in all runs that start from the same noise.

    Args:
        runs: a title and a run of two-dimensional samples for each row.
        sigmas: noise levels of the columns; of each run the nearest state is shown.
        sigma_data: standard deviation of the data.
        location: m, a number or one a coordinate.
        lines: how many samples, the first of the batch, have their paths drawn; ≥ 0.

    Raises:
        ValueError: no runs, no levels, states of other than two dimensions, or a value out of its range.
    """
    _check_runs(runs, 2)
    checks.at_least("the number of sigmas", len(sigmas), 1)
    checks.at_least("lines", lines, 0)
    checks.positive("sigma_data", sigma_data)
    columns = len(sigmas) + 1
    figure = Figure(figsize=(0.4 + 1.75 * columns, 0.8 + 1.75 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), columns, squeeze=False, sharex=True, sharey=True)
    titles_above: list[str] = []
    centre = np.broadcast_to(np.asarray(location, dtype=np.float64), (2,))
    reach = 10.0 ** round(math.log10(sigma_data))
    for row, (title, run) in zip(grid, runs.items(), strict=True):
        points = [_in_window(state, sigma_data, centre) for state in run.states]
        chosen = [nearest_state(run.states, sigma) for sigma in sigmas]
        for axes, at in zip(row, chosen, strict=False):
            _draw_points(axes, points[at])
        _draw_paths(row[-1], np.stack(points)[:, :lines])
        for axes in row:
            _window(axes, centre, reach)
        row[-1].annotate(
            title, (1.04, 0.5), xycoords="axes fraction", rotation=270, fontsize=11, ha="left", va="center"
        )
        titles = [*(f"σ = {format_sigma(run.states[at].sigma)}" for at in chosen), "paths"]
        if titles != titles_above:
            for axes, text in zip(row, titles, strict=True):
                axes.set_title(text, fontsize=10)
        titles_above = titles
    shown = r"x \,/\, (s\,\sqrt{1 + \sigma^2/\sigma_\mathrm{data}^2}\,)"
    if centre.any():
        shown = r"m + (x/s - m) \,/\, \sqrt{1 + \sigma^2/\sigma_\mathrm{data}^2}"
    figure.supxlabel(f"first coordinate of ${shown}$", fontsize=10, color=GREY)
    figure.supylabel("second coordinate", fontsize=10, color=GREY)
    return figure


def nearest_state(states: Sequence[State], sigma: float) -> int:
    """The index of the state whose noise level is nearest to `sigma`, in ln(σ + 10⁻³); infinity means the highest."""
    if math.isinf(sigma):
        return max(range(len(states)), key=lambda i: states[i].sigma)
    return min(range(len(states)), key=lambda i: abs(math.log((states[i].sigma + 1e-3) / (sigma + 1e-3))))


def _in_window(state: State, sigma_data: float, centre: Float64[np.ndarray, "2"]) -> Float64[np.ndarray, "batch 2"]:
    x = state.x.double().cpu() / state.scale
    return shrunk(x, state.sigma / sigma_data, torch.tensor(centre)).numpy()


def _draw_points(axes: Axes, points: Float64[np.ndarray, "batch 2"]) -> None:
    axes.plot(*points.T, ".", color=GREY, markersize=2.5, alpha=0.5, markeredgewidth=0, rasterized=True)
    _mark(axes, points)


def _draw_paths(axes: Axes, paths: Float64[np.ndarray, "states lines 2"]) -> None:
    for i, path in enumerate(paths.transpose(1, 0, 2)):
        followed = i < FOLLOWED
        axes.plot(
            *path.T, color=COLOURS[i] if followed else GREY, linewidth=1.2 if followed else 0.4, zorder=2.5 - i / 1e3
        )
    axes.plot(*paths[-1].T, ".", color=GREY, markersize=3, markeredgewidth=0)
    _mark(axes, paths[-1])


def _mark(axes: Axes, points: Float64[np.ndarray, "batch 2"]) -> None:
    for point, colour, marker in zip(points[:FOLLOWED], COLOURS, MARKERS, strict=False):
        axes.plot(*point, marker, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6)


def _window(axes: Axes, centre: Float64[np.ndarray, "2"], reach: float) -> None:
    (x, y), ticks = centre, np.array([-2, 0, 2]) * reach
    limits = np.array([-2.8, 2.8]) * reach
    axes.set(xlim=x + limits, ylim=y + limits, aspect="equal", xticks=x + ticks, yticks=y + ticks)
    axes.tick_params(labelsize=8, labelcolor=GREY)
    plain(axes)


def _check_runs(runs: Mapping[str, Run], dimensions: int) -> None:
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    for title, run in runs.items():
        if not run.states or not run.states[0].sigma > 0:
            raise ValueError(f"runs[{title!r}] must hold states that start at a noise level above 0")
        if run.states[0].x.shape[1:] != (dimensions,):
            shape = tuple(run.states[0].x.shape)
            raise ValueError(f"runs[{title!r}] must hold samples (batch, {dimensions}), got {shape}")


def error_versus_nfe(panels: Mapping[str, Errors], orders: Sequence[int] = ()) -> Figure:
    """The error of solvers against the network evaluations of a run, both logarithmic: an order is a slope.

    Args:
        panels: a title and the errors of each solver for each panel; a solver has the same colour in all. Errors of
            0 have no place on the axis and are left out; where all are 0 the axis is linear.
        orders: orders p for which a guide of slope −p is drawn.

    Raises:
        ValueError: no panels, or one without solvers.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels must hold at least one panel, and each at least one solver")
    names = list(dict.fromkeys(name for errors in panels.values() for name in errors))
    figure = Figure(figsize=(1.2 + 4.2 * len(panels), 4.0), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, errors) in zip(grid, panels.items(), strict=True):
        _draw_errors(axes, errors, names)
        _draw_orders(axes, orders)
        axes.set_title(title, fontsize=11)
    grid[0].set_ylabel("median distance to the exact solution")
    grid[-1].legend(frameon=False)
    return figure


def _draw_errors(axes: Axes, errors: Errors, names: Sequence[str]) -> None:
    plain(axes)
    axes.set_xscale("log")
    if any(error > 0 for rows in errors.values() for _, error in rows):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("network evaluations (NFE)")
    for name, rows in errors.items():
        axes.plot(*zip(*rows, strict=True), **line_style(names.index(name)), label=name)
    number_log_ticks(axes.xaxis)


def _draw_orders(axes: Axes, orders: Sequence[int]) -> None:
    """Dashed lines of slope −p, fanning out from one point in the lower left, where a convergence plot is empty."""
    if not orders or axes.get_yscale() != "log":
        return
    (left, _), (bottom, top) = axes.dataLim.intervalx, axes.get_ylim()
    right = left * 4
    start = bottom * 4.0 ** max(orders) * 1.5
    for order in orders:
        end = start * 4.0**-order
        axes.plot([left, right], [start, end], color=GREY, linewidth=0.8, linestyle="--")
        axes.text(right * 1.08, end, f"order {order}", color=GREY, fontsize=8, va="center")
    axes.set_ylim(bottom, max(top, start))
