"""Figures that explain diffusion in one and two dimensions, where the exact denoiser is known in closed form."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from torch import Tensor

from openedm import schedules
from openedm.data import Dataset, Source, Toy, measure
from openedm.denoiser import Denoiser, FunctionDenoiser
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground import checks
from openedm.levels import Explicit, Karras, Levels, LogLinear
from openedm.networks import MLP
from openedm.objective import EDM
from openedm.plots.losses import loss_per_sigma
from openedm.plots.sampling import Run, error_versus_nfe, trajectories_1d, trajectories_2d
from openedm.sampling import RK4, Euler, Heun, Midpoint, Ralston, RungeKutta, Sampler, State, initial_noise
from openedm.training import HalfLife, Model, Observer, Options, Trainer, Validation, ValidationLoss

__all__ = ["FIGURES", "noising", "toy_figures"]

FIGURES = ("toy-1d.png", "toy-2d.png", "curvature.png", "error-versus-nfe.png", "loss-per-sigma.png")
SOLVERS: tuple[RungeKutta, ...] = (Euler(), Heun(), Midpoint(), Ralston(), RK4())
EVALUATIONS = (8, 16, 32, 64, 128, 256)
POINTS = 400

Log = Callable[[str], None]


def toy_figures(
    data: Source = Toy("two_moons", num_samples=2000),
    data_1d: Source = Toy("two_modes"),
    sampler: Sampler = Sampler(levels=Karras(num_steps=64)),
    *,
    images: int = 600_000,
    sigma_shown: float = 3.0,
    seed: int = 0,
    log: Log = lambda line: None,
    observer: Callable[[Options], Observer] = lambda options: Observer(),
) -> dict[str, Figure]:
    """Train a small network on toy data, and draw it beside the exact denoiser; the figures by the names in `FIGURES`.

    Args:
        data: data in two dimensions. For a Toy that is a mixture of Gaussians the exact denoiser is the mixture's, else
            that of the finite set of samples.
        data_1d: data in one dimension, likewise.
        sampler: schedule, scaling, levels and solver of the paths.
        images: the number of samples that each network is trained on.
        sigma_shown: the one-dimensional figure shows noise levels up to this.
        seed: of the networks, the training and the noise.
        log: called with each line of the numbers behind the figures.
        observer: makes the observer of a training.

    Raises:
        ValueError: the data have other dimensions, the sampler adds noise, or its levels are not a rule for any number
            of steps.
    """
    _check(sampler, sigma_shown)
    # All runs of all denoisers have the same levels.
    sampler = replace(sampler, levels=sampler.levels.for_data(Denoiser.sigma_data))
    options = _options(images, seed)
    flat, line = _subject("data", data, 2), _subject("data_1d", data_1d, 1)
    figures = {"curvature.png": _curvature(line, sampler), "error-versus-nfe.png": _solvers(line, sampler, seed, log)}
    training = _Training(options, log, observer)
    denoiser, _ = training.run("data_1d", line)
    runs = _three_runs(line, denoiser, sampler, _shuffled(_even_noise(24), seed), log)
    figures["toy-1d.png"] = trajectories_1d(runs, line.density.log_prob, sigma_shown=[sigma_shown], lines=24)
    denoiser, losses = training.run("data", flat)
    noise = torch.cat([_circle(), initial_noise(range(seed, seed + POINTS), (2,))])
    runs = _three_runs(flat, denoiser, sampler, noise, log)
    figures["toy-2d.png"] = trajectories_2d(runs, sigma_data=measure(flat.dataset).std)
    figures["loss-per-sigma.png"] = loss_per_sigma(losses, EDM().for_data(denoiser.sigma_data))
    return {name: figures[name] for name in FIGURES}


class Subject(NamedTuple):
    """Toy data with what is known about it exactly.

    Attributes:
        name: in words.
        dataset: the samples.
        exact: the denoiser that training aims at.
        density: a mixture with the data's density at every σ > 0; of many single samples, a part.
    """

    name: str
    dataset: Dataset
    exact: Denoiser
    density: GaussianMixture


def _check(sampler: Sampler, sigma_shown: float) -> None:
    if sampler.churn.s_churn > 0:
        raise ValueError(
            f"sampler.churn.s_churn must be 0, got {sampler.churn.s_churn}: the paths are those of the ODE"
        )
    if not any(field.name == "num_steps" for field in fields(sampler.levels)):
        raise ValueError(f"sampler.levels must be a rule for any number of steps, got {sampler.levels}")
    checks.positive("sigma_shown", sigma_shown)


def _options(images: int, seed: int) -> Options:
    checks.at_least("images", images, 1)
    return Options(
        images=images,
        batch_size=512,
        learning_rate=3e-3,
        rampup=images // 20,
        average=HalfLife(half_life=images / 20),
        seed=seed,
        validate_every=max(images // 50, 1),
        snapshot_every=0,
    )


def _subject(argument: str, source: Source, dimensions: int) -> Subject:
    dataset = source.load()
    if dataset.event_shape != (dimensions,):
        raise ValueError(f"{argument} must be vectors of {dimensions}, got {dataset.describe()} from {source}")
    mixture = source.mixture() if isinstance(source, Toy) else None
    name = source.name if isinstance(source, Toy) else dataset.describe()
    if mixture is not None:
        covariance = mixture.std**2 * torch.eye(dimensions, dtype=torch.float64)
        density = GaussianMixture(mixture.weights, mixture.means, covariance.expand(len(mixture.weights), -1, -1))
        return Subject(name, dataset, _from_noise(density), density)
    x, _ = dataset.fetch(range(len(dataset)))
    points = x[:: math.ceil(len(x) / 500)]
    density = GaussianMixture(torch.ones(len(points)), points, torch.zeros(len(points), dimensions, dimensions))
    return Subject(name, dataset, _from_noise(ExactDataset(x)), density)


def _from_noise(exact: Denoiser) -> Denoiser:
    """An exact denoiser whose runs start from the noise itself, as those of a trained network beside it do."""
    return FunctionDenoiser(exact, exact.event_shape, sigma_data=exact.sigma_data, mean=0.0)


class _Losses(Observer):
    def __init__(self) -> None:
        self.found: dict[int, ValidationLoss] = {}

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        self.found[images] = loss


class _Training(NamedTuple):
    options: Options
    log: Log
    observer: Callable[[Options], Observer]

    def run(self, argument: str, subject: Subject) -> tuple[Denoiser, dict[str, ValidationLoss]]:
        """Train on the subject; returns the denoiser, and its losses early, late and beside the exact denoiser's."""
        self.log(f"training on {argument}: {subject.name}, {subject.dataset.describe()}")
        # In the units of the data, so that losses are those of the exact denoiser at the same noise levels.
        network = MLP(width=64, num_blocks=2)
        model = Model.for_data(subject.dataset, network, conditional=False, standardise=False)
        options, losses, objective = self.options, _Losses(), EDM()
        trainer = Trainer(model, subject.dataset, objective, options, observers=[losses, self.observer(options)])
        denoiser = trainer.fit(progress=False).cpu()
        host = torch.device("cpu")
        validation = Validation(
            subject.dataset,
            objective,
            sigma_data=model.sigma_data,
            device=host,
            seed=options.seed,
            tails=True,
            held_out=False,
        )
        exact = validation.measure(subject.exact)
        moments = sorted(losses.found)
        last = losses.found[moments[-1]]
        self.log(f"{last.name} {last.loss:.4f}; the exact denoiser's, on the same samples and noise: {exact.loss:.4f}")
        shown = dict.fromkeys([moments[0], moments[len(moments) // 10], moments[-1]])
        return denoiser, {**{f"{n:,} images": losses.found[n] for n in shown}, "exact denoiser": exact}


def _run(sampler: Sampler, denoiser: Denoiser, noise: Float[Tensor, "batch features"]) -> Run:
    with torch.no_grad():
        return Run(sampler, list(sampler.steps(denoiser, noise=noise)))


def noising(sampler: Sampler, clean: Float[Tensor, "batch features"], noise: Float[Tensor, "batch features"]) -> Run:
    """The pairs that training sees, x(t) = s (y + σ n), at the levels of the sampler and in its order: y comes last.

    The probability-flow ODE follows the average of these lines through a point: dx/dσ = E[n | x] at s = 1.
    """
    clean, noise = clean.double(), noise.double()
    sigmas = sampler.levels.sigmas()
    scaling = sampler.schedule.scaling if sampler.scaling is None else sampler.scaling
    rows = zip(sigmas.tolist(), sampler.schedule.time(sigmas).tolist(), scaling.scale(sigmas).tolist(), strict=True)
    states = [State(i, t, sigma, s, s * (clean + sigma * noise), clean) for i, (sigma, t, s) in enumerate(rows)]
    return Run(sampler, [*states, State(len(states), 0.0, 0.0, 1.0, clean, clean)])


def _three_runs(
    subject: Subject, trained: Denoiser, sampler: Sampler, noise: Float[Tensor, "batch features"], log: Log
) -> dict[str, Run]:
    """Data and noise in pairs, and the paths back from the same noise; logs how far apart the two ends are."""
    count = len(subject.dataset)
    clean, _ = subject.dataset.fetch([i % count for i in range(len(noise))])
    exact, learned = (_run(sampler, denoiser, noise) for denoiser in (subject.exact, trained))
    apart = float((exact.states[-1].x - learned.states[-1].x).norm(dim=1).median())
    log(f"samples from the same noise, exact and trained: {apart:.3f} apart (median of {len(noise)})")
    return {
        "data + noise": noising(sampler, clean, noise),
        "exact flow back": exact,
        "learned flow back": learned,
    }


def _curvature(subject: Subject, sampler: Sampler) -> Figure:
    """The exact paths under the three schedules of the paper, and under the sampler's if that is another."""
    fine = Sampler(levels=Karras(num_steps=128))
    samplers = {
        "VP": replace(fine, schedule=schedules.VP()),
        "VE": replace(fine, schedule=schedules.VE()),
        "EDM": replace(fine, schedule=schedules.EDM()),
    }
    mine = replace(fine, schedule=sampler.schedule, scaling=sampler.scaling)
    if mine not in samplers.values():
        scaling = "" if sampler.scaling is None else f", {type(sampler.scaling).__name__}"
        samplers[f"yours: {type(sampler.schedule).__name__}{scaling}"] = mine
    noise = _even_noise(16)
    runs = {title: _run(each, subject.exact, noise) for title, each in samplers.items()}
    return trajectories_1d(runs, subject.density.log_prob, sigma_shown=(25.0, 1.0))


def _even_noise(count: int) -> Float64[Tensor, "count 1"]:
    """Quantiles of the unit normal: noise that covers it evenly."""
    quantiles: Tensor = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return quantiles[:, None]


def _shuffled(rows: Float64[Tensor, "count 1"], seed: int) -> Float64[Tensor, "count 1"]:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def _circle(count: int = 6, radius: float = 1.2) -> Float[Tensor, "count 2"]:
    """Noise of a typical size in evenly spread directions, for the samples that keep their colour."""
    angle = 2 * math.pi * (torch.arange(count) + 0.25) / count
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _solvers(subject: Subject, sampler: Sampler, seed: int, log: Log) -> Figure:
    """Error against evaluations for a Gaussian, whose paths are known in closed form, and for the data."""
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 0.01]]])
    noise = initial_noise(range(seed, seed + 64), (2,)).double()
    high, low = _with_steps(sampler.levels, 2).sigmas().tolist()
    lowest = replace(sampler, levels=Explicit((low,)))
    solved = gaussian.ode_solution(noise * high, high, low)
    solved = lowest.sample(gaussian, noise=solved / low)
    converged = replace(sampler, levels=LogLinear(512, low, high), solver=RK4())
    line_noise = noise[:, :1]
    panels = {
        "a Gaussian, against the closed form": _errors(sampler, gaussian, noise, solved),
        f"{subject.name.replace('_', ' ')}, against 512 steps of RK4": _errors(
            sampler, subject.exact, line_noise, converged.sample(subject.exact, noise=line_noise)
        ),
    }
    for title, errors in panels.items():
        log(_table(title, errors))
    return error_versus_nfe(panels, orders=sorted({solver.order for solver in SOLVERS}))


