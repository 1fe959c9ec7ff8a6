"""The float conditions of samples: rows of a file, or of data, which seeds take in turn."""

import csv
import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.data import Dataset, FolderImages, align_classes
from openedm.data.array_files import ArrayFile
from openedm.data.arrays import condition_tensor
from openedm.data.decoding import as_array, decode_picture, to_tensor
from openedm.data.forms import Resize, as_size, crop_to, resize_to
from openedm.data.listing import rows_of_floats
from openedm.data.partners import resize_images
from openedm.data.stored import as_float
from openedm.generation.classes import find_classes
from openedm.ground import checks
from openedm.ground.regular import read_limited
from openedm.ground.storage import parse_json
from openedm.ground.tensors import as_tensor
from openedm.training import Model

__all__ = ["Conditions", "conditions_for", "conditions_of_data", "read_conditions", "warn_of_range"]

NUM_PROBED = 256
"""The largest number of samples of some data whose conditions are compared with those of training."""

_DEFAULT_KEYS = ("conditions", "condition")
_OTHER_ARRAYS = ("samples", "seeds", "labels", "class_names", "layout", "range")


@dataclass(frozen=True)
class Conditions:
    """Conditions of samples, in the units of the data. Seed s has row s mod `count`.

    Args:
        count: the number of rows.
        fetch: from the numbers of some rows to their floats `(rows, *condition_shape)` and their classes, or None.
        digest: what they are, as a text that differs for others.
    """

    count: int
    fetch: Callable[[Sequence[int]], tuple[Float[Tensor, "rows *shape"], Int64[Tensor, " rows"] | None]]
    digest: str

    @classmethod
    def of_rows(
        cls, values: Float[Tensor, "rows *shape"], model: Model, classes: Int64[Tensor, " rows"] | None = None
    ) -> "Conditions":
        """Conditions in memory.

        Args:
            values: floats, one row a condition.
            model: the model that they are for.
            classes: class of each row, for a model with classes; None to give classes otherwise.

        Raises:
            ValueError: they are not those of the model, or not finite; the message names the row.

        Warns:
            UserWarning: they are in another range than those of training.
        """
        shape = model.condition_shape
        if shape is None:
            raise ValueError("conditions must be None: the model has no float conditions")
        if values.ndim == 0 or len(values) == 0 or tuple(values.shape[1:]) != shape:
            raise ValueError(
                f"conditions must have shape (rows, {', '.join(map(str, shape))}), as those of the model, got "
                f"{tuple(values.shape)}"
            )
        values = values.detach().cpu().float().contiguous()
        wrong = ~values.flatten(1).isfinite().all(1)
        if bool(wrong.any()):
            raise ValueError(f"conditions must be finite, but row {int(wrong.nonzero()[0])} has NaN or infinity")
        warn_of_range("conditions", values, model)
        digest = hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes())
        if classes is not None:
            digest.update(classes.numpy().tobytes())

        def fetch(rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            return values[list(rows)], None if classes is None else classes[list(rows)]

        return cls(len(values), fetch, digest.hexdigest())

    def of_seeds(self, seeds: Sequence[int]) -> tuple[Float[Tensor, "seeds *shape"], Int64[Tensor, " seeds"] | None]:
        """The floats of each seed, and its class where the rows have classes."""
        return self.fetch([seed % self.count for seed in seeds])


def conditions_of_data(dataset: Dataset, model: Model, count: int) -> Conditions:
    """The conditions of `count` samples of some data at even distances, or of all in turn if there are fewer.

    Raises:
        ValueError: the data do not have the conditions or the classes of the model.

    Warns:
        UserWarning: the conditions are in another range than those of training.
    """
    dataset = align_classes(dataset, model.num_classes, model.class_names)
    layout = dataset.condition_layout
    if not layout.includes(model.condition_layout):
        wanted = "×".join(map(str, model.condition_shape or ()))
        classes = f" and {model.num_classes} classes" if model.num_classes else ""
        raise ValueError(f"data must have conditions of {wanted}{classes}, as the model has, got {dataset.describe()}")
    chosen = dataset.spread(count)

    def fetch(rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        condition = layout.select(dataset.fetch([chosen[row] for row in rows])[1], model.condition_layout)
        assert condition is not None
        classes, values = model.condition_layout.unpack(condition)
        assert values is not None
        return values, classes

    values, labels = fetch(range(min(len(chosen), NUM_PROBED)))
    warn_of_range("conditions of data", values, model)
    digest = hashlib.sha256(f"{dataset.describe()} {len(chosen)}".encode() + values.numpy().tobytes())
    digest.update(b"" if labels is None else labels.numpy().tobytes())
    return Conditions(len(chosen), fetch, digest.hexdigest())


def warn_of_range(name: str, values: Float[Tensor, "rows channels *rest"], model: Model) -> None:
    """Warn if conditions cannot be in the units of those that a model was trained with.

    That is, if a channel has numbers outside the range of training by more than half its width; for images also if they
    start in the middle of it, as [0, 1] in [-1, 1], or are in less than 2 % of it, unless they are constant.

    Args:
        name: what the warning calls them.
        values: the floats of some rows; NaN does not count.
        model: the model. Of checkpoints that did not keep the range, images are compared with [-1, 1].

    Warns:
        UserWarning: the first such channel, with both ranges.
    """
    known = model.condition_range
    if known is None and model.images and model.condition_units is None and values.ndim > 2:
        known = ((-1.0, 1.0),) * values.shape[1]
    for channel, (low, high) in enumerate(known or ()):
        given = values[:, channel][values[:, channel].isfinite()]
        if not len(given):
            continue
        least, most, width = float(given.min()), float(given.max()), max(high - low, 1e-6 * abs(low))
        outside = least < low - width / 2 or most > high + width / 2
        upper = abs(least - (low + high) / 2) <= 0.01 * width and high - width / 4 < most
        narrow = least < most and most - least < 0.02 * width
        if outside or (values.ndim > 2 and (upper or narrow)):
            where = f" in channel {channel}" if values.shape[1] > 1 else ""
            pictures = least >= 0 and (low, high) == (-1, 1)
            hint = f", such as x * 2 / {255 if most > 1 else 1} - 1 for pictures" if pictures else ""
            warnings.warn(
                f"{name} have numbers from {least:g} to {most:g}{where}, but those of training were from {low:g} to "
                f"{high:g}: they mean the same only in the units of training{hint}",
                stacklevel=3,
            )
            return


def read_conditions(source: str, model: Model, key: str | None = None, resize: Resize = "bicubic") -> Conditions:
    """Conditions for a model from a file, a folder of images, or numbers.

    Args:
        source: a .npz or .npy file with one row a condition; a .csv file with a line of names and then numbers; a .json
            file with a list of rows, or "conditions" as in dataset.json; a folder, .zip or .tar file of images, in the
            order of their names, for a model whose conditions are images; a folder with a dataset.json for one with
            vectors; or the numbers of one condition, separated by commas.
        model: the model.
        key: name of the array in a .npz, by default "conditions" or the only other one; or names of columns of a .csv,
            separated by commas, by default all.
        resize: how images of another size than the model's are resized. Of images with other proportions the central
            parts are taken first, with a warning.

    Raises:
        ValueError: the model has no float conditions, the file cannot be read, or its rows are not those of the model.
    """
    shape = model.condition_shape
    if shape is None:
        raise ValueError("conditions must not be given: the model has no float conditions")
    checks.one_of("conditions_resize", resize, ("bicubic", "nearest"))
    path, is_image = Path(source), len(shape) > 1
    suffix = path.suffix.lower()
    if key is not None and suffix not in (".npz", ".csv"):
        raise ValueError(f"conditions_key requires a .npz or .csv file, got {key!r} with {source!r}")
    if resize != "bicubic" and not is_image:
        raise ValueError(f"conditions_resize={resize!r} has no effect: conditions are not images")
    if not path.exists():
        return Conditions.of_rows(_numbers(source), model)
    try:
        if suffix in (".npz", ".npy"):
            return _of_arrays(path, model, key, resize)
        if suffix == ".csv":
            return Conditions.of_rows(_columns(path, key), model)
        if suffix == ".json":
            return Conditions.of_rows(_listed(path), model)
        if is_image:
            return Conditions.of_rows(_pictures(source, shape, resize), model)
        if (path / "dataset.json").is_file():
            return Conditions.of_rows(_listed(path / "dataset.json"), model)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"conditions={source}: {error}") from error
    raise ValueError(
        f"conditions must be a .npz, .npy, .csv or .json file{', or a folder of images' if is_image else ''}, got "
        f"{source!r}"
    )


def _numbers(text: str) -> Float[Tensor, "one numbers"]:
    try:
        return torch.tensor([[float(part) for part in text.split(",")]])
    except ValueError as error:
        raise ValueError(
            f"conditions must be a file or folder that exists, or numbers separated by commas, got {text!r}"
        ) from error


def _of_arrays(path: Path, model: Model, key: str | None, resize: Resize) -> Conditions:
    content = ArrayFile(str(path), "file")
    arrays = {name: content[name] for name in content}
    names = [name for name in sorted(arrays) if name not in _OTHER_ARRAYS]
    default = next((name for name in _DEFAULT_KEYS if name in arrays), names[0] if len(names) == 1 else None)
    key = default if key is None else key
    if key not in arrays:
        raise ValueError(f"conditions_key must be one of {sorted(arrays)}, got {key!r}")
    shape, values = model.condition_shape or (), arrays[key]
    several = values.ndim == len(shape) > 1 and shape[0] > 1 and len(values) == shape[0]  # the channels of one
    if values.shape == shape != (1,) or several:
        values = values[None]
    rows = as_float(condition_tensor(values[:, None] if values.ndim == len(shape) == 3 else values, (), resize))
    if rows.ndim == 4 and len(shape) == 3:
        rows = resize_images(_central_parts(rows, (shape[1], shape[2])), (shape[1], shape[2]), resize)
    labels = arrays.get("labels") if model.num_classes and "labels" in arrays else None
    if labels is None or key == "labels":
        return Conditions.of_rows(rows, model)
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, one a condition ({len(rows)}), got {labels.dtype} {labels.shape}")
    names_of_labels = [str(name) for name in arrays.get("class_names", ())]
    renumbered = bool(model.class_names) and all(name.isdecimal() for name in model.class_names or ())
    given: list[int | str] = [  # labels that were renumbered in training are names here, too
        names_of_labels[i] if names_of_labels else str(i) if renumbered else i for i in labels.tolist()
    ]
    return Conditions.of_rows(rows, model, torch.tensor(find_classes(given, model.num_classes, model.class_names)))


def _columns(path: Path, key: str | None) -> Float[Tensor, "rows columns"]:
    lines = [line for line in csv.reader(io.StringIO(read_limited(path).decode("utf-8-sig"))) if line]
    if len(lines) < 2:
        raise ValueError("a .csv file must have a line of names and at least one of numbers")
    names = [name.strip() for name in lines[0]]
    chosen = names if key is None else [name.strip() for name in key.split(",")]
    for name in chosen:
        checks.one_of("conditions_key", name, names)
    places, rows = [names.index(name) for name in chosen], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append([float(line[place]) for place in places])
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number} must have numbers in {', '.join(chosen)}, got {line}") from error
    return torch.tensor(rows)


