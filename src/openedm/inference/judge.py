"""The choice among candidates: the highest ln q(θ | x) on simulations that none of them was trained on.

Where the best emulator's prior × learned likelihood, normalised, exceeds that by more than its standard error, samples
of its posterior are refined towards it (`refine`).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.inference.candidates import Candidates, FitProgress
from openedm.inference.prepare import Prepared
from openedm.inference.refine import evidence, is_certain_gain
from openedm.inference.trained import DenoiserPosterior, Parts

__all__ = ["Verdict", "judge"]

NUM_DRAWS = 64
"""Posterior samples for each held-out simulation, by which prior × learned likelihood is normalised."""


@dataclass(frozen=True)
class Verdict:
    """Which candidate was chosen, and why.

    Attributes:
        parts: those of the candidate, refined where that helps.
        chosen: its name, with how it is refined.
        log_probs: mean held-out ln q(θ | x) of each candidate, in nats.
        gain: what refinement adds to that of the best; None where it was not tried.
        seconds: how long judging took.
    """

    parts: Parts
    chosen: str
    log_probs: Mapping[str, float]
    gain: float | None
    seconds: float


def judge(candidates: Candidates, data: Prepared, progress: FitProgress) -> Verdict:
    """Compare the candidates on held-out simulations."""
    started, settings = time.perf_counter(), data.settings
    rows = data.held_out[: settings.judged]
    theta, x = data.theta[rows], data.x[rows]
    scores = {name: each.log_prob(theta[:, None], x)[:, 0] for name, each in candidates.posteriors.items()}
    means = {name: float(score.mean()) for name, score in scores.items()}
    ranks = {name: mean if math.isfinite(mean) else -math.inf for name, mean in means.items()}
    chosen = max(ranks, key=lambda name: ranks[name])
    posterior, gain = candidates.posteriors[chosen], None
    emulated = max((name for name in ranks if name != "simulations"), key=lambda name: ranks[name], default=None)
    if emulated is not None and settings.refinement is not None and data.prior is not None:
        gains, share = _gains_of_refinement(candidates.posteriors[emulated], theta, x, scores[chosen], progress)
        gain = sum(gains) / len(gains)
        if is_certain_gain(gains):
            refinement = settings.refinement.for_share(share)
            posterior = candidates.posteriors[emulated].with_refinement(refinement)
            chosen = f"{emulated}, refined by {refinement.num_steps} steps"
    return Verdict(posterior.parts, chosen, means, gain, round(time.perf_counter() - started, 1))


def _gains_of_refinement(
    posterior: DenoiserPosterior,
    theta: Float[Tensor, "n d"],
    x: Float[Tensor, "n *event"],
    scores: Float[Tensor, " n"],
    progress: FitProgress,
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
