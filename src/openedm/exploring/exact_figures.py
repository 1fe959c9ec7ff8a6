"""Figures of toy problems: paths in one and two dimensions, errors, curvature, levels, coefficients and the loss."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from openedm import levels, preconditioning, sampling, schedules
from openedm.exploring.problems import Budget, Problem, exact_problem
from openedm.exploring.state import State
from openedm.levels import Karras
from openedm.plots.losses import density_of_log_sigma
from openedm.plots.sampling import Errors, Run, error_versus_nfe, trajectories_1d, trajectories_2d
from openedm.plots.style import COLOURS, GREY, SHADE, dashes, line_style, number_log_ticks, plain
from openedm.sampling import Sampler, initial_noise

__all__ = ["EXACT", "USED", "coefficients", "curvature", "errors", "level_rule", "loss", "paths_1d", "paths_2d"]

STEPS = (2, 3, 4, 6, 9, 13, 18, 26, 40, 64)
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)


def paths_1d(state: State, budget: Budget) -> Figure:
    """Paths in one dimension over the density of x(t), for the sampler and for EDM's."""
    problem = exact_problem(state.data_1d, state.label, state.guidance)
    assert problem.density is not None
    noise = _even_noise(min(state.num, 64))
    runs = {f"yours: {_title(state.sampler)}": _run(state.sampler, problem, noise, state.seed, budget)}
    if state.sampler != Sampler():
        runs[f"EDM's: {_title(Sampler())}"] = _run(Sampler(), problem, noise, state.seed, budget)
    top = min(run.states[0].sigma for run in runs.values())
    return trajectories_1d(runs, problem.density.log_prob, sigma_shown=(top, min(1.0, top / 2)))


def paths_2d(state: State, budget: Budget) -> Figure:
    """Paths in two dimensions, for the sampler and for EDM's."""
    problem = exact_problem(state.data, state.label, state.guidance)
    noise = torch.cat([_circle(), initial_noise(range(state.seed, state.seed + 250), (2,)).double()])
    runs = {"yours": _run(state.sampler, problem, noise, state.seed, budget)}
    if state.sampler != Sampler():
        runs["EDM's"] = _run(Sampler(), problem, noise, state.seed, budget)
    return trajectories_2d(runs, sigma_data=1.0, lines=state.num)


def errors(state: State, budget: Budget) -> Figure:
    """The distance to the exact solution against evaluations, of the sampler, and of Heun and Euler on EDM's levels."""
    problem = exact_problem(state.data_1d, state.label, state.guidance)
    if state.sampler.stochastic:
        raise ValueError(
            "errors are those of deterministic samplers: with churn or a stochastic solver, noise decides where "
            "a path ends"
        )
    sigmas = state.sampler.levels_for(problem.denoiser).checked_sigmas().tolist()
    noise = _even_noise(32)
    solution = _solution(state.data_1d, state.label, state.guidance, sigmas[0], sigmas[-1])
    karras = Karras(18, sigmas[-1], sigmas[0]) if len(sigmas) > 1 else Karras(18)
    compared = {
        f"yours: {type(state.sampler.solver).__name__}": state.sampler,
        "Heun, EDM's levels": Sampler(karras),
        "Euler, EDM's levels": Sampler(karras, solver=sampling.Euler()),
    }
    if state.sampler == replace(Sampler(), levels=state.sampler.levels) and type(state.sampler.levels) is Karras:
        del compared["Heun, EDM's levels"]
    rows: Errors = {
        name: [_error(each, problem, noise, solution, budget) for each in _ladder(sampler)]
        for name, sampler in compared.items()
    }
    return error_versus_nfe({f"{state.data_1d.replace('_', ' ')}, in data units": rows})


def _ladder(sampler: Sampler) -> Iterator[Sampler]:
    """A sampler with ever more evaluations: more levels, or for adaptive solvers a lower tolerance."""
    if sampler.nfe is None:
        for tolerance in TOLERANCES:
            yield replace(sampler, solver=replace(sampler.solver, tolerance=tolerance))  # type: ignore[call-arg]
        return
    if not any(field.name == "num_steps" for field in fields(sampler.levels)):
        raise ValueError(f"sampler.levels must be a rule for any number of steps, got {sampler.levels}")
    for steps in STEPS:
        longer = replace(sampler, levels=replace(sampler.levels, num_steps=steps))  # type: ignore[call-arg]
        yield longer


def _error(
    sampler: Sampler, problem: Problem, noise: Float64[Tensor, "n 1"], solution: Float64[Tensor, "n 1"], budget: Budget
) -> tuple[int, float]:
    before = budget.count
    x = sampler.sample(budget.on(problem.denoiser), noise=noise)
    return budget.count - before, float((x - solution).abs().median())


@functools.lru_cache(maxsize=32)
def _solution(data: Any, label: int | None, guidance: Any, high: float, low: float) -> Float64[Tensor, "n 1"]:
    """Where the paths end, to many digits."""
    fine = Sampler(Karras(200, low, high), solver=sampling.RK4())
    return fine.sample(exact_problem(data, label, guidance).denoiser, noise=_even_noise(32))


