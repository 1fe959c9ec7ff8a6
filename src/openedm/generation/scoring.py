"""Generated images scored against real ones: drawn from a checkpoint or read, on one process or several."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from openedm.data import Dataset, Source, align_classes
from openedm.generation.images import Batches, CutImages, Images, Log
from openedm.ground import checks
from openedm.ground.choices import Choice, brief
from openedm.ground.progress import Progress, ShowProgress, reported, showing
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
    warn_of_units,
)
from openedm.training import make_accelerator, share_of

__all__ = ["ScoringOptions", "score"]


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
        num_splits: random halves of the real images to average over; of a single one there is no deviation.
        num_bootstrap: replicates for the Fréchet distance's interval; 0 leaves it out.
        cache: a folder to keep the real images' features in, found by a hash of all images and of the network; null for
            none. Features of a classifier that is not kept, and of Values, are not kept either.
        batch_size: images drawn, or passed through the network, at a time.
        seed: of the classifier's training and of the random halves of the data, >= 0.

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
        checks.between("seed", self.seed, 0, 2**63 - 1)
        if self.extractor is not None and self.classifier is not None:
            raise ValueError(
                f"classifier and another extractor are mutually exclusive, got {self.classifier!r} and {self.extractor}"
            )


def score(
    images: Images,
    data: Source,
    held_out: Source | None = None,
    options: ScoringOptions = ScoringOptions(),
    *,
    accelerator: Accelerator | None = None,
    progress: ShowProgress = None,
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
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            name of a set of images and the batches that are done.
        log: called with a line about features that are kept.

    Raises:
        ValueError: images and data do not fit each other, or an option has no effect.

    Warns:
        UserWarning: the samples are in other units than the data.
    """
    real, accelerator = data.load(), accelerator or make_accelerator()
    extractor = _extractor(options, real)
    if extractor is not None:
        extractor.check(real.event_shape)
    if images.event_shape != real.event_shape:
        raise ValueError(
            f"samples must have the shape of data, {real.event_shape} of {brief(data)}, got {images.event_shape}: give "
            "as data what the model learned from"
        )
    checks.at_least("the number of samples", images.count, 2)
    checks.at_least("the number of images in data", len(real), 4)
    count = min(images.count, len(real) // 2, options.num_pairwise)
    applicable_metrics(options.metrics, count, classes=True)
    held = None if held_out is None else held_out.load()
    if held is not None and (held.event_shape != real.event_shape or held.num_classes == 0):
        raise ValueError(f"held_out must have classes and the shape of data, {real.event_shape}, got {held.describe()}")
    if held_out is None and real.kind == "images":
        held = _test_split(data, extractor)
    if real.renumbered is not None and images.num_classes > real.num_classes:
        # The model has more classes than occur in the data, which are the numbers of the labels: those of old runs.
        number = max(images.num_classes, real.renumbered[-1] + 1)
        real = align_classes(real, number)
        held = None if held is None else align_classes(held, number, name="held_out")
    accelerator.wait_for_everyone()  # all have seen which files there are before one of them writes
    with showing(progress, here=accelerator.is_main_process) as report:
        network = _network(extractor, options, real, accelerator, report)
        if network.predicts_labels:
            real = align_classes(real, network.num_classes)
            held = None if held is None else align_classes(held, network.num_classes, name="held_out")
        if network.predicts_labels:
            images = images.with_classes_of(real)
        _check_classes(network, images, real, held, given=held_out is not None)
        applicable_metrics(options.metrics, count, network.num_classes > 0)
        shared = _Shared(network, options.batch_size, accelerator, report)
        cut = CutImages(images.batches)
        found = shared.extract(cut if real.kind == "images" else images.batches, images.count, "samples")
        cut.warn()
        warn_of_units(network, found)
        found = found if real.num_classes > 0 else dataclasses.replace(found, labels=None)
        kept = None if extractor is None and options.classifier is None else options.cache
        kept = None if isinstance(extractor, Values) else kept
        truth = shared.extract_real(real, kept, log)
        judged = None if held is None else shared.extract_all(held, "held out")
    if truth is None or not accelerator.is_main_process:
        return None
    result = compare(
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
    return dataclasses.replace(result, extractor=network.description)


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
        images = reported(batches(mine), name, -(-len(mine) // self.batch_size), self.progress)
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
        if path is not None:
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


def trains_classifier(options: ScoringOptions, real: Dataset) -> bool:
    """Whether a classifier of the data is trained to compare images."""
    return _extractor(options, real) is None


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
