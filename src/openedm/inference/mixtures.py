"""Conditional mixtures fitted by maximum likelihood, each member stopped by rows that it is not trained on."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openedm.inference.settings import MixtureOptions
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture
from openedm.networks.structured import PLACED, REACHING, build_mixture
from openedm.optimisation import BestLoss, minimise

__all__ = ["FittedMixture", "fit_mixture", "folds"]

CURVE_VALUES, FEWEST_ROWS, CURVE_RATE = 2048, 32, 2.5
"""Numbers of a member's batch and its fewest rows, and the factor of the learning rate, where columns are a curve."""

PLACED_VALUES, FEWEST_PLACED = 8192, 8
"""The same of series, images and volumes."""

FAST = 10.0
"""The factor of the learning rate of parameters that are `fast`."""

MOST_SKIPPED = 0.1
"""The share of steps that may be left out because their gradient is not finite."""


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


def fit_mixture(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    components: int,
    *,
    structure: str = "full",
    curve: bool = False,
    shape: Sequence[int] | None = None,
    reach: int | None = None,
    seed: int = 0,
    held_out: tuple[Float[Tensor, "judged dim"], Float[Tensor, "judged condition"]] | None = None,
    progress: Callable[[float], object] = lambda share: None,
) -> FittedMixture:
    """Fit q(y | u) by maximum likelihood.

    Args:
        y, u: standardised rows.
        options: sizes and steps.
        components: number of Gaussians of each member.
        structure: of the noise, one of `STRUCTURES`.
        curve: whether columns share one function of their place. Batches then have fewer rows, of 2048 numbers at most
            but 32 rows at least, and the learning rate is larger.
        shape: of the data whose values are y, for "placed" and "placed_heavy"; None means one channel of a series.
        reach: of the noise, of `REACHING`; None for that of all columns.
        seed: of weights, folds and order; the global generator is left alone.
        held_out: rows (y, u) that judge all members; None holds out a fold of the rows for each.
        progress: called with the share of steps taken.

    Raises:
        FloatingPointError: the likelihood is not finite, or its gradient in more than a tenth of the steps.
        ValueError: fewer rows than ten a fold.
    """
    if len(y) < 10 * options.folds:
        raise ValueError(f"rows must be at least {10 * options.folds}, ten a fold, got {len(y)}")
    generator = torch.Generator().manual_seed(seed)
    if held_out is None:
        training, held = folds(len(y), options, generator)
        held_out = y[held], u[held]
    else:
        training = torch.arange(len(y)).expand(options.members, len(y))
        held_out = held_out[0].expand(options.members, -1, -1), held_out[1].expand(options.members, -1, -1)
    if curve:
        placed = structure in PLACED
        fewest, values = (FEWEST_PLACED, PLACED_VALUES) if placed else (FEWEST_ROWS, CURVE_VALUES)
        size = min(options.batch_size, max(fewest, values // y.shape[1]))
        options = replace(options, batch_size=size, learning_rate=CURVE_RATE * options.learning_rate)
    more: dict[str, Any] = {} if shape is None else {"shape": shape}
    more |= {} if reach is None else {"reach": reach}
    mixture = _initial(y, u, training, options, components, structure, curve, seed, more)
    average, kept = copy.deepcopy(mixture), copy.deepcopy(mixture)
    best = BestLoss(-_log_prob(average, *held_out))
    optimizer = torch.optim.AdamW(_groups(mixture), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    batches = _batches(training, options.batch_size, generator)

    def gradient(_: int) -> Tensor:
        rows = next(batches).to(y.device)
        loss = -mixture.member_log_prob(y[rows], u[rows]).mean(1).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    skipped, steps, clip_norm = 0, range(1, options.steps + 1), 5.0 * options.members
    for step in minimise(gradient, optimizer, steps=steps, learning_rate=options.learning_rate_at, clip_norm=clip_norm):
        skipped += not step.taken
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
    if skipped > MOST_SKIPPED * step.number:
        raise FloatingPointError(
            f"the likelihood of {structure!r} cannot be learned: {skipped} of {step.number} steps were not taken, "
            "because their loss or its gradient was not finite"
        )
    return FittedMixture(kept.eval().requires_grad_(False), float((-best.lowest).mean()), step.number)


def _groups(mixture: ConditionalMixture) -> list[dict[str, Any]]:
    """The parameters, and those that are learned faster."""
    named = dict(mixture.named_parameters())
    fast = [named.pop(name) for name in mixture.fast]
    groups: list[dict[str, Any]] = [{"params": list(named.values())}]
    return [*groups, {"params": fast, "lr_factor": FAST}] if fast else groups


def _initial(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    training: Int[Tensor, "members most"],
    options: MixtureOptions,
    components: int,
    structure: str,
    curve: bool,
    seed: int,
    more: Mapping[str, Any],
) -> ConditionalMixture:
    """A mixture that starts at the least-squares fit; members that have a factor, to the rows that they are trained on.

    The factor of all rows would know the held-out ones by heart, and seem better than what is learned.
    """
    with seeded(seed):
        mixture = build_mixture(
            structure,
            u.shape[1],
            y.shape[1],
            members=options.members,
            components=components,
            width=options.width,
            num_blocks=options.num_blocks,
            curve=curve,
            **more,
        ).to(y.device)
    if structure not in ("full", *REACHING):  # the limits and values of these are to be known
        mixture.fit_linear(y, u)
        return mixture
    for number, rows in enumerate(training):
        mixture.member(number).fit_linear(y[rows], u[rows])
    return mixture


@torch.no_grad()
def _log_prob(
    mixture: ConditionalMixture, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
) -> Float[Tensor, " members"]:
    """The mean log-likelihood of each member."""
    chunks = zip(torch.split(y, 4096, 1), torch.split(u, 4096, 1), strict=True)
    return torch.cat([mixture.member_log_prob(*chunk) for chunk in chunks], 1).mean(1)


def folds(
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
