"""An ensemble of denoisers as one: its members' mean."""

from collections.abc import Sequence

from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm.denoiser import CONDITION, UNITS, Condition, Denoiser, take_attributes
from openedm.ground import checks

__all__ = ["Average"]


class Average(Denoiser):
    """The mean of denoisers of one shape: an ensemble.

    Args:
        members: at least one, on one device.

    Raises:
        ValueError: no members, or of different shapes.
    """

    def __init__(self, members: Sequence[Denoiser]) -> None:
        super().__init__()
        checks.at_least("the number of members", len(members), 1)
        shapes = {(m.event_shape, m.condition_shape) for m in members}
        if len(shapes) > 1:
            raise ValueError(f"members must have one shape, got {sorted(map(str, shapes))}")
        self.members = nn.ModuleList(members)
        if len({str((m.location, m.scale)) for m in members}) > 1:
            raise ValueError("members must have one location and one scale")
        take_attributes(self, members[0], ("event_shape", "sigma_data", *CONDITION, *UNITS))
        self.condition_dropout = all(member.condition_dropout for member in members)
        self.sigma_min, self.sigma_max = max(m.sigma_min for m in members), min(m.sigma_max for m in members)

    @classmethod
    def of(cls, members: Sequence[Denoiser]) -> Denoiser:
        """The mean of several denoisers; a single one as it is."""
        return members[0] if len(members) == 1 else cls(members)

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """The members' mean."""
        total = self.members[0](x, sigma, condition)
        for member in self.members[1:]:
            total = total + member(x, sigma, condition)
        mean: Tensor = total / len(self.members)
        return mean
