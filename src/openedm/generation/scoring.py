"""Generated images scored against real ones: drawn from a checkpoint or read, on one process or several."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from openedm.data import Arrays, Dataset, ImageFolder, Source, align_classes
from openedm.generation.conditions import conditions_of_data
from openedm.generation.options import CheckpointSampler, SamplingOptions
from openedm.ground import checks
from openedm.ground.choices import Choice, to_config
from openedm.ground.progress import Progress, no_progress
from openedm.metrics import (
    Classifier,
    ClassifierFeatures,
    EfficientNetLite0,
    Extractor,
    FeatureNetwork,
    Features,
    Metric,
    OwnMetric,
    Report,
    TrainedClassifier,
    Values,
    applicable_metrics,
    compare,
    extract,
    image_batches,
    kept_features,
    train_classifier,
)
from openedm.metrics.features import ImageBatch
from openedm.training import find_checkpoint, make_accelerator, read_model, share_of

__all__ = ["Images", "ScoringOptions", "open_images", "score"]

NUM = 1000
"""Images that are drawn from a checkpoint unless a number is given."""

Batches = Callable[[Sequence[int]], Iterable[ImageBatch]]
"""From the numbers of some images, in increasing order, to these images."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class ScoringOptions(Choice):
    """How generated images are compared with real ones.

    Args:
        extractor: the network whose features are compared: EfficientNetLite0, Inception (published FID, with weights
            from a file), TrainedClassifier, Values (the standardised numbers of data of any shape). By default
            EfficientNet-Lite0 for RGB images and grey ones without classes, a small classifier trained on the real data
            for other images with classes, and Values for all else.
        classifier: a file: read the classifier from there, or train it and keep it there.
        metrics: which metrics besides the Fréchet distance: kernel, neighbours, inception; all that apply by default.
        own_metric: a further metric of your own, a class below openedm.metrics.OwnMetric in a module given by --import.
        num_pairwise: the most images on either side of kernel and neighbours, whose cost is the square.
        num_splits: random halves of the real images to average over.
        num_bootstrap: replicates for the Fréchet distance's interval; 0 leaves it out.
        cache: a folder to keep the real images' features in, found by a hash of all images and of the network; null for
            none. Features of a classifier that is not kept are not kept either.
        batch_size: images drawn, or passed through the network, at a time.
        seed: of the classifier's training and of the random halves of the data.

    Raises:
        ValueError: a value is out of its range, or there is a classifier beside another extractor.
    """

    extractor: Extractor | None = None
    classifier: str | None = None
    metrics: list[Metric] | None = None
    own_metric: OwnMetric | None = None
    num_pairwise: int = 10_000
    num_splits: int = 8
    num_bootstrap: int = 50
    cache: str | None = "~/.cache/openedm/features"
    batch_size: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("num_splits", 1), ("num_pairwise", 6)):
            checks.at_least(name, getattr(self, name), low)
        if self.num_bootstrap:
            checks.at_least("num_bootstrap", self.num_bootstrap, 2)
        if self.extractor is not None and self.classifier is not None:
            raise ValueError(
                f"classifier and another extractor are mutually exclusive, got {self.classifier!r} and {self.extractor}"
            )


@dataclass(frozen=True)
class Images:
    """Generated images that are read, or drawn as `batches` gives them.

    Attributes:
        event_shape: of one image.
        count: the number of images.
        num_classes: the number of their classes; 0 for none.
        batches: from the numbers of some images to these images. Several processes must call it together.
        drawn: how they were drawn; empty for images that are read. The sampler is added when they are drawn.
    """

    event_shape: tuple[int, ...]
    count: int
    num_classes: int
    batches: Batches
    drawn: dict[str, Any] = dataclasses.field(default_factory=dict)


