"""Whether to trust a posterior at one observation: what is known without the truth, as numbers and in one word."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from openedm.inference.disagreement import SPREAD
from openedm.inference.likeness import OUTSIDE, Likeness, Reference
from openedm.inference.shortfall import ENOUGH

__all__ = ["FEW", "FEWEST", "LEVEL", "Advice", "Assessment", "predicted"]

Advice = Literal["trust", "more simulations", "model does not fit"]

LEVEL = 0.01
"""Predictions that are less likely, after a correction for their number, do not fit."""

FEWEST = 200
"""With fewer data, half of which calibrate the distance, no p-value is below `LEVEL`."""

FEW_ROWS = 200
"""With fewer simulations in the box hardly anything is learned."""

FEW = 0.01
"""A learned likelihood of which fewer samples are effective is another distribution than the denoiser's."""

FEW_ALIKE = 0.1
"""A learned likelihood of which fewer samples are effective does not confirm the denoiser."""


def predicted(data: Float[Tensor, "draws ..."], x: Float[Tensor, "..."]) -> float:
    """The p-value of an observation among data simulated from posterior samples, by the distance of `Reference`.

    Args:
        data: the simulations; those that are not finite (beside what is absent in x) are left out.
        x: the observation.

    Raises:
        ValueError: data of another shape, or fewer than 200 that are finite.
    """
    data = data.cpu().double()
    if data.shape[1:] != x.shape:
        raise ValueError(f"simulator must give {(len(data), *x.shape)}, got {tuple(data.shape)}")
    absent = x.cpu().isnan()
    finite = data[data.masked_fill(absent, 0.0).flatten(1).isfinite().all(1)].masked_fill(absent, 0.0)
    if len(finite) < FEWEST:
        raise ValueError(
            f"simulator must give at least {FEWEST} data that are finite, got {len(finite)} of {len(data)}"
        )
    flat, half = finite.flatten(1), len(finite) // 2
    observed = x.cpu().double().masked_fill(absent, 0.0).flatten()[None]
    return Reference.of(flat[:half], flat[half:], vectors=True, own=False)(observed)[0].p_value


@dataclass(frozen=True)
class Assessment:
    """What speaks for and against a posterior at one observation.

    Attributes:
        likeness: of the observation and the simulations; None where the posterior does not know its simulations.
        shortfall: nats that are lost for want of simulations, on average over the prior; None where not estimated.
        dim: number of parameters.
        simulations: how many there were; None where not known.
        effective: share of the denoiser's samples that are effective when they are weighted to become prior × learned
            likelihood; None without one.
        predictive: the p-value of the observation among data simulated from posterior samples; None without.
        spread: the share of probability that members of the ensemble, of which the posterior is the mean, place
            elsewhere at this observation; None where it is no ensemble, or its densities are not known.
        region: the share of the prior in the box that `fit_sequentially` would cut around samples; None without prior.
    """

    likeness: Likeness | None
    shortfall: float | None
    dim: int
    simulations: int | None
    effective: float | None = None
    predictive: float | None = None
    spread: float | None = None
    region: float | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any], dim: int, likeness: Likeness | None, **found: float | None) -> "Assessment":
        """From the report of a fit."""
        return cls(likeness, report.get("shortfall"), dim, report.get("simulations"), **found)

    @property
    def needed(self) -> float | None:
        """A rough guess how many simulations would do; None where not estimated.

        Errors of a density fall as 1/√n, so that the spread asks for (spread / `SPREAD`)² times as many; what is lost
        falls as 1/n.
        """
        if self.simulations is None:
            return None
        if self.spread is not None and (self.spread > SPREAD or not self._lacking):
            return self.simulations * (self.spread / SPREAD) ** 2
        if self.shortfall is None:
            return None
        return self.simulations * max(0.0, self.shortfall) / (ENOUGH * self.dim)

    @property
    def advice(self) -> Advice:
        """The model does not fit where x is unlike all simulations, or predictions are unlike x. More simulations are
        needed where members of the ensemble disagree at x; without a learned likelihood, whose members learn from
        different simulations, or with one that is unlike the denoiser, also if more is lost for want of simulations, on
        average over the prior, than means and widths bear; and where nearly none of the samples agree with the learned
        likelihood. Else nothing that was
        looked at speaks against the posterior.
        """
        outside = self.likeness is not None and self.likeness.outside
        if outside or (self.predictive is not None and self.predictive < LEVEL):
            return "model does not fit"
        few = self.effective is not None and self.effective < FEW
        return "more simulations" if self._lacking or few else "trust"

    @property
    def _lacking(self) -> bool:
        """Whether simulations are too few, by what is known about this x, else about all."""
        lost = self.shortfall is not None and not self.shortfall <= ENOUGH * self.dim
        if self.spread is None or (self.shortfall is not None and not math.isfinite(self.shortfall)):
            return lost
        # Members of a denoiser learn from the same simulations: they agree on some of what these do not determine. A
        # likelihood unlike the denoiser says no more.
        alone = self.effective is None or self.effective < FEW_ALIKE
        return not self.spread <= SPREAD or (alone and lost)

    def __str__(self) -> str:
        """The advice and the numbers behind it, a line each; also which of them are not known."""
        lines: list[str] = [self.advice]
        if self.likeness is None:
            lines.append("x: not compared, the posterior does not know its simulations")
        else:
            p, ratio = self.likeness
            lines.append(
                f"x: {ratio:.2g} of the distance of the farthest simulation (above {OUTSIDE:.2g} is outside), {p:.2g} "
                "of simulations are as far"
            )
        unknown = "what is lost for want of more was not estimated"
        known = unknown if self.shortfall is None else self._gains(max(0.0, self.shortfall))
        lines.append(f"simulations: {known}")
        if self.spread is not None:
            text = f"members: one places {self.spread:.1%} of the probability elsewhere than their mean"
            text += f" (above {SPREAD:.1%} is much)"
            many = self.needed is not None and self.spread > SPREAD
            lines.append(f"{text}; some {self.needed:,.0f} simulations may do" if many else text)
        if self.region is not None and self.needed is not None and self.advice == "more simulations":
            lines.append(
                f"this x alone: the box that fit_sequentially cuts around samples holds {self.region:.2g} of the "
                f"prior, some {max(FEW_ROWS, self.needed * self.region):,.0f} simulations there are as many near x"
            )
        if self.effective is not None:
            lines.append(f"learned likelihood: {self.effective:.0%} of samples are effective (below {FEW:.0%} is few)")
        if self.predictive is not None:
            lines.append(f"predictions: p = {self.predictive:.2g} (below {LEVEL:.2g} does not fit)")
        return "\n".join(lines)

    def _gains(self, lost: float) -> str:
        """What is lost, and what more simulations would gain of it."""
        if not math.isfinite(lost):
            return "more are needed: some held-out simulations have no density at all"
        text = (
            f"{lost:.2g} nats are lost for want of more, {ENOUGH * self.dim:.2g} are bearable; twice as many would "
            f"gain about {lost / 2:.2g}, ten times as many {0.9 * lost:.2g}"
        )
        few = self.needed is not None and lost > ENOUGH * self.dim and (self.spread is None or self.spread <= SPREAD)
        return f"{text}; some {self.needed:,.0f} may do" if few else text
