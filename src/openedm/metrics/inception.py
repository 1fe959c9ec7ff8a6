"""The Inception network of the published FID: Inception-v3 as in TensorFlow's graph of 2015, weights from a file.

Szegedy et al. 2015 (arXiv 1512.00567). The graph differs from torchvision's `inception_v3`: 1008 classes, averages that
leave the border out, and a maximum in place of an average in the last block. Images are resized to 299 as in TensorFlow
1: bilinear without half-pixel centres, pixel i of the output at i · size / 299 of the input. torchmetrics takes the
network from torch-fidelity, which reads its weights with a pickle or from the network; torchvision, whose blocks could
be patched, would tie every installation to one version of torch.

The weights are the state dict that pytorch-fid (`pt_inception-2015-12-05-6726825d.pth`) and torch-fidelity
(`weights-inception-2015-12-05-6726825d.pth`) publish, or the same tensors as safetensors.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.metrics.extractors import Extractor, FeatureNetwork, Output, grey_or_rgb, to_rgb

__all__ = ["Inception", "InceptionFeatures", "InceptionV3"]

SIDE = 299


@dataclass(frozen=True)
class Inception(Extractor):
    """The 2048 features of the published FID, and 1008 logits for the Inception score.

    Attributes:
        path: the weights, a `.pth` state dict or safetensors. A TorchScript archive or any other pickle is refused:
            reading one executes code that it contains.
    """

    path: str

    def check(self, event_shape: tuple[int, ...]) -> None:
        grey_or_rgb(event_shape)
        _check_file(self.path)

    def load(self) -> FeatureNetwork:
        return InceptionFeatures(_read(self.path))


class InceptionFeatures(FeatureNetwork):
    """The network of the published FID with its preprocessing.

    Args:
        state: its weights under torchvision's names.

    Raises:
        ValueError: tensors are missing or have another shape.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.network = InceptionV3()
        own = self.network.state_dict()
        wrong = [
            name
            for name, tensor in own.items()
            if not name.endswith("num_batches_tracked") and (name not in state or state[name].shape != tensor.shape)
        ]
        if wrong:
            raise ValueError(
                f"path must be a file with the weights of the FID's Inception, but {len(wrong)} do not fit: {wrong[:3]}"
            )
        self.network.load_state_dict({name: state.get(name, tensor).float() for name, tensor in own.items()})
        self.requires_grad_(False).eval()
        self.dim, self.num_classes = 2048, 1008
        self.description = {
            "name": "Inception",
            "version": 1,
            "resize": "bilinear as in TensorFlow 1, 299",
            "scale": "(byte - 128) / 128",
        }

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Output:
        """See `FeatureNetwork`. Images are rounded to bytes first; logits are without the bias, as in the published
        Inception score."""
        byte = (to_rgb(x) * 127.5 + 127.5).round().clamp(0, 255)
        features = self.network((resized(byte, SIDE) - 128) / 128)
        return features, features @ self.network.fc.weight.T


def resized(x: Float[Tensor, "batch channels height width"], side: int) -> Float[Tensor, "batch channels side side"]:
    """Bilinear in TensorFlow 1's coordinates: output pixel i is at i · size / side of the input."""
    rows, columns = (_interpolation(size, side).to(x) for size in x.shape[2:])
    return rows @ x @ columns.T


def _interpolation(size: int, side: int) -> Float[Tensor, "side size"]:
    """The matrix of linear interpolation."""
    at = torch.arange(side, dtype=torch.float64) * size / side
    low = at.floor().long()
    weight = at - low
    matrix = torch.zeros(side, size, dtype=torch.float64)
    rows = torch.arange(side)
    matrix[rows, low] += 1 - weight
    matrix[rows, (low + 1).clamp(max=size - 1)] += weight
    return matrix


class InceptionV3(nn.Module):
    """From (batch, 3, 299, 299) in [-1, 1] to the 2048 features before the last layer `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, 128)
        self.Mixed_6c = _C(768, 160)
        self.Mixed_6d = _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280, "average")
        self.Mixed_7c = _E(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2048"]:
        """The features."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs i j"]:
        return functional.relu(self.bn(self.conv(x)))


class _A(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(inputs, 48, 1), _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = _Conv(64, 96, 3, padding=1), _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs i j"]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class _B(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = _Conv(64, 96, 3, padding=1), _Conv(96, 96, 3, stride=2)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs i j"]:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, functional.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        wide: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        tall: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = _Conv(inputs, 192, 1)
        self.branch7x7_1 = _Conv(inputs, inner, 1)
        self.branch7x7_2, self.branch7x7_3 = _Conv(inner, inner, **wide), _Conv(inner, 192, **tall)
        self.branch7x7dbl_1 = _Conv(inputs, inner, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = _Conv(inner, inner, **tall), _Conv(inner, inner, **wide)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = _Conv(inner, inner, **tall), _Conv(inner, 192, **wide)
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs i j"]:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], 1)


class _D(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(inputs, 192, 1), _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs i j"]:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    def __init__(self, inputs: int, pool: str) -> None:
        super().__init__()
        wide: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
        tall: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
        self.pool = pool
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _Conv(384, 384, **wide), _Conv(384, 384, **tall)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 448, 1), _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(384, 384, **wide), _Conv(384, 384, **tall)
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs i j"]:
        one = self.branch3x3_1(x)
        two = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _average(x) if self.pool == "average" else functional.max_pool2d(x, 3, stride=1, padding=1)
        parts = [self.branch3x3_2a(one), self.branch3x3_2b(one), self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two)]
        return torch.cat([self.branch1x1(x), *parts, self.branch_pool(pooled)], 1)


def _average(x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"path must be a file of Inception weights, got {path!r}, which does not exist")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in f"/{name}" or name.endswith("constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    f"path must be a state dict (.pth) or safetensors, but {path!r} is a TorchScript archive, which "
                    "executes code when it is read: use the pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
                )


def _read(path: str) -> dict[str, Tensor]:
    _check_file(path)
    try:
        if Path(path).suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # refuses a pickle of anything but tensors
    except Exception as error:  # of any kind: the file may be broken
        raise ValueError(f"path must be a state dict that can be read, got {path!r}: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"path must be a state dict, names and tensors, got {type(state).__name__} in {path!r}")
    return state
