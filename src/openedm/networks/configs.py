"""Networks as values: what a network is apart from the shape of the data, and how it is built for a given shape."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.networks.adm import STYLE as ADM_STYLE
from openedm.networks.adm import ADMUNet
from openedm.networks.body import UNetBody, check_unet_sizes, level_resolutions
from openedm.networks.layers import filter_kernel, seeded
from openedm.networks.mlp import ResidualMLP
from openedm.networks.unet import UNet, check_variant


class Network(Choice, ABC):
    """A kind of network with its sizes; the data's shape comes when it is built."""

    @abstractmethod
    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> nn.Module:
        """A new network, called as `network(x, c_noise, condition=None, augment=None)`.

        Args:
            event_shape: the shape of one sample, channels first.
            num_classes: the number of classes it can be conditioned on.
            augment_dim: the width of the augmentation labels.
            out_channels: the channels of its output; None means those of the data.
            seed: its initial weights are a function of this number, and the global generator is left as it is; None
                means the global generator.

        Raises:
            ValueError: the shape is none that such a network takes, or a count is out of its range.
        """


@dataclass(frozen=True)
class _UNetNetwork(Network):
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] | None = None
    dropout: float = 0.10

    attends_near: ClassVar[tuple[int, ...]] = (16,)

    @property
    @abstractmethod
    def _kind(self) -> Callable[..., UNetBody]:
        """What tells one kind of U-Net from the others: its class with the arguments that are not the sizes."""

    def __post_init__(self) -> None:
        check_unet_sizes(self.model_channels, self.channel_mult, self.channel_mult_emb, self.num_blocks, self.dropout)
        for resolution in self.attn_resolutions or ():
            checks.at_least("attn_resolutions", resolution, 1)

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> UNetBody:
        """The U-Net for images of shape (channels, height, width); see `Network.build`.

        Raises:
            ValueError: the shape has other than three axes, or `attn_resolutions` names a resolution that no level has.
                A level's resolution is the longer side of its images.
        """
        _check_event(event_shape, ("channels", "height", "width"))
        resolution = max(event_shape[1:])
        attn_resolutions = self.attn_resolutions
        if attn_resolutions is None:
            levels = level_resolutions(resolution, len(self.channel_mult))
            attn_resolutions = _nearest(levels, self.attends_near)
        with seeded(seed):
            return self._kind(
                resolution,
                event_shape[0],
                event_shape[0] if out_channels is None else out_channels,
                num_classes=num_classes,
                augment_dim=augment_dim,
                model_channels=self.model_channels,
                channel_mult=self.channel_mult,
                channel_mult_emb=self.channel_mult_emb,
                num_blocks=self.num_blocks,
                attn_resolutions=attn_resolutions,
                dropout=self.dropout,
            )


@dataclass(frozen=True)
class DDPMpp(_UNetNetwork):
    """DDPM++, the U-Net of the VP models of Song et al. 2021, in the sizes of Karras et al. 2022 for CIFAR-10.

    Args:
        model_channels: channels that the multipliers multiply, even.
        channel_mult: the multipliers of the levels, finest first; each level has half the resolution of the one before.
            The paper's for 64² images: (1, 2, 2, 2).
        channel_mult_emb: the multiplier of the embedding of the noise level.
        num_blocks: residual blocks in a level.
        attn_resolutions: resolutions with self-attention. None means 16 where a level has it, else the level that is
            nearest to 16.
        dropout: probability of dropout, in [0, 1).

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> network = DDPMpp(model_channels=8, num_blocks=1).build((1, 28, 28), num_classes=10, seed=0)
    >>> network(torch.zeros(2, 1, 28, 28), torch.zeros(2), torch.tensor([3, -1])).shape
    torch.Size([2, 1, 28, 28])
    """

    @property
    def _kind(self) -> Callable[..., UNetBody]:
        return partial(UNet, embedding="positional", channel_mult_noise=1, encoder="standard", resample_filter=(1, 1))


@dataclass(frozen=True)
class NCSNpp(_UNetNetwork):
    """NCSN++, the U-Net of the VE models of Song et al. 2021: Fourier features, residual input path, smoother filters.

    Args and errors as for `DDPMpp`.
    """

    @property
    def _kind(self) -> Callable[..., UNetBody]:
        return partial(
            UNet, embedding="fourier", channel_mult_noise=2, encoder="residual", resample_filter=(1, 3, 3, 1)
        )


