"""`openedm inference sample`: draw samples from a posterior, given observations."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from openedm.cli.arguments import numbers_of
from openedm.cli.inference.arguments import ObservedPosterior, PosteriorOptions, load_observed
from openedm.cli.parsing import Flat
from openedm.cli.terminal import distinct, table
from openedm.ground import checks
from openedm.ground.storage import new_path, write_arrays
from openedm.inference.likeness import FAR
from openedm.plots import pair_plot, save_figure

PRIOR_DRAWS = 100_000
"""Samples of the prior from which a figure shows its density."""


def sample(
    posterior: str,
    out: str,
    x: str | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    figure: str | None = None,
    truth: str | None = None,
    prior: bool | None = None,
    together: bool = False,
    device: str = "cpu",
    options: Flat[PosteriorOptions] = PosteriorOptions(),
) -> None:
    """Draw samples from a posterior, given observations.

    Writes the arrays samples, x (of several kinds of data, x_NAME of each) and names, and prints mean, standard
    deviation and quantiles of each parameter.

    Args:
        posterior: the folder that `openedm inference fit` wrote.
        out: the npz file to write.
        x: the observation, numbers separated by commas, --x=-1.0,2.0; or a .npy file of one observation or a batch of
            them; of several kinds of data, an .npz file with an array of each name.
        num_samples: number of samples for each observation.
        seed: seed of the samples.
        figure: also plot pairs of parameters with regions of 50 and 90 %, and median and 95 % interval of each, to this
            .png, .pdf or .svg file.
        truth: known parameters to mark in the figure, numbers separated by commas or a .npy file.
        prior: whether the figure shows the density of the prior; by default it does where the posterior has one.
        together: whether the rows of x are independent observations of the same parameters: one posterior given all.
        device: cpu or cuda.
        options: how they are drawn.
    """
    target, drawing = Path(out), new_path("figure", figure, [".png", ".pdf", ".svg"])
    new_path("out", out, [".npz"])
    checks.at_least("num_samples", num_samples, 2)
    require = None if drawing is None else "figure"
    observed = load_observed(posterior, x, device, options, single=require, together=together)
    if (truth is not None or prior is not None) and drawing is None:
        raise ValueError(f"{'prior' if truth is None else 'truth'} requires a figure")
    if prior and observed.posterior.prior is None:
        raise ValueError("prior requires a posterior with a prior, but this one was fitted without")
    names = observed.posterior.names
    known = None if truth is None else _truth(truth, names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "x is far from all simulations")  # said below, of each observation
        try:
            samples = observed.given.sample(observed.x, num_samples, seed=seed).cpu()
        except FloatingPointError as error:
            if far := _far(observed):
                text = str(error).removeprefix("x is far from all simulations, ")
                raise FloatingPointError(
                    f"x is far from all simulations, observation {far[0]} first: {text}"
                ) from error
            raise
    write_arrays(target, {"samples": samples.numpy(), **observed.arrays, "names": np.array(names)})
    if observed.single:
        print(_summary(samples.double().numpy(), names))
    if far := _far(observed):
        print(f"x is far from all simulations, observation {far[0]} first: see openedm inference check")
    print(f"{num_samples} samples{'' if observed.single else f' of each of {len(observed.x)} observations'}: {out}")
    if drawing is not None:
        before = None if prior is False else observed.posterior.prior
        draws = None if before is None else before.sample(PRIOR_DRAWS, seed)
        save_figure(pair_plot(samples, names, known, prior=draws), drawing)
        print(f"figure: {drawing}")


def _far(observed: ObservedPosterior) -> list[int]:
    """Which observations are far from all simulations."""
    return [i for i, each in enumerate(observed.given.likeness(observed.x) or ()) if each.ratio > FAR]


def _truth(text: str, names: Sequence[str]) -> Tensor:
    """Known parameters, one for each name."""
    known = numbers_of("truth", text)
    if tuple(known.shape) != (len(names),) or not bool(known.isfinite().all()):
        raise ValueError(
            f"truth must be {len(names)} finite numbers, one for each of {', '.join(names)}, got {text!r} of shape "
            f"{tuple(known.shape)}"
        )
    return known


def _summary(samples: Float64[np.ndarray, "samples parameters"], names: Sequence[str]) -> str:
    """Mean, standard deviation and quantiles of each parameter."""
    quantiles = np.quantile(samples, [0.05, 0.5, 0.95], axis=0)
    values = np.stack([samples.mean(0), samples.std(0, ddof=1), *quantiles], 1)
    lines = [[name, *(distinct(v, row[1]) for v in row)] for name, row in zip(names, values, strict=True)]
    return table(["parameter", "mean", "std", "5 %", "50 %", "95 %"], lines)
