"""Embeddings of the inputs of a network other than the sample: noise level, class, augmentation, vector condition.

    positional   [cos ω_k c, sin ω_k c],  ω_k = 10000^(−k/(n/2 − e)), k = 0 … n/2 − 1, e = 1 (endpoint) or 0
    Fourier      [cos 2πf_k c, sin 2πf_k c],  f_k ~ N(0, 16²), drawn once
    smooth       [asinh c, cos ω_k c, sin ω_k c],  ω_k from 2π/2048 to 2π in equal ratios

with c = c_noise. Sources: Karras et al. 2022 (arXiv 2206.00364), Appendix F; Song et al. 2021 (arXiv 2011.13456).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.conditions import classes_of, values_of
from openedm.networks.layers import KAIMING, ZERO, Init, Linear
from openedm.networks.network import Labels, Signature, check_rows

__all__ = [
    "ClassVector",
    "Embedding",
    "FourierEmbedding",
    "NoiseEmbedding",
    "PositionalEmbedding",
    "SmoothEmbedding",
]


class NoiseEmbedding(nn.Module):
    """cos ω_k c and sin ω_k c for the angular frequencies `omega`: (batch,) → (batch, 2 · len(omega)).

    They are computed in float32 or better for any dtype of the network: c_noise reaches 999 (VP, iDDPM), where
    neighbouring bfloat16 numbers differ by 4. Casting the module to half precision leaves the frequencies unchanged.

    Args:
        omega: the frequencies.
        persistent: whether they are part of the state dict; required for random frequencies.
        order: which of the two halves comes first.
    """

    omega: Tensor

    def __init__(
        self, omega: Float[Tensor, " half"], *, persistent: bool, order: tuple[str, str] = ("cos", "sin")
    ) -> None:
        super().__init__()
        checks.one_of("order", order, (("cos", "sin"), ("sin", "cos")))
        self.register_buffer("omega", omega, persistent=persistent)
        self.order = order

    @property
    def num_channels(self) -> int:
        """The number of features it returns."""
        return 2 * len(self.omega)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NoiseEmbedding":
        omega = self.omega
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.omega.dtype in (torch.float16, torch.bfloat16):
            self.omega = omega.to(self.omega.device)
        return self

    def forward(self, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """The features, in the wider of the two dtypes of `c_noise` and the frequencies."""
        angle = c_noise[:, None] * self.omega
        halves = {"cos": angle.cos(), "sin": angle.sin()}
        return torch.cat([halves[name] for name in self.order], dim=1)


class PositionalEmbedding(NoiseEmbedding):
    """The Transformer's frequencies, 1 down to 1/10000: for c_noise that counts steps up to about 1000."""

    def __init__(self, num_channels: int, *, endpoint: bool, order: tuple[str, str] = ("cos", "sin")) -> None:
        half = num_channels // 2
        exponent = torch.arange(half) / max(half - endpoint, 1)
        super().__init__(10000**-exponent, persistent=False, order=order)


