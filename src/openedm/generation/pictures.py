"""Images of models of latents: samples and data that the autoencoder decodes, as if they had been images all along."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float64
from torch import Tensor

from openedm.data import Dataset, Latents, Source, Stored
from openedm.data.autoencoder import Codec
from openedm.data.dataset import Batch, Indices
from openedm.data.latent_shards import EncodedLatents, read_manifest
from openedm.data.shards import MANIFEST
from openedm.generation.conditions import Conditions
from openedm.generation.options import CheckpointSampler, PreparedSampler, SamplingOptions, StepNoiseName
from openedm.ground.choices import from_config
from openedm.ground.progress import ShowProgress
from openedm.sampling import Sampler
from openedm.training import find_checkpoint, make_accelerator, read_model

__all__ = ["DecodedLatents", "Output", "PictureSampler", "checkpoint_sampler", "is_latents", "output_of", "pictures_of"]


class Output(NamedTuple):
    """What a sampler yields.

    Attributes:
        shape: of a sample.
        images: whether samples are images in [-1, 1].
        stored: the numbers and axes in which samples are written.
    """

    shape: tuple[int, ...]
    images: bool
    stored: Stored | None


def output_of(source: CheckpointSampler) -> Output:
    """What a sampler yields: the samples of its model, or the images that they are latents of."""
    model = source.model
    if isinstance(source, PictureSampler) and model.autoencoder is not None:
        return Output(model.autoencoder.image_shape, True, None)
    return Output(model.event_shape, model.images, model.stored)


def checkpoint_sampler(
    checkpoint: str | Path,
    options: SamplingOptions = SamplingOptions(),
    classes: Sequence[int | str] | None = None,
    noise: StepNoiseName = "independent",
    conditions: Conditions | Tensor | np.ndarray | str | None = None,
    *,
    vae: str | None = None,
    decode: bool = True,
) -> CheckpointSampler:
    """Draws images from a checkpoint, or samples that are no images where its model is not one of images or latents.

    Args:
        checkpoint, options, classes, noise, conditions: as for `CheckpointSampler`.
        vae: where the autoencoder is, if it is no longer where the checkpoint says.
        decode: whether samples of a model of latents are decoded; False for latents.

    Raises:
        ValueError: as for `CheckpointSampler`; or `vae` or `decode` has no effect.
    """
    model = read_model(find_checkpoint(checkpoint))
    if model.autoencoder is None or not decode:
        if vae is not None:
            why = "are not decoded" if model.autoencoder is not None else "of this model are no latents"
            raise ValueError(f"vae must not be given, as samples {why}, got {vae!r}")
        if not decode and model.autoencoder is None:
            raise ValueError("decode must be true for a model that has no autoencoder: there is nothing to decode")
        return CheckpointSampler(checkpoint, options, classes, noise, conditions)
    return PictureSampler(checkpoint, options, classes, noise, conditions, vae=vae)


class PictureSampler(CheckpointSampler):
    """Draws images from a checkpoint of a model of latents: its autoencoder decodes the samples.

    Args:
        checkpoint, options, classes, noise, conditions: as for `CheckpointSampler`.
        vae: where the autoencoder is, if it is no longer where the checkpoint says.

    Raises:
        ImportError: the package diffusers is not installed.
        ValueError: as for `CheckpointSampler`; the autoencoder cannot be read, or is another one than that of the data.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        options: SamplingOptions = SamplingOptions(),
        classes: Sequence[int | str] | None = None,
        noise: StepNoiseName = "independent",
        conditions: Conditions | Tensor | np.ndarray | str | None = None,
        *,
        vae: str | None = None,
    ) -> None:
        super().__init__(checkpoint, options, classes, noise, conditions)
        if self.model.autoencoder is None:
            raise ValueError(f"checkpoint must be of a model of latents, got {checkpoint}, which has no autoencoder")
        self.codec: Codec = self.model.autoencoder.load(vae)

    def settings(self, sampler: Sampler) -> dict[str, Any]:
        """All that the images depend on beside their seeds."""
        return {**super().settings(sampler), "autoencoder": self.codec.autoencoder.digest}

    def prepare(self, accelerator: Accelerator | None = None, progress: ShowProgress = None) -> PreparedSampler:
        """Load the weights and find the sampler, as `CheckpointSampler.prepare`."""
        accelerator = accelerator or make_accelerator()
        self.codec.module.to(accelerator.device)
        return super().prepare(accelerator, progress)

    def draw(
        self, prepared: PreparedSampler, seeds: Sequence[int], batch_size: int = 64
    ) -> Iterator[tuple[Sequence[int], Float64[Tensor, "batch *event"]]]:
        """Yields (seeds, images) batch after batch, on the host."""
        for drawn, latents in super().draw(prepared, seeds, batch_size):
            yield drawn, self.codec.decode(latents).double()


class DecodedLatents(Dataset):
    """The images that an autoencoder makes of latents of data: what it loses is all that differs from the originals.

    Args:
        latents: means and standard deviations; latents are drawn from them.
        codec: the autoencoder.
    """

    kind = "images"
    random = True

    def __init__(self, latents: EncodedLatents, codec: Codec) -> None:
        self._latents, self._codec = latents, codec
        self.event_shape = codec.autoencoder.image_shape
        self.num_classes, self.class_names = latents.num_classes, latents.class_names
        self.condition_shape, self.chunks = latents.condition_shape, latents.chunks

    def __len__(self) -> int:
        return len(self._latents)

    def fetch(self, indices: Indices) -> Batch:
        latents, condition = self._latents.fetch(indices)
        return self._codec.decode(latents), condition


def is_latents(path: Path) -> bool:
    """Whether a folder has a set of latents."""
    if not (path / MANIFEST).is_file():
        return False
    try:
        read_manifest(path)
    except ValueError:
        return False
    return True


def pictures_of(data: Source) -> Source:
    """The images that latents were made of, where their set names them; other data as they are.

    Raises:
        ValueError: the set does not name them.
    """
    if not isinstance(data, Latents):
        return data
    recorded = read_manifest(data.path).get("images_of") if Path(data.path).is_dir() else None
    if recorded is None:
        raise ValueError(
            f"data must be the images that the latents of path={data.path!r} were made of, which compare with decoded "
            "samples: --data ImageFolder --data.path FOLDER --data.resolution SIZE"
        )
    try:
        return from_config(Source, recorded)  # type: ignore[type-abstract]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"path {data.path!r} does not describe its images: {error}") from error
