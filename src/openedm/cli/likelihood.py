"""`openedm likelihood`: log-likelihoods of data under a trained model."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from openedm.cli.data_of_runs import recorded_data
from openedm.cli.terminal import Bars, rows
from openedm.data import Dataset, Digits, Source, align_classes
from openedm.generation import conditions_of_data
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.storage import new_path, write_arrays, write_json
from openedm.likelihood import Dequantisation, Likelihood, dataset_log_prob
from openedm.likelihood.bits import at_levels
from openedm.training import Model, find_checkpoint, load_denoiser, make_accelerator, read_model
from openedm.training.checkpoints import trained_without_dropout
from openedm.training.options import warn_of_units


def likelihood(
    checkpoint: str,
    data: Source = Digits(),
    num: int = 100,
    method: Likelihood = Likelihood(),
    draws: int = 1,
    importance: bool = False,
    num_values: int | None = None,
    out: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    batch_size: int = 50,
    seed: int = 0,
) -> None:
    """Compute log-likelihoods of data under a trained model, by the change of variables along its flow.

    Prints the mean in nats, and for images in bits per dimension, with the standard error over the samples. Images are
    dequantised with uniform noise in the bins of their values, so that bits per dimension bound a code length; images
    of floats between those values are data like others, unless an option of dequantisation is given. The
    result is the density of data plus noise of `method.sigma_min`. The number of a sample depends on its index in the
    data and the seed, not on the batch.

    Args:
        checkpoint: a checkpoint folder, or a run folder, for its newest checkpoint.
        data: the data; conditional models are conditioned on their classes and conditions. By default those that the
            run's config.yaml names, training data, so that --data.split test or other data tell more; else the digits.
        num: number of samples, chosen at random; all if there are fewer.
        method: trace (exact, or Hutchinson's estimate), solver, noise levels.
        draws: number of dequantisations of each image.
        importance: compute the tighter, importance-weighted bound for images; it requires an exact trace and at least
            two draws.
        num_values: number of values that a pixel of an image can have; None means 256, 65536 for 16 bits, the whole
            numbers in the range of other integers, and 17 for the digits.
        out: also write the numbers of every sample to this file, .json or .npz.
        weights: ema, the averaged weights, or raw, those of the last step.
        batch_size: number of samples in a batch; it changes memory and speed, not the numbers.
        seed: seed of the choice of samples, the dequantisation and the probes.
    """
    for name, value, low in (("num", num, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        checks.at_least(name, value, low)
    target = new_path("out", out, [".json", ".npz"])
    folder, dataset = find_checkpoint(checkpoint), data.load()
    dequantisation = Dequantisation(_num_values(data, dataset) if num_values is None else num_values, draws, importance)
    model = read_model(folder)
    dataset = align_classes(dataset, model.num_classes, model.class_names)
    checks.between("seed", seed, 0, 2**63 // len(dataset) - 1)
    images = _check_fit(folder, model, dataset, num)
    if not images and (draws, importance, num_values) != (1, False, None):
        raise ValueError("draws, importance and num_values require images: other data are not dequantised")
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:num].sort().values
    if images:
        required = (draws, importance, num_values) != (1, False, None)
        images = _is_dequantised(dataset, torch.split(chosen, batch_size), dequantisation.num_values, required=required)
    if importance and method.trace_for(dataset.event_shape).random:
        raise ValueError(f"importance requires an exact trace, got {method.trace_for(dataset.event_shape)!r}")
    denoiser = load_denoiser(folder, weights).to(make_accelerator().device)
    with Bars() as bars:
        table = dataset_log_prob(
            denoiser,
            dataset,
            chosen,
            method,
            dequantisation if images else None,
            batch_size=batch_size,
            seed=seed,
            progress=bars,
        )
    print(_summary(table, dataset, method))
    if target is not None:
        settings = {"method": to_config(method), "draws": draws, "importance": importance, "seed": seed}
        _write(target, table, settings | ({"num_values": dequantisation.num_values} if images else {}))
        print(f"numbers of every sample: {out}")


def _num_values(data: Source, dataset: Dataset) -> int:
    """The number of values that a pixel can have: of the digits, or of the type and range of the stored numbers."""
    if isinstance(data, Digits):
        return 17
    return 256 if dataset.stored is None else dataset.stored.num_values


def _is_dequantised(dataset: Dataset, batches: Sequence[Tensor], num_values: int, *, required: bool) -> bool:
    """Whether all images are at the levels of dequantisation; if not, a line says what is computed instead.

    Args:
        dataset: the data.
        batches: the numbers of the images, some at a time.
        num_values: the number of levels.
        required: whether an option asks for dequantisation, so that other images are an error.
    """
    for part in batches:
        x = dataset.fetch(part)[0]
        if at_levels(x, num_values):
            continue
        index = next(int(i) for i, image in zip(part, x, strict=True) if not at_levels(image[None], num_values))
        found = f"image {index} is not at {num_values} levels of [-1, 1]"
        if required:
            raise ValueError(f"draws, importance and num_values require images at whole levels, but {found}")
        print(f"{found}: the density of the images is computed, not bits per dimension")
        return False
    return True


def _check_fit(folder: Path, model: Model, dataset: Dataset, num: int) -> bool:
    """Whether the samples are images; a ValueError for data of another shape or without the conditions of the model."""
    if dataset.event_shape != model.event_shape:
        raise ValueError(
            f"data must have the shape of the model's samples, {model.event_shape}, got {dataset.event_shape}"
        )
    if model.condition_shape is not None:
        conditions_of_data(dataset, model, num)
    elif model.num_classes and not dataset.num_classes:
        if trained_without_dropout(folder):
            raise ValueError(
                f"data must have the {model.num_classes} classes of the model, which was trained with label_dropout 0 "
                f"and so never without a class, got {dataset.describe()}"
            )
        print("the data have no classes: their density is that of the model without a class")
    if model.images and dataset.kind != "images" and model.units is None:
        warnings.warn("data are not images in [-1, 1], as those of the model: see --data.range", stacklevel=2)
    warn_of_units("data", model, dataset)
    return model.images and dataset.kind == "images"


def _summary(table: dict[str, Tensor], dataset: Dataset, method: Likelihood) -> str:
    """The means, with their standard errors over the samples."""
    nfe = table["nfe"].double()
    values = {"samples": f"{len(nfe)} of {dataset.describe()}"}
    if "bits_per_dim" in table:
        values["bits per dimension"] = _mean(table["bits_per_dim"])
    values["log-likelihood"] = f"{_mean(table['log_prob'])} nats"
    trace = method.trace_for(dataset.event_shape)
    values["evaluations"] = f"{float(nfe.mean()):.0f} a sample, at most {int(nfe.max())}; {trace}"
    return rows(values)


def _mean(values: Tensor) -> str:
    known = values[values.isfinite()]
    missing = len(values) - len(known)
    error = f" ± {float(known.std() / math.sqrt(len(known))):.2g}" if len(known) > 1 else ""
    left_out = f" (without {missing} that reached the limit of evaluations)" if missing else ""
    return f"{f'{float(known.mean()):.5g}' if len(known) else 'unknown'}{error}{left_out}"


def _write(path: Path, table: dict[str, Tensor], settings: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        arrays = {name: column.numpy() for name, column in table.items()}
        write_arrays(path, {"settings": np.array(json.dumps(settings)), **arrays})
        return
    columns = {  # JSON has no number for NaN
        name: [value if math.isfinite(value) else None for value in column.tolist()] for name, column in table.items()
    }
    write_json(path, {**settings, "samples": columns})


def recorded_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The data of the run, where these are not given."""
    return recorded_data(given, "checkpoint")


likelihood.recorded_options = recorded_options  # type: ignore[attr-defined]