def open_images(
    samples: str | Path,
    sampling: SamplingOptions = SamplingOptions(),
    num: int | None = None,
    *,
    data: Source | None = None,
    batch_size: int = 100,
    accelerator: Accelerator | None = None,
    progress: Progress = no_progress,
    log: Log = lambda line: None,
) -> Images:
    """The images of a folder, a zip or an npz file; or those that are drawn from a checkpoint.

    Args:
        samples: a checkpoint or run folder; or a folder or zip of images or an npz file with an array `samples`.
        sampling: how images are drawn from a checkpoint.
        num: the number of images to draw, with seeds 0 … num − 1 and the classes in turn; 1000 by default.
        data: the data whose conditions a model with float conditions gets: those of `num` samples at even distances, or
            of all in turn.
        batch_size: images at a time.
        accelerator: the processes; None for those there are.
        progress: called while levels are fitted.
        log: called with a line about the sampler.

    Raises:
        ValueError: there are no such images, or an option has no effect.
    """
    path, accelerator = Path(samples), accelerator or make_accelerator()
    dataset: Dataset
    if path.suffix == ".npz":
        dataset = Arrays(str(path), key="samples").load()
    elif path.suffix == ".zip" or any(path.glob("*.png")) or (path.is_dir() and not _is_checkpoint(path)):
        dataset = ImageFolder(str(path)).load()
    else:
        num, model = NUM if num is None else num, read_model(find_checkpoint(path))
        if model.condition_shape is None or data is None:
            source, given = CheckpointSampler(path, sampling), {}
        else:
            conditions = conditions_of_data(data.load(), model, num)
            source = CheckpointSampler(path, sampling, conditions=conditions)
            given = {"data": to_config(data), "count": conditions.count, "digest": conditions.digest}
        return _drawn(source, num, batch_size, accelerator, progress, log, conditions=given)
    extra = [f.name for f in dataclasses.fields(sampling) if getattr(sampling, f.name) != f.default]
    extra += [] if num is None else ["num"]
    if sampling.nfe is None and {"sampler", "tolerance"} & {*extra}:
        extra.remove("nfe")  # its default ended
    if extra:
        raise ValueError(f"{', '.join(extra)} must not be given: the images in samples={path} are there already")
    return Images(dataset.event_shape, len(dataset), dataset.num_classes, partial(image_batches, dataset, batch_size))


def _drawn(
    source: CheckpointSampler,
    num: int,
    batch_size: int,
    accelerator: Accelerator,
    progress: Progress,
    log: Log,
    *,
    conditions: dict[str, Any],
) -> Images:
    drawn: dict[str, Any] = {**source.source, **source.options.execution, "num": num}
    drawn |= {"conditions": conditions} if conditions else {}

    def draw(numbers: Sequence[int]) -> Iterator[ImageBatch]:
        prepared = source.prepare(accelerator, progress)
        drawn["sampler"] = to_config(prepared.sampler)
        if prepared.origin and accelerator.is_main_process:
            log(f"{prepared.origin}: {prepared.sampler}")
        return ((x.float(), source.labels(seeds)) for seeds, x in source.draw(prepared, numbers, batch_size))

    return Images(source.model.event_shape, num, source.model.num_classes, draw, drawn)