class FourierEmbedding(NoiseEmbedding):
    """Random frequencies ω = 2πf with f ~ N(0, scale²): for c_noise that is a logarithm of σ."""

    def __init__(self, num_channels: int, *, scale: float = 16, order: tuple[str, str] = ("cos", "sin")) -> None:
        super().__init__(2 * math.pi * scale * torch.randn(num_channels // 2), persistent=True, order=order)


class SmoothEmbedding(NoiseEmbedding):
    """Bounded frequencies and asinh c: for every range of c_noise.

    EDM's c_noise = ¼ ln σ stays within about [−3, 3]. There the positional features, with frequencies of 1 and below,
    hardly complete one period and all but the first few are constant; Fourier features with f ~ N(0, 16²) complete a
    hundred periods, so that a small network does not generalise from one noise level to the next. Here the periods run
    from 1 (a factor of 55 in σ under EDM's c_noise) to 2048 (the whole range of VP's and iDDPM's): no feature
    oscillates faster than the denoiser changes, some feature varies at every scale, and asinh c, which is c near 0 and
    logarithmic for large c, separates all values.
    """

    def __init__(self, num_channels: int = 64) -> None:
        octaves = torch.linspace(-11, 0, num_channels // 2)
        super().__init__(2 * math.pi * 2**octaves, persistent=False)

    @property
    def num_channels(self) -> int:
        """The number of features it returns."""
        return 1 + super().num_channels

    def forward(self, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """The features, in the wider of the two dtypes of `c_noise` and the frequencies."""
        return torch.cat([c_noise[:, None].asinh(), super().forward(c_noise)], dim=1)


class ClassVector(nn.Module):
    """A condition as one row of `num_classes` weights for each sample: one-hot, soft, or zero for "no class".

    >>> ClassVector(3)(torch.tensor([1, -1]), like=torch.zeros(2))
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    """

    classes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("classes", torch.arange(num_classes), persistent=False)

    def forward(self, condition: Labels | None, like: Float[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """The rows.

        Args:
            condition: integer labels (batch,), −1 for no class; or the rows themselves; or None: no class for any
                sample.
            like: a tensor with the batch size, dtype and device of the result.

        Raises:
            ValueError: the shape is neither of the two, or (for labels on the CPU, where the check needs no
                synchronisation) a label is outside −1 … num_classes − 1.
        """
        shape = (len(like), len(self.classes))
        if condition is None:
            return like.new_zeros(shape)
        if condition.is_floating_point():
            check_rows("condition", condition, shape)
            return condition.to(like.dtype)
        _check_labels(condition, *shape)
        return (condition[:, None] == self.classes).to(like.dtype)


class Embedding(nn.Module):
    """The second input of every block: an embedding of noise level, class, augmentation and vector condition.

    Early classes: e = silu(L1 silu(L0(noise(c_noise) + L_class(√k · rows) + L_augment(a)) + L_v v)).
    Late classes, as in ADM: e = silu(L1 silu(L0(noise(c_noise) + L_augment(a)) + L_v v) + L_class(rows)), where
    L_augment starts at zero, the rows of L_class at N(0, 1), and neither has a bias.

    A vector condition v joins where the layer is widest, [L0 | L_v], so that two layers follow it in every design. For
    v of unit variance L_v v starts at unit variance, about the size of what L0 gives. With dropout, L_a a is added,
    a = 1 for samples without condition.

    Args:
        noise: the embedding of c_noise.
        out_channels: the channels of e.
        signature: the widths of the other inputs. Images among the conditions are not for the embedding.
        init: the initialisation of the other linear maps.
        late_classes: whether the classes are added after L1 instead of before L0.
    """

    def __init__(
        self, noise: NoiseEmbedding, out_channels: int, signature: Signature, *, init: Init, late_classes: bool = False
    ) -> None:
        super().__init__()
        channels, num_classes, augment_dim = noise.num_channels, signature.num_classes, signature.augment_dim
        self.noise, self.signature = noise, signature
        self.late_classes, self.class_scale = late_classes, 1 if late_classes else math.sqrt(num_classes)
        self.class_vector = ClassVector(num_classes) if num_classes else None
        self.classes = Linear(num_classes, channels, init=init) if num_classes and not late_classes else None
        augment_init = ZERO if late_classes else init
        self.augment = Linear(augment_dim, channels, init=augment_init, bias=False) if augment_dim else None
        self.layer0 = Linear(channels, out_channels, init=init)
        self.layer1 = Linear(out_channels, out_channels, init=init)
        if num_classes and late_classes:
            unit = Init("kaiming_normal", weight_gain=math.sqrt(num_classes))
            self.classes = Linear(num_classes, out_channels, init=unit, bias=False)
        shape = signature.condition_shape if signature.condition_kind == "vector" else None
        self.vector = None if shape is None else Linear(shape[0], out_channels, init=KAIMING, bias=False)
        flagged = shape is not None and signature.condition_dropout
        self.absent = Linear(1, out_channels, init=KAIMING, bias=False) if flagged else None

    def forward(
        self,
        c_noise: Float[Tensor, " batch"],
        condition: Labels | Float[Tensor, "rows *features"] | None,
        augment: Tensor | None,
    ) -> Float[Tensor, "batch channels"]:
        """The embedding e, in the dtype of the weights (or of autocast).

        Args:
            c_noise: the noise level as computed by the preconditioning.
            condition: the condition of the network, as for `RawNetwork.forward`.
            augment: the augmentation labels.
        """
        classes = classes_of(self.signature, condition, len(c_noise))
        e = self.noise(c_noise).to(self.layer0.weight.dtype)
        if not self.late_classes:
            e = self._with_class(e, classes)
        if self.augment is not None and augment is not None:
            e = e + self.augment(augment.to(self.layer0.weight.dtype))
        e = self.layer1(functional.silu(self._with_vector(self.layer0(e), condition)))
        if self.late_classes:
            e = self._with_class(e, classes)
        return functional.silu(e)

    def _with_vector(self, e: Float[Tensor, "batch c"], condition: Tensor | None) -> Float[Tensor, "batch c"]:
        if self.vector is None:
            return e
        values, present = values_of(self.signature, condition, self.vector.weight)
        e = e + self.vector(values)
        return e if self.absent is None else e + self.absent(1 - present)

    def _with_class(self, e: Float[Tensor, "batch c"], condition: Labels | None) -> Float[Tensor, "batch c"]:
        if self.class_vector is None or self.classes is None:
            return e
        added: Tensor = self.classes(self.class_vector(condition, like=e[:, 0]) * self.class_scale)
        return e + added


def _check_labels(labels: Integer[Tensor, "*any"], batch: int, num_classes: int) -> None:
    if labels.shape != (batch,):
        raise ValueError(
            f"condition must be integer labels of shape ({batch},) or float rows of shape ({batch}, {num_classes}), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high >= num_classes:
            raise ValueError(f"condition must be labels from -1 (none) to {num_classes - 1}, got {low} … {high}")
