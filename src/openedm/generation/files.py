"""Samples of a checkpoint as files: drawn seed by seed, so that interrupted work continues where it stopped."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator

from openedm.data import Stored, save_image
from openedm.data.pictures import IMAGE_CHANNELS, grid_columns, image_grid
from openedm.generation.options import CheckpointSampler, PreparedSampler
from openedm.ground import checks
from openedm.ground.legacy import upgrade
from openedm.ground.progress import Progress, no_progress
from openedm.ground.storage import new_path, read_json, write_array, write_arrays, write_json
from openedm.training import make_accelerator, share_of

__all__ = ["Format", "SampleFiles"]

SETTINGS = "settings.json"
Format = Literal["png", "npz", "grid"]


class SampleFiles:
    """Writes samples of a checkpoint to files. What is wrong is refused at once, before anything is drawn.

    Args:
        source: draws the samples.
        out: a folder of PNG files, with the classes in dataset.json; or the file to write, for npz and grid.
        format: png, one file a seed, of 16 bits a channel or of one bit where the data had them; npz, arrays `samples`,
            `seeds` and `labels` in one file (also for data that are not images, or have other than 1, 3 or 4 channels),
            in the numbers and axes of the data, where these were not bytes; grid, one PNG with all images, of which
            the first three channels are shown. None means npz or grid for an `out` that ends in .npz or .png, and png
            for any other.

    Raises:
        ValueError: `out` does not fit the format or exists, or the samples are not images.
    """

    def __init__(self, source: CheckpointSampler, out: str | Path, format: Format | None = None) -> None:
        if format is None:
            by_suffix: dict[str, Format] = {".npz": "npz", ".png": "grid"}
            format = by_suffix.get(Path(out).suffix.lower(), "png")
        checks.one_of("format", format, get_args(Format))
        if format != "npz":
            _check_images(f"format must be 'npz', got {format!r}", source)
        channels = source.model.event_shape[0]
        if format == "png" and channels not in IMAGE_CHANNELS:
            raise ValueError(
                f"format must be 'npz' or 'grid', got 'png': a PNG file holds 1, 3 or 4 channels, and samples have "
                f"{channels}; a grid shows the first three"
            )
        self.source, self.out, self.format = source, Path(out), format
        if format != "png":
            new_path("out", out, [".npz" if format == "npz" else ".png"])
        self.parts = self.out if format == "png" else self.out.with_name(f"{self.out.name}.parts")

    def check_trajectory(self, path: str | Path) -> None:
        """Refuse a figure of trajectories that cannot be drawn, or would lie among the samples."""
        _check_images("trajectory must not be given", self.source)
        if not str(path).endswith(".png"):
            raise ValueError(f"trajectory must end in .png, got {str(path)!r}")
        if self.format == "png" and self.out.resolve() in Path(path).resolve().parents:
            raise ValueError(f"trajectory must not be inside out={self.out}, among the samples, got {str(path)!r}")

    def write(
        self,
        prepared: PreparedSampler,
        seeds: Sequence[int],
        *,
        batch_size: int = 64,
        accelerator: Accelerator | None = None,
        progress: Progress = no_progress,
    ) -> int:
        """Draw the seeds that are missing and write them; returns how many they were.

        Several processes share the seeds, batch by batch; the files are bit-identical to those of a single process.

        Args:
            prepared: the denoiser and the sampler.
            seeds: one seed a sample.
            batch_size: samples drawn at a time; changes memory and speed, not the samples.
            accelerator: the processes; None for those there are.
            progress: called after each batch with the samples that this process has drawn.

        Raises:
            ValueError: `out` holds other files, or samples that were drawn with other settings.
        """
        checks.at_least("batch_size", batch_size, 1)
        accelerator = accelerator or make_accelerator()
        prepared = self._as_drawn_before(prepared)
        if accelerator.is_main_process:
            _open_folder(self.parts, self.source.settings(prepared.sampler))
        accelerator.wait_for_everyone()
        missing = [seed for seed in dict.fromkeys(seeds) if not self._path(seed).exists()]
        accelerator.wait_for_everyone()  # all have listed what is missing before one of them draws
        mine = share_of(missing, batch_size, accelerator.process_index, accelerator.num_processes)
        done = 0
        for drawn, x in self.source.draw(prepared, mine, batch_size):
            for seed, one in zip(drawn, x, strict=True):
                if self.format == "png":
                    save_image(one, self._path(seed), self.source.model.stored)
                else:
                    write_array(self._path(seed), one)
            done += len(drawn)
            progress("samples", done, len(mine))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._finish(seeds)
        return len(missing)

    def _as_drawn_before(self, prepared: PreparedSampler) -> PreparedSampler:
        """With the sampler by the rule of version 0.1, where that drew the samples that are there."""
        path = self.parts / SETTINGS
        if not path.is_file():
            return prepared
        earlier = self.source.by_earlier_rule(prepared)
        return earlier if _same_settings(path, self.source.settings(earlier.sampler)) else prepared

    def _path(self, seed: int) -> Path:
        return self.parts / f"{seed:06d}{'.png' if self.format == 'png' else '.npy'}"

    def _finish(self, seeds: Sequence[int]) -> None:
        """Write the classes beside the pictures, or make one file of the parts."""
        if self.format == "png":
            there = sorted({int(p.stem) for p in self.out.glob("*.png") if p.stem.isdigit()} | set(seeds))
            labels = self.source.labels(there)
            if labels is not None:  # dataset.json is what `data.ImageFolder` reads
                pairs = [[self._path(seed).name, label] for seed, label in zip(there, labels.tolist(), strict=True)]
                write_json(self.out / "dataset.json", {"labels": pairs}, indent=None)
            return
        arrays = np.stack([np.load(self._path(seed), allow_pickle=False) for seed in seeds])
        labels = self.source.labels(seeds)
        if self.format == "npz":
            classes = {} if labels is None else {"labels": labels.numpy()}
            samples = _restored(arrays, self.source.model.stored)
            write_arrays(self.out, {**samples, "seeds": np.array(seeds), **classes})
        else:
            x = torch.from_numpy(arrays)
            save_image(image_grid(x, grid_columns(labels), scale=max(1, 32 // x.shape[-1])), self.out)
        shutil.rmtree(self.parts)


def _restored(arrays: np.ndarray, stored: Stored | None) -> dict[str, np.ndarray]:
    """The samples in the numbers and axes of the data, and what `data.Arrays` needs to read them as events again."""
    if stored is None:
        return {"samples": arrays}
    layout = np.array("channels_last" if stored.channels_last else "channels_first")
    given = {} if stored.range is None else {"range": np.array(stored.range)}
    return {"samples": stored.restore(torch.from_numpy(arrays)), "layout": layout, **given}


def _check_images(what: str, source: CheckpointSampler) -> None:
    shape = source.model.event_shape
    if not source.model.images:
        raise ValueError(
            f"{what}: samples of shape {shape} are not images; draw them into a file of arrays, such as out=samples.npz"
        )


def _same_settings(path: Path, settings: dict[str, Any]) -> bool:
    return bool(upgrade(read_json(path)) == json.loads(json.dumps(settings)))


def _open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that what it holds was drawn with the same settings."""
    path = folder / SETTINGS
    if path.is_file():
        if not _same_settings(path, settings):
            raise ValueError(f"{folder} holds samples drawn with other settings ({path}): choose another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no samples of this command: choose another folder")
    else:
        write_json(path, settings)
