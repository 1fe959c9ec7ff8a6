"""A simulator learned from simulations: q(y | u), from which any number of further simulations is drawn.

Simulations are few, and a network that is trained on each many times memorises them. The likelihood is often simpler
than the posterior (Papamakarios et al. 2019, arXiv 1805.07226): an ensemble of conditional mixtures of Gaussians is
fitted to it by maximum likelihood, each member stopped by simulations of its own that it is not trained on, and the
posterior's denoiser learns from fresh draws of it. Simulations held out from both show whether that helps (`judge`).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openedm.inference.maps import Columns, DataMap
from openedm.inference.prepare import Prepared
from openedm.inference.settings import CLOSE, MixtureOptions
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture
from openedm.optimisation import BestLoss, minimise

__all__ = ["FittedMixture", "LearnedSimulator", "choose_form", "fit_mixture", "learn_simulator"]

CHUNK_ROWS = 16_384
"""Rows that a mixture evaluates at a time where draws are made or whitened."""


@dataclass(frozen=True)
class FittedMixture:
    """An ensemble and how well it does.

    Attributes:
        mixture: the ensemble; each member with the averaged weights that did best on its held-out rows.
        log_prob: held-out ln q(y | u), in nats, averaged over members.
        steps: how many were taken.
    """

    mixture: ConditionalMixture
    log_prob: float
    steps: int


class LearnedSimulator(NamedTuple):
    """A fitted emulator, and draws from it.

    Attributes:
        fitted: q, of what `target` makes of x.
        target: the map from the kept columns of x to what q models; None means y.
        data: x → y, also for the denoisers that learn from the draws.
        u, y: draws of prior and emulator; without a prior θ is one of those simulated.
    """

    fitted: FittedMixture
    target: Columns | None
    data: DataMap
    u: Float[Tensor, "draws d"]
    y: Float[Tensor, "draws y"]


def learn_simulator(data: Prepared, progress: Callable[[float], object]) -> LearnedSimulator:
    """Fit an emulator to the simulations that are trained on, and draw from it.

    Args:
        data: the simulations; x are vectors, and there are settings of an emulator.
        progress: called with the share of the fit that is done.

    Raises:
        FloatingPointError, ValueError: as `fit_mixture`.
    """
    settings, seed = data.settings, data.seed
    options = settings.emulator
    assert options is not None
    theta, x, maps = data.theta[data.training], data.x[data.training], data.data
    if len(maps.keep) > settings.reduce_above:
        maps = maps.reduced(x, data.u[data.training])
    kept, inputs = maps.jittered(x, seed), data.parameters.inputs_of(theta)
    target, components = _choose_target(maps, kept, inputs, options, seed)
    y = maps.of_kept(kept) if target is None else target.forward(kept).float()
    fitted = fit_mixture(y, inputs, options, components, seed=seed, progress=progress)
    u, drawn = _draw(data, fitted.mixture, y)
    if target is not None:
        if set(target.kinds) != {"identity"}:
            maps = replace(maps, columns=target)
        drawn = maps.of_kept(target.inverse(drawn))
    return LearnedSimulator(fitted, target, maps, u, drawn)


def fit_mixture(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    components: int,
    *,
    seed: int = 0,
    held_out: tuple[Float[Tensor, "judged dim"], Float[Tensor, "judged condition"]] | None = None,
    progress: Callable[[float], object] = lambda share: None,
) -> FittedMixture:
    """Fit q(y | u) by maximum likelihood.

    Args:
        y, u: standardised rows.
        options: sizes and steps.
        components: number of Gaussians of each member.
        seed: of weights, folds and order; the global generator is left alone.
        held_out: rows (y, u) that judge all members; None holds out a fold of the rows for each.
        progress: called with the share of steps taken.

    Raises:
        FloatingPointError: the likelihood is not finite.
        ValueError: fewer rows than ten a fold.
    """
    if len(y) < 10 * options.folds:
        raise ValueError(f"rows must be at least {10 * options.folds}, ten a fold, got {len(y)}")
    generator = torch.Generator().manual_seed(seed)
    if held_out is None:
        training, held = _folds(len(y), options, generator)
        held_out = y[held], u[held]
    else:
        training = torch.arange(len(y)).expand(options.members, len(y))
        held_out = held_out[0].expand(options.members, -1, -1), held_out[1].expand(options.members, -1, -1)
    mixture = _initial(y, u, options, components, seed)
    average, kept = copy.deepcopy(mixture), copy.deepcopy(mixture)
    best = BestLoss(-_log_prob(average, *held_out))
    optimizer = torch.optim.AdamW(mixture.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    batches = _batches(training, options.batch_size, generator)

    def gradient(_: int) -> Tensor:
        rows = next(batches).to(y.device)
        loss = -mixture.member_log_prob(y[rows], u[rows]).mean(1).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    steps, clip_norm = range(1, options.steps + 1), 5.0 * options.members
    for step in minimise(gradient, optimizer, steps=steps, learning_rate=options.learning_rate_at, clip_norm=clip_norm):
        decay = min(0.995, (1 + step.number) / (10 + step.number))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(mixture.parameters()), 1 - decay)
        if step.number % options.validate_every == 0 or step.number == options.steps:
            _copy_members(average, kept, best.update(-_log_prob(average, *held_out)))
            progress(step.number / options.steps)
            if best.stalled(options.stop_after):
                break
    if not bool(best.lowest.isfinite().all()):
        raise FloatingPointError(f"the likelihood of held-out rows is not finite: {(-best.lowest).tolist()}")
    return FittedMixture(kept.eval().requires_grad_(False), float((-best.lowest).mean()), step.number)


def choose_form(
    forms: Sequence[tuple[Float[Tensor, "rows dim"], float]],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    *,
    seed: int = 0,
) -> tuple[int, int]:
    """Which form of the data a mixture fits best, and with how many components: by trials of one member each.

    Args:
        forms: the data standardised in one way or another, each with its mean ln |dy/dx|.
        u: the condition.
        options: `components` are tried, for `pilot_steps`, and those that come close for up to four times as many.
        seed: as for `fit_mixture`.

    Returns:
        The number of the form, and of components.
    """

    def trial(form: int, count: int, steps: int) -> float:
        y, volume = forms[form]
        score = fit_mixture(y, u, replace(options, members=1, steps=steps), count, seed=seed).log_prob + volume
        return score if math.isfinite(score) else -math.inf

    short = {(i, k): trial(i, k, options.pilot_steps) for i in range(len(forms)) for k in options.components}
    form, best = max(short, key=lambda key: short[key])
    close = [k for k in options.components if short[form, k] > short[form, best] - CLOSE]
    if len(close) == 1:
        return form, best
    long = {k: trial(form, k, min(4 * options.pilot_steps, options.steps)) for k in close}
    return form, max(long, key=lambda k: long[k])


def _choose_target(
    maps: DataMap, kept: Float[Tensor, "n kept"], inputs: Float[Tensor, "n d"], options: MixtureOptions, seed: int
) -> tuple[Columns | None, int]:
    """What the emulator models, and with how many components: x warped, as it is, or its logarithms, by trials."""
    if maps.reduction is not None:
        return None, choose_form([(maps.of_kept(kept), 0.0)], inputs, options, seed=seed)[1]
    all_columns = [maps.columns, Columns.of(kept, warp=False), Columns.logarithms(kept)]
    columns = list({each.kinds: each for each in all_columns}.values())
    forms = [(each.forward(kept).float(), float(each.log_det(kept).mean())) for each in columns]
    form, components = choose_form(forms, inputs, options, seed=seed)
    return columns[form], components


def _draw(
    data: Prepared, mixture: ConditionalMixture, y: Float[Tensor, "n y"]
) -> tuple[Float[Tensor, "draws d"], Float[Tensor, "draws y"]]:
    """Draws (u, y) of prior and emulator, hardly further out than the simulations' y."""
    generator, count = torch.Generator().manual_seed(data.seed), data.settings.pool
    if data.prior is None:
        rows = torch.randint(len(data.training), (count,), generator=generator)
        theta = data.theta[data.training[rows]]
    else:
        theta = data.prior.sample(count, data.seed + 1)
    chunks = [mixture.sample(data.parameters.inputs_of(part), generator) for part in torch.split(theta, CHUNK_ROWS)]
    low, high = y.min(0).values, y.max(0).values
    margin = 0.1 * (high - low)
    drawn = torch.minimum(torch.maximum(torch.cat(chunks), low - margin), high + margin)
    return data.parameters.forward(theta).float(), drawn


