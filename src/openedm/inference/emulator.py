"""A simulator learned from simulations: q(y | u), from which any number of further simulations is drawn.

Simulations are few and a network that sees each of them many times learns them by heart. The likelihood is often the
simpler side of the problem (Papamakarios et al. 2019, arXiv 1805.07226): an ensemble of conditional mixtures of
Gaussians is fitted to it by maximum likelihood, each member stopped by simulations of its own that it does not see, and
the posterior's denoiser learns from fresh draws of it. Whether that helps is measured on simulations held out from
both (`fitting`).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture

NEAR = 1.0
"""Nats that a short trial may decide by: many Gaussians learn fast at first, few go further where they suffice."""

Progress = Callable[[str, float], None]
"""Told what is going on and which share of it is done."""


@dataclass(frozen=True)
class MixtureOptions(Choice):
    """How a conditional mixture is fitted.

    Args:
        members: of the ensemble.
        components: numbers of Gaussians to try; where there are several, one member of each is trained for
            `pilot_steps`, those that come within `NEAR` of the best for four times as many, at most `steps`, and the
            number with the highest held-out likelihood is taken.
        width, num_blocks: sizes of each member.
        steps: of Adam; the learning rate falls to zero as a half cosine.
        pilot_steps: of the trials.
        batch_size: rows a member and step.
        learning_rate: Adam's.
        folds: each member's held-out part is one of so many.
        validate_every: steps between two measurements of the held-out likelihood.
        stop_after: stop after so many of them without improvement of any member.

    Raises:
        ValueError: a count is out of its range.
    """

    members: int = 4
    components: tuple[int, ...] = (1, 8)
    width: int = 64
    num_blocks: int = 2
    steps: int = 5000
    pilot_steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 2e-3
    folds: int = 10
    validate_every: int = 100
    stop_after: int = 12

    def __post_init__(self) -> None:
        for name in ("members", "width", "num_blocks", "steps", "pilot_steps", "batch_size", "validate_every"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("folds", self.folds, max(2, self.members))
        checks.at_least("stop_after", self.stop_after, 1)
        checks.positive("learning_rate", self.learning_rate)
        if not self.components or min(self.components) < 1:
            raise ValueError(f"components must hold counts >= 1, got {self.components}")


@dataclass(frozen=True)
class FittedMixture:
    """An ensemble and how well it does.

    Attributes:
        mixture: the ensemble; each member with the averaged weights that did best on its held-out rows.
        components: the number of Gaussians that was chosen.
        log_prob: held-out ln q(y | u), in nats, averaged over members.
        steps: how many were taken.
    """

    mixture: ConditionalMixture
    components: int
    log_prob: float
    steps: int


def fit_mixture(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions = MixtureOptions(),
    *,
    seed: int = 0,
    held_out: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> FittedMixture:
    """Fit q(y | u) by maximum likelihood.

    Args:
        y, u: standardised rows.
        options: sizes and steps.
        seed: of weights, folds and order; the global generator is left alone.
        held_out: rows (y, u) that judge all members; None holds out a fold of the rows for each.
        progress: told the share of steps taken.

    Raises:
        FloatingPointError: the likelihood is not finite.
        ValueError: fewer rows than ten a fold.
    """
    if len(y) < 10 * options.folds:
        raise ValueError(f"rows must be at least {10 * options.folds}, ten a fold, got {len(y)}")
    if len(options.components) > 1:
        _, components = choose([(y, 0.0)], u, options, seed=seed)
    else:
        components = options.components[0]
    return _train(y, u, options, components, seed, held_out, options.steps, progress)


def choose(
    forms: Sequence[tuple[Float[Tensor, "rows dim"], float]],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    *,
    seed: int = 0,
) -> tuple[int, int]:
    """Which form of the data a mixture fits best, and with how many components: by trials of one member each.

    Args:
        forms: the data standardised in one way or another, each with its mean ln |dy/dx|.
        u: what the mixture is told.
        options: `components` are tried, for `pilot_steps`, and those that come close for up to four times as many.
        seed: as for `fit_mixture`.

    Returns:
        The number of the form, and of components.
    """
    alone = replace(options, members=1)

    def trial(form: int, count: int, steps: int) -> float:
        y, volume = forms[form]
        score = _train(y, u, alone, count, seed, None, steps, None).log_prob + volume
        return score if math.isfinite(score) else -math.inf

    short = {(i, k): trial(i, k, options.pilot_steps) for i in range(len(forms)) for k in options.components}
    form, best = max(short, key=lambda key: short[key])
    near = [k for k in options.components if short[form, k] > short[form, best] - NEAR]
    if len(near) == 1:
        return form, best
    long = {k: trial(form, k, min(4 * options.pilot_steps, options.steps)) for k in near}
    return form, max(long, key=lambda k: long[k])


def _train(
    y: Tensor,
    u: Tensor,
    options: MixtureOptions,
    components: int,
    seed: int,
    held_out: tuple[Tensor, Tensor] | None,
    steps: int,
    progress: Progress | None,
) -> FittedMixture:
    generator = torch.Generator().manual_seed(seed)
    training, held = _folds(len(y), options, generator) if held_out is None else (_everything(len(y), options), None)
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
    average, best = copy.deepcopy(mixture), copy.deepcopy(mixture)
    judge = _Judge(y, u, held, held_out, options.members)
    scores = judge(average)
    optimizer = torch.optim.AdamW(
        mixture.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    batches, waited, step = _batches(training, options.batch_size, generator), 0, 0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _rate(options, step, steps)
        rows = next(batches).to(y.device)
        loss = -mixture.member_log_prob(y[rows], u[rows]).mean(1).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(mixture.parameters(), 5.0 * options.members)
        optimizer.step()
        decay = min(0.995, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(mixture.parameters()), 1 - decay)
        if step % options.validate_every == 0 or step == steps:
            now = judge(average)
            better = now > scores
            waited = 0 if bool(better.any()) else waited + 1
            scores = torch.where(better, now, scores)
            _keep(best, average, better)
            if progress is not None:
                progress("emulator", step / steps)
            if waited >= options.stop_after:
                break
    if not bool(scores.isfinite().all()):
        raise FloatingPointError(f"the likelihood of held-out rows is not finite: {scores.tolist()}")
    return FittedMixture(best.eval().requires_grad_(False), components, float(scores.mean()), step)


class _Judge:
    """The held-out log-likelihood of each member."""

    def __init__(
        self, y: Tensor, u: Tensor, held: Tensor | None, held_out: tuple[Tensor, Tensor] | None, members: int
    ) -> None:
        if held_out is not None:
            self.y, self.u = (part.expand(members, *part.shape) for part in held_out)
        else:
            assert held is not None
            self.y, self.u = y[held], u[held]

    @torch.no_grad()
    def __call__(self, mixture: ConditionalMixture) -> Tensor:
        parts = zip(torch.split(self.y, 4096, 1), torch.split(self.u, 4096, 1), strict=True)
        return torch.cat([mixture.member_log_prob(y, u) for y, u in parts], 1).mean(1)


def _folds(rows: int, options: MixtureOptions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training and held-out rows of each member, (members, …)."""
    order = torch.randperm(rows, generator=generator)
    parts = [order[e :: options.folds] for e in range(options.members)]
    size = min(map(len, parts))
    held = torch.stack([part[:size] for part in parts])
    training = []
    for part in held:
        keep = torch.ones(rows, dtype=torch.bool)
        keep[part] = False
        training.append(keep.nonzero()[:, 0])
    return torch.stack(training), held


def _everything(rows: int, options: MixtureOptions) -> Tensor:
    return torch.arange(rows).expand(options.members, rows)


def _batches(training: Int[Tensor, "members rows"], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each member's batches, pass after pass, each in an order of its own."""
    members, rows = training.shape
    size = min(size, rows)
    while True:
        order = torch.stack([torch.randperm(rows, generator=generator) for _ in range(members)])
        shuffled = training.gather(1, order)
        for start in range(0, rows - size + 1, size):
            yield shuffled[:, start : start + size]


def _rate(options: MixtureOptions, step: int, steps: int) -> float:
    warm = min(step / max(1, min(200, steps // 10)), 1.0)
    return options.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


@torch.no_grad()
def _keep(best: ConditionalMixture, now: ConditionalMixture, better: Tensor) -> None:
    """Copy the weights of the members that have become better; every parameter has one row a member."""
    for kept, new in zip(best.parameters(), now.parameters(), strict=True):
        kept[better] = new[better]