def score(
    images: Images,
    data: Source,
    held_out: Source | None = None,
    options: ScoringOptions = ScoringOptions(),
    *,
    accelerator: Accelerator | None = None,
    progress: Progress = no_progress,
    log: Log = lambda line: None,
) -> Report | None:
    """Compare generated images with real ones; the report on the main process, None on the others.

    Several processes share the images, batch by batch; the report is bit-identical to that of a single process.

    Args:
        images: the generated images, see `open_images`.
        data: the real data.
        held_out: labelled data for the classifier's accuracy on real images; by default the test split of `data`, where
            it has one.
        options: the network and the metrics.
        accelerator: the processes; None for those there are.
        progress: called with the name of a set of images and the batches that are done.
        log: called with a line about features that are kept.

    Raises:
        ValueError: images and data do not fit each other, or an option has no effect.
    """
    real, accelerator = data.load(), accelerator or make_accelerator()
    extractor = _extractor(options, real)
    if extractor is not None:
        extractor.check(real.event_shape)
    if images.event_shape != real.event_shape:
        raise ValueError(f"samples must have the shape of data, {real.event_shape}, got {images.event_shape}")
    checks.at_least("the number of samples", images.count, 2)
    checks.at_least("the number of images in data", len(real), 4)
    held = None if held_out is None else held_out.load()
    if held_out is None and real.kind == "images":
        held = _test_split(data, extractor)
    if real.renumbered is not None and images.num_classes > real.num_classes:
        # The model has more classes than occur in the data, which are the numbers of the labels: those of old runs.
        number = max(images.num_classes, real.renumbered[-1] + 1)
        real = align_classes(real, number)
        held = None if held is None else align_classes(held, number, name="held_out")
    accelerator.wait_for_everyone()  # all have seen which files there are before one of them writes
    network = _network(extractor, options, real, accelerator, progress)
    if network.predicts_labels:
        real = align_classes(real, network.num_classes)
        held = None if held is None else align_classes(held, network.num_classes, name="held_out")
    _check_classes(network, images, real, held, given=held_out is not None)
    applicable_metrics(
        options.metrics, min(images.count, len(real) // 2, options.num_pairwise), network.num_classes > 0
    )
    shared = _Shared(network, options.batch_size, accelerator, progress)

    # Arrays and checkpoints hold the sampler's numbers; a picture is cut to [-1, 1], and so are these.
    def clamped(numbers: Sequence[int]) -> Iterator[ImageBatch]:
        cut = real.kind == "images"
        return ((x.clamp(-1, 1) if cut else x, labels) for x, labels in images.batches(numbers))

    found = shared.extract(clamped, images.count, "samples")
    found = found if real.num_classes > 0 else dataclasses.replace(found, labels=None)
    kept = None if extractor is None and options.classifier is None else options.cache
    kept = None if isinstance(extractor, Values) else kept
    truth = shared.extract_real(real, kept, log)
    judged = None if held is None else shared.extract_all(held, "held out")
    if truth is None or not accelerator.is_main_process:
        return None
    report = compare(
        found,
        truth,
        held_out=judged,
        seed=options.seed,
        num_splits=options.num_splits,
        metrics=options.metrics,
        num_pairwise=options.num_pairwise,
        num_bootstrap=options.num_bootstrap,
        own=options.own_metric,
        device="cuda" if accelerator.device.type == "cuda" else "cpu",  # has float64
    )
    return dataclasses.replace(report, extractor=network.description)


@dataclass(frozen=True)
class _Shared:
    """Extracts features of images that the processes share."""

    network: FeatureNetwork
    batch_size: int
    accelerator: Accelerator
    progress: Progress

    def extract(self, batches: Batches, count: int, name: str) -> Features:
        """The features of all images, on every process: bit-identical to those of a single process.

        Args:
            batches: makes the images; called once on every process, also where it has no share.
            count: the number of images.
            name: of the images, for `progress`.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = share_of(range(count), self.batch_size, rank, processes)
        images = _reported(batches(mine), name, -(-len(mine) // self.batch_size), self.progress)
        part = extract(self.network, images) if mine else self._nothing()
        return part if processes == 1 else self._gather(part, mine)

    def extract_all(self, dataset: Dataset, name: str) -> Features:
        """The features of all images of a dataset, on every process."""
        return self.extract(partial(image_batches, dataset, self.batch_size), len(dataset), name)

    def extract_real(self, real: Dataset, cache: str | None, log: Log) -> Features | None:
        """The features of the real images, on the main process; where none are kept, all processes extract them."""

        if cache is None:
            return self.extract_all(real, "data")
        if not self.accelerator.is_main_process:
            return self.extract_all(real, "data") if self._any(False) else None

        def compute() -> Features:
            self._any(True)
            return self.extract_all(real, "data")

        features, path, there = kept_features(real, self.network, cache, batch_size=self.batch_size, compute=compute)
        if there:
            self._any(False)
        log(f"features of the data: {'read from' if there else 'kept in'} {path}")
        return features

    def _nothing(self) -> Features:
        network = self.network
        probabilities = torch.empty(0, network.num_classes) if network.num_classes else None
        return Features(
            torch.empty(0, network.dim), probabilities, None, network.predicts_labels, network.fingerprint()
        )

    def _gather(self, part: Features, numbers: Sequence[int]) -> Features:
        accelerator = self.accelerator

        def gather(rows: Tensor) -> Tensor:  # shares differ in length: filled up with −1
            rows = accelerator.pad_across_processes(rows.to(accelerator.device), pad_index=-1)
            gathered: Tensor = accelerator.gather(rows)
            return gathered.cpu()

        found = gather(torch.tensor(numbers, dtype=torch.int64))
        order = found.argsort()[int((found < 0).sum()) :]
        labels = gather(torch.full((len(part),), -1) if part.labels is None else part.labels.long())[order]
        return Features(
            gather(part.values)[order],
            None if part.probabilities is None else gather(part.probabilities)[order],
            None if (labels < 0).any() else labels,
            part.predicts_labels,
            part.fingerprint,
        )

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all must call it."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0)


def _extractor(options: ScoringOptions, real: Dataset) -> Extractor | None:
    """The extractor to load; None where a classifier has yet to be trained."""
    if options.extractor is not None:
        return options.extractor
    labelled = real.kind == "images" and real.num_classes > 1
    if options.classifier is not None:
        if Path(options.classifier).exists():
            return TrainedClassifier(options.classifier)
        if not labelled:
            raise ValueError(
                f"data must be images in at least 2 classes to train the classifier on, got {real.describe()}"
            )
        return None
    channels = real.event_shape[0] if real.kind == "images" else 0
    if channels == 3 or (channels == 1 and not labelled):
        return EfficientNetLite0()
    return None if labelled else Values()


def _network(
    extractor: Extractor | None, options: ScoringOptions, real: Dataset, accelerator: Accelerator, progress: Progress
) -> FeatureNetwork:
    """The network of the extractor, or a classifier trained by the main process."""
    if extractor is not None:
        return extractor.fit(real).to(accelerator.device)
    if accelerator.is_main_process:
        trained = train_classifier(real, seed=options.seed, device=accelerator.device, progress=progress)
        if options.classifier is not None:
            trained.save(options.classifier)
    else:
        trained = Classifier(real.event_shape, real.num_classes).to(accelerator.device).eval()
    with torch.no_grad():
        broadcast(dict(trained.state_dict()))
    return ClassifierFeatures(trained)


def _test_split(data: Source, extractor: Extractor | None) -> Dataset | None:
    """The test split of a source whose training split is used, for a classifier of the data."""
    if not (extractor is None or isinstance(extractor, TrainedClassifier)):
        return None
    if "split" in {f.name for f in dataclasses.fields(data)} and getattr(data, "split", None) == "train":
        test: Source = dataclasses.replace(data, split="test")  # type: ignore[call-arg]
        return test.load()
    return None


def _check_classes(
    network: FeatureNetwork, images: Images, real: Dataset, held: Dataset | None, *, given: bool
) -> None:
    if given and not network.predicts_labels:
        raise ValueError("held_out requires a classifier of the data: it measures the accuracy of that classifier")
    for name, count in (("samples", images.num_classes), ("data", real.num_classes)):
        if network.predicts_labels and count > network.num_classes:
            raise ValueError(f"{name} must have at most the classifier's {network.num_classes} classes, got {count}")
    if held is not None and held.num_classes != network.num_classes:
        raise ValueError(f"held_out must have the classifier's {network.num_classes} classes, got {held.num_classes}")


def _reported(batches: Iterable[ImageBatch], name: str, total: int, progress: Progress) -> Iterator[ImageBatch]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        progress(name, done, total)


def _is_checkpoint(path: Path) -> bool:
    try:
        find_checkpoint(path)
    except ValueError:
        return False
    return True