def _errors(
    sampler: Sampler,
    denoiser: Denoiser,
    noise: Float[Tensor, "batch features"],
    solution: Float[Tensor, "batch features"],
) -> dict[str, list[tuple[int, float]]]:
    """For each solver: evaluations, at most so many as `EVALUATIONS` says, and the median distance to `solution`."""
    errors: dict[str, list[tuple[int, float]]] = {}
    for solver in SOLVERS:
        rows = errors[type(solver).__name__] = []
        for evaluations in EVALUATIONS:
            steps = 1 + (evaluations - 1) // len(solver.tableau.b)
            run = replace(sampler, levels=_with_steps(sampler.levels, steps), solver=solver)
            distance = (run.sample(denoiser, noise=noise) - solution).norm(dim=1)
            rows.append((solver.evaluations(steps), float(distance.median())))
    return errors


def _with_steps(levels: Levels, steps: int) -> Levels:
    return replace(levels, num_steps=steps)  # type: ignore[call-arg]


def _table(title: str, errors: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """The errors, with the order measured between the last two numbers of steps."""
    lines = [f"median error, {title}", f"{'NFE at most':<12}" + "".join(f"{n:>10}" for n in EVALUATIONS) + "   order"]
    for name, rows in errors.items():
        (before, error), (after, smaller) = rows[-2:]
        order = math.log(error / smaller) / math.log((after - 1) / (before - 1)) if smaller > 0 < error else math.nan
        lines.append(f"{name:<12}" + "".join(f"{e:>10.1e}" for _, e in rows) + f"{order:>8.2f}")
    return "\n".join(lines)
