"""Figures and tables of Karras et al. 2022 that a laptop makes in a minute, from the classes of this library.

Data are the digits and toy densities, whose best denoisers are known in closed form, in place of CIFAR-10 and trained
networks: what a figure shows of schedules, levels, solvers and preconditionings holds for these data.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from torch import Tensor

from openedm import levels, objective, preconditioning, schedules
from openedm.data import Digits, Toy
from openedm.denoiser import Denoiser
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground.choices import Choice
from openedm.levels import Karras
from openedm.networks import MLP
from openedm.plots.losses import density_of_log_sigma
from openedm.plots.sampling import Errors, Run, error_versus_nfe, trajectories_1d
from openedm.plots.style import COLOURS, GREY, SHADE, dashes, line_style, number_log_ticks, plain
from openedm.sampling import RK4, Churn, Euler, Heun, Sampler, initial_noise
from openedm.training import HalfLife, Model, Options, Trainer

__all__ = ["FIGURES", "check_names", "find_name", "paper_figures", "table_1"]

Log = Callable[[str], None]

SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80.0, 0.5
EVALUATIONS = (7, 11, 15, 19, 27, 35, 51, 79, 127)
DIGITS, BLUR = 150, 0.15
CHURNS = (0.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
FAMILIES: Mapping[str, Mapping[str, type[Choice]]] = {
    "schedule σ(t), scaling s": {"VP": schedules.VP, "VE": schedules.VE, "iDDPM": schedules.EDM, "EDM": schedules.EDM},
    "time steps": {"VP": levels.VP, "VE": levels.VE, "iDDPM": levels.IDDPM, "EDM": levels.Karras},
    "solver": {"VP": Euler, "VE": Euler, "iDDPM": Euler, "EDM": Heun},
    "preconditioning": {
        "VP": preconditioning.VP,
        "VE": preconditioning.VE,
        "iDDPM": preconditioning.IDDPM,
        "EDM": preconditioning.EDM,
    },
    "noise distribution, loss weighting": {
        "VP": objective.VP,
        "VE": objective.VE,
        "iDDPM": objective.IDDPM,
        "EDM": objective.EDM,
    },
}
"""The rows of Table 1, and the class of each column."""


def table_1() -> str:
    """Table 1 as text: for each design choice the classes of VP, VE, iDDPM and EDM, and what their docstrings say."""
    lines = ["Table 1 of Karras et al. 2022, by the classes of openedm"]
    for row, columns in FAMILIES.items():
        lines.append(f"\n{row}")
        for column, cls in columns.items():
            module = ".".join(cls.__module__.split(".")[:2])
            about = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
            name = f"{module.removeprefix('openedm.')}.{cls.__name__}"
            lines.append(f"  {column:<7}{name:<23} {about}")
    return "\n".join(lines)


def paper_figures(names: Sequence[str] = (), *, seed: int = 0, log: Log = lambda line: None) -> dict[str, Figure]:
    """The figures by name, with the numbers behind them.

    Args:
        names: which of `FIGURES`; all if there are none.
        seed: of noise and of the training for the figure of churn.
        log: called with each line of numbers.

    Raises:
        ValueError: there is no figure of a name.
    """
    return {name: FIGURES[name](seed, log) for name in check_names(names or list(FIGURES))}


def check_names(names: Sequence[str]) -> Sequence[str]:
    """The names of figures; ValueError if there is no figure of a name."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        meant = find_name(unknown[0])
        hint = {None: "", "none": ": Table 1 is printed with any of them, and alone with none"}.get(meant, f": {meant}")
        raise ValueError(f"figures must be some of {', '.join(FIGURES)}, got {unknown[0]!r}{hint}")
    return names


def find_name(text: str) -> str | None:
    """The figure that a name or a number of the paper means, "none" for its Table 1; None for any other text.

    >>> find_name("errors"), find_name("Figure 3"), find_name("table1"), find_name("runs/paper")
    ('errors', 'trajectories', 'none', None)
    """
    found = re.fullmatch(r"(fig|figure|tab|table)[ ._-]*(\d?)[a-c]?", text.strip(), re.IGNORECASE)
    if text in FIGURES or found is None:
        return text if text in FIGURES else None
    is_table = found[1].lower().startswith("tab") and found[2] in ("", "1")
    return "none" if is_table else NUMBERED.get(f"{found[1][0].lower()}{found[2]}")


