"""Candidate posteriors: what can be trained for a set of simulations, and how.

* On the simulations themselves: a denoiser of u, or of what a least-squares fit leaves of u; and that fit alone, which
  is exact for linear Gaussian simulators of many parameters.
* On draws of a learned simulator q(y | θ), for vectors (`emulator`): whitened by a conditional Gaussian, linear or
  given by a network, with a denoiser of what that leaves. Fresh draws cannot be memorised.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openedm import preconditioning
from openedm.data import Pairs
from openedm.denoiser import Denoiser
from openedm.ground.progress import Progress
from openedm.inference.emulator import CHUNK_ROWS, LearnedSimulator, draw_simulations
from openedm.inference.mixtures import fit_mixture
from openedm.inference.prepare import MIN_SIMULATIONS, Prepared
from openedm.inference.trained import Average, Parts
from openedm.networks import ConditionalMLP
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture
from openedm.training import Model, Observer, Trainer, TrainingProgress, list_checkpoints

__all__ = ["Job", "least_squares", "linear_base", "train_on_draws", "train_on_simulations"]

MAX_WHITENED = 10.0
"""Draws of the emulator that the conditional Gaussian puts further away are left out."""

PATIENCE = 12
"""Measurements of the held-out loss without improvement that end a training on the simulations themselves."""


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


def train_on_simulations(data: Prepared, job: Job, name: str, base: ConditionalMixture | None) -> Parts:
    """A denoiser that learns from the simulations themselves: of u, or of what a conditional Gaussian leaves of it."""
    u, y = data.u.float(), data.data.forward(data.x)
    nan = data.data.absence is not None
    r = u if base is None else _whiten(base, u, y)[0]
    training, held_out = (Pairs(r[rows], y[rows], allow_nan=nan) for rows in (data.training, data.held_out))
    images = data.settings.passes * len(data.training)
    denoiser, model = _train(name.replace(", ", "-"), training, held_out, images, PATIENCE, data, job)
    return Parts(denoiser, data.parameters, data.data, base, model=model)


def train_on_draws(simulator: LearnedSimulator, base: str, data: Prepared, job: Job) -> Parts:
    """A denoiser that learns from draws of the emulator, whitened by one of `settings.bases`."""
    settings = data.settings
    u, y = draw_simulations(simulator, data)
    true_u, true_y = data.u[data.held_out].float(), simulator.data.forward(data.x[data.held_out])
    if base == "linear":
        rows = 20 * len(data.training)
        gaussian = linear_base(u[:rows], y[:rows], data.seed)
    else:
        progress = partial(job.progress, "Gaussian")
        fitted = fit_mixture(u, y, settings.base, 1, seed=data.seed, held_out=(true_u, true_y), progress=progress)
        gaussian = fitted.mixture
    r, near = _whiten(gaussian, u, y)
    true_r, true_near = _whiten(gaussian, true_u, true_y)
    training, held_out = Pairs(r[near], y[near]), Pairs(true_r[true_near], true_y[true_near])
    denoiser, model = _train(f"emulated-{base}", training, held_out, settings.images, 0, data, job)
    emulator = simulator.density
    return Parts(denoiser, data.parameters, simulator.data, gaussian, emulator, simulator.target, model=model)


def linear_base(u: Float[Tensor, "n d"], y: Float[Tensor, "n y"], seed: int) -> ConditionalMixture:
    """The least-squares fit of u to y, with one covariance of what it leaves."""
    with seeded(seed):
        base = ConditionalMixture(y.shape[1], u.shape[1], width=1, num_blocks=1)
    base.fit_linear(u, y)
    return base.eval().requires_grad_(False)


def least_squares(data: Prepared, base: ConditionalMixture) -> Parts:
    """The conditional Gaussian alone: the denoiser of what it leaves is x / (1 + σ²), by an untrained network."""
    model = Model(
        network=ConditionalMLP(width=8, num_blocks=1),
        preconditioning=preconditioning.EDM(),
        sigma_data=1.0,
        event_shape=(data.u.shape[1],),
        condition_shape=(base.condition_dim,),
        images=False,
    )
    return Parts(model.build(data.seed).eval().requires_grad_(False), data.parameters, data.data, base, model=model)


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
        network=settings.network if stop_after else settings.drawn_network,
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
        if job.resume and run is not None and list_checkpoints(run):  # none, if a kill came before the first
            trainer.resume()
        try:
            members.append(trainer.fit(progress=False).cpu().eval().requires_grad_(False))
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
