"""Diffusion models of real series and of real volumes, in minutes on two CPU cores, judged against held-out data.

    python examples/terrain_and_brains.py series --out runs/terrain
    python examples/terrain_and_brains.py volumes --out runs/brain        # needs: pip install nilearn

series: profiles of the terrain near Jacksboro, Tennessee: 64 neighbouring elevations in metres along a row of the
elevation model `jacksboro_fault_dem.npz`, which matplotlib installs. Of blocks of 12 rows every third is held out.

volumes: cubes of 8³ voxels of 2 mm out of the MNI ICBM152 template, an average of the T1-weighted magnetic resonance
images of 152 brains, which nilearn installs. Cubes overlap; those with a centre in every third slab of 16 mm, front to
back, are held out. It is one brain, so that this shows a network of volumes at work and is no model of anatomy.

Writes samples.npz, report.json and the figure samples.png (held-out data above, samples below) into OUT. Three numbers
compare samples with held-out data, each beside the same number of the training data, the floor: the largest difference
of the quantiles 5 % to 95 % in standard deviations, the mean ratio of spectra in decibels, and the accuracy of a
classifier that sees mean, log standard deviation and log spectrum of a sample (C2ST; 0.5 cannot tell them apart).
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import cbook
from torch import Tensor

from openedm.data import InMemory
from openedm.metrics import c2st
from openedm.networks import DDPMpp
from openedm.plots import event_grid, save_figure
from openedm.sampling import Sampler, sample_batches
from openedm.training import Model, Options, Trainer

BANDS = 4


class Split(NamedTuple):
    """Training and held-out samples, in the units of the data."""

    train: Float[Tensor, "train one *size"]
    held: Float[Tensor, "held one *size"]


def terrain(length: int = 64, step: int = 4, block: int = 12) -> Split:
    """Profiles of the elevation model, (1, length)."""
    elevation = torch.from_numpy(cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(np.float32))
    windows = elevation.unfold(1, length, step)
    held = torch.arange(len(elevation)) // block % 3 == 2
    return Split(*(windows[rows].reshape(-1, 1, length) for rows in (~held, held)))


def brain(side: int = 8, step: int = 3, slab: int = 8) -> Split:
    """Cubes of the template of which at least half of the voxels are in the brain, (1, side, side, side)."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise SystemExit("the volumes come with nilearn: pip install nilearn") from error
    image = torch.from_numpy(np.asarray(load_mni152_template(resolution=2).dataobj, dtype=np.float32))
    cubes = image.unfold(0, side, step).unfold(1, side, step).unfold(2, side, step)
    centre = torch.arange(cubes.shape[1]) * step + side // 2
    held = (centre // slab % 3 == 2)[None, :, None].expand(cubes.shape[:3])
    inside = (cubes > 0.05 * image.max()).flatten(3).float().mean(-1) >= 0.5
    return Split(*(cubes[inside & part][:, None].contiguous() for part in (~held, held)))


def spectrum(x: Float[Tensor, "n one *size"]) -> Float[Tensor, "n bands"]:
    """The log₁₀ power of each sample in bands of frequency, evenly spaced up to half a cycle a step."""
    axes = tuple(range(2, x.ndim))
    power = torch.fft.fftn(x - x.mean(axes, keepdim=True), dim=axes).abs().square()
    frequencies = torch.meshgrid(*(torch.fft.fftfreq(x.shape[axis]) for axis in axes), indexing="ij")
    radius = torch.stack(frequencies).square().sum(0).sqrt().flatten()
    band = (radius * 2 * BANDS).ceil().long().clamp(0, BANDS)  # 0 is the mean; the corners belong to the last
    sums = torch.zeros(len(x), BANDS + 1).index_add_(1, band, power.flatten(1))
    counts = torch.zeros(BANDS + 1).index_add_(0, band, torch.ones(len(band)))
    return (sums / counts)[:, 1:].clamp_min(1e-12).log10()


def compare(x: Float[Tensor, "n one *size"], held: Float[Tensor, "n one *size"]) -> dict[str, float]:
    """How far samples are from held-out data: quantiles, spectrum, classifier."""
    levels = torch.linspace(0.05, 0.95, 19)
    quantiles = [torch.from_numpy(np.quantile(part.numpy(), levels.numpy())) for part in (x, held)]
    spectra = [spectrum(part) for part in (x, held)]
    features = [
        torch.cat([s, part.flatten(1).mean(1, keepdim=True), part.flatten(1).std(1, keepdim=True).log10()], 1)
        for s, part in zip(spectra, (x, held), strict=True)
    ]
    return {
        "quantiles_std": float((quantiles[0] - quantiles[1]).abs().max() / held.std()),
        "spectrum_db": float(10 * (spectra[0].mean(0) - spectra[1].mean(0)).abs().mean()),
        "c2st": c2st(*features),
    }


def main() -> None:
    """Train, sample, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("series", "volumes"))
    parser.add_argument("--out", required=True)
    parser.add_argument("--images", type=int, default=60_000, help="length of training, in samples")
    parser.add_argument("--num", type=int, default=1000, help="samples that are drawn and judged")
    arguments = parser.parse_args()
    train, held = terrain() if arguments.data == "series" else brain()
    mean, std = train.mean(), train.std()
    print(f"{len(train)} training samples and {len(held)} held out, of {tuple(train.shape[1:])}; std {std:.3g}")

    data = InMemory((train - mean) / std / 2)
    network = DDPMpp(model_channels=16, channel_mult=(1, 2, 2) if train.ndim == 3 else (1, 2), num_blocks=1, dropout=0)
    options = Options(images=arguments.images, batch_size=100, learning_rate=2e-3, rampup=2000, schedule="cosine")
    started = time.perf_counter()
    denoiser = Trainer(Model.for_data(data, network), data, options=options).fit()
    minutes = (time.perf_counter() - started) / 60
    batches = sample_batches(Sampler(), denoiser, range(arguments.num))
    x = torch.cat([drawn.float() for _, drawn in batches]) * 2 * std + mean

    generator = torch.Generator().manual_seed(0)
    chosen, floor = (part[torch.randperm(len(part), generator=generator)[: len(x)]] for part in (held, train))
    report = {"minutes_of_training": minutes, "samples": compare(x, chosen), "floor": compare(floor, chosen)}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "samples.npz", samples=x.numpy())
    (out / "report.json").write_text(json.dumps(report, indent=2))
    columns = 8 if train.ndim == 3 else 4
    save_figure(event_grid(torch.cat([chosen[: 2 * columns], x[: 2 * columns]]), columns), out / "samples.png")
    print(json.dumps(report, indent=2))
    assert math.isfinite(report["samples"]["c2st"])


if __name__ == "__main__":
    main()