def _schedules(seed: int, log: Log) -> Figure:
    """σ(t) over the share of the time that a run takes, and the levels of 18 steps."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = torch.tensor([SIGMA_MIN, SIGMA_MAX], dtype=torch.float64)
    share = torch.linspace(0, 1, 400, dtype=torch.float64)
    for i, (name, schedule) in enumerate({"VP": schedules.VP(), "VE": schedules.VE(), "EDM": schedules.EDM()}.items()):
        first, last = schedule.time(ends)
        plain(left).plot(
            share, schedule.sigma(first + (last - first) * share), color=COLOURS[i], linestyle=dashes(i), label=name
        )
    rules = {
        "VP": levels.VP(18, SIGMA_MIN, SIGMA_MAX),
        "VE": levels.VE(18, SIGMA_MIN, SIGMA_MAX),
        "EDM, ρ = 7": Karras(18, SIGMA_MIN, SIGMA_MAX),
    }
    for i, (name, rule) in enumerate(rules.items()):
        sigmas = rule.sigmas()
        plain(right).plot(range(len(sigmas)), sigmas, **line_style(i), label=name)
        below = int((sigmas < 1).sum())
        log(f"{name:<10} {below} of {len(sigmas)} levels below σ = 1")
    right.set_xticks(range(0, 18, 3))
    left.set(
        yscale="log", xlabel="share of the time from $σ_{min}$ to $σ_{max}$", ylabel="noise level σ", title="schedule"
    )
    right.set(yscale="log", xlabel="step i of 18", ylabel="noise level $σ_i$", title="time steps")
    left.legend(frameon=False)
    right.legend(frameon=False)
    return figure


def _trajectories(seed: int, log: Log) -> Figure:
    """Paths of one-dimensional data under the three schedules: the straighter in t, the fewer steps (Fig. 3)."""
    mixture = Toy("two_modes").mixture()
    assert mixture is not None
    exact = GaussianMixture(
        mixture.weights, mixture.means, (mixture.std**2 * torch.eye(1)).expand(len(mixture.weights), 1, 1)
    )
    quantiles = torch.special.ndtri((torch.arange(16, dtype=torch.float64) + 0.5) / 16)[:, None]
    runs = {}
    for name, schedule in {"VP": schedules.VP(), "VE": schedules.VE(), "EDM": schedules.EDM()}.items():
        sampler = Sampler(Karras(128, SIGMA_MIN, SIGMA_MAX), schedule)
        runs[name] = Run(sampler, list(sampler.steps(exact, noise=quantiles)))
        log(f"{name:<4} mean turn of a path, in radians: {runs[name].turning()[1][-1]:.2f}")
    return trajectories_1d(runs, exact.log_prob, sigma_shown=(25.0, 1.0))


def _errors(seed: int, log: Log) -> Figure:
    """Fig. 2 on digits with a little blur: Euler as it was, then Heun, EDM's time steps, EDM's schedule."""
    denoiser = _blurred_digits()
    noise = initial_noise(range(seed, seed + 16), denoiser.event_shape or ()).double()
    fine = Sampler(Karras(96, SIGMA_MIN, SIGMA_MAX), schedules.EDM(), solver=RK4())
    solution = fine.sample(denoiser, noise=noise)
    panels: dict[str, Errors] = {}
    for name, schedule, rule in (
        ("VP", schedules.VP(), levels.VP(2, SIGMA_MIN, SIGMA_MAX)),
        ("VE", schedules.VE(), levels.VE(2, SIGMA_MIN, SIGMA_MAX)),
    ):
        karras = Karras(2, SIGMA_MIN, SIGMA_MAX)
        ladder = {
            "as it was (Euler)": Sampler(rule, schedule, solver=Euler()),
            "+ Heun's method": Sampler(rule, schedule, solver=Heun()),
            "+ EDM's time steps": Sampler(karras, schedule, solver=Heun()),
            "+ EDM's σ(t) = t, s = 1": Sampler(karras, schedules.EDM(), solver=Heun()),
            "the last with Euler": Sampler(karras, schedules.EDM(), solver=Euler()),
        }
        panels[name] = {label: _measured(each, denoiser, noise, solution) for label, each in ladder.items()}
        for label, rows in panels[name].items():
            log(f"{name}  {label:<24}" + "".join(f"{error:>9.2g}" for _, error in rows))
    log("evaluations at most:        " + "".join(f"{n:>9}" for n in EVALUATIONS))
    figure = error_versus_nfe(panels)
    crossing = _crossing(panels["VP"]["+ EDM's σ(t) = t, s = 1"], panels["VP"]["the last with Euler"])
    figure.supxlabel(
        f"Below {crossing} evaluations Heun's method is worse than Euler's: a step costs two, so its steps are twice "
        "as long; its second order pays once steps are short.",
        fontsize=8,
        color=GREY,
    )
    return figure


def _blurred_digits() -> GaussianMixture:
    """Some of the digits, each with a Gaussian of width `BLUR` around it, so that paths have an end of their own."""
    x, _ = Digits("train").load().fetch(range(DIGITS))
    covariance = BLUR**2 * torch.eye(64, dtype=torch.float64)
    return GaussianMixture([1.0] * DIGITS, x.flatten(1).double(), covariance.expand(DIGITS, 64, 64))


def _measured(
    sampler: Sampler,
    denoiser: Denoiser,
    noise: Float[Tensor, "batch *event"],
    solution: Float[Tensor, "batch *event"],
) -> list[tuple[int, float]]:
    """Evaluations and the median distance to the converged solution, over √n."""
    rows = []
    for evaluations in EVALUATIONS:
        steps = evaluations if isinstance(sampler.solver, Euler) else (evaluations + 1) // 2
        run = replace(sampler, levels=replace(sampler.levels, num_steps=steps))  # type: ignore[call-arg]
        apart = (run.sample(denoiser, noise=noise) - solution).flatten(1)
        rows.append((run.nfe or evaluations, float(apart.norm(dim=1).median()) / math.sqrt(apart.shape[1])))
    return rows


def _crossing(second: Sequence[tuple[int, float]], first: Sequence[tuple[int, float]]) -> int:
    """The fewest evaluations from which on the second-order method is better."""
    better = [n for (n, error), (_, other) in zip(second, first, strict=True) if error < other]
    return min(better, default=second[-1][0])


def _preconditioning(seed: int, log: Log) -> Figure:
    """c_skip, |c_out| and c_in of three preconditionings over the whole range (Table 1)."""
    sigma = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), 200, dtype=torch.float64)
    kinds = {"VP": preconditioning.VP(), "VE": preconditioning.VE(), "EDM": preconditioning.EDM()}
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    titles = (
        "$c_{skip}$: how much of x is kept",
        "$|c_{out}|$: the factor of network errors",
        "$c_{in}$ × std of x: the size of inputs",
    )
    for axes, title, row in zip(figure.subplots(1, 3), titles, range(3), strict=True):
        plain(axes).set(xscale="log", xlabel="noise level σ", title=title)
        for i, (name, kind) in enumerate(kinds.items()):
            c = kind.coefficients(sigma, SIGMA_DATA)
            shown = (c.c_skip, c.c_out.abs(), c.c_in * (sigma.square() + SIGMA_DATA**2).sqrt())[row]
            axes.plot(sigma, shown.expand_as(sigma), color=COLOURS[i], linestyle=("--", ":", "-")[i], label=name)
            if row == 1:
                log(f"{name:<4} |c_out| at σ = {SIGMA_MAX:g}: {float(shown.expand_as(sigma)[-1]):.3g}")
        number_log_ticks(axes.xaxis)
        if row:
            axes.set_yscale("log")
        else:
            axes.legend(frameon=False)
    return figure


def _loss(seed: int, log: Log) -> Figure:
    """λ(σ) E‖D − y‖²/n of an untrained network under EDM's preconditioning, and of the exact denoiser (Fig. 5a)."""
    exact = _blurred_digits()
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(exact.weights, 1000, replacement=True, generator=generator)
    y = exact.means[component] + BLUR * torch.randn(1000, 64, generator=generator, dtype=torch.float64)
    sigmas = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), 40, dtype=torch.float64)
    weights = objective.EDMWeighting().weight(sigmas, exact.sigma_data)
    skip = preconditioning.EDM().coefficients(sigmas, exact.sigma_data).c_skip
    untrained, best = [], []
    for sigma, weight, kept in zip(sigmas.tolist(), weights.tolist(), skip.tolist(), strict=True):
        x = y + sigma * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        untrained.append(weight * float((kept * (x - exact.mean(sigma)) + exact.mean(sigma) - y).square().mean()))
        best.append(weight * float((exact(x, sigma) - y).square().mean()))
    figure = Figure(figsize=(6.8, 4.0), layout="constrained")
    axes = plain(figure.subplots())
    axes.plot(sigmas, untrained, color=GREY, linestyle="--", label="untrained, EDM's preconditioning")
    axes.plot(sigmas, best, **line_style(0), label="exact denoiser: no training gets below")
    where, density = density_of_log_sigma(objective.EDM().for_data(exact.sigma_data).noise)
    axes.fill_between(
        where,
        density / density.max(),
        color=SHADE,
        linewidth=0,
        zorder=0.5,
        label="density of ln σ in EDM's training, relative to its maximum",
    )
    axes.set(xscale="log", ylim=(0, 1.25), xlabel="noise level σ", ylabel="loss λ(σ) E‖D − y‖²/n")
    number_log_ticks(axes.xaxis)
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    gain = [1 - b / u for b, u in zip(best, untrained, strict=True)]
    log(f"most to learn at σ = {sigmas[int(np.argmax(gain))]:.2g} (σ_data {exact.sigma_data:.2g}): {max(gain):.0%}")
    return figure


