"""Images to score: read from files, or drawn from a checkpoint, on one process or several."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from openedm.data import Arrays, Dataset, ImageFolder, Source, match_classes
from openedm.data.latent_shards import EncodedLatents, load_encoded
from openedm.generation.conditions import conditions_of_data
from openedm.generation.options import CheckpointSampler, SamplingOptions
from openedm.generation.pictures import DecodedLatents, checkpoint_sampler, is_latents, output_of
from openedm.ground.choices import brief, to_config
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.metrics import image_batches
from openedm.metrics.features import ImageBatch
from openedm.training import find_checkpoint, make_accelerator, read_model

__all__ = ["Batches", "CutImages", "Images", "Log", "open_images"]

NUM = 1000
"""Images that are drawn from a checkpoint unless a number is given."""

ARCHIVES = (".zip", ".tar", ".tgz")
"""The ends of names of archives of images."""

MAX_SIZE = 20.0
"""The size of numbers of samples above which a warning says that they were cut to [-1, 1]. Those of networks that
have hardly been trained are below."""

Batches = Callable[[Sequence[int]], Iterable[ImageBatch]]
"""From the numbers of some images, in increasing order, to these images."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Images:
    """Generated images that are read, or drawn as `batches` gives them.

    Attributes:
        event_shape: of one image.
        count: the number of images.
        num_classes: the number of their classes; 0 for none.
        class_names: the names of the classes, if they have names.
        renumbered: whether the names are labels, which were renumbered.
        batches: from the numbers of some images to these images. Several processes must call it together.
        drawn: how they were drawn; empty for images that are read. The sampler is added when they are drawn.
    """

    event_shape: tuple[int, ...]
    count: int
    num_classes: int
    batches: Batches
    drawn: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    renumbered: bool = False

    def with_classes_of(self, real: Dataset) -> "Images":
        """These images, with their classes numbered as those of some data; ValueError for a class it does not have."""
        if self.num_classes == 0 or real.num_classes == 0:
            return self
        own, others = (self.num_classes, self.class_names), (real.num_classes, real.class_names)
        places = match_classes(*own, *others, numbered=self.renumbered, name="samples")
        if places is None:
            return self
        numbers = torch.tensor(places)

        def batches(chosen: Sequence[int]) -> Iterator[ImageBatch]:
            return ((x, None if labels is None else numbers[labels]) for x, labels in self.batches(chosen))

        renumbered = dataclasses.replace(self, batches=batches, num_classes=others[0], class_names=others[1])
        return dataclasses.replace(renumbered, renumbered=real.renumbered is not None)


def open_images(
    samples: str | Path,
    sampling: SamplingOptions = SamplingOptions(),
    num: int | None = None,
    *,
    data: Source | None = None,
    batch_size: int = 100,
    vae: str | None = None,
    accelerator: Accelerator | None = None,
    progress: ShowProgress = None,
    log: Log = lambda line: None,
) -> Images:
    """The images of a folder, an archive or a file of arrays; or those that are drawn from a checkpoint.

    Samples of a model of latents are decoded, and so are those of a folder of latents: what the autoencoder alone does
    to images.

    Args:
        samples: a checkpoint or run folder; a folder of latents of `openedm data encode`; or a folder, .zip or .tar of
            images, a .npz file with an array `samples`, or a .npy file.
        sampling: how images are drawn from a checkpoint.
        num: the number of images to draw, with seeds 0 … num − 1 and the classes in turn; 1000 by default.
        data: the data whose conditions a model with float conditions gets: those of `num` samples at even distances, or
            of all in turn.
        batch_size: images at a time.
        vae: where the autoencoder of latents is, if it is no longer where it was.
        accelerator: the processes; None for those there are.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called while
            levels are fitted.
        log: called with a line about the sampler.

    Raises:
        ValueError: there are no such images, or an option has no effect.
    """
    path, accelerator = Path(samples), accelerator or make_accelerator()
    dataset: Dataset
    if path.suffix in (".npy", ".npz"):
        dataset = _read_arrays(path)
    elif is_latents(path):
        _refuse_sampling(sampling, [], path)
        return _decoded(load_encoded(path), num, batch_size, vae, accelerator)
    elif path.suffix in ARCHIVES or any(path.glob("*.png")) or (path.is_dir() and not _is_checkpoint(path)):
        dataset = ImageFolder(str(path)).load()
    elif not path.is_dir():
        raise ValueError(
            "samples must be a checkpoint or run folder, a folder, .zip or .tar of images, or a .npz or .npy of "
            f"arrays, got {str(samples)!r}{'' if path.exists() else ', which does not exist'}"
        )
    else:
        num, model = NUM if num is None else num, read_model(find_checkpoint(path))
        if model.condition_shape is None or data is None:
            source, given = checkpoint_sampler(path, sampling, vae=vae), {}
        else:
            conditions = conditions_of_data(data.load(), model, num)
            source = checkpoint_sampler(path, sampling, conditions=conditions, vae=vae)
            given = {"data": to_config(data), "count": conditions.count, "digest": conditions.digest}
        with showing(progress, here=accelerator.is_main_process) as report:
            return _drawn(source, num, batch_size, accelerator, report, log, conditions=given)
    _refuse_sampling(sampling, [name for name, value in (("num", num), ("vae", vae)) if value is not None], path)
    return Images(
        dataset.event_shape,
        len(dataset),
        dataset.num_classes,
        partial(image_batches, dataset, batch_size),
        class_names=dataset.class_names,
        renumbered=dataset.renumbered is not None,
    )