def curvature(state: State, budget: Budget) -> Figure:
    """How far paths (t, x(t)) have turned from σ_max down to σ: what a solver has to follow (Fig. 3 of the paper)."""
    problem = exact_problem(state.data_1d, state.label, state.guidance)
    sigmas = state.sampler.levels_for(problem.denoiser).checked_sigmas().tolist()
    fine = Karras(128, sigmas[-1], sigmas[0]) if len(sigmas) > 1 else Karras(128)
    schedule, scaling = state.sampler.schedule, state.sampler.scaling
    compared = {"VP": schedules.VP(), "VE": schedules.VE(), "EDM": schedules.EDM()}
    samplers = {name: Sampler(fine, each) for name, each in compared.items()}
    own = Sampler(fine, schedule, scaling)
    if own not in samplers.values():
        samplers = {f"yours: {_curve(state.sampler)}": own} | samplers
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = plain(figure.subplots())
    for i, (name, sampler) in enumerate(samplers.items()):
        run = _run(sampler, problem, _even_noise(16), 0, budget)
        below, turned = (values[:-1] for values in run.turning())  # without the step to σ = 0
        label = f"yours: {name}" if sampler == own and not name.startswith("yours") else name
        width = 2.4 if sampler == own else 1.2
        axes.plot(below, turned, color=COLOURS[i], linestyle=dashes(i), linewidth=width, label=label)
    axes.set(xscale="log", xlabel="noise level σ (data units), from noise to data", ylabel="turned so far (radians)")
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    number_log_ticks(axes.xaxis)
    axes.legend(frameon=False)
    return figure


def level_rule(state: State, budget: Budget) -> Figure:
    """The noise levels σ_i of the sampler, and as many of EDM's."""
    sigma_data = exact_problem(state.data_1d, state.label, state.guidance).denoiser.sigma_data
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = plain(figure.subplots())
    own = state.sampler.levels.for_data(sigma_data).checked_sigmas()
    axes.plot(range(len(own)), own, **line_style(0), label=f"yours: {type(state.sampler.levels).__name__}")
    other = Karras(len(own)).for_data(sigma_data).checked_sigmas()
    if not torch.equal(own, other):
        axes.plot(range(len(other)), other, **line_style(1), label="EDM's: Karras, ρ = 7")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(yscale="log", xlabel="step i", ylabel="noise level $σ_i$ (data units)")
    number_log_ticks(axes.yaxis)
    axes.legend(frameon=False)
    return figure


def coefficients(state: State, budget: Budget) -> Figure:
    """c_skip, |c_out|, c_in and λ c_out² of the preconditioning and the objective, and of EDM's."""
    sigma_data = exact_problem(state.data_1d).denoiser.sigma_data
    sigma = _sigmas(sigma_data, 200)
    weight = state.objective.weighting.weight(sigma, sigma_data)
    kinds = {f"yours: {type(state.preconditioning).__name__}": state.preconditioning}
    if state.preconditioning != preconditioning.EDM():
        kinds["EDM"] = preconditioning.EDM()
    titles = (
        "$c_{skip}$: how much of x is kept",
        "$|c_{out}|$: the factor of network errors",
        "$c_{in}$ × std of x: the size of inputs",
        "$λ\\,c_{out}^2$: the loss weight of these errors",
    )
    figure = Figure(figsize=(7.6, 5.4), layout="constrained")
    for row, (axes, title) in enumerate(zip(figure.subplots(2, 2, sharex=True).ravel(), titles, strict=True)):
        plain(axes).set_title(title, fontsize=10)
        axes.set(xscale="log", yscale="log" if row else "linear")
        for i, (name, kind) in enumerate(kinds.items()):
            c = kind.coefficients(sigma, sigma_data)
            spread = c.c_in * (sigma.square() + sigma_data**2).sqrt()
            shown = (c.c_skip, c.c_out.abs(), spread, weight * c.c_out.square())[row].expand_as(sigma)
            axes.plot(sigma, shown, color=COLOURS[i], linestyle=("-", "--")[i], label=name)
        if row >= 2:
            number_log_ticks(axes.xaxis)
            axes.set_xlabel("noise level σ (data units)")
        axes.xaxis.set_minor_locator(NullLocator())  # with them the layout of four panels takes a second
        _widen(axes)
    figure.axes[0].legend(frameon=False)
    return figure


