"""Features of images that arrive in batches, and a cache for those of the real images.

Memory: `extract` holds float32 features and probabilities, 4 · (dim + classes) bytes an image (Inception: 600 MB for
50,000), and no images; `stream_statistics` holds a mean and a covariance only, 8 · dim² bytes. joblib.Memory
could cache, but it finds results by the pickles of arguments and code, and reads pickles; here the key is a hash of the
images and of the network, and the file is checked against it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from jaxtyping import Float, Int
from torch import Tensor

from openedm.data.dataset import Dataset
from openedm.ground import checks
from openedm.ground.devices import device_of
from openedm.ground.digests import check_listed
from openedm.ground.locks import LockedError, locked_file
from openedm.ground.regular import reason
from openedm.ground.seeding import host_seeded
from openedm.ground.storage import read_json, remove_remains, write_json, write_tensors
from openedm.ground.threads import ahead
from openedm.metrics.extractors import FeatureNetwork, Output
from openedm.metrics.frechet import GaussianStatistics

__all__ = [
    "Features",
    "ImageBatch",
    "content_hash",
    "extract",
    "image_batches",
    "kept_features",
    "stream_statistics",
    "warn_of_units",
]

ImageBatch = tuple[Float[Tensor, "_ ..."], Int[Tensor, " _"] | None]

FAR = 10.0
"""The median distance of samples from the mean of the data, in standard deviations, above which a warning says so."""

VERSION = 1
"""Version of the cached features: files of another version are not found."""


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a set of images, on the CPU.

    Attributes:
        values: `(samples, dim)`, float32.
        probabilities: `(samples, classes)`, float32; None where the network has no classes.
        labels: the images' own classes, where they have some.
        predicts_labels: whether the network's classes are those of `labels`.
        fingerprint: of the network.
    """

    values: Float[Tensor, "samples dim"]
    probabilities: Float[Tensor, "samples classes"] | None
    labels: Int[Tensor, " samples"] | None
    predicts_labels: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def predicted(self) -> Int[Tensor, " samples"] | None:
        """The most likely class of each image, where the network's classes are those of the labels."""
        return self.probabilities.argmax(1) if self.predicts_labels and self.probabilities is not None else None

    @property
    def accuracy(self) -> float | None:
        """The share of images whose most likely class is their label; None without labels or predictions."""
        if self.labels is None or self.predicted is None:
            return None
        return float((self.predicted == self.labels.cpu()).double().mean())


