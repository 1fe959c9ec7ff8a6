"""What a posterior of a denoiser is made of."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openedm.denoiser import Denoiser
from openedm.ground.choices import from_config, to_config
from openedm.inference import storage
from openedm.inference.average import Average
from openedm.inference.columns import Columns
from openedm.inference.maps import Coordinates, DataMap, ParameterMap, within_reach
from openedm.inference.refine import Refinement
from openedm.networks.atoms import AtomMixture
from openedm.networks.counts import CountMixture, TotalMixture
from openedm.networks.independent import IndependentCounts
from openedm.networks.mixtures import ConditionalDensity, ConditionalMixture
from openedm.networks.shares import ShareMixture
from openedm.networks.structured import mixture_from_config
from openedm.networks.trends import density_config, density_from_config
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
        """What the emulator models of x.

        Warns:
            UserWarning: the emulator models counts, and x holds what no count is; or more than the total of which it
                learned that they are counts, or counts of another sum than that of all simulations. Or x lies beyond an
                end at which the values of all simulations stop.
        """
        if self.target is None:
            return self.data.forward(x).flatten(1)
        y = self.target.forward(x[:, list(self.data.keep)])
        if not isinstance(self.emulator, CountMixture | IndependentCounts):
            y = within_reach(y).float()
            if isinstance(self.emulator, AtomMixture):
                self._warn_beyond_ends(x, y, self.emulator)
            return y
        if not bool(((y == y.round()) & (y >= 0)).all()):
            wrong = y[(y != y.round()) | (y < 0)]
            warnings.warn(
                f"x must hold counts, as all simulations did, got {float(wrong[0]):g}: fractions are rounded, and "
                "negative numbers tell nothing",
                stacklevel=2,
            )
        if isinstance(self.emulator, TotalMixture):
            totals = self.emulator.size.detach().amax((0, 1))
            if len(above := (y > totals).nonzero()):
                row, column = above[0].tolist()
                warnings.warn(
                    f"x must hold counts of a total, which simulations show to be {float(totals[column]):g} in column "
                    f"{self.data.keep[column]}, got {float(y[row, column]):g}: it is taken as the total",
                    stacklevel=2,
                )
        if isinstance(self.emulator, ShareMixture):
            total, sums = float(self.emulator.total.flatten()[0]), y.double().round().sum(1)
            if bool((sums != total).any()):
                warnings.warn(
                    f"x must hold counts whose sum is {total:g}, as in all simulations, got "
                    f"{float(sums[sums != total][0]):g}: the last one is taken to be what the others leave",
                    stacklevel=2,
                )
        return y.float()

    def _warn_beyond_ends(
        self, x: Float[Tensor, "rows columns"], y: Float[Tensor, "rows dim"], emulator: AtomMixture
    ) -> None:
        """Warn of an x that lies beyond an end at which the values of all simulations stop."""
        beyond = emulator.beyond(y)
        if bool(beyond.any()):
            row, column = beyond.nonzero()[0].tolist()
            kept = self.data.keep[column]
            warnings.warn(
                f"x must not lie beyond the value at which all simulations stop in column {kept}, got "
                f"{float(x[row, kept]):g}: what stands at that value must be the same in both",
                stacklevel=3,
            )

    @property
    def members(self) -> Sequence[Denoiser]:
        """One denoiser, or those of which it is the mean."""
        members: list[Any] = list(self.denoiser.members) if isinstance(self.denoiser, Average) else [self.denoiser]
        return members

    @property
    def modules(self) -> Mapping[str, nn.Module | None]:
        """Networks besides the denoiser, by the names under which they are kept."""
        return {"base": self.base, "emulator": self.emulator}

    def to_config(self) -> dict[str, Any]:
        """Plain data, from which, with the tensors, `read` makes the parts again."""
        return {
            "parameters": to_config(self.parameters),
            "data": self.data.to_config(),
            "target": self.target and to_config(self.target),
            "refinement": self.refinement and to_config(self.refinement),
            "base": self.base and density_config(self.base),
            "emulator": self.emulator and density_config(self.emulator),
        }

    @classmethod
    def read(cls, stored: storage.Stored, common: storage.Common, device: torch.device | str) -> "Parts":
        """The parts of a posterior that was kept.

        Raises:
            ValueError: weights and description do not fit, or belong to different data.
        """
        config = stored.config
        with stored.described():
            with stored.limited():
                base, emulator = mixture_from_config(config["base"]), density_from_config(config["emulator"])
            parts = cls(
                Average.of(common.members),
                from_config(ParameterMap, config["parameters"]),
                DataMap.from_config(config["data"], stored.tensors.get("reduction")),
                base,
                emulator,
                target=config["target"] and from_config(Columns, config["target"]),
                refinement=config["refinement"] and from_config(Refinement, config["refinement"]),
                model=common.model,
            )
        stored.load_weights(common, parts.modules)
        for module in (parts.denoiser, base, emulator):
            if module is not None:
                module.to(device).eval().requires_grad_(False)
        if (needed := parts.denoiser.condition_shape) != parts.data.shape:
            raise ValueError(
                f"{stored.folder} holds data of shape {parts.data.shape} for networks that need {needed}: "
                f"{storage.WEIGHTS} and {storage.CONFIG} do not belong together"
            )
        return parts
