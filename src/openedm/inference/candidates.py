"""Candidate posteriors: what is tried for a set of simulations, how each is trained, and which one is chosen.

* On the simulations themselves: a denoiser of u; for vectors, where there are enough, another one of what a
  least-squares fit leaves of u. Where x follows θ by a curve, such a fit spoils what is easy to learn without.
* On draws of a learned simulator q(y | θ), for vectors (`emulator`): whitened by a conditional Gaussian, linear or
  given by a network, with a denoiser of what that leaves. Fresh draws cannot be memorised.

The choice is the highest ln q(θ | x) on simulations that none was trained on. Where the best emulator's prior × learned
likelihood, normalised, exceeds that by more than its standard error, samples of its posterior are refined towards it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openedm import preconditioning
from openedm.data import Pairs
from openedm.denoiser import Denoiser
from openedm.ground.progress import Progress
from openedm.inference.emulator import CHUNK_ROWS, LearnedSimulator, fit_mixture, learn_simulator
from openedm.inference.prepare import MIN_SIMULATIONS, Prepared
from openedm.inference.refine import evidence
from openedm.inference.shortfall import Shortfall
from openedm.inference.trained import Average, DenoiserPosterior, Parts
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture
from openedm.training import Model, Observer, Trainer, TrainingProgress

__all__ = ["Candidates", "Job", "Verdict", "is_certain_gain", "judge", "train_candidates"]

DIRECT = "simulations"
"""The name of candidates that learn from the simulations themselves, or its beginning."""

MAX_WHITENED = 10.0
"""Draws of the emulator that the conditional Gaussian puts further away are left out."""

NUM_DRAWS = 64
"""Posterior samples for each held-out simulation, by which prior × learned likelihood is normalised."""


@dataclass(frozen=True)
class Job:
    """What all trainings of a fit share.

    Attributes:
        run: folder for the trainer's checkpoints; None writes none.
        resume: whether trainings continue from the checkpoints there.
        observers: of the trainers.
        progress: of the fit.
    """

    run: Path | None
    resume: bool
    observers: tuple[Observer, ...]
    progress: Progress


class Candidates(NamedTuple):
    """The posteriors that were trained.

    Attributes:
        posteriors: by name; those that learned from the simulations themselves begin with "simulations".
        simulator: what the others learned from; None without.
        seconds: how long each stage took.
    """

    posteriors: Mapping[str, DenoiserPosterior]
    simulator: LearnedSimulator | None
    seconds: Mapping[str, float]


def train_candidates(data: Prepared, job: Job) -> Candidates:
    """Train everything that the settings ask for."""
    settings, simulator = data.settings, None
    parts: dict[str, Parts] = {}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    if settings.emulator is not None:
        simulator = learn_simulator(data, partial(job.progress, "emulator"))
        parts |= {f"emulator, {base}": _from_simulator(simulator, base, data, job) for base in settings.bases}
        seconds["emulator"] = round(time.perf_counter() - started, 1)
    if settings.compare:
        started = time.perf_counter()
        parts |= _from_simulations(data, job)
        seconds["simulations"] = round(time.perf_counter() - started, 1)
    posteriors = {name: DenoiserPosterior(each, prior=data.prior, names=data.names) for name, each in parts.items()}
    return Candidates(posteriors, simulator, seconds)


@dataclass(frozen=True)
class Verdict:
    """Which candidate was chosen, and why.

    Attributes:
        parts: those of the candidate, refined where that helps.
        chosen: its name, with how it is refined.
        log_probs: mean held-out ln q(θ | x) of each candidate, in nats.
        gain: what refinement adds to that of the best; None where it was not tried.
        shortfall: what the chosen one, before refinement, loses for want of simulations.
        seconds: how long judging took.
    """

    parts: Parts
    chosen: str
    log_probs: Mapping[str, float]
    gain: float | None
    shortfall: Shortfall
    seconds: float


def judge(candidates: Candidates, data: Prepared, progress: Progress) -> Verdict:
    """Compare the candidates on held-out simulations."""
    started, settings = time.perf_counter(), data.settings
    rows = data.held_out[: settings.judged]
    theta, x = data.theta[rows], data.x[rows]
    scores = {name: each.log_prob(theta[:, None], x)[:, 0] for name, each in candidates.posteriors.items()}
    means = {name: float(score.mean()) for name, score in scores.items()}
    ranks = {name: mean if math.isfinite(mean) else -math.inf for name, mean in means.items()}
    chosen = chosen_plain = max(ranks, key=lambda name: ranks[name])
    posterior, gain = candidates.posteriors[chosen], None
    emulated = max((name for name in ranks if not name.startswith(DIRECT)), key=lambda name: ranks[name], default=None)
    if emulated is not None and settings.refinement is not None and data.prior is not None:
        gains, share = _gains_of_refinement(candidates.posteriors[emulated], theta, x, scores[chosen], progress)
        gain = sum(gains) / len(gains)
        if is_certain_gain(gains):
            refinement = settings.refinement.for_share(share)
            posterior, chosen_plain = candidates.posteriors[emulated].with_refinement(refinement), emulated
            chosen = f"{emulated}, refined by {refinement.num_steps} steps"
    shortfall = _shortfall(posterior.plain(), scores[chosen_plain], data)
    return Verdict(posterior.parts, chosen, means, gain, shortfall, round(time.perf_counter() - started, 1))


def _shortfall(posterior: DenoiserPosterior, held_out: Float[Tensor, " judged"], data: Prepared) -> Shortfall:
    """By as many simulations that were trained on, from the same part of all."""
    last = int(data.held_out[: len(held_out)].max())
    rows = data.training[data.training <= last]
    rows = rows if len(rows) > len(held_out) else data.training
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(held_out), len(rows))).long()]
    trained = posterior.log_prob(data.theta[rows, None], data.x[rows])[:, 0]
    return Shortfall.of(trained, held_out, data.theta.shape[1], len(data.theta))


def _from_simulations(data: Prepared, job: Job) -> dict[str, Parts]:
    """Denoisers that learn from the simulations themselves: of u, and for vectors of what a linear fit leaves of it."""
    u, y = data.u.float(), data.data.forward(data.x)
    bases: dict[str, ConditionalMixture | None] = {DIRECT: None}
    if data.data.vector and "linear" in data.settings.bases and len(data.training) > 20 * y.shape[1]:
        bases[f"{DIRECT}, linear"] = _linear_base(u[data.training], y[data.training], data.seed)
    nan, parts = data.data.absence is not None, {}
    images = min(data.settings.passes * len(data.training), data.settings.images // len(bases))
    for name, base in bases.items():
        r = u if base is None else _whiten(base, u, y)[0]
        training, held_out = (Pairs(r[rows], y[rows], allow_nan=nan) for rows in (data.training, data.held_out))
        denoiser, model = _train(name.replace(", ", "-"), training, held_out, images, 12, data, job)
        parts[name] = Parts(denoiser, data.parameters, data.data, base, model=model)
    return parts


def _from_simulator(simulator: LearnedSimulator, base: str, data: Prepared, job: Job) -> Parts:
    """A denoiser that learns from draws of the emulator, whitened by one of `settings.bases`."""
    u, y, settings = simulator.u, simulator.y, data.settings
    true_u, true_y = data.u[data.held_out].float(), simulator.data.forward(data.x[data.held_out])
    if base == "linear":
        rows = 20 * len(data.training)
        gaussian = _linear_base(u[:rows], y[:rows], data.seed)
    else:
        progress = partial(job.progress, "Gaussian")
        fitted = fit_mixture(u, y, settings.base, 1, seed=data.seed, held_out=(true_u, true_y), progress=progress)
        gaussian = fitted.mixture
    r, near = _whiten(gaussian, u, y)
    true_r, true_near = _whiten(gaussian, true_u, true_y)
    training, held_out = Pairs(r[near], y[near]), Pairs(true_r[true_near], true_y[true_near])
    denoiser, model = _train(f"emulated-{base}", training, held_out, settings.images, 0, data, job)
    emulator = simulator.fitted.mixture
    return Parts(denoiser, data.parameters, simulator.data, gaussian, emulator, simulator.target, model=model)


def _linear_base(u: Float[Tensor, "n d"], y: Float[Tensor, "n y"], seed: int) -> ConditionalMixture:
    """The least-squares fit of u to y, with one covariance of what it leaves."""
    with seeded(seed):
        base = ConditionalMixture(y.shape[1], u.shape[1], width=1, num_blocks=1)
    base.fit_linear(u, y)
    return base.eval().requires_grad_(False)


@torch.no_grad()
def _whiten(
    base: ConditionalMixture, u: Float[Tensor, "n d"], y: Float[Tensor, "n y"]
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, " n"]]:
    """r = P(y)(u − μ(y)), and which rows are not far away."""
    chunks = []
    for u_chunk, y_chunk in zip(torch.split(u, CHUNK_ROWS), torch.split(y, CHUNK_ROWS), strict=True):
        _, means, factors, _ = base.parameters_of(y_chunk[None])
        chunks.append(torch.matmul(factors[0, :, 0], (u_chunk - means[0, :, 0])[..., None])[..., 0])
    r = torch.cat(chunks)
    near = (r.abs() < MAX_WHITENED).all(1)
    if int(near.sum()) < MIN_SIMULATIONS // 10:
        raise FloatingPointError("the conditional Gaussian does not fit the simulations: all are far away from it")
    return r, near


def _train(
    name: str, training: Pairs, held_out: Pairs, images: int, stop_after: int, data: Prepared, job: Job
) -> tuple[Denoiser, Model]:
    """Train `settings.members` denoisers of the first of each pair given the second, and average them."""
    settings = data.settings
    model = Model(
        network=settings.network,
        preconditioning=preconditioning.EDM(),
        sigma_data=1.0,
        event_shape=training.event_shape,
        condition_shape=training.condition_shape,
        images=False,
    )
    observers, members = (*job.observers, _Watch(name, images, job.progress)), []
    for member in range(settings.members):
        options = settings.options(
            images,
            len(training),
            seed=data.seed + 1000 * member,
            stop_after=stop_after,
            samples=min(len(held_out), 2000),
        )
        run = None if job.run is None else job.run / f"{name}-{member}"
        trainer = Trainer(
            model, training, settings.objective, options, run=run, validation=held_out, observers=observers
        )
        if job.resume and run is not None and run.exists():
            trainer.resume()
        try:
            members.append(trainer.fit().cpu().eval().requires_grad_(False))
        except KeyboardInterrupt:
            if run is not None:
                trainer.save()
            raise
    return Average.of(members), model


class _Watch(Observer):
    """Reports how far a training is."""

    def __init__(self, name: str, images: int, progress: Progress) -> None:
        self.name, self.images, self.progress = name, images, progress

    def on_progress(self, progress: TrainingProgress) -> None:
        if progress.step % 20 == 0:
            self.progress(self.name, min(1.0, progress.images / self.images))


def _gains_of_refinement(
    posterior: DenoiserPosterior,
    theta: Float[Tensor, "n d"],
    x: Float[Tensor, "n *event"],
    scores: Float[Tensor, " n"],
    progress: Progress,
) -> tuple[Sequence[float], float]:
    """For each held-out simulation ln π(θ | x) − ln q(θ | x), π being prior × learned likelihood, normalised.

    And the median share of samples that are effective when q is weighted to become π.
    """
    samples = posterior.sample(x, NUM_DRAWS, seed=1)
    proposal = posterior.log_prob(samples, x)
    gains, shares = [], []
    for i in range(len(x)):
        target = posterior.learned_target(x[i : i + 1])
        total, share = evidence(target.log_prob(samples[i]), proposal[i])
        gains.append(float(target.log_prob(theta[i : i + 1])[0]) - total - float(scores[i]))
        shares.append(share)
        progress("judging", (i + 1) / len(x))
    return gains, float(torch.tensor(shares).median())


def is_certain_gain(gains: Sequence[float]) -> bool:
    """Whether a mean gain in held-out log-density is positive by more than its standard error."""
    values = torch.tensor([g for g in gains if math.isfinite(g)], dtype=torch.float64)
    if len(values) < 0.9 * len(gains) or len(values) < 2:
        return False
    return float(values.mean()) > float(values.std() / math.sqrt(len(values)))
