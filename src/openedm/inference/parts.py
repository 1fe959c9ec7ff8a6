"""What a posterior of a denoiser is made of."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import Denoiser
from openedm.inference.columns import Columns
from openedm.inference.maps import Coordinates, DataMap, within_reach
from openedm.inference.refine import Refinement
from openedm.networks.mixtures import ConditionalDensity, ConditionalMixture
from openedm.training import Model

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """What a `DenoiserPosterior` is made of.

    Attributes:
        denoiser: D(r; σ, y), with y as its condition; variables beyond those of θ are integrated out.
        parameters: θ ↔ u; a `ParameterMap` where there is an emulator.
        data: x → y.
        base: the conditional Gaussian that makes r of u; None means r = u.
        emulator: the learned likelihood, with `parameters.inputs_of(θ)` as its condition; None without one.
        target: the map from the kept columns of x to what the emulator models; None means y.
        refinement: the Markov chains that refine samples; None for none. Needs an emulator and a prior.
        model: the description of the denoiser, which is needed to save it; None for a denoiser of your own.
    """

    denoiser: Denoiser
    parameters: Coordinates
    data: DataMap
    base: ConditionalMixture | None = None
    emulator: ConditionalDensity | None = None
    target: Columns | None = None
    refinement: Refinement | None = None
    model: Model | None = None

    def emulated(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows dim"]:
        """What the emulator models of x."""
        if self.target is None:
            return self.data.forward(x)
        return within_reach(self.target.forward(x[:, list(self.data.keep)])).float()
