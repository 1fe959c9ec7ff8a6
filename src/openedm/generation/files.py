"""Samples of a checkpoint as files: drawn seed by seed, so that interrupted work continues where it stopped."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from openedm.data import Stored, save_image
from openedm.data.pictures import IMAGE_CHANNELS, beside, captioned, encode_image, grid_columns, image_grid
from openedm.generation.options import CheckpointSampler, PreparedSampler
from openedm.generation.pictures import output_of
from openedm.ground import checks
from openedm.ground.choices import complete
from openedm.ground.digests import check_digest
from openedm.ground.locks import LOCK, hold_file, hold_folder, locked_file, locked_folder
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.ground.storage import (
    REMAINS,
    WRITERS,
    Rows,
    check_folders,
    new_files,
    new_path,
    read_json,
    remove_folder,
    remove_remains,
    write_array,
    write_arrays,
    write_json,
)
from openedm.training import make_accelerator, share_of

__all__ = ["Format", "SampleFiles"]

OTHER_FILES = frozenset(
    {".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".npz", ".png", ".pt", ".safetensors", ".tar"}
    | {".zip"}
)
"""Ends of names that mean files, not folders."""

SETTINGS, COMPLETE = "settings.json", "complete"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
Format = Literal["png", "npz", "grid"]


class SampleFiles:
    """Writes samples of a checkpoint to files. What is wrong is refused at once, before anything is drawn.

    Args:
        source: draws the samples.
        out: a folder of PNG files, with classes and conditions in dataset.json (conditions that are images in
            conditions.npz); or the file to write, for npz and grid.
        format: png, one file a seed, of 16 bits a channel or of one bit where the data had them; npz, arrays `samples`,
            `seeds`, `labels`, `class_names` and `conditions` in one file (also for data that are not images, or have
            other than 1, 3 or 4 channels), in the numbers and axes of the data, where these were not bytes; grid, one
            PNG with all images, each beside the image that is its condition, of which the first three channels are
            shown. None means npz or grid for an `out` that ends in .npz or .png, and png
            for any other.

    Raises:
        ValueError: `out` does not fit the format or exists, or the samples are not images.
    """

    def __init__(self, source: CheckpointSampler, out: str | Path, format: Format | None = None) -> None:
        given = format
        if format is None:
            by_suffix: dict[str, Format] = {".npz": "npz", ".png": "grid"}
            format = by_suffix.get(Path(out).suffix.lower(), "png")
        checks.one_of("format", format, get_args(Format))
        if format != "npz":
            _check_images(f"format must be 'npz', got {format!r}", source)
        channels = output_of(source).shape[0]
        if format == "png" and channels not in IMAGE_CHANNELS:
            raise ValueError(
                f"format must be 'npz' or 'grid', got 'png': a PNG file holds 1, 3 or 4 channels, and samples have "
                f"{channels}; a grid shows the first three"
            )
        self.source, self.out, self.format = source, Path(out), format
        if format == "png":
            if self.out.suffix.lower() in OTHER_FILES and not self.out.is_dir():
                allowed = ", or end in .npz or .png" if given is None else " for format 'png'"
                raise ValueError(f"out must be a folder{allowed}, got {str(out)!r}")
            check_folders("out", self.out)
            hold_folder(self.out, "out")
        self.parts = self.out if format == "png" else self.out.with_name(f"{self.out.name}.parts")
        if format != "png":
            check_folders("out", self.out.parent)
            if hold_file(self.out, "out"):
                remove_remains(self.parts.parent, self.parts.name)
                if self.out.exists() and (self.parts / COMPLETE).exists():  # killed before it removed the parts
                    remove_folder(self.parts)
            new_path("out", out, [".npz" if format == "npz" else ".png"])

    def name_columns(self, seeds: Sequence[int]) -> str:
        """The classes of the columns of a grid by name, in words; nothing for other formats and models."""
        labels, names = self.source.labels(seeds), self.source.model.class_names
        columns = grid_columns(labels)
        if self.format != "grid" or labels is None or names is None or columns is None:
            return ""
        return f" (columns: {', '.join(names[label] for label in labels[:columns].tolist())})"

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
        progress: ShowProgress = None,
    ) -> int:
        """Draw the seeds that are missing and write them; returns how many they were.

        Several processes share the seeds, batch by batch; the files are bit-identical to those of a single process.

        Args:
            prepared: the denoiser and the sampler.
            seeds: one seed a sample, all different.
            batch_size: samples drawn at a time; changes memory and speed, not the samples.
            accelerator: the processes; None for those there are.
            progress: None shows a bar in a terminal or notebook, True always, False never; a function is called after
                each batch with the samples that this process has drawn.

        Raises:
            ValueError: a seed is repeated, `out` holds other files or samples that were drawn with other settings, or
                another process draws into it.
            OSError: the disk is full, or `out` may not be written.
        """
        checks.at_least("batch_size", batch_size, 1)
        checks.different("seeds", seeds)
        accelerator = accelerator or make_accelerator()
        lock = locked_folder if self.format == "png" else locked_file
        main = accelerator.is_main_process
        with lock(self.out, "out") if main else nullcontext(), showing(progress, here=main) as report:
            return self._write(prepared, seeds, batch_size, accelerator, report)

    def _write(
        self,
        prepared: PreparedSampler,
        seeds: Sequence[int],
        batch_size: int,
        accelerator: Accelerator,
        progress: Progress,
    ) -> int:
        prepared = self._as_drawn_before(prepared)
        if accelerator.is_main_process:
            _open_folder(self.parts, self.source.settings(prepared.sampler))
            _remove_damaged_parts(self.parts)
        accelerator.wait_for_everyone()
        there = self._written()
        missing = {seed for seed in seeds if seed not in there}
        accelerator.wait_for_everyone()  # all have listed what is missing before one of them draws
        # Whole batches, as if none of their samples were there: in other batches sums are rounded otherwise.
        batches = [list(seeds[i : i + batch_size]) for i in range(0, len(seeds), batch_size)]
        pending = [seed for batch in batches if not missing.isdisjoint(batch) for seed in batch]
        mine = share_of(pending, batch_size, accelerator.process_index, accelerator.num_processes)
        done = 0
        with ThreadPoolExecutor(1) as thread:  # writes a batch while the next one is drawn
            written: Future[None] | None = None
            for drawn, x in self.source.draw(prepared, mine, batch_size):
                if written is not None:
                    written.result()
                chosen = {seed: one for seed, one in zip(drawn, x, strict=True) if seed in missing}
                written = thread.submit(self._save, chosen)
                done += len(drawn)
                progress("samples", done, len(mine))
            if written is not None:
                written.result()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._finish(seeds)
        return len(missing)

    def _save(self, samples: Mapping[int, Tensor]) -> None:
        """Write samples by their seeds; pictures are on the disk when they have their names, parts have digests."""
        if not samples:
            return
        if self.format == "png":
            stored, paths = output_of(self.source).stored, [self.parts / _name(seed) for seed in samples]

            def write(path: Path, x: Tensor) -> None:
                (folder / path.name).write_bytes(encode_image(x, path, stored))

            with new_files(*paths) as folder, ThreadPoolExecutor(WRITERS) as threads:
                list(threads.map(write, paths, samples.values()))
        else:
            for seed, x in samples.items():
                write_array(self.parts / f"{seed:06d}.npy", x, digest=True)

    def _as_drawn_before(self, prepared: PreparedSampler) -> PreparedSampler:
        """With the sampler by the rule of version 0.1, where that drew the samples that are there."""
        path = self.parts / SETTINGS
        if not path.is_file():
            return prepared
        earlier = self.source.by_earlier_rule(prepared)
        return earlier if _same_settings(path, self.source.settings(earlier.sampler)) else prepared

    def _written(self) -> dict[int, Path]:
        """The files of samples that are there by their seeds, without the empty ones."""
        kind = ".png" if self.format == "png" else ".npy"
        names = ((path.stem, path) for path in self.parts.glob(f"*{kind}"))
        numbers = ((name if kind == ".png" else name.partition("-")[0], path) for name, path in names)
        return {int(number): path for number, path in numbers if number.isdecimal() and _is_written(path)}

    def _finish(self, seeds: Sequence[int]) -> None:
        """Write classes and conditions beside the pictures, or make one file of the parts."""
        if self.format == "png":
            self._write_conditions(sorted({*self._written(), *seeds}))
            return
        (self.parts / COMPLETE).touch()
        parts = self._written()
        if self.format == "npz":
            output = output_of(self.source)
            stored, few = output.stored, list(_chunks(seeds, output.shape))
            first = _restored(_load(parts, seeds[:1]), stored)
            rows = (_restored(_load(parts, chunk), stored)["samples"] for chunk in few)
            samples = Rows((len(seeds), *first.pop("samples").shape[1:]), rows)
            write_arrays(self.out, {"samples": samples, **first, "seeds": np.array(seeds), **self._given(seeds)})
        else:
            self._write_grid(_load(parts, seeds), seeds)
        remove_folder(self.parts)

    def _write_grid(self, arrays: np.ndarray, seeds: Sequence[int]) -> None:
        x, columns = torch.from_numpy(arrays), grid_columns(self.source.labels(seeds))
        values = self.source.values(seeds)
        if values is not None and values.ndim == 4 and values.shape[2:] == x.shape[2:]:
            x, columns = beside(values, x), None if columns is None else 2 * columns
            columns = 2 * math.ceil(math.sqrt(len(seeds))) if columns is None else columns
        elif values is not None and columns is None and self.source.conditions is not None:
            count = min(self.source.conditions.count, len(seeds))
            columns = count if 2 <= count <= 20 else None
        grid, names = image_grid(x, columns, scale=max(1, 32 // x.shape[-1])), self._captions(seeds, columns)
        save_image(captioned(grid, names) if names else grid, self.out)

    def _captions(self, seeds: Sequence[int], columns: int | None) -> list[str]:
        """The names of the classes of the columns, or their numbers; none where columns are no classes."""
        labels, names = self.source.labels(seeds), self.source.model.class_names
        if labels is None or columns is None or columns != grid_columns(labels):
            return []
        first = labels[:columns].tolist()
        return [str(label) if names is None else names[label] for label in first] if len(set(first)) == columns else []

    def _given(self, seeds: Sequence[int]) -> dict[str, np.ndarray | Rows]:
        """The classes, their names and the float conditions of the seeds, as arrays; those that there are."""
        labels, names = self.source.labels(seeds), self.source.model.class_names
        found: dict[str, np.ndarray | Rows] = {} if labels is None else {"labels": labels.numpy()}
        found |= {} if labels is None or names is None else {"class_names": np.array(names)}
        first = self.source.values(seeds[:1])
        if first is None:
            return found
        chunks = _chunks(seeds, tuple(first.shape[1:]))
        rows = (values.numpy() for chunk in chunks if (values := self.source.values(chunk)) is not None)
        return {**found, "conditions": Rows((len(seeds), *first.shape[1:]), rows)}

    def _write_conditions(self, seeds: Sequence[int]) -> None:
        """Write dataset.json, which `data.ImageFolder` reads, and conditions.npz for conditions that are no vectors."""
        given, names = self._given(seeds), list(map(_name, seeds))
        labels, of_classes, values = given.get("labels"), given.get("class_names"), given.pop("conditions", None)
        table: dict[str, Any] = {}
        if isinstance(labels, np.ndarray):
            table["labels"] = [[name, label] for name, label in zip(names, labels.tolist(), strict=True)]
        names_of_classes = of_classes.tolist() if isinstance(of_classes, np.ndarray) else []
        if names_of_classes != [str(number) for number in range(len(names_of_classes))]:  # which are no names
            table["class_names"] = names_of_classes
        if isinstance(values, Rows) and len(values.shape) == 2:
            rows = (row for part in values.parts for row in part.tolist())
            table["conditions"] = [[name, row] for name, row in zip(names, rows, strict=True)]
        elif values is not None:
            arrays = {"conditions": values, "seeds": np.array(seeds), **given}
            write_arrays(self.out / "conditions.npz", arrays)
        if table:
            write_json(self.out / "dataset.json", table, indent=None, files=())


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _chunks(seeds: Sequence[int], shape: Sequence[int]) -> Iterator[Sequence[int]]:
    """The seeds, some at a time: as many as arrays of this shape have 4 MB."""
    count = max(1, 2**20 // max(1, math.prod(shape)))
    return (seeds[i : i + count] for i in range(0, len(seeds), count))


def _load(parts: Mapping[int, Path], seeds: Sequence[int]) -> np.ndarray:
    """The samples of some seeds from their files, which are as they were written."""
    for seed in seeds:
        check_digest(parts[seed])
    return np.stack([np.load(parts[seed], allow_pickle=False) for seed in seeds])


def _remove_damaged_parts(folder: Path) -> None:
    """Remove the parts that are not as they were written, such as empty ones: they are drawn again."""
    for path in folder.glob("*-*.npy"):
        try:
            check_digest(path)
        except ValueError:
            path.unlink()


def _is_written(path: Path) -> bool:
    """Whether a file is there and not empty, as some file systems leave a file where the machine fails; and of a
    picture, whether it has its beginning and its end."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    if path.suffix != ".png":
        return True
    with open(path, "rb") as file:
        start = file.read(len(PNG_START))
        file.seek(-min(len(PNG_END), path.stat().st_size), os.SEEK_END)
        return (start, file.read()) == (PNG_START, PNG_END)


