"""`fit(theta, x, prior)`: from simulations to a posterior, in one call.

1. θ is made unbounded and standardised, x standardised; what is wrong with them is said.
2. Some simulations are held out. They stop every training and judge the result; nothing is trained on them.
3. Vectors: a learned simulator q(y | θ) is fitted (`emulator`), a conditional Gaussian to its draws, linear or by a
   network, and a denoiser of what that leaves, again from draws: so many that nothing is learnt by heart.
4. A denoiser is trained on the simulations themselves, too. The candidate whose held-out ln q(θ | x) is the highest
   is taken; those of 3 also with samples refined by prior × q(y | θ) (`refinement`).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from openedm.data import Pairs
from openedm.denoiser import Denoiser
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.inference.emulator import MixtureOptions, Progress, fit_mixture
from openedm.inference.emulator import choose as choose_form
from openedm.inference.maps import DataMap
from openedm.inference.posterior import Values
from openedm.inference.preparing import LEAST, Prepared, checked, prepare
from openedm.inference.prior_conversion import as_prior
from openedm.inference.refinement import choose, evidence
from openedm.inference.settings import Settings
from openedm.inference.trained import Average, DenoiserPosterior, Parts
from openedm.inference.transforms import Columns
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture
from openedm.preconditioning import EDM
from openedm.training import Model, Observer, Trainer, TrainingProgress

T = TypeVar("T")
FAR = 10.0
"""Draws of the emulator that the conditional Gaussian puts further away are left out."""


@dataclass(frozen=True)
class _Work:
    """What all parts of a fit share."""

    settings: Settings
    seed: int
    run: Path | None
    resume: bool
    observers: tuple[Observer, ...]
    progress: Progress | None


def fit(
    theta: Values,
    x: Values,
    prior: Any = None,
    *,
    seed: int = 0,
    settings: Settings | None = None,
    names: Sequence[str] | None = None,
    on_nonfinite: Literal["error", "drop"] = "error",
    run: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    progress: Progress | None = None,
) -> DenoiserPosterior:
    """The posterior p(θ | x) from simulations.

    Args:
        theta: parameters (n, d), drawn from the prior.
        x: what the simulator gave for each, (n, *x_shape): vectors, or series (channels, time), images (c, h, w).
        prior: of θ: a `Prior`, a torch distribution, a list of one-dimensional ones, a pair (low, high) of a box's
            ends, or None. Samples lie inside its support, and an emulator draws its θ from it.
        seed: of everything random; the same seed and machine give the same posterior.
        settings: how to fit; None means `Settings.of`, the rule.
        names: of the parameters; None means the prior's.
        on_nonfinite: "error" refuses simulations with NaN or infinities and says which, "drop" leaves them out. The
            posterior is then conditional on the simulator's success.
        run: folder for the trainer's checkpoints; None writes none.
        resume: go on from the checkpoints in `run`, which the same call has written before.
        observers: of the trainers, for logs and trackers.
        progress: told what is being done, and the share of it that is.

    Returns:
        A posterior, in evaluation mode; `.report` says what was tried and chosen.

    Raises:
        FloatingPointError: a training came to numbers that are not finite.
        TypeError, ValueError: arguments that do not fit, too few simulations, values that are not finite, parameters
            outside the prior's support, or that are constant.

    Warns:
        UserWarning: columns of x that are constant or equal to others, which are left out.
    """
    checks.integer("seed", seed)
    checks.at_least("seed", seed, 0)
    checks.one_of("on_nonfinite", on_nonfinite, ("error", "drop"))
    if resume and run is None:
        raise ValueError("run must be given to resume")
    known = as_prior(prior, names)
    parameters, values = checked(theta, x, known, on_nonfinite)
    shape = tuple(values.shape[1:])
    chosen = Settings.of(len(parameters), parameters.shape[1], shape) if settings is None else settings
    if chosen.emulator is not None and values.ndim > 2:
        raise ValueError(f"settings.emulator must be None for x of shape {shape}: it needs vectors")
    data = prepare(parameters, values, known, chosen.held_out, seed)
    work = _Work(chosen, seed, None if run is None else Path(run), resume, tuple(observers), progress)
    candidates: dict[str, DenoiserPosterior] = {}
    report: dict[str, Any] = {"settings": to_config(chosen), "simulations": len(parameters), "seed": seed}
    if chosen.emulator is not None:
        candidates |= _timed(report, "emulator", lambda: _from_emulator(data, work, names, report))
    if chosen.compare:
        candidates["simulations"] = _timed(report, "simulations", lambda: _from_simulations(data, work, names, report))
    return _timed(report, "judging", lambda: _best(candidates, data, chosen, report, progress))


def _from_emulator(
    data: Prepared, work: _Work, names: Sequence[str] | None, report: dict[str, Any]
) -> dict[str, DenoiserPosterior]:
    """The candidates that learn from draws of an emulator."""
    settings = work.settings
    assert settings.emulator is not None
    theta, x = data.theta[data.training], data.x[data.training]
    maps = data.data
    if len(maps.keep) > settings.reduce_above:
        maps = maps.reduced(x, data.parameters.forward(theta))
    kept, inputs = maps.jittered(x, work.seed), data.parameters.inputs_of(theta)
    target, components = _target(maps, kept, inputs, settings.emulator, work.seed)
    y = maps.of_kept(kept) if target is None else target.forward(kept).float()
    chosen = replace(settings.emulator, components=(components,))
    fitted = fit_mixture(y, inputs, chosen, seed=work.seed, progress=work.progress)
    report["emulated"] = {
        "components": components,
        "columns": None if target is None else list(target.kinds),
        "log_prob": fitted.log_prob,
        "steps": fitted.steps,
    }
    u, drawn = _pool(data, fitted.mixture, y, work)
    if target is not None:
        if set(target.kinds) != {"identity"}:
            maps = replace(maps, columns=target)
        drawn = maps.of_kept(target.inverse(drawn))
    true_u = data.parameters.forward(data.theta[data.held]).float()
    true_y = maps.forward(data.x[data.held])
    found = {}
    for name in settings.bases:
        if name == "linear":
            base = _linear_base(u[: 20 * len(theta)], drawn[: 20 * len(theta)], work.seed)
        else:
            base = _base(u, drawn, settings.base, work, (true_u, true_y))
        r, near = _whiten(base, u, drawn)
        judged, near_too = _whiten(base, true_u, true_y)
        pairs, held_out = Pairs(r[near], drawn[near]), Pairs(judged[near_too], true_y[near_too])
        denoiser = _denoiser(f"emulated-{name}", pairs, held_out, settings.images, 0, work)
        parts = Parts(denoiser, data.parameters, maps, base, fitted.mixture, target)
        found[f"emulator, {name}"] = DenoiserPosterior(parts, prior=data.prior, names=names, report=report)
    return found


def _linear_base(u: Tensor, y: Tensor, seed: int) -> ConditionalMixture:
    """The least-squares fit of u to y, with one covariance of what it leaves."""
    with seeded(seed):
        base = ConditionalMixture(y.shape[1], u.shape[1], width=1, num_blocks=1)
    base.fit_linear(u, y)
    return base.eval().requires_grad_(False)


def _target(
    maps: DataMap, kept: Tensor, inputs: Tensor, options: MixtureOptions, seed: int
) -> tuple[Columns | None, int]:
    """How the emulator is to see the data, bent or as they are, and its number of components: what fits best."""
    if maps.reduction is not None:
        return None, choose_form([(maps.of_kept(kept), 0.0)], inputs, options, seed=seed)[1]
    forms_of = [maps.columns, Columns.of(kept, bend=False), Columns.logarithms(kept)]
    columns = list({form.kinds: form for form in forms_of}.values())
    forms = [(c.forward(kept).float(), float(c.log_det(kept).mean())) for c in columns]
    form, components = choose_form(forms, inputs, options, seed=seed)
    return columns[form], components


def _pool(data: Prepared, mixture: ConditionalMixture, y: Tensor, work: _Work) -> tuple[Tensor, Tensor]:
    """Draws (u, y) of prior and emulator; without a prior θ is one of those simulated."""
    size = work.settings.pool
    generator = torch.Generator().manual_seed(work.seed)
    if data.prior is None:
        rows = torch.randint(len(data.training), (size,), generator=generator)
        theta = data.theta[data.training[rows]]
    else:
        theta = data.prior.sample(size, work.seed + 1)
    parts = [mixture.sample(data.parameters.inputs_of(part), generator) for part in torch.split(theta, 16_384)]
    low, high = y.min(0).values, y.max(0).values
    margin = 0.1 * (high - low)
    drawn = torch.minimum(torch.maximum(torch.cat(parts), low - margin), high + margin)
    return data.parameters.forward(theta).float(), drawn


def _base(
    u: Tensor, y: Tensor, options: MixtureOptions, work: _Work, held_out: tuple[Tensor, Tensor]
) -> ConditionalMixture:
    """The conditional Gaussian q(u | y) that posteriors are whitened by."""
    return fit_mixture(
        u, y, options, seed=work.seed, held_out=held_out, progress=_named(work.progress, "Gaussian")
    ).mixture


def _named(progress: Progress | None, name: str) -> Progress | None:
    return None if progress is None else lambda _, share: progress(name, share)


@torch.no_grad()
def _whiten(base: ConditionalMixture, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """r = P(y)(u − μ(y)), and which rows are near."""
    rows = []
    for ours, theirs in zip(torch.split(u, 16_384), torch.split(y, 16_384), strict=True):
        _, means, factors, _ = base.parameters_of(theirs[None])
        rows.append(torch.matmul(factors[0, :, 0], (ours - means[0, :, 0])[..., None])[..., 0])
    r = torch.cat(rows)
    near = (r.abs() < FAR).all(1)
    if int(near.sum()) < LEAST // 10:
        raise FloatingPointError("the conditional Gaussian does not fit the simulations: all are far away from it")
    return r, near


def _from_simulations(
    data: Prepared, work: _Work, names: Sequence[str] | None, report: dict[str, Any]
) -> DenoiserPosterior:
    """The candidate that learns from the simulations themselves."""
    settings, maps = work.settings, data.data
    u, y = data.parameters.forward(data.theta).float(), maps.forward(data.x)
    base = None
    if maps.vector and len(data.training) > 20 * y.shape[1]:
        base = _linear_base(u[data.training], y[data.training], work.seed)
        u, _ = _whiten(base, u, y)
    pairs = [Pairs(u[rows], y[rows]) for rows in (data.training, data.held)]
    images = min(settings.passes * len(data.training), settings.images)
    denoiser = _denoiser("simulations", pairs[0], pairs[1], images, 12, work)
    parts = Parts(denoiser, data.parameters, maps, base)
    return DenoiserPosterior(parts, prior=data.prior, names=names, report=report)


def _denoiser(name: str, pairs: Pairs, held_out: Pairs, images: int, stop_after: int, work: _Work) -> Denoiser:
    """Train the members and average them."""
    settings, trained = work.settings, []
    for member in range(settings.members):
        seed = work.seed + 1000 * member
        validate = max(settings.batch_size * 50, images // 40 // settings.batch_size * settings.batch_size)
        options = settings.options(
            images, seed=seed, validate=validate, stop_after=stop_after, samples=min(len(held_out), 2000)
        )
        model = Model(
            network=settings.network,
            preconditioning=EDM(),
            sigma_data=1.0,
            event_shape=pairs.event_shape,
            condition_shape=pairs.condition_shape,
            images=False,
        )
        run = None if work.run is None else work.run / f"{name}-{member}"
        watching = (*work.observers, _Watch(name, images, work.progress)) if work.progress else work.observers
        trainer = Trainer(model, pairs, settings.objective, options, run=run, validation=held_out, observers=watching)
        if work.resume and run is not None and run.exists():
            trainer.resume()
        try:
            trained.append(trainer.fit().cpu().eval().requires_grad_(False))
        except KeyboardInterrupt:
            if run is not None:
                trainer.save()
            raise
    return trained[0] if len(trained) == 1 else Average(trained)


class _Watch(Observer):
    """Reports the progress of a training."""

    def __init__(self, name: str, images: int, progress: Progress | None) -> None:
        self.name, self.images, self.progress = name, images, progress

    def on_progress(self, progress: TrainingProgress) -> None:
        if self.progress is not None and progress.step % 20 == 0:
            self.progress(self.name, min(1.0, progress.images / self.images))


def _best(
    candidates: dict[str, DenoiserPosterior],
    data: Prepared,
    settings: Settings,
    report: dict[str, Any],
    progress: Progress | None,
) -> DenoiserPosterior:
    """The candidate with the highest held-out density, refined where that helps."""
    rows = data.held[: settings.judged]
    theta, x = data.theta[rows], data.x[rows]
    scores = {name: posterior.log_prob(theta[:, None], x)[:, 0] for name, posterior in candidates.items()}
    means = {name: float(score.mean()) for name, score in scores.items()}
    report["held_out_log_prob"] = means
    finite = {name: mean if math.isfinite(mean) else -math.inf for name, mean in means.items()}
    name = max(finite, key=lambda name: finite[name])
    emulated = max((n for n in finite if n != "simulations"), key=lambda n: finite[n], default=None)
    if emulated is not None and settings.refinement is not None and data.prior is not None:
        gains, share = _refined_gains(candidates[emulated], theta, x, scores[name], progress)
        report["held_out_gain_of_refinement"] = sum(gains) / len(gains)
        if choose(gains):
            refinement = settings.refinement.for_share(share)
            report["chosen"] = f"{emulated}, refined by {refinement.num_steps} steps"
            return candidates[emulated]._with(replace(candidates[emulated].parts, refinement=refinement))
    report["chosen"] = name
    return candidates[name]


def _refined_gains(
    posterior: DenoiserPosterior, theta: Tensor, x: Tensor, scores: Tensor, progress: Progress | None
) -> tuple[list[float], float]:
    """For each held-out simulation ln π(θ | x) − ln q(θ | x), π being prior × learned likelihood, normalised.

    And the median share of samples that are effective when q is weighted to become π.
    """
    draws = 64
    samples = posterior.sample(x, draws, seed=1)
    proposal = posterior.log_prob(samples, x)
    seen = posterior.parts.emulated(x)
    gains, shares = [], []
    for i in range(len(x)):
        total, share = evidence(posterior.joint_log_prob(samples[i], seen[i : i + 1]), proposal[i])
        value = float(posterior.joint_log_prob(theta[i : i + 1], seen[i : i + 1])[0])
        gains.append(value - total - float(scores[i]))
        shares.append(share)
        if progress is not None:
            progress("judging", (i + 1) / len(x))
    return gains, float(torch.tensor(shares).median())


def _timed(report: dict[str, Any], name: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    report.setdefault("seconds", {})[name] = round(time.perf_counter() - started, 1)
    return result