def _initial(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    components: int,
    seed: int,
) -> ConditionalMixture:
    """A mixture that starts at the least-squares fit."""
    with seeded(seed):
        mixture = ConditionalMixture(
            u.shape[1],
            y.shape[1],
            members=options.members,
            components=components,
            width=options.width,
            num_blocks=options.num_blocks,
        ).to(y.device)
    mixture.fit_linear(y, u)
    return mixture


@torch.no_grad()
def _log_prob(
    mixture: ConditionalMixture, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
) -> Float[Tensor, " members"]:
    """The mean log-likelihood of each member."""
    chunks = zip(torch.split(y, 4096, 1), torch.split(u, 4096, 1), strict=True)
    return torch.cat([mixture.member_log_prob(*chunk) for chunk in chunks], 1).mean(1)


def _folds(
    rows: int, options: MixtureOptions, generator: torch.Generator
) -> tuple[Int[Tensor, "members most"], Int[Tensor, "members rest"]]:
    """Training and held-out rows of each member."""
    order = torch.randperm(rows, generator=generator)
    parts = [order[e :: options.folds] for e in range(options.members)]
    size = min(map(len, parts))
    held = torch.stack([part[:size] for part in parts])
    keep = torch.ones(options.members, rows, dtype=torch.bool).scatter(1, held, False)
    return keep.nonzero()[:, 1].reshape(options.members, -1), held


def _batches(training: Int[Tensor, "members rows"], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each member's batches, pass after pass, each in an order of its own."""
    members, rows = training.shape
    size = min(size, rows)
    while True:
        order = torch.stack([torch.randperm(rows, generator=generator) for _ in range(members)])
        shuffled = training.gather(1, order)
        for start in range(0, rows - size + 1, size):
            yield shuffled[:, start : start + size]


@torch.no_grad()
def _copy_members(source: ConditionalMixture, target: ConditionalMixture, which: Bool[Tensor, " members"]) -> None:
    """Copy the weights of some members; every parameter has one row a member."""
    for new, old in zip(source.parameters(), target.parameters(), strict=True):
        old[which] = new[which]
