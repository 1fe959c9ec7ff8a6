"""Non-leaking augmentation: geometric transforms of training images, whose parameters the network takes as labels
(Karras et al. 2022, Appendix F.2 and Table 6).

Each transform is applied with probability p; its parameters are the network's augmentation label, and a transform that
is not applied has label 0. Samples are drawn at label 0, which means an image without transforms:

    (x-flip, y-flip, scale, rotation cos θ − 1, sin θ, anisotropic scale a cos 2φ, a sin 2φ, translation right, down)

The paper's label of the anisotropic scale is a cos φ, a sin φ; twice the angle is this library's choice.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.training.resampling import warp

__all__ = ["LABEL_DIM", "Augmentation", "Augmented"]

PROBABILITIES = ("xflip", "yflip", "scale", "rotate", "aniso", "translate")
LABEL_DIM = 9
"""The length of an augmentation label."""


@dataclass(frozen=True)
class Augmented:
    """Transforms drawn for a batch of images.

    Attributes:
        label: the augmentation labels, which the network takes.
        flips: whether an image is mirrored right to left, and top to bottom; applied first.
        linear: offsets (right, down) from the centre of the result to those in the mirrored image, in pixels.
        shift: translation of the result to the right and down, in widths and heights; applied last.
    """

    label: Float[Tensor, "batch 9"]
    flips: Bool[Tensor, "batch 2"]
    linear: Float64[Tensor, "batch 2 2"]
    shift: Float64[Tensor, "batch 2"]

    def __getitem__(self, rows: slice) -> "Augmented":
        """The transforms of some of the images."""
        return Augmented(self.label[rows], self.flips[rows], self.linear[rows], self.shift[rows])

    def __len__(self) -> int:
        """The number of images."""
        return len(self.label)

    def apply(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The transformed images, on their device and in their dtype; images with label 0 are returned bit-identical.

        Mirroring moves pixels. All other transforms are one warp, resampled once (`openedm.training.resampling.warp`).

        Raises:
            ValueError: there are not as many images as transforms.
        """
        if len(images) != len(self):
            raise ValueError(f"images must be {len(self)}, one for each transform, got {len(images)}")
        flips = self.flips.to(images.device, non_blocking=True)[:, :, None, None, None]
        images = torch.where(flips[:, 0], images.flip(-1), images)
        images = torch.where(flips[:, 1], images.flip(-2), images)
        unchanged = (self.linear == torch.eye(2, dtype=torch.float64)).all(-1).all(-1) & (self.shift == 0).all(-1)
        rows = (~unchanged).nonzero()[:, 0]  # computed on the host, without a synchronisation
        if len(rows) == 0:
            return images
        height, width = images.shape[-2:]
        shift = self.shift[rows] * torch.tensor([width, height], dtype=torch.float64)
        device_rows = rows.to(images.device, non_blocking=True)
        return images.index_copy(0, device_rows, warp(images[device_rows], self.linear[rows], shift))


