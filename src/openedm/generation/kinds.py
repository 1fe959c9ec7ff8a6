"""Denoisers and consistency functions: which sampler the options of sampling mean for a model of each kind."""

from typing import Literal

from openedm.sampling import Auto, Consistency, SamplerChoice
from openedm.training import Model

__all__ = ["method_for"]


def method_for(
    method: SamplerChoice, model: Model, nfe: int | Literal["auto"] | None, levels: str = "rule"
) -> SamplerChoice:
    """The sampler for a model; for a consistency function 2 evaluations, unless another number is given.

    Args:
        method: the sampler that the options describe for a denoiser.
        model: the model that it is for.
        nfe: the number of evaluations as it was given.
        levels: "rule", or how else they are chosen.

    Raises:
        ValueError: the number of evaluations, the levels or a tolerance is not for a model of this kind.
    """
    if model.consistency and levels != "rule":
        raise ValueError(f"levels must be 'rule' for a consistency function, got {levels!r}: it follows no ODE")
    if model.consistency and isinstance(method, Auto):
        if method.tolerance is not None:
            raise ValueError(f"tolerance must be None for a consistency function, got {method.tolerance}: give nfe")
        return Consistency(nfe if isinstance(nfe, int) else 2, method.sigma_min, method.sigma_max)
    if isinstance(method, Consistency) and not model.consistency:
        raise ValueError(
            f"nfe must be >= 3 for a denoiser, got {method.nfe}: openedm distill makes a model of it that takes 1 or 2"
        )
    return method
