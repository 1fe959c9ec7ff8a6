"""Half of a handwritten digit and noise: what the rest may be. Draws docs/figures/inpainting.png.

    python examples/inpainting.py inpainting.png

The prior is the exact denoiser of the 1437 training images x_i, so the posterior given a measurement y is known: image
i has probability ∝ exp(−‖y − A x_i‖²/(2σ_y²)). The measured digits are test images, which the prior has not seen.
"""

import sys

import torch
from matplotlib.figure import Figure
from torch import Tensor

from openedm.conditioning import DPS, MMPS
from openedm.data import Digits
from openedm.exact import ExactDataset
from openedm.levels import Karras
from openedm.measurements import Mask, Measurement
from openedm.plots import save_figure
from openedm.sampling import Sampler

SIGMA_Y = 0.3
DRAWS = 2


def images_of(split: str) -> tuple[Tensor, Tensor]:
    """All images of a split and their classes."""
    dataset = Digits(split).load()
    images, labels = dataset.fetch(range(len(dataset)))[:2]
    return images.double(), labels


def main(path: str) -> None:
    """Draw the figure: a column a digit, DRAWS samples of each method."""
    generator = torch.Generator().manual_seed(0)
    images, _ = images_of("train")
    truth, labels = images_of("test")
    truth = torch.stack([truth[labels == digit][0] for digit in range(10)])
    known = torch.zeros(1, 8, 8, dtype=torch.bool)
    known[:, :4] = True
    mask = Mask(known)
    y = mask(truth)
    y = y + SIGMA_Y * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    seen = torch.where(known, mask.adjoint(y, (1, 8, 8)), torch.nan)

    prior, measurement = ExactDataset(images), Measurement(mask, y.repeat(DRAWS, 1), SIGMA_Y)
    sampler = Sampler(Karras(64))
    mmps, dps = (
        sampler.sample(d, seeds=range(10 * DRAWS)) for d in (MMPS(prior, measurement), DPS(prior, measurement))
    )
    likelihood = -torch.cdist(y, mask(images)).square() / (2 * SIGMA_Y**2)
    exact = images[torch.multinomial(likelihood.softmax(1), DRAWS, replacement=True, generator=generator).T.flatten()]

    rows = {"truth": truth, "measured": seen, "exact\nposterior": exact, "MMPS": mmps, "DPS": dps}
    save_figure(drawn(rows), path)


def drawn(rows: dict[str, Tensor]) -> Figure:
    """Ten images in each line, with the names of the rows."""
    lines = [(name, part) for name, x in rows.items() for part in x.split(10)]
    figure = Figure(figsize=(6.4, 0.58 * len(lines)))
    figure.subplots_adjust(left=0.13, right=0.99, bottom=0.01, top=0.99, wspace=0.08, hspace=0.08)
    axes = figure.subplots(len(lines), 10)
    previous = None
    for (name, part), line in zip(lines, axes, strict=True):
        for image, ax in zip(part, line, strict=True):
            ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
            ax.set(xticks=[], yticks=[], facecolor="#56B4E9")
        line[0].set_ylabel(name if name != previous else "", rotation=0, ha="right", va="center")
        previous = name
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:])