@dataclass(frozen=True)
class Augmentation(Choice):
    """Which transforms are applied to training images: each with probability min(1, p × its factor).

    Angles are counter-clockwise. Transforms are applied in the order of the arguments.

    Args:
        p: the probability of each transform before its factor, in [0, 1]. The paper has 0.12 for CIFAR-10, 0.15 for
            FFHQ and AFHQv2, and no augmentation for ImageNet.
        xflip: factor of mirroring right to left; the transform, if applied, mirrors with probability ½. At 1e8 it is
            always applied, so that half the images are mirrored.
        yflip: factor of mirroring top to bottom, with the same meaning.
        scale: factor of scaling by 2^(`scale_std` a), a ~ N(0, 1).
        rotate: factor of rotating by θ ~ U(−π, π).
        aniso: factor of stretching by 2^(`aniso_std` a), a ~ N(0, 1), along an axis at the angle φ, and shrinking by
            the same factor across it. φ ~ U(−π, π) with probability ½, else 0.
        translate: factor of translating by `translate_std` (a, b) widths and heights, (a, b) ~ N(0, I).
        scale_std: standard deviation of the scale's binary logarithm, ≥ 0.
        aniso_std: standard deviation of the stretch's binary logarithm, ≥ 0.
        translate_std: standard deviation of the translation, ≥ 0.
        aniso_label: "axis" labels the stretch (a cos 2φ, a sin 2φ), different for every stretch. "angle" labels it (a
            cos φ, a sin φ), as in the training of published networks: (a, φ) and (−a, φ + π) have the same label,
            although one stretches the axis that the other shrinks.

    Raises:
        ValueError: a value is out of its range.

    >>> drawn = Augmentation(p=1.0, rotate=0.0).draw(2, torch.Generator().manual_seed(0))
    >>> drawn.label.shape, drawn.apply(torch.zeros(2, 3, 32, 32)).shape
    (torch.Size([2, 9]), torch.Size([2, 3, 32, 32]))
    """

    p: float = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    scale: float = 1.0
    rotate: float = 1.0
    aniso: float = 1.0
    translate: float = 1.0
    scale_std: float = 0.2
    aniso_std: float = 0.2
    translate_std: float = 0.125
    aniso_label: Literal["axis", "angle"] = "axis"

    def __post_init__(self) -> None:
        checks.between("p", self.p, 0, 1)
        for name in (*PROBABILITIES, "scale_std", "aniso_std", "translate_std"):
            checks.at_least(name, getattr(self, name), 0)
            checks.finite(name, getattr(self, name))
        checks.one_of("aniso_label", self.aniso_label, ("axis", "angle"))

    def draw(self, count: int, generator: torch.Generator) -> Augmented:
        """Transforms for `count` images.

        Args:
            count: the number of images.
            generator: a generator on the host.
        """
        probability = torch.tensor(
            [min(1.0, self.p * getattr(self, name)) for name in PROBABILITIES], dtype=torch.float64
        )
        applied = torch.rand(count, 6, generator=generator, dtype=torch.float64) < probability
        uniform = torch.rand(count, 5, generator=generator, dtype=torch.float64)
        normal = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        flips = applied[:, :2] & (uniform[:, :2] < 0.5)
        zoom = normal[:, 0].where(applied[:, 2], 0.0)
        theta = (math.pi * (2 * uniform[:, 2] - 1)).where(applied[:, 3], 0.0)
        stretch = normal[:, 1].where(applied[:, 4], 0.0)
        phi = (math.pi * (2 * uniform[:, 3] - 1)).where(uniform[:, 4] < 0.5, 0.0)
        translation = normal[:, 2:].where(applied[:, 5:], 0.0)
        multiple = 2 if self.aniso_label == "axis" else 1
        columns = [*flips.double().unbind(1), zoom, theta.cos() - 1, theta.sin()]
        columns += [stretch * (multiple * phi).cos(), stretch * (multiple * phi).sin(), *translation.unbind(1)]
        linear = torch.exp2(-self.scale_std * zoom)[:, None, None] * _rotation(-theta)
        linear = linear @ _stretch(-self.aniso_std * stretch, phi)
        return Augmented(torch.stack(columns, 1).float(), flips, linear, self.translate_std * translation)


def _rotation(theta: Float64[Tensor, " batch"]) -> Float64[Tensor, "batch 2 2"]:
    """Matrices that rotate offsets (right, down) counter-clockwise as seen in the image."""
    cos, sin = theta.cos(), theta.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


def _stretch(octaves: Float64[Tensor, " batch"], phi: Float64[Tensor, " batch"]) -> Float64[Tensor, "batch 2 2"]:
    """2^octaves along the axis at the angle φ, 2^−octaves across: cosh k I + sinh k Q, Q the reflection at the axis."""
    k = octaves * math.log(2)
    cos, sin = (2 * phi).cos(), (2 * phi).sin()
    mirror = torch.stack([torch.stack([cos, -sin], -1), torch.stack([-sin, -cos], -1)], -2)
    return k.cosh()[:, None, None] * torch.eye(2, dtype=torch.float64) + k.sinh()[:, None, None] * mirror
