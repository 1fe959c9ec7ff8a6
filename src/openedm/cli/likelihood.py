"""`openedm likelihood`: how probable data are under a trained model."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from openedm.data import Dataset, Digits, Source
from openedm.denoiser import Denoiser
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.devices import use_full_float32
from openedm.ground.storage import replacing
from openedm.likelihood import Likelihood, bits_per_dim
from openedm.training import find_checkpoint, load_denoiser, make_accelerator, read_model


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
    dequantised: uniform noise fills the bins of their values, so that bits per dimension bound a code length.
    What is computed is the density of data plus noise of `method.sigma_min`. A sample's number depends on its place
    in the data and the seed, not on the batch.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its newest checkpoint is taken).
        data: the data; conditional models are told the labels.
        num: how many samples, picked at random; all of them if there are no more.
        method: trace (exact, or Hutchinson's estimate), solver, noise levels.
        draws: how often each image is dequantised.
        importance: the closer, importance-weighted bound for images; it needs an exact trace and two draws or more.
        num_values: how many values a pixel of an image can have; None means 256, and 17 for the digits.
        out: also write the numbers of every sample to this file, .json or .npz.
        weights: ema, the averaged weights, or raw, those of the last step.
        batch_size: samples at a time; changes memory and speed, not the numbers.
        seed: of the choice of samples, the dequantisation and the probes.
    """
    checks.at_least("num", num, 1)
    checks.at_least("batch_size", batch_size, 1)
    checks.at_least("seed", seed, 0)
    checks.at_least("draws", draws, 1)
    if num_values is not None:
        checks.at_least("num_values", num_values, 2)
    if importance and draws == 1:
        raise ValueError("importance needs draws >= 2, got 1")
    if out is not None and Path(out).suffix not in (".json", ".npz"):
        raise ValueError(f"out must end in .json or .npz, got {out!r}")
    if out is not None and Path(out).exists():
        raise ValueError(f"out={out} exists already: a file is never overwritten, choose another name")
    folder = find_checkpoint(checkpoint)
    model = read_model(folder)
    dataset = data.load()
    if dataset.event_shape != model.event_shape:
        raise ValueError(
            f"data must have the shape of the model's samples, {model.event_shape}, got {dataset.event_shape}"
        )
    images = model.images and dataset.kind == "images"
    if not images and (draws, importance, num_values) != (1, False, None):
        raise ValueError("draws, importance and num_values are for images: there is nothing to dequantise here")
    trace = method.trace_for(model.event_shape)
    if importance and trace.random:
        raise ValueError(f"importance needs an exact trace, got {trace!r}")
    use_full_float32()
    denoiser = load_denoiser(folder, weights).to(make_accelerator().device)
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:num].sort().values
    values = num_values if num_values is not None else 17 if isinstance(data, Digits) else 256
    work = _Work(denoiser, method, dataset, model.num_classes, images, draws, importance, values, seed)
    parts = work.parts(torch.split(chosen, batch_size))
    found = list(tqdm(parts, total=-(-len(chosen) // batch_size), unit="batch"))
    table = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    print(_report(table, dataset, method, images))
    if out is not None:
        settings = {"method": to_config(method), "draws": draws, "importance": importance, "seed": seed}
        if images:
            settings["num_values"] = values
        _write(Path(out), table, settings)
        print(f"numbers of every sample: {out}")


@dataclass(frozen=True)
class _Work:
    denoiser: Denoiser
    method: Likelihood
    dataset: Dataset
    num_classes: int
    images: bool
    draws: int
    importance: bool
    num_values: int
    seed: int

    def parts(self, indices: tuple[Tensor, ...]) -> Iterator[dict[str, Tensor]]:
        """The columns of the table, batch after batch."""
        for part in indices:
            yield {"index": part, **self.columns(part)}

    def columns(self, part: Tensor) -> dict[str, Tensor]:
        x, labels = self.dataset.fetch(part)
        condition = labels if self.num_classes > 0 else None
        # A seed for each place in the data, and other ones for another --seed.
        seeds = [self.seed * len(self.dataset) + int(index) for index in part]
        if not self.images:
            found = self.method.log_prob(self.denoiser, x, condition, seeds=seeds)
            return {
                "log_prob": found.log_prob.cpu(),
                "standard_error": found.standard_error.cpu(),
                "nfe": found.nfe.cpu(),
            }
        bits = bits_per_dim(
            self.denoiser,
            x,
            condition,
            seeds=seeds,
            likelihood=self.method,
            draws=self.draws,
            importance=self.importance,
            num_values=self.num_values,
        )
        return {
            "log_prob": bits.log_prob.mean(0).cpu(),
            "bits_per_dim": bits.bits_per_dim.cpu(),
            "standard_error": bits.standard_error.cpu(),
            "nfe": bits.nfe.cpu(),
        }


def _report(table: dict[str, Tensor], dataset: Dataset, method: Likelihood, images: bool) -> str:
    """The means, with their standard errors over the samples."""
    count = len(table["index"])
    trace = method.trace_for(dataset.event_shape)
    nfe = table["nfe"].double()
    rows = {"samples": f"{count} of {dataset.describe()}"}
    if images:
        rows["bits per dimension"] = _mean(table["bits_per_dim"])
    rows["log-likelihood"] = f"{_mean(table['log_prob'])} nats"
    rows["evaluations"] = f"{float(nfe.mean()):.0f} a sample, at most {int(nfe.max())}; {trace}"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _mean(values: Tensor) -> str:
    known = values[values.isfinite()]
    missing = len(values) - len(known)
    error = float(known.std() / math.sqrt(len(known))) if len(known) > 1 else math.nan
    left_out = f" (without {missing} that used up their evaluations)" if missing else ""
    return f"{float(known.mean()):.5g} ± {error:.2g}{left_out}"


def _write(path: Path, table: dict[str, Tensor], settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {name: column.numpy() for name, column in table.items()}
            with open(temporary, "wb") as file:
                np.savez(file, settings=np.array(json.dumps(settings)), **arrays)
        else:
            columns = {name: [_plain(value) for value in column.tolist()] for name, column in table.items()}
            temporary.write_text(json.dumps({**settings, "samples": columns}, indent=1) + "\n", encoding="utf-8")


def _plain(value: float) -> float | None:
    """JSON has no number for NaN."""
    return value if math.isfinite(value) else None