def _decoded(
    latents: EncodedLatents, num: int | None, batch_size: int, vae: str | None, accelerator: Accelerator
) -> Images:
    """Images of `num` latents at even distances, or of all."""
    dataset = DecodedLatents(latents, latents.autoencoder.load(vae, accelerator.device))
    chosen = dataset.spread(len(dataset) if num is None else num)

    def batches(numbers: Sequence[int]) -> Iterator[ImageBatch]:
        return image_batches(dataset, batch_size, [chosen[number] for number in numbers])

    return Images(dataset.event_shape, len(chosen), dataset.num_classes, batches, class_names=dataset.class_names)


def _refuse_sampling(sampling: SamplingOptions, extra: list[str], path: Path) -> None:
    """Refuse options of sampling, and `extra` ones, for images that are there."""
    given = [f.name for f in dataclasses.fields(sampling) if getattr(sampling, f.name) != f.default]
    if sampling.nfe is None and {"sampler", "tolerance"} & {*given}:
        given.remove("nfe")  # its default ended
    if given := [*given, *extra]:
        raise ValueError(f"{', '.join(given)} must not be given: the images in samples={path} are there already")


def _read_arrays(path: Path) -> Dataset:
    """The samples in a file of arrays; warnings about their range say how to write them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = Arrays(str(path), key="samples" if path.suffix == ".npz" else None).load()
    for warning in caught:
        found, hint, _ = str(warning.message).partition(": give range=")
        how = ": write samples in [-1, 1], or as bytes" if hint else ""
        warnings.warn(f"samples={path}: {found}{how}", warning.category, stacklevel=3)
    return dataset


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
            log(f"{prepared.origin}: {brief(prepared.sampler)}")
        return ((x.float(), source.labels(seeds)) for seeds, x in source.draw(prepared, numbers, batch_size))

    model = source.model
    return Images(output_of(source).shape, num, model.num_classes, draw, drawn, class_names=model.class_names)


class CutImages:
    """Images cut to [-1, 1]: arrays and checkpoints hold the sampler's numbers, and pictures are in that range."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self._outside, self._entries, self._largest = batches, 0, 0, 0.0

    def __call__(self, numbers: Sequence[int]) -> Iterator[ImageBatch]:
        for x, labels in self._batches(numbers):
            size = x.abs()
            self._outside += int((size > 1 + 1e-3).sum())
            self._entries += x.numel()
            self._largest = max(self._largest, float(size.max()))
            yield x.clamp(-1, 1), labels

    def warn(self) -> None:
        """Warn if the numbers that were cut are not those of images."""
        share = self._outside / max(self._entries, 1)
        if self._largest > MAX_SIZE:
            warnings.warn(
                f"{share:.0%} of the numbers of samples are outside [-1, 1], up to {self._largest:.3g}, and were cut "
                "to it: they are in other units than images, or the model is not trained yet",
                stacklevel=3,
            )


def _is_checkpoint(path: Path) -> bool:
    try:
        find_checkpoint(path)
    except ValueError:
        return False
    return True