@dataclass(frozen=True)
class SongUNet(_UNetNetwork):
    """Any U-Net of the design space of Song et al. 2021, of which `DDPMpp` and `NCSNpp` are two points.

    Args:
        model_channels, channel_mult, channel_mult_emb, num_blocks, attn_resolutions, dropout: as for `DDPMpp`.
        embedding: of the noise level, "positional" or "fourier".
        channel_mult_noise: the multiplier of the width of that embedding.
        encoder: "standard"; "skip" shows each level the input at its size, "residual" carries a filtered copy of the
            features along.
        decoder: "standard"; "skip" sums up images of all levels.
        resample_filter: the taps of the filter that images are resampled with, even in number: (1, 1) or (1, 3, 3, 1).

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> network = SongUNet(model_channels=8, num_blocks=1, encoder="skip", decoder="skip").build((1, 28, 28), seed=0)
    >>> network(torch.zeros(2, 1, 28, 28), torch.zeros(2)).shape
    torch.Size([2, 1, 28, 28])
    """

    embedding: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variant(self.embedding, self.channel_mult_noise, self.encoder, self.decoder)
        filter_kernel(self.resample_filter)  # Raises where there is none.

    @property
    def _kind(self) -> Callable[..., UNetBody]:
        names = ("embedding", "channel_mult_noise", "encoder", "decoder", "resample_filter")
        return partial(UNet, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class ADM(_UNetNetwork):
    """ADM, the U-Net of Dhariwal and Nichol 2021, in the sizes of Karras et al. 2022 for ImageNet at 64².

    Args:
        model_channels: channels that the multipliers multiply, even.
        channel_mult: the multipliers of the levels, finest first. The lowest level must have at least 64 channels, as
            every level with attention must: that is one head.
        channel_mult_emb: the multiplier of the embedding of the noise level.
        num_blocks: residual blocks in a level.
        attn_resolutions: resolutions with self-attention. None means 32, 16 and 8 where levels have them, else the
            levels that are nearest to these.
        dropout: probability of dropout, in [0, 1).

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> network = ADM(model_channels=64, channel_mult=(1, 1), num_blocks=1).build((1, 8, 8), num_classes=10, seed=0)
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, -1])).shape
    torch.Size([2, 1, 8, 8])
    """

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3

    attends_near: ClassVar[tuple[int, ...]] = (32, 16, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        ADM_STYLE.num_heads(self.model_channels * self.channel_mult[-1])

    @property
    def _kind(self) -> Callable[..., UNetBody]:
        return ADMUNet


@dataclass(frozen=True)
class MLP(Network):
    """A residual multi-layer perceptron for vectors, `ResidualMLP`.

    Args:
        width: the width of its hidden layers.
        num_blocks: the number of residual blocks of two layers each.

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> MLP(width=32).build((2,), seed=0)(torch.ones(3, 2), torch.zeros(3)).abs().max().item()
    0.0
    """

    width: int = 256
    num_blocks: int = 4

    def __post_init__(self) -> None:
        checks.at_least("width", self.width, 1)
        checks.at_least("num_blocks", self.num_blocks, 1)

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> ResidualMLP:
        """The network for vectors of shape (features,); see `Network.build`."""
        _check_event(event_shape, ("features",))
        with seeded(seed):
            return ResidualMLP(
                event_shape[0],
                event_shape[0] if out_channels is None else out_channels,
                num_classes=num_classes,
                augment_dim=augment_dim,
                width=self.width,
                num_blocks=self.num_blocks,
            )


def _check_event(event_shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    if len(event_shape) != len(axes) or min(event_shape) < 1:
        raise ValueError(f"event_shape must be ({', '.join(axes)}), each >= 1, got {event_shape}")


def _nearest(levels: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """For each resolution wanted, the level's that is nearest to it, each once."""
    nearest = []
    for resolution in wanted:
        distances = [abs(level - resolution) for level in levels]
        nearest.append(levels[distances.index(min(distances))])
    return tuple(dict.fromkeys(nearest))
