"""`openedm evaluate`: score samples against real data."""

import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from openedm import checks
from openedm.cli.seeds import labels_for
from openedm.data import Arrays, Dataset, Digits, ImageFolder, Source
from openedm.data.files import replacing
from openedm.metrics import Classifier, train_classifier
from openedm.metrics import evaluate as compare
from openedm.sampling import Sampler, sample_batches
from openedm.training import find_checkpoint, load_denoiser, make_accelerator, read_model


def evaluate(
    samples: str,
    data: Source = Digits(),
    held_out: Source | None = None,
    num: int = 1000,
    sampler: Sampler = Sampler(),
    classifier: str | None = None,
    out: str | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> None:
    """Score generated images against real ones.

    Prints the Fréchet distance in the features of a small classifier trained on the real data, beside what real data
    score against other real data at the same number; and how often the classifier finds the class that an image was
    made for. Distances can be compared only where the classifier is the same: keep it with `--classifier`.

    Args:
        samples: a checkpoint or run folder, from which images are drawn; or a folder or zip of images or an npz file of
            arrays, such as `openedm sample` writes.
        data: the real data to compare with: what the model was trained on.
        held_out: labelled data for the classifier's accuracy on real images; the test split of `data` by default, where
            it has one.
        num: how many images to draw from a checkpoint, with seeds 0 … num − 1 and the classes in turn.
        sampler: how to draw them.
        classifier: a file: read the classifier from there, or train it and keep it there.
        out: also write the report to this JSON file.
        batch_size: images drawn at a time.
        seed: of the classifier's training and of the random halves of the data.
    """
    if out is not None and Path(out).exists():
        raise ValueError(f"out={out} exists already: a report is never overwritten, choose another name")
    checks.at_least("num", num, 2)
    checks.at_least("batch_size", batch_size, 1)
    real = data.load()
    if not _is_kept(classifier) and (real.kind != "images" or real.num_classes < 2):
        raise ValueError(f"data must be images in at least 2 classes to train the classifier on, got {real.describe()}")
    held = _held_out(data) if held_out is None else held_out.load()
    x, labels = _read(Path(samples), real.event_shape, num, sampler, batch_size)
    if labels is not None and real.num_classes == 0:
        labels = None
    judge = _classifier(classifier, real, seed)
    report = compare(x, labels, real, judge, held_out=held, seed=seed)
    print(report.table())
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as path:
            path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"report: {out}")


def _held_out(data: Source) -> Dataset | None:
    """The test split of a source whose training split is used."""
    if "split" in {f.name for f in fields(data)} and getattr(data, "split", None) == "train":
        test: Source = replace(data, split="test")  # type: ignore[call-arg]
        return test.load()
    return None


def _read(
    path: Path, event_shape: tuple[int, ...], num: int, sampler: Sampler, batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """The samples and their classes; checked to have the shape of the real data before the long work."""
    if path.suffix == ".npz":
        return _all(Arrays(str(path), key="samples").load(), event_shape)
    if path.suffix == ".zip" or any(path.glob("*.png")) or (path.is_dir() and not _is_checkpoint(path)):
        return _all(ImageFolder(str(path)).load(), event_shape)
    _check_shape(read_model(find_checkpoint(path)).event_shape, event_shape)
    denoiser = load_denoiser(path).to(make_accelerator().device)
    labels = labels_for(range(num), None, denoiser.num_classes)
    batches = sample_batches(sampler, denoiser, range(num), condition=labels, batch_size=batch_size)
    drawn = [x for _, x in tqdm(batches, total=-(-num // batch_size), unit="batch")]
    return torch.cat(drawn).float().clamp(-1, 1), labels


def _is_checkpoint(path: Path) -> bool:
    try:
        find_checkpoint(path)
    except ValueError:
        return False
    return True


def _all(dataset: Dataset, event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    _check_shape(dataset.event_shape, event_shape)
    return dataset.fetch(range(len(dataset)))


def _check_shape(made: tuple[int, ...], real: tuple[int, ...]) -> None:
    if made != real:
        raise ValueError(f"samples must have the shape of data, {real}, got {made}")


def _is_kept(classifier: str | None) -> bool:
    return classifier is not None and Path(classifier).exists()


def _classifier(path: str | None, real: Dataset, seed: int) -> Classifier:
    if path is not None and _is_kept(path):
        return Classifier.load(path)
    trained = train_classifier(
        real,
        seed=seed,
        device=make_accelerator().device,
        progress=lambda epochs: tqdm(epochs, unit="epoch", desc="classifier"),
    )
    if path is not None:
        trained.save(path)
    return trained