def _churn(seed: int, log: Log) -> Figure:
    """Distance of samples to the data against S_churn, of a little trained network and the exact denoiser (Fig. 4)."""
    source = Toy("two_moons", num_samples=1000)
    dataset = source.load()
    points, _ = dataset.fetch(range(len(dataset)))
    model = Model.for_data(dataset, MLP(width=64, num_blocks=2), conditional=False, standardise=False)
    options = Options(
        images=60_000,
        batch_size=512,
        learning_rate=3e-3,
        rampup=3_000,
        average=HalfLife(half_life=3_000),
        seed=seed,
        validate_every=0,
        snapshot_every=0,
    )
    kinds: dict[str, Denoiser] = {
        "trained on 60,000 samples": Trainer(model, dataset, objective.EDM(), options).fit(progress=False).cpu(),
        "exact denoiser": ExactDataset(points),
    }
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    for axes, (title, denoiser) in zip(figure.subplots(1, 2, sharey=True), kinds.items(), strict=True):
        plain(axes).set(xlabel="$S_{churn}$", title=title, xscale="symlog")
        for i, steps in enumerate((9, 18, 64)):
            rows = [_distance(denoiser, steps, churn, seed, points) for churn in CHURNS]
            axes.plot(CHURNS, rows, **line_style(i), label=f"{2 * steps - 1} evaluations")
            log(f"{title:<26} {2 * steps - 1:>4} evaluations" + "".join(f"{row:>8.4f}" for row in rows))
        floor = _sliced(points[::2], points[1::2], seed)
        axes.axhline(floor, color=GREY, linewidth=0.8, linestyle="--", label="halves of the data")
        axes.set_ylim(bottom=0)
    log("S_churn" + " " * 36 + "".join(f"{churn:>8g}" for churn in CHURNS))
    figure.axes[0].set_ylabel("sliced Wasserstein distance to the data")
    figure.axes[1].legend(frameon=False, fontsize=9)
    return figure


