"""`openedm toy`: draw figures that explain diffusion, in one and two dimensions."""

from functools import partial
from pathlib import Path

from openedm.cli.folders import figures_to_write
from openedm.data import Source, Toy
from openedm.levels import Karras
from openedm.plots import save_figure
from openedm.plots.toy import FIGURES, toy_figures
from openedm.sampling import Sampler
from openedm.training import TrainingBar


def toy(
    out: str = "runs/toy",
    data: Source = Toy("two_moons", num_samples=2000),
    data_1d: Source = Toy("two_modes"),
    sampler: Sampler = Sampler(levels=Karras(num_steps=64)),
    images: int = 600_000,
    sigma_shown: float = 3.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw the figures that explain diffusion, in one and two dimensions, in about half a minute.

    Trains a small network on toy data and compares it with the exact denoiser of the same data, which is known in
    closed form. Writes toy-1d.png and toy-2d.png (data with noise, and paths of the probability flow), curvature.png
    (the same paths under the VP, VE and EDM schedules, and under that of `sampler`), error-versus-nfe.png (convergence
    of solvers with an exact denoiser) and loss-per-sigma.png; prints their numbers.

    Args:
        out: the folder for the figures.
        data: data in two dimensions. For a Toy that is a mixture of Gaussians the exact denoiser is that of the
            mixture, otherwise that of the finite set of samples, which reproduces these samples and whose cost grows
            with their number.
        data_1d: data in one dimension, with the same rule.
        sampler: schedule, scaling, levels and solver of the paths.
        images: number of samples that each network is trained on.
        sigma_shown: highest noise level in toy-1d.png.
        seed: seed of the networks, the training and the noise.
        overwrite: replace figures of an earlier run in the folder.
    """
    folder = figures_to_write(Path(out), FIGURES, overwrite=overwrite)
    figures = toy_figures(
        data,
        data_1d,
        sampler,
        images=images,
        sigma_shown=sigma_shown,
        seed=seed,
        log=partial(print, flush=True),
        observer=TrainingBar,
    )
    for name, figure in figures.items():
        save_figure(figure, folder / name)
        print(f"wrote {folder / name}")