def _listed(path: Path) -> Float[Tensor, "rows numbers"]:
    content: Any = parse_json(read_limited(path), path)
    if isinstance(content, dict):
        entries = content.get("conditions", content.get("labels"))
        if not entries:
            raise ValueError(f'{path.name} must have "conditions", or be a list of rows')
        content = list(dict(entries).values())
    if not isinstance(content, list) or not content:
        raise ValueError(f'{path.name} must have "conditions", or be a list of rows')
    return torch.from_numpy(rows_of_floats(content, [f"row {row}" for row in range(len(content))]))


def _pictures(path: str, shape: tuple[int, ...], resize: Resize) -> Float[Tensor, "rows channels height width"]:
    if len(shape) != 3:
        raise ValueError(f"a folder of images cannot hold conditions of shape {shape}: give a .npy file")
    images = FolderImages(path, "none", "none")
    size, found, cropped = (shape[1], shape[2]), [], 0
    for index, (content, _) in enumerate(images.read(range(len(images)))):
        picture = decode_picture(io.BytesIO(content), images.describe(index), shape[0])
        height, width = as_size(picture)
        if height * size[1] != width * size[0]:
            picture = crop_to(picture, size, "centre", nearest=resize == "nearest")
            cropped += 1
        found.append(as_float(to_tensor(as_array(resize_to(picture, size, resize)))))
    _say_cropped(cropped, len(found), size)
    return torch.stack(found)