def _widen(axes: Any) -> None:
    """Room around a line that is constant, whose scale would otherwise be that of its rounding."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high < 2 * low:
        axes.set_ylim(math.sqrt(low * high) / 4, math.sqrt(low * high) * 4)
        number_log_ticks(axes.yaxis)
    elif axes.get_yscale() == "linear":
        axes.set_ylim(min(low, -0.05), max(high, 1.05))


def loss(state: State, budget: Budget) -> Figure:
    """λ(σ) E‖D − y‖²/n of an untrained network under the preconditioning, and of the exact denoiser."""
    problem = exact_problem(state.data_1d, state.label)
    density, exact = problem.density, budget.on(problem.denoiser)
    assert density is not None
    sigma_data = exact.sigma_data
    sigmas = _sigmas(sigma_data, 40)
    generator = torch.Generator().manual_seed(state.seed)
    y = density.sample(4000, generator)
    n = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    weights = state.objective.weighting.weight(sigmas, sigma_data)
    kept = state.preconditioning.coefficients(sigmas, sigma_data).c_skip.expand_as(sigmas)
    untrained, best = [], []
    for sigma, weight, skip in zip(sigmas.tolist(), weights.tolist(), kept.tolist(), strict=True):
        x = y + sigma * n
        untrained.append(weight * float((skip * x - y).square().mean()))
        best.append(weight * float((exact(x, sigma) - y).square().mean()))
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = plain(figure.subplots())
    axes.plot(sigmas, untrained, color=GREY, linestyle="--", label="untrained network (F = 0)")
    axes.plot(sigmas, best, **line_style(0), label="exact denoiser: no training gets below")
    where, height = density_of_log_sigma(state.objective.noise.for_data(sigma_data))
    low, high = (0.0, 1.3 * max(*untrained, *best))
    scale = "linear"
    if high > 5 or min(untrained) < 0:
        scale, low = "log", max(min(v for v in best if v > 0), high * 1e-7)
    axes.set(xscale="log", yscale=scale, ylim=(low, high), xlim=(float(sigmas[0]), float(sigmas[-1])))
    shade = height / height.max()
    tops = low + shade * (high - low) / 2 if scale == "linear" else low * (high / low) ** (shade / 2)
    axes.fill_between(where, tops, low, color=SHADE, linewidth=0, zorder=0.5, label="p(σ), not to scale")
    axes.set(xlabel="noise level σ (data units)", ylabel="loss λ(σ) E‖D − y‖²/n")
    number_log_ticks(axes.xaxis)
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return figure


EXACT: Mapping[str, tuple[str, Callable[[State, Budget], Figure]]] = {
    "paths_1d": ("Paths in one dimension", paths_1d),
    "errors": ("Error against evaluations", errors),
    "paths_2d": ("Paths in two dimensions", paths_2d),
    "curvature": ("Curvature: how far paths turn", curvature),
    "level_rule": ("Noise levels", level_rule),
    "loss": ("Loss by noise level", loss),
    "coefficients": ("Preconditioning", coefficients),
}
"""The figures of toy problems: a title, and the function from a state."""

_PROBLEM = ("data_1d", "label", "guidance")
USED: Mapping[str, Sequence[str]] = {
    "paths_1d": (*_PROBLEM, "sampler", "num", "seed"),
    "errors": (*_PROBLEM, "sampler"),
    "paths_2d": ("data", "label", "guidance", "sampler", "num", "seed"),
    "curvature": (*_PROBLEM, "sampler"),
    "level_rule": (*_PROBLEM, "sampler"),
    "loss": ("data_1d", "label", "preconditioning", "objective", "seed"),
    "coefficients": ("data_1d", "preconditioning", "objective"),
}
"""The fields of the state that a figure depends on: when others change, it need not be drawn again."""


def _run(
    sampler: Sampler, problem: Problem, noise: Float64[Tensor, "batch features"], seed: int, budget: Budget
) -> Run:
    seeds = range(seed, seed + len(noise)) if sampler.stochastic else None
    with torch.no_grad():
        return Run(sampler, list(sampler.steps(budget.on(problem.denoiser), seeds, noise=noise)))


def _title(sampler: Sampler) -> str:
    return f"{type(sampler.solver).__name__}\n{_evaluations(sampler)}, {_curve(sampler)}"


def _evaluations(sampler: Sampler) -> str:
    return "adaptive" if sampler.nfe is None else f"{sampler.nfe} evaluations"


def _curve(sampler: Sampler) -> str:
    scaling = "" if sampler.scaling is None else f" + {type(sampler.scaling).__name__}"
    return f"{type(sampler.schedule).__name__}{scaling}"


def _sigmas(sigma_data: float, count: int) -> Float64[Tensor, "count"]:
    """EDM's range of noise levels, 0.002 to 80 at σ_data = 0.5."""
    factor = sigma_data / levels.EDM_SIGMA_DATA
    return torch.logspace(math.log10(0.002 * factor), math.log10(80 * factor), count, dtype=torch.float64)


def _even_noise(count: int) -> Float64[Tensor, "count 1"]:
    """Quantiles of the unit normal: noise that covers it evenly."""
    quantiles: Tensor = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return quantiles[:, None]


def _circle() -> Float64[Tensor, "6 2"]:
    """Six points on a circle, whose paths keep a colour."""
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3 + 0.3
    return 1.2 * torch.stack([angles.cos(), angles.sin()], 1)
