"""The sampler of consistency functions, which chooses the levels from the number of evaluations."""

from dataclasses import dataclass

from openedm.denoiser import Denoiser
from openedm.ground import checks
from openedm.levels import Karras, numbers_for_data
from openedm.levels.rules import MAX_STEPS
from openedm.sampling.methods.consistency import MultistepConsistency
from openedm.sampling.sampler import Sampler, SamplerChoice

__all__ = ["Consistency"]


@dataclass(frozen=True)
class Consistency(SamplerChoice):
    """The sampler of a consistency function (`ConsistencyTuning`): N jumps to the data, at Karras's levels.

    Args:
        nfe: N ≥ 1, the number of network evaluations. Two are much better than one, four a little better than two.
        sigma_min: the lowest level to which noise is added back; without effect at N = 1, where it must be None. None
            means 0.8 for σ_data = 0.5, in proportion to σ_data.
        sigma_max: the highest noise level; None means EDM's 80, in the same proportion.

    Raises:
        ValueError: a value is out of its range or has no effect.

    >>> from openedm.denoiser import FunctionDenoiser
    >>> to_mean = FunctionDenoiser(lambda x, sigma: 0 * x + 3.0, event_shape=(2,))
    >>> to_mean.consistency = True
    >>> Consistency(nfe=2).sample(to_mean, seeds=[0])
    tensor([[3., 3.]], dtype=torch.float64)
    """

    nfe: int = 2
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        checks.integer("nfe", self.nfe, 1, MAX_STEPS)
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if value is not None:
                checks.positive(name, value)
        if self.nfe == 1 and self.sigma_min is not None:
            raise ValueError(f"sigma_min must be None with nfe=1, whose only level is sigma_max, got {self.sigma_min}")
        if self.sigma_min is not None and self.sigma_max is not None:
            checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def choose(self, denoiser: Denoiser) -> Sampler:
        """The sampler for a consistency function, from its range and σ_data, without an evaluation."""
        return self.sampler_for(denoiser.sigma_data)

    def sampler_for(self, sigma_data: float) -> Sampler:
        """The sampler for data of standard deviation `sigma_data`."""
        lowest = {} if self.nfe == 1 else {"sigma_min": 0.8}
        ends = numbers_for_data(self, sigma_data, {**lowest, "sigma_max": 80.0})
        return Sampler(Karras(self.nfe, ends.sigma_min, ends.sigma_max), solver=MultistepConsistency())
