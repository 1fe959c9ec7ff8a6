"""`openedm evaluate`: score samples against real data."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from tqdm.auto import tqdm

from openedm.cli.choosing import NFE, choice_of_sampler, make_sampler, pilot_conditions, without_budget
from openedm.cli.guiding import Precision, digest, guidance_settings, load_guided, speed_settings
from openedm.cli.seeds import labels_for
from openedm.cli.sharing import Batches, batches_of, extract_together, share_weights, told
from openedm.data import Arrays, Dataset, Digits, ImageFolder, Source
from openedm.denoiser import Denoiser, configure_execution
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.storage import replacing
from openedm.guidance import GuidanceWeight, Interval
from openedm.metrics import (
    Classifier,
    ClassifierFeatures,
    EfficientNetLite0,
    Extractor,
    FeatureNetwork,
    Features,
    Metric,
    TrainedClassifier,
    applicable_metrics,
    compare,
    kept_features,
    train_classifier,
)
from openedm.metrics.features import ImageBatch
from openedm.sampling import Auto, Sampler, sample_batches
from openedm.training import find_checkpoint, make_accelerator, read_model

NUM = 1000
LEGEND = (
    "in brackets: 95 % intervals, of recall, density and coverage with the other images held fixed; after ±: the "
    "standard deviation over random halves of the real images"
)

spelled_out = without_budget


def evaluate(
    samples: str,
    data: Source = Digits(),
    held_out: Source | None = None,
    num: int | None = None,
    nfe: int | None = NFE,
    tolerance: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    levels: Literal["rule", "fitted"] = "rule",
    sampler: Sampler = Sampler(),
    guidance: GuidanceWeight = Interval(),
    guiding: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    precision: Precision = "fp32",
    compile: bool = False,
    extractor: Extractor | None = None,
    classifier: str | None = None,
    metrics: list[Metric] | None = None,
    num_pairwise: int = 10_000,
    num_splits: int = 8,
    num_bootstrap: int = 50,
    cache: str | None = "~/.cache/openedm/features",
    out: str | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> None:
    """Score generated images against real ones.

    Prints the Fréchet distance in the features of a network, kernel distance, precision, recall, density, coverage and
    Inception score, each beside what real images score against other real images at the same number; and, with a
    classifier of the data, how often it finds the class that an image was made for.

    Grey images are seen by a small classifier trained on the real data, RGB images by EfficientNet-Lite0. Numbers can
    be compared only where the network is the same: the report has its fingerprint.

    Under `torchrun` or `accelerate launch` the processes share the images, batch by batch, and the report is that of
    one process, to the last digit.

    Args:
        samples: a checkpoint or run folder, from which images are drawn and scored without being written; or a folder
            or zip of images or an npz file of arrays, such as `openedm sample` writes.
        data: the real data to compare with: what the model was trained on.
        held_out: labelled data for the classifier's accuracy on real images; the test split of `data` by default, where
            it has one.
        num: how many images to draw from a checkpoint, with seeds 0 … num − 1 and the classes in turn; 1000 by default.
        nfe: how many network evaluations a sample may take: solver and noise levels are then chosen by rule. This and
            the following, up to `compile`, are as in `openedm sample`.
        tolerance: the error a sample may have instead, in data units.
        sigma_min: the lowest noise level with nfe or tolerance.
        sigma_max: the highest.
        levels: noise levels by rule, or fitted to the checkpoint once and kept beside it.
        sampler: levels, schedule, solver and stochasticity one by one, instead of nfe and tolerance.
        guidance: how strongly the samples are guided.
        guiding: another checkpoint or run to guide away from.
        weights: ema, the averaged weights, or raw, those of the last step.
        precision: fp32, or bf16 for networks in mixed precision.
        compile: compile the networks that draw.
        extractor: the network to see with: EfficientNetLite0, Inception (published FID, with weights from a file),
            TrainedClassifier.
        classifier: a file: read the classifier from there, or train it and keep it there.
        metrics: which metrics besides the Fréchet distance: kernel, neighbours, inception; all that apply by default.
        num_pairwise: the most images on either side of kernel and neighbours, whose cost is the square.
        num_splits: random halves of the real images to average over.
        num_bootstrap: replicates for the Fréchet distance's interval; 0 leaves it out.
        cache: a folder to keep the real images' features in, found by a hash of all images and of the network; null for
            none. Features of a classifier that is not kept are not kept either.
        out: also write the report to this JSON file.
        batch_size: images drawn or looked at at a time.
        seed: of the classifier's training and of the random halves of the data.
    """
    if out is not None and Path(out).exists():
        raise ValueError(f"out={out} exists already: a report is never overwritten, choose another name")
    checks.at_least("num", NUM if num is None else num, 2)
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("num_splits", num_splits, 1),
        ("num_pairwise", num_pairwise, 6),
    ):
        checks.at_least(name, value, low)
    if num_bootstrap:
        checks.at_least("num_bootstrap", num_bootstrap, 2)
    if extractor is not None and classifier is not None:
        raise ValueError(f"classifier must not be given beside another extractor, got {classifier!r} and {extractor}")
    choice = choice_of_sampler(nfe, tolerance, sampler, sigma_min, sigma_max)
    real = data.load()
    chosen = _extractor(extractor, classifier, real)
    if chosen is not None and real.kind == "images":
        chosen.check(real.event_shape)
    accelerator = make_accelerator()
    drawing = _Drawing(choice, levels, guidance, guiding, weights, precision, compile, num)
    made = _open(Path(samples), drawing, batch_size, accelerator)
    if made.event_shape != real.event_shape:
        raise ValueError(f"samples must have the shape of data, {real.event_shape}, got {made.event_shape}")
    checks.at_least("the number of samples", made.count, 2)
    checks.at_least("the number of images in data", len(real), 4)
    held = _held_out(data, chosen) if held_out is None else held_out.load()
    accelerator.wait_for_everyone()  # all have seen which files there are before one of them writes
    network = _network(chosen, classifier, real, seed, accelerator)
    _check_classes(network, made, real, held, given=held_out is not None)
    applicable_metrics(metrics, min(made.count, len(real) // 2, num_pairwise), network.num_classes > 0)

    def look(batches: Batches, count: int, name: str) -> Features:
        return extract_together(network, batches, count, batch_size, accelerator, name=name)

    # Arrays and checkpoints give what the sampler gave; a picture is cut to [-1, 1], and so are these.
    seen = look(lambda mine: _clamped(made.batches(mine)), made.count, "samples")
    seen = seen if real.num_classes > 0 else dataclasses.replace(seen, labels=None)
    kept = cache if chosen is not None or classifier is not None else None
    truth = _real(
        network, real, kept, batch_size, accelerator, lambda: look(batches_of(real, batch_size), len(real), "data")
    )
    judged = None if held is None else look(batches_of(held, batch_size), len(held), "held out")
    if truth is None or not accelerator.is_main_process:
        return
    report = compare(
        seen,
        truth,
        held_out=judged,
        seed=seed,
        num_splits=num_splits,
        metrics=metrics,
        num_pairwise=num_pairwise,
        num_bootstrap=num_bootstrap,
        device="cuda" if accelerator.device.type == "cuda" else "cpu",  # has float64
    )
    report = dataclasses.replace(report, extractor=network.description)
    print(report.table())
    print(f"({LEGEND})")
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as path:
            content = report.to_dict() | ({"drawn": made.drawn} if made.drawn else {})
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"report: {out}")


@dataclass(frozen=True)
class _Drawing:
    """How to draw samples from a checkpoint."""

    choice: Auto | Sampler
    levels: Literal["rule", "fitted"]
    guidance: GuidanceWeight
    guiding: str | None
    weights: Literal["ema", "raw"]
    precision: Precision
    compile: bool
    num: int | None


@dataclass(frozen=True)
class _Made:
    """Generated images that are there, or are drawn as `batches` gives them."""

    event_shape: tuple[int, ...]
    count: int
    num_classes: int
    batches: Batches
    drawn: dict[str, Any] = dataclasses.field(default_factory=dict)  # how; empty for images that are there


def _extractor(extractor: Extractor | None, classifier: str | None, real: Dataset) -> Extractor | None:
    """The extractor to load; None where a classifier has yet to be trained."""
    if extractor is not None:
        return extractor
    if classifier is not None and Path(classifier).exists():
        return TrainedClassifier(classifier)
    if classifier is None and real.kind == "images" and real.event_shape[0] == 3:
        return EfficientNetLite0()
    if real.kind != "images" or real.num_classes < 2:
        raise ValueError(f"data must be images in at least 2 classes to train the classifier on, got {real.describe()}")
    return None


def _open(path: Path, drawing: _Drawing, batch_size: int, accelerator: Accelerator) -> _Made:
    if path.suffix == ".npz":
        return _there(path, Arrays(str(path), key="samples").load(), drawing, batch_size)
    if path.suffix == ".zip" or any(path.glob("*.png")) or (path.is_dir() and not _is_checkpoint(path)):
        return _there(path, ImageFolder(str(path)).load(), drawing, batch_size)
    folder = find_checkpoint(path)
    model = read_model(folder)
    made_with = {
        "weights": digest(folder, drawing.weights),
        **guidance_settings(folder, drawing.weights, drawing.guidance, drawing.guiding),
    }
    if drawing.levels == "fitted" and isinstance(drawing.choice, Auto) and drawing.choice.tolerance is not None:
        raise ValueError("levels='fitted' goes with nfe or a sampler on fixed levels, not with a tolerance")
    num = NUM if drawing.num is None else drawing.num
    drawn = {**made_with, **speed_settings(drawing.precision, drawing.compile), "num": num}

    def draw(mine: Sequence[int]) -> Iterator[ImageBatch]:
        denoiser, sampler = _prepared(folder, drawing, made_with, accelerator)
        drawn["sampler"] = to_config(sampler)
        return _draw(denoiser, sampler, mine, batch_size)

    return _Made(model.event_shape, num, model.num_classes, draw, drawn)


def _there(path: Path, dataset: Dataset, drawing: _Drawing, batch_size: int) -> _Made:
    given = [f.name for f in dataclasses.fields(drawing) if getattr(drawing, f.name) != getattr(_AS_IS, f.name)]
    if given:
        names = ", ".join("nfe, tolerance or sampler" if name == "choice" else name for name in given)
        raise ValueError(f"{names} must not be given: the images in samples={path} are there already")
    return _Made(dataset.event_shape, len(dataset), dataset.num_classes, batches_of(dataset, batch_size))


_AS_IS = _Drawing(Auto(NFE), "rule", Interval(), None, "ema", "fp32", False, None)


def _prepared(
    folder: Path, drawing: _Drawing, made_with: dict[str, Any], accelerator: Accelerator
) -> tuple[Denoiser, Sampler]:
    """What draws; processes wait for each other here, before the first batch."""
    denoiser = load_guided(folder, drawing.weights, drawing.guidance, drawing.guiding).to(accelerator.device)
    pilots = pilot_conditions(read_model(folder).event_shape, denoiser.num_classes, None)
    kept_with, main = {**made_with, "classes": None}, accelerator.is_main_process
    with accelerator.main_process_first():  # the others read what it has fitted
        sampler = make_sampler(
            drawing.choice, drawing.levels, denoiser, pilots, folder / "fitted", kept_with, main=main
        )
    return configure_execution(denoiser, precision=drawing.precision, compile=drawing.compile), sampler


def _draw(denoiser: Denoiser, sampler: Sampler, seeds: Sequence[int], batch_size: int) -> Iterator[ImageBatch]:
    labels = labels_for(seeds, None, denoiser.num_classes)
    drawn = sample_batches(sampler, denoiser, seeds, condition=labels, batch_size=batch_size)
    return ((x.float(), labels_for(some, None, denoiser.num_classes)) for some, x in drawn)


def _clamped(batches: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
    return ((x.clamp(-1, 1), labels) for x, labels in batches)


def _real(
    network: FeatureNetwork,
    real: Dataset,
    cache: str | None,
    batch_size: int,
    accelerator: Accelerator,
    look: Callable[[], Features],
) -> Features | None:
    """The features of the real images, on the main process: where none are kept, all processes look."""
    if cache is None:
        return look()
    if not accelerator.is_main_process:
        return look() if told(False, accelerator) else None

    def look_with_all() -> Features:
        told(True, accelerator)
        return look()

    features, path, there = kept_features(real, network, cache, batch_size=batch_size, compute=look_with_all)
    if there:
        told(False, accelerator)
    print(f"features of the data: {'read from' if there else 'kept in'} {path}")
    return features


def _held_out(data: Source, chosen: Extractor | None) -> Dataset | None:
    """The test split of a source whose training split is used, for a classifier of the data."""
    if not (chosen is None or isinstance(chosen, TrainedClassifier)):
        return None
    if "split" in {f.name for f in dataclasses.fields(data)} and getattr(data, "split", None) == "train":
        test: Source = dataclasses.replace(data, split="test")  # type: ignore[call-arg]
        return test.load()
    return None


def _check_classes(network: FeatureNetwork, made: _Made, real: Dataset, held: Dataset | None, *, given: bool) -> None:
    if given and not network.predicts_labels:
        raise ValueError("held_out has an effect with a classifier of the data only: it measures that one's accuracy")
    for name, count in (("samples", made.num_classes), ("data", real.num_classes)):
        if network.predicts_labels and count > network.num_classes:
            raise ValueError(f"{name} must have at most the classifier's {network.num_classes} classes, got {count}")
    if held is not None and held.num_classes != network.num_classes:
        raise ValueError(f"held_out must have the classifier's {network.num_classes} classes, not {held.num_classes}")


def _is_checkpoint(path: Path) -> bool:
    try:
        find_checkpoint(path)
    except ValueError:
        return False
    return True


def _network(
    chosen: Extractor | None, path: str | None, real: Dataset, seed: int, accelerator: Accelerator
) -> FeatureNetwork:
    if chosen is not None:
        return chosen.load().to(accelerator.device)
    if accelerator.is_main_process:
        trained = train_classifier(
            real,
            seed=seed,
            device=accelerator.device,
            progress=lambda epochs: tqdm(epochs, unit="epoch", desc="classifier"),
        )
        if path is not None:
            trained.save(path)
    else:
        trained = Classifier(real.event_shape, real.num_classes).to(accelerator.device).eval()
    share_weights(trained)
    return ClassifierFeatures(trained)
