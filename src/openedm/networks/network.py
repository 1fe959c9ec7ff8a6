"""Networks as values: what a network is apart from the shapes of its data, those shapes, and the module made of both.

network (a frozen choice)  +  signature (the data's shapes)  →  module F(x; c_noise, condition, augment)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from openedm.ground.choices import Choice
from openedm.networks.embeddings import Labels
from openedm.networks.signature import Signature, check_axes

__all__ = ["Network", "RawNetwork"]


@dataclass(frozen=True)
class Network(Choice, ABC):
    """A kind of network with its sizes; the shapes of the data are given when it is built.

    A subclass defines `module`, which makes the network.

    Attributes:
        axes: the names of the axes of a sample that it takes; None for any.
        takes_conditions: whether it can be conditioned on floats.
    """

    axes: ClassVar[tuple[str, ...] | None] = None
    takes_conditions: ClassVar[bool] = False

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        condition_shape: tuple[int, ...] | None = None,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> nn.Module:
        """A new network, called as `network(x, c_noise, condition=None, augment=None)`; see `RawNetwork.forward`.

        Args:
            event_shape: the shape of one sample, channels first.
            num_classes: the number of classes it can be conditioned on.
            augment_dim: the width of the augmentation labels.
            condition_shape: the shape of one condition of floats; None for a network without.
            out_channels: the channels of its output; None means those of the data.
            seed: its initial weights are a function of this number, and the global generator is left as it is; None
                means the global generator.

        Raises:
            ValueError: a shape is none that such a network takes, or a count is out of its range.
        """
        check_axes("event_shape", event_shape, self.axes)
        if condition_shape is not None and not self.takes_conditions:
            raise ValueError(
                f"network must take float conditions for condition_shape={condition_shape}, but "
                f"{type(self).__name__} takes none"
            )
        channels = event_shape[0] if out_channels is None else out_channels
        return self.module(Signature(event_shape, channels, num_classes, augment_dim, condition_shape), seed)

    @abstractmethod
    def module(self, signature: Signature, seed: int | None) -> nn.Module:
        """The new network for these shapes; `build` has checked that it takes such.

        Args:
            signature: the shapes.
            seed: as for `build`; use `with openedm.networks.layers.seeded(seed):`.

        Raises:
            ValueError: the shapes do not fit the sizes.
        """


class RawNetwork(nn.Module):
    """The raw network F that a preconditioning makes a denoiser of.

    Attributes:
        choice: what it is.
        signature: the shapes it was built for.
    """

    def __init__(self, choice: Network, signature: Signature) -> None:
        super().__init__()
        self.choice, self.signature = choice, signature

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " batch"],
        condition: Labels | Float[Tensor, "conditions *shape"] | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch *out"]:
        """F(x; c_noise), of the shape of x with `out_channels` channels.

        Args:
            x: noisy samples (batch, *event_shape), of about unit variance.
            c_noise: the noise level as the preconditioning gives it, (batch,).
            condition: for a network with classes, (batch,) integers with −1 for no class, or (batch, num_classes) rows,
                all zero for no class, or None for no class. For a network with float conditions, (batch,
                *condition_shape), or a single row for all samples. None for a network without either.
            augment: augmentation labels (batch, augment_dim). None means not augmented, as does zero.

        Raises:
            ValueError: a shape does not fit, a label is out of range, or `condition` or `augment` is given to a network
                that was built without.
        """
        raise NotImplementedError