def _restored(arrays: np.ndarray, stored: Stored | None) -> dict[str, np.ndarray]:
    """The samples in the numbers and axes of the data, and what `data.Arrays` needs to read them as events again."""
    if stored is None:
        return {"samples": arrays}
    layout = np.array("channels_last" if stored.channels_last else "channels_first")
    given = {} if stored.range is None else {"range": np.array(stored.range)}
    return {"samples": stored.restore(torch.from_numpy(arrays)), "layout": layout, **given}


def _check_images(what: str, source: CheckpointSampler) -> None:
    shape, is_image, _ = output_of(source)
    if not is_image:
        raise ValueError(
            f"{what}: samples of shape {shape} are not images; draw them into a file of arrays, such as out=samples.npz"
        )


def _same_settings(path: Path, settings: dict[str, Any]) -> bool:
    return bool(complete(read_json(path)) == json.loads(json.dumps(settings)))


def _open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that what it holds was drawn with the same settings."""
    path = folder / SETTINGS
    if path.is_file():
        if not _same_settings(path, settings):
            before, now = complete(read_json(path)), json.loads(json.dumps(settings))
            other = ", ".join(name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
            raise ValueError(
                f"{folder} holds samples drawn with other settings ({other} in {path}): choose another folder"
            )
    elif folder.exists() and any(path.name != LOCK and not REMAINS.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no samples of this command: choose another folder")
    else:
        write_json(path, settings, files=())
    remove_remains(folder)
    for name in {found["folder"] for path in folder.glob(".*.png-*") if (found := REMAINS.fullmatch(path.name))}:
        remove_remains(folder, name)
