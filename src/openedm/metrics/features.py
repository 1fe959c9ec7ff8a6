"""Features of images that arrive in batches: the images need not be held, and features of real data can be kept.

Memory: `extract` holds float32 features and probabilities, 4 · (dim + classes) bytes an image (Inception: 600 MB for
50,000); `stream_statistics` holds a mean and a covariance alone, 8 · dim² bytes, whatever the number of images.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from openedm.data.dataset import Dataset
from openedm.ground import checks
from openedm.ground.storage import replacing
from openedm.metrics.extractors import FeatureNetwork
from openedm.metrics.frechet import GaussianStatistics

ImageBatch = tuple[Float[Tensor, "_ _ _ _"], Int[Tensor, " _"] | None]

VERSION = 1
"""Of what is kept and how: files of another version are not found."""


@dataclass(frozen=True, eq=False)
class Features:
    """What a network saw in a set of images, on the CPU.

    Attributes:
        values: `(samples, dim)`, float32.
        probabilities: `(samples, classes)`, float32; None where the network has no classes.
        labels: the images' own classes, where they have some.
        judges: whether the network's classes are those of `labels`.
        fingerprint: of the network.
    """

    values: Float[Tensor, "samples dim"]
    probabilities: Float[Tensor, "samples classes"] | None
    labels: Int[Tensor, " samples"] | None
    judges: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def predicted(self) -> Int[Tensor, " samples"] | None:
        """The most likely class of each image, where the network's classes are those of the labels."""
        return self.probabilities.argmax(1) if self.judges and self.probabilities is not None else None


def image_batches(dataset: Dataset, batch_size: int = 256) -> Iterator[ImageBatch]:
    """All images of `dataset`, in order, and their labels.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    checks.at_least("batch_size", batch_size, 1)
    for start in range(0, len(dataset), batch_size):
        yield dataset.fetch(range(start, min(start + batch_size, len(dataset))))


@torch.no_grad()
def extract(network: FeatureNetwork, batches: Iterable[ImageBatch]) -> Features:
    """What `network` sees in the images of `batches`; images are forgotten batch by batch.

    Args:
        network: see `Extractor.load`; it computes where its weights are.
        batches: images in [-1, 1] and their classes or None.

    Raises:
        ValueError: there are no images, or one has values that are not finite.
    """
    values, probabilities, classes = [], [], []
    seen = 0
    for x, labels in batches:
        features, logits = _look(network, x, seen)
        seen += len(x)
        values.append(features.float().cpu())
        probabilities += [] if logits is None else [logits.float().softmax(1).cpu()]
        classes += [] if labels is None else [labels.cpu()]
    checks.at_least("the number of images", seen, 1)
    return Features(
        torch.cat(values),
        torch.cat(probabilities) if probabilities else None,
        torch.cat(classes) if classes else None,
        network.judges,
        network.fingerprint(),
    )


@torch.no_grad()
def stream_statistics(network: FeatureNetwork, batches: Iterable[ImageBatch]) -> GaussianStatistics:
    """Mean and covariance of features, of any number of images; shards and processes are put together by `merge`.

    Args:
        network: see `Extractor.load`.
        batches: images in [-1, 1] and their classes or None.

    Raises:
        ValueError: an image has values that are not finite.
    """
    statistics = GaussianStatistics(network.dim)
    for x, _ in batches:
        statistics.update(_look(network, x, statistics.count)[0])
    return statistics


def content_hash(dataset: Dataset, batch_size: int = 256) -> str:
    """SHA-256 of all that `dataset` gives, images and labels: changed, added or reordered images change it."""
    images, classes = hashlib.sha256(), hashlib.sha256()
    for x, labels in image_batches(dataset, batch_size):
        images.update(x.contiguous().numpy().tobytes())
        classes.update(b"" if labels is None else labels.contiguous().numpy().tobytes())
    shape = f"{len(dataset)} {tuple(dataset.event_shape)} {dataset.num_classes}"
    return hashlib.sha256(f"{shape} {images.hexdigest()} {classes.hexdigest()}".encode()).hexdigest()


def kept_features(
    dataset: Dataset,
    network: FeatureNetwork,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 256,
    look: Callable[[], Features] | None = None,
) -> tuple[Features, Path, bool]:
    """The features of `dataset`, from `folder` where they are kept, else extracted and kept there.

    They are found by the hash of the images and labels as they are now, read in full each time, and of the network:
    what has changed is not found. A file that is damaged is made again.

    Returns the features, the file, and whether it was there.

    Args:
        dataset: images.
        network: see `Extractor.load`.
        folder: made if need be.
        batch_size: images that pass through the network at once.
        look: extracts the features where they are not kept; by default by `extract`, from `image_batches`.
    """
    settings = {
        "version": VERSION,
        "data": content_hash(dataset, batch_size),
        "network": network.fingerprint(),
        "images": dataset.describe(),
        "extractor": network.description,
    }
    key = hashlib.sha256(json.dumps([settings[k] for k in ("version", "data", "network")]).encode()).hexdigest()[:32]
    path = Path(folder).expanduser() / f"{key}.safetensors"
    found = _read(path, settings, network)
    if found is not None:
        return found, path, True
    path.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is refused before the work
    features = extract(network, image_batches(dataset, batch_size)) if look is None else look()
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    tensors = {"values": features.values, "probabilities": features.probabilities, "labels": features.labels}
    with replacing(path) as temporary:
        content = {name: t.contiguous() for name, t in tensors.items() if t is not None}
        temporary.write_bytes(safetensors.torch.save(content, {"openedm": json.dumps(settings)}))
    return features, path, False


def _look(network: FeatureNetwork, x: Tensor, seen: int) -> tuple[Tensor, Tensor | None]:
    if not x.isfinite().all():
        bad = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"images must be finite, but image {seen + bad} is not")
    parameter = next(network.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    features, logits = network(x.to(device).float())
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"features must be finite, but those of image {seen + bad} are not")
    return features, logits


def _read(path: Path, settings: dict[str, object], network: FeatureNetwork) -> Features | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if json.loads(file.metadata()["openedm"]) != json.loads(json.dumps(settings)):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Features(
            tensors["values"],
            tensors.get("probabilities"),
            tensors.get("labels"),
            network.judges,
            network.fingerprint(),
        )
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        return None