def _central_parts(
    images: Float[Tensor, "rows channels height width"], size: tuple[int, int]
) -> Float[Tensor, "rows channels rows_kept columns_kept"]:
    """The largest central parts with the proportions of a size (height, width)."""
    height, width = images.shape[2:]
    if height * size[1] == width * size[0]:
        return images
    rows = min(height, max(1, round(width * size[0] / size[1])))
    columns = min(width, max(1, round(height * size[1] / size[0])))
    _say_cropped(len(images), len(images), size)
    top, left = (height - rows) // 2, (width - columns) // 2
    return images[:, :, top : top + rows, left : left + columns]


def _say_cropped(cropped: int, count: int, size: tuple[int, int]) -> None:
    if cropped:
        warnings.warn(
            f"{cropped} of {count} conditions have other proportions than the model's images, {size[0]}x{size[1]}: "
            "their central parts are used",
            stacklevel=2,
        )


def conditions_for(given: Conditions | Tensor | np.ndarray | str | None, model: Model) -> Conditions | None:
    """The conditions of samples of a model; None for a model without, and for samples without condition."""
    if model.condition_shape is None:
        if given is not None:
            raise ValueError(f"conditions must be None: the model has no float conditions, got {given!r}")
        return None
    if isinstance(given, str) and given == "none":
        if not model.condition_dropout:
            raise ValueError(
                "conditions must be given: the model was trained with label_dropout 0, and so never without condition"
            )
        return None
    if given is None:
        shape = ", ".join(map(str, model.condition_shape))
        raise ValueError(
            f"conditions must be given, floats of shape ({shape}) a sample: a file with their rows, --conditions FILE"
            f"{', or none for samples without condition' if model.condition_dropout else ''}"
        )
    if isinstance(given, str):
        return read_conditions(given, model)
    if isinstance(given, Conditions):
        return given
    return Conditions.of_rows(as_tensor("conditions", given), model)
