"""Consistency tuning: a network that jumps from any noise level to the data   (Geng et al. 2024, arXiv 2406.14548).

A consistency function f(x; σ) maps every point of a path of the probability-flow ODE to its end at σ = 0. For two
levels r < t of one path, f(x_t; t) = f(x_r; r), and f(x; 0) = x. Training minimises

    E[λ(t) d(f(x_t; t), f⁻(x_r; r))],   x_t = y + t n,   d(a, b) = √(‖a − b‖²/n + c²) − c,

with f⁻ the present network without gradient and with the same dropout mask, and r/t going to 1 in stages:

    r/t = max(0, 1 − m(t)/q^a),   m(t) = 1 + k/(1 + e^{b t}),   a = `first`, …, `last`.

| pairs | x_r |
|---|---|
| "data" | y + r n, the same noise: right on average, as t − r goes to 0 |
| "teacher" | x_t + (r − t) (x_t − D(x_t; t))/t: an Euler step with the denoiser of the start, guided or not |

Where r = 0 the target is x_r itself: the boundary f(x; 0) = x. At a = 0 all r are 0, and training on pairs from data is
that of a denoiser, with another distance.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.levels import EDM_SIGMA_DATA
from openedm.objective.denoising import EDMWeighting, LogNormal, NoiseDistribution, Objective, Weighting

__all__ = ["ConsistencyTuning"]


@dataclass(frozen=True)
class ConsistencyTuning(Objective):
    """The objective of a consistency function f(x; σ), which needs one or two evaluations a sample.

    Training starts from a denoiser (`openedm distill`, or `Trainer(…, init=…)`), or from data alone with `first=0`.

    Args:
        noise: p(t). A wider one than EDM's, as high levels decide about the first jump.
        weighting: λ(t).
        stratified: as for every objective.
        learned_uncertainty: must be False, since u(σ) is derived for squared errors.
        pairs: "data": x_t and x_r have the same y and noise. "teacher": x_r is a step of the ODE from x_t with the
            denoiser that training starts from, one more evaluation a sample.
        guidance: weight w ≥ 0 of classifier-free guidance of the teacher, so that f needs none; 1 is none. Other
            weights require pairs="teacher", and a teacher that was trained with label_dropout.
        q: factor > 1 by which 1 − r/t becomes smaller from stage to stage.
        first: exponent a ≥ 0 of the first stage; 0 trains a denoiser first.
        last: exponent of the last stage, at least `first`. The stages have equal parts of a run's images.
        k: k ≥ 0, by which steps at low levels are longer.
        b: b > 0, per unit of σ for σ_data = 0.5.
        huber: c > 0, for σ_data = 0.5: differences far above it, a root mean square over the dimensions, have a
            gradient that does not depend on their size.

    Raises:
        ValueError: a value is out of its range, or guidance is given without a teacher.

    >>> stages = ConsistencyTuning(first=1, last=8)
    >>> t = torch.tensor([0.1, 80.0], dtype=torch.float64)
    >>> [stages.target_levels(t, 0.5, progress).round(decimals=2).tolist() for progress in (0.0, 0.99)]
    [[0.0, 40.0], [0.1, 79.69]]
    """

    trains_consistency: ClassVar[bool] = True

    noise: NoiseDistribution = LogNormal(p_std=2.0)
    weighting: Weighting = EDMWeighting()
    pairs: Literal["data", "teacher"] = "data"
    guidance: float = 1.0
    q: float = 2.0
    first: int = 1
    last: int = 8
    k: float = 8.0
    b: float = 1.0
    huber: float = 1e-3

    def __post_init__(self) -> None:
        if self.learned_uncertainty:
            raise ValueError("learned_uncertainty must be False for ConsistencyTuning, got True")
        checks.one_of("pairs", self.pairs, ("data", "teacher"))
        checks.at_least("guidance", self.guidance, 0)
        checks.finite("guidance", self.guidance)
        if self.guidance != 1 and self.pairs != "teacher":
            raise ValueError(f"guidance must be 1 with pairs={self.pairs!r}, got {self.guidance}: give pairs='teacher'")
        checks.finite("q", self.q)
        if self.q <= 1:
            raise ValueError(f"q must be > 1, got {self.q}")
        checks.integer("first", self.first, 0)
        checks.integer("last", self.last, self.first)
        checks.at_least("k", self.k, 0)
        checks.positive("b", self.b)
        checks.positive("huber", self.huber)
        if not self.q**self.last < 1e12:
            raise ValueError(f"q ** last must be < 1e12, got {self.q}**{self.last}")

    @property
    def uses_teacher(self) -> bool:  # type: ignore[override]
        """Whether pairs are steps of the denoiser from which training starts."""
        return self.pairs == "teacher"

    def exponent(self, progress: float) -> int:
        """The exponent a of the stage after a fraction `progress` of the images."""
        stages = self.last - self.first + 1
        return self.first + min(int(progress * stages), stages - 1)

    def target_levels(
        self, sigma: Float64[Tensor, " batch"], sigma_data: float, progress: float
    ) -> Float64[Tensor, " batch"]:
        """r of each t = `sigma`."""
        b = self.b * EDM_SIGMA_DATA / sigma_data
        m = 1 + self.k * torch.sigmoid(-b * sigma)
        return sigma * (1 - m / self.q ** self.exponent(progress)).clamp(min=0)

    def distance(
        self, denoised: Float[Tensor, "batch *event"], target: Float[Tensor, "batch *event"], sigma_data: float
    ) -> Float[Tensor, " batch"]:
        """√(‖f − target‖²/n + c²) − c of each sample."""
        c = self.huber * sigma_data / EDM_SIGMA_DATA
        squared = super().distance(denoised, target, sigma_data)
        # Without cancellation where the difference is far below c.
        return squared / ((squared + c * c).sqrt() + c)
