"""`openedm inference sample`: draw samples from a posterior, given observations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from openedm.cli.arguments import numbers_of
from openedm.cli.inference.arguments import load_given
from openedm.cli.terminal import table
from openedm.ground import checks
from openedm.ground.storage import new_path, write_arrays
from openedm.plots import pair_plot, save_figure


def sample(
    posterior: str,
    out: str,
    x: str | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    plain: bool = False,
    figure: str | None = None,
    truth: str | None = None,
    device: str = "cpu",
) -> None:
    """Draw samples from a posterior, given observations.

    Writes the arrays samples, x and names, and prints mean, standard deviation and quantiles of each parameter.

    Args:
        posterior: the folder that `openedm inference fit` made.
        out: the npz file to write.
        x: the observation, numbers with commas between, --x=-1.0,2.0; or a .npy file of one or a batch of them.
        num_samples: how many samples of each observation.
        seed: of the samples.
        plain: leave refinement out: faster, from the denoiser alone.
        figure: also draw pairs of parameters with regions of 50 and 90 %, into this .png, .pdf or .svg file.
        truth: known parameters to mark in the figure, numbers with commas between or a .npy file.
        device: where to compute, cpu or cuda.
    """
    target, drawing = Path(out), new_path("figure", figure, [".png", ".pdf", ".svg"])
    new_path("out", out, [".npz"])
    checks.at_least("num_samples", num_samples, 2)
    given = load_given(posterior, x, device, plain=plain)
    if drawing is not None and not given.single:
        raise ValueError(f"figure shows one observation, got a batch of {len(given.x)}")
    if truth is not None and drawing is None:
        raise ValueError("truth requires a figure")
    known, names = None if truth is None else numbers_of("truth", truth), given.posterior.names
    samples = given.posterior.sample(given.x, num_samples, seed=seed).cpu()
    write_arrays(target, {"samples": samples.numpy(), "x": given.x.numpy(), "names": np.array(names)})
    if given.single:
        print(_summary(samples.double().numpy(), names))
    print(f"{num_samples} samples{'' if given.single else f' of each of {len(given.x)} observations'}: {out}")
    if drawing is not None:
        save_figure(pair_plot(samples, names, known), drawing)
        print(f"figure: {drawing}")


def _summary(samples: Float64[np.ndarray, "samples parameters"], names: Sequence[str]) -> str:
    """Mean, standard deviation and quantiles of each parameter."""
    quantiles = np.quantile(samples, [0.05, 0.5, 0.95], axis=0)
    values = np.stack([samples.mean(0), samples.std(0, ddof=1), *quantiles], 1)
    lines = [[name, *(f"{v:.4g}" for v in row)] for name, row in zip(names, values, strict=True)]
    return table(["parameter", "mean", "std", "5 %", "50 %", "95 %"], lines)
