"""Digits drawn for measured attributes, and digits made four times larger: are conditions obeyed?

    python examples/conditional_digits.py attributes --out runs/attributes
    python examples/conditional_digits.py superresolution --out runs/superresolution

attributes: the condition is a vector that is measured from the image, the stroke (mean ink, 0 to 1) and the slant
(slope of the ink's regression of column on row, in columns a row). Samples are drawn for the attributes of held-out
digits and measured again; the report has the correlation of measured with asked values, and the error beside the
standard deviation of the data, which it would be √2 times if the condition were ignored.

superresolution: the condition is the image of 2×2 means of 4×4 pixels plus Gaussian noise of a standard deviation s,
enlarged to 8×8. Samples for held-out digits are reduced again. If samples were drawn from the exact posterior, what
they differ by from the given image would be distributed as the noise: root mean square s, 95 % within 1.96 s.

Both train a small U-Net on the 1,437 training digits for minutes on two CPU cores, and write report.json and the figure
samples.png into OUT.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openedm import Auto
from openedm.data import Dataset, Digits, Pairs
from openedm.data.pictures import beside, image_grid
from openedm.denoiser import Denoiser
from openedm.networks import DDPMpp
from openedm.plots import save_figure
from openedm.plots.style import COLOURS, GREY, plain
from openedm.sampling import sample_batches
from openedm.training import Model, Options, Trainer

NETWORK = DDPMpp(model_channels=32, channel_mult=(1, 2), num_blocks=1, dropout=0.0)
NAMES = ("stroke", "slant")
SCALE = 4

Images = Float[Tensor, "images one height width"]


def attributes(x: Images) -> Float[Tensor, "images attributes"]:
    """Stroke and slant of images in [-1, 1]."""
    ink = ((x[:, 0] + 1) / 2).clamp(0, 1)
    total = ink.sum((1, 2)).clamp_min(1e-6)
    places = torch.arange(x.shape[-1], dtype=x.dtype) - (x.shape[-1] - 1) / 2

    def mean(values: Tensor) -> Tensor:
        return (ink * values).sum((1, 2)) / total

    row, column = places[:, None].expand(ink.shape[1:]), places[None, :].expand(ink.shape[1:])
    covariance = mean(row * column) - mean(row) * mean(column)
    variance = mean(row**2) - mean(row) ** 2
    return torch.stack([ink.mean((1, 2)), covariance / variance.clamp_min(1e-6)], 1)


def reduced(x: Images) -> Images:
    """Means of 4×4 pixels."""
    return functional.avg_pool2d(x, SCALE)


def train(data: Dataset, images: int, seed: int) -> Denoiser:
    """A denoiser of the digits under their conditions; the averaged weights."""
    options = Options(
        images=images,
        batch_size=128,
        learning_rate=2e-3,
        rampup=min(5_000, images // 20),
        schedule="cosine",
        validate_every=0,
        snapshot_every=0,
        seed=seed,
    )
    return Trainer(Model.for_data(data, NETWORK), data, options=options).fit()


def draw(denoiser: Denoiser, condition: Tensor | None, count: int, nfe: int) -> Images:
    """One sample a condition."""
    sampler = Auto(nfe).choose(denoiser)
    batches = sample_batches(sampler, denoiser, range(count), condition=condition, batch_size=128)
    return torch.cat([x for _, x in batches]).float()


def correlations(asked: Tensor, measured: Tensor) -> list[float]:
    """The correlation of each attribute."""
    return [float(torch.corrcoef(torch.stack([asked[:, i], measured[:, i]]))[0, 1]) for i in range(asked.shape[1])]


def run_attributes(x: Images, held: Images, options: argparse.Namespace) -> tuple[dict[str, float], plt.Figure]:
    """Train with attributes as conditions, and compare those of samples with what was asked for."""
    denoiser = train(Pairs(x, attributes(x)), options.images, options.seed)
    asked = attributes(held)
    samples = draw(denoiser, asked, len(asked), options.nfe)
    measured = attributes(samples)
    report: dict[str, float] = {}
    for name, found, i in zip(NAMES, correlations(asked, measured), range(2), strict=True):
        report[f"correlation of {name}"] = found
        report[f"error of {name}, standard deviations of the data"] = float(
            (measured - asked)[:, i].square().mean().sqrt() / asked[:, i].std()
        )
    low, high = (attributes(x).quantile(q, 0) for q in (0.05, 0.95))
    steps = torch.linspace(0, 1, 7)
    grid = torch.stack([torch.stack([low[0] + (high - low)[0] * a, low[1] + (high - low)[1] * b])
                        for a in steps for b in steps])  # fmt: skip
    tiles = draw(denoiser, grid, len(grid), options.nfe)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for i, name in enumerate(NAMES):
        plain(axes[i]).plot(asked[:, i], measured[:, i], ".", markersize=4, color=COLOURS[0])
        axes[i].axline((float(asked[0, i]),) * 2, slope=1, color=GREY, linewidth=1, linestyle="--")
        axes[i].set(xlabel=f"{name} asked for", ylabel=f"{name} of the sample",
                    title=f"correlation {report[f'correlation of {name}']:.3f}")  # fmt: skip
    axes[2].imshow(image_grid(tiles, 7, scale=8)[:, :, 0], cmap="gray")
    axes[2].set(xlabel="slant", ylabel="stroke", title="one sample each", xticks=[], yticks=[])
    return report, figure


def run_superresolution(x: Images, held: Images, options: argparse.Namespace) -> tuple[dict[str, float], plt.Figure]:
    """Train with reduced images as conditions, and compare reduced samples with them."""
    generator = torch.Generator().manual_seed(options.seed)

    def noisy(images: Images) -> Images:
        low = reduced(images)
        return low + options.noise * torch.randn(low.shape, generator=generator)

    def enlarged(low: Images) -> Images:
        return functional.interpolate(low, scale_factor=SCALE, mode="nearest")

    copies = x.repeat(8, 1, 1, 1)  # the noise of a condition is another one in each copy
    denoiser = train(Pairs(copies, enlarged(noisy(copies))), options.images, options.seed)
    low = noisy(held)
    samples = draw(denoiser, enlarged(low), len(held), options.nfe)
    residual = (reduced(samples) - low).flatten().abs() / options.noise
    truth = (reduced(held) - low).flatten().abs() / options.noise
    report = {"noise": options.noise}
    for name, values in (("samples", residual), ("held-out digits", truth)):
        report |= {
            f"root mean square of {name} / noise": float(values.square().mean().sqrt()),
            f"95 % quantile of {name} / (1.96 noise)": float(values.quantile(0.95)) / 1.96,
            f"share of {name} within 1.96 noise": float((values <= 1.96).float().mean()),
        }
    shown = beside(enlarged(low[:24]), samples[:24])
    pairs = shown.unflatten(0, (24, 2))
    tiles = torch.cat([pairs, held[:24, None]], 1).flatten(0, 1)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.imshow(image_grid(tiles, 12, scale=8)[:, :, 0], cmap="gray")
    axes.set(title="condition, sample, held-out digit", xticks=[], yticks=[])
    return report, figure


def main() -> None:
    """Train, sample, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["attributes", "superresolution"])
    parser.add_argument("--out", type=Path, required=True, help="folder of report.json and samples.png")
    parser.add_argument("--images", type=int, default=60_000, help="images seen in training")
    parser.add_argument("--nfe", type=int, default=32, help="network evaluations a sample")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation of the noise of reduced images")
    parser.add_argument("--held", type=int, default=360, help="held-out digits")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    x, held = (dataset.fetch(range(len(dataset)))[0] for dataset in (Digits().load(), Digits(split="test").load()))
    run = run_attributes if options.what == "attributes" else run_superresolution
    report, figure = run(x, held[: options.held], options)
    report["seconds"] = round(time.perf_counter() - started, 1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    save_figure(figure, options.out / "samples.png")
    for name, value in report.items():
        print(f"{name:45} {value:.4g}")


if __name__ == "__main__":
    main()