def image_batches(
    dataset: Dataset, batch_size: int = 256, numbers: Sequence[int] | None = None
) -> Iterator[ImageBatch]:
    """Images of `dataset` and their labels; a batch is read while the one before it is used.

    Those of data that are drawn anew are the same for the same batches.

    Args:
        dataset: the images.
        batch_size: images in a batch.
        numbers: which images, in this order; None for all.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    checks.at_least("batch_size", batch_size, 1)
    numbers = range(len(dataset)) if numbers is None else numbers
    read = _read_batches(dataset, batch_size, numbers)
    return read if dataset.random else ahead(read)


def _read_batches(dataset: Dataset, batch_size: int, numbers: Sequence[int]) -> Iterator[ImageBatch]:
    for start in range(0, len(numbers), batch_size):
        # Not where nothing is drawn: in a thread, the state that is put back could be one that has been used since.
        with host_seeded(numbers[start]) if dataset.random else nullcontext():
            x, condition = dataset.fetch(numbers[start : start + batch_size])
        yield x, None if condition is None else dataset.condition_layout.unpack(condition)[0]


@torch.no_grad()
def extract(network: FeatureNetwork, batches: Iterable[ImageBatch]) -> Features:
    """The features of the images in `batches`, which are not held.

    Args:
        network: see `Extractor.load`; it computes on the device of its weights.
        batches: images in [-1, 1] and their classes or None.

    Raises:
        ValueError: there are no images, or one has values that are not finite.
    """
    values, probabilities, classes = [], [], []
    count = 0
    for x, labels in batches:
        features, logits = _apply(network, x, count)
        count += len(x)
        values.append(features.float().cpu())
        probabilities += [] if logits is None else [logits.float().softmax(1).cpu()]
        classes += [] if labels is None else [labels.cpu()]
    checks.at_least("the number of images", count, 1)
    return Features(
        torch.cat(values),
        torch.cat(probabilities) if probabilities else None,
        torch.cat(classes) if classes else None,
        network.predicts_labels,
        network.fingerprint(),
    )


def warn_of_units(network: FeatureNetwork, samples: Features) -> None:
    """Warn of samples that are far from all data, as °C are from kelvin; those of untrained networks are not.

    Args:
        network: that of the features; only those of `ValueFeatures` have distances.
        samples: the features of the samples.
    """
    distances = network.distances(samples.values)
    if len(distances) == 0 or float(distances.max()) <= FAR:
        return
    where = f" in channel {int(distances.argmax())}" if len(distances) > 1 else ""
    warnings.warn(
        f"samples are {float(distances.max()):.3g} standard deviations of the data from their mean{where}, in the "
        "median: they seem to be in other units, or to have a range that the data are given without, --data.range",
        stacklevel=3,
    )


@torch.no_grad()
def stream_statistics(network: FeatureNetwork, batches: Iterable[ImageBatch]) -> GaussianStatistics:
    """Mean and covariance of the features of any number of images; `merge` adds those of other shards or processes.

    Args:
        network: see `Extractor.load`.
        batches: images in [-1, 1] and their classes or None.

    Raises:
        ValueError: an image has values that are not finite.
    """
    statistics = GaussianStatistics(network.dim)
    for x, _ in batches:
        statistics.update(_apply(network, x, statistics.count)[0])
    return statistics


def content_hash(dataset: Dataset, batch_size: int = 256) -> str:
    """SHA-256 of all images and labels of `dataset`: changed, added or reordered images change it."""
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
    compute: Callable[[], Features] | None = None,
) -> tuple[Features, Path | None, bool]:
    """The features of `dataset`, read from `folder` where they are kept, else extracted and kept there.

    They are found by the hash of the current images and labels, which are all read each time, and of the network. A
    damaged file is written again.

    Returns the features, the file, and whether it existed; None for the file if the folder cannot be written.

    Args:
        dataset: images.
        network: see `Extractor.load`.
        folder: created if it does not exist.
        batch_size: images that pass through the network at once.
        compute: extracts the features where they are not kept; by default `extract` of `image_batches`.

    Warns:
        UserWarning: the folder cannot be written, so that the features are not kept.
    """
    settings = {
        "version": VERSION,
        "data": content_hash(dataset, batch_size),
        "network": network.fingerprint(),
        "images": dataset.describe(),
        "extractor": network.description,
    }
    key = hashlib.sha256(json.dumps([settings[k] for k in ("version", "data", "network")]).encode()).hexdigest()[:32]
    path: Path | None = None
    with suppress(RuntimeError):  # a ~ where there is no home
        path = Path(folder).expanduser() / f"{key}.safetensors"
        if (found := _read(path, settings, network)) is not None:
            return found, path, True
    features = extract(network, image_batches(dataset, batch_size)) if compute is None else compute()
    tensors = {"values": features.values, "probabilities": features.probabilities, "labels": features.labels}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    try:
        if path is None:
            raise FileNotFoundError("no home folder is known")
        with locked_file(path, "cache"):
            remove_remains(path.parent, path.name)
            write_tensors(path, present, {"openedm": json.dumps(settings)})
            write_json(path.with_suffix(".json"), settings, files=(path.name,))
    except LockedError:  # by a process that keeps the same
        return features, None, False
    except OSError as error:
        warnings.warn(
            f"the features of the data are not kept, cache={folder} cannot be written: {reason(error)}", stacklevel=2
        )
        return features, None, False
    return features, path, False


def _apply(network: FeatureNetwork, x: Float[Tensor, "batch *event"], before: int) -> Output:
    """Features and logits; errors name images by their number, of which `before` came in earlier batches."""
    if not x.isfinite().all():
        bad = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"images must be finite, but image {before + bad} is not")
    features, logits = network(x.to(device_of(network)).float())
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"features must be finite, but those of image {before + bad} are not")
    return features, logits


def _read(path: Path, settings: dict[str, object], network: FeatureNetwork) -> Features | None:
    described = path.with_suffix(".json")
    try:
        if described.is_file():
            check_listed(path, read_json(described), described)
        with safetensors.safe_open(path, framework="pt") as file:
            if json.loads(file.metadata()["openedm"]) != json.loads(json.dumps(settings)):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values, probabilities, labels = tensors["values"], tensors.get("probabilities"), tensors.get("labels")
        return Features(values, probabilities, labels, network.predicts_labels, network.fingerprint())
    except (OSError, KeyError, RecursionError, TypeError, ValueError, safetensors.SafetensorError):
        return None
