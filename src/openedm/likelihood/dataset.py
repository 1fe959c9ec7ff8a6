"""Log-likelihoods of the samples of a dataset, computed in batches, as columns of numbers."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from openedm.data import Dataset, align_classes
from openedm.data.dataset import fetch_seeded
from openedm.denoiser import Denoiser
from openedm.ground import checks
from openedm.ground.progress import ShowProgress, showing
from openedm.ground.seeding import derive_seed
from openedm.likelihood.bits import BitsPerDim, bits_per_dim
from openedm.likelihood.density import Likelihood, LogProb

__all__ = ["Dequantisation", "dataset_log_prob"]


@dataclass(frozen=True)
class Dequantisation:
    """Uniform noise in the bins of an image's values, so that its density bounds a code length.

    Args:
        num_values: the number of values that a pixel can have, ≥ 2.
        draws: the number of dequantisations of each image, ≥ 1.
        importance: whether to compute the tighter, importance-weighted bound; it requires at least two draws.

    Raises:
        ValueError: a value is out of its range.
    """

    num_values: int = 256
    draws: int = 1
    importance: bool = False

    def __post_init__(self) -> None:
        checks.at_least("draws", self.draws, 1)
        checks.at_least("num_values", self.num_values, 2)
        if self.importance and self.draws == 1:
            raise ValueError("importance requires draws >= 2, got 1")


def dataset_log_prob(
    denoiser: Denoiser,
    dataset: Dataset,
    indices: Int64[Tensor, "samples"],
    method: Likelihood = Likelihood(),
    dequantisation: Dequantisation | None = None,
    *,
    batch_size: int = 50,
    seed: int = 0,
    progress: ShowProgress = None,
) -> dict[str, Tensor]:
    """Columns of numbers, one row a sample: index, log_prob, standard_error and nfe; bits_per_dim for images.

    A row depends on the index of the sample and the seed, not on the batch. Data that are drawn anew, such as latents,
    are drawn with the seed.

    Args:
        denoiser: the model; if it has classes or floats as its condition, it is conditioned on those of the data. Data
            of fewer classes are matched by number; `openedm.data.align_classes` matches them by name.
        dataset: the data.
        indices: the indices of the samples.
        method: trace, solver and noise levels.
        dequantisation: of images; None for other data.
        batch_size: samples at a time; changes memory and speed, not the numbers.
        seed: of the dequantisation and the probes.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called after each
            batch with the number of finished batches and of all batches.
    """
    if dataset.num_classes != denoiser.num_classes:
        dataset = align_classes(dataset, denoiser.num_classes)
    parts, batches = [], torch.split(indices, batch_size)
    with showing(progress) as report:
        for done, part in enumerate(batches, start=1):
            # A seed for each index, different for every `seed`.
            seeds = [seed * len(dataset) + int(index) for index in part]
            # Not the numbers of the probes.
            x, labels = fetch_seeded(dataset, part, [derive_seed(seed, 1) for seed in seeds])
            condition = dataset.condition_layout.select(labels, denoiser.condition_layout)
            columns = {"index": part}
            found: LogProb | BitsPerDim
            if dequantisation is None:
                found = method.log_prob(denoiser, x, condition, seeds=seeds)
                columns["log_prob"] = found.log_prob.cpu()
            else:
                found = bits_per_dim(denoiser, x, condition, seeds=seeds, likelihood=method, **vars(dequantisation))
                columns |= {"log_prob": found.log_prob.mean(0).cpu(), "bits_per_dim": found.bits_per_dim.cpu()}
            parts.append({**columns, "standard_error": found.standard_error.cpu(), "nfe": found.nfe.cpu()})
            report("batches", done, len(batches))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