def _distance(denoiser: Denoiser, steps: int, churn: float, seed: int, points: Float[Tensor, "count 2"]) -> float:
    sampler = Sampler(Karras(steps, SIGMA_MIN, SIGMA_MAX), churn=Churn(churn, 0.01, 10.0) if churn else Churn())
    return _sliced(sampler.sample(denoiser, range(seed, seed + 1000)), points, seed)


def _sliced(x: Float[Tensor, "left 2"], y: Float[Tensor, "right 2"], seed: int) -> float:
    """The mean over directions of the distance W₁ between projections."""
    angles: Float64[Tensor, "directions"] = torch.arange(32, dtype=torch.float64) * math.pi / 32
    directions = torch.stack([angles.cos(), angles.sin()])
    places = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ends = [(each.double() @ directions).quantile(places, dim=0) for each in (x, y)]
    return float((ends[0] - ends[1]).abs().mean())


FIGURES: Mapping[str, Callable[[int, Log], Any]] = {
    "schedules": _schedules,
    "trajectories": _trajectories,
    "errors": _errors,
    "preconditioning": _preconditioning,
    "loss": _loss,
    "churn": _churn,
}
"""The figures by name."""

NUMBERED = {"f2": "errors", "f3": "trajectories", "f4": "churn", "f5": "loss"}
"""The figures that are after one of the paper, by its number."""
