"""`openedm inference sample`: draw samples from a posterior, given observations."""

import numpy as np

from openedm.cli.inference.choosing import new_file
from openedm.cli.inference.reading import numbers_of, observation_of
from openedm.cli.inference.reporting import table
from openedm.ground import checks
from openedm.ground.storage import replacing
from openedm.inference.trained import DenoiserPosterior
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
    target, drawing = new_file("out", out, (".npz",)), new_file("figure", figure, (".png", ".pdf", ".svg"))
    checks.at_least("num_samples", num_samples, 2)
    fitted = DenoiserPosterior.load(posterior, device)
    observed = observation_of(x, fitted)
    single = tuple(observed.shape) == fitted.x_shape
    if drawing is not None and not single:
        raise ValueError(f"figure shows one observation, got a batch of {len(observed)}")
    if truth is not None and drawing is None:
        raise ValueError("truth has no effect without a figure")
    known = None if truth is None else numbers_of("truth", truth)
    samples = (fitted.plain() if plain else fitted).sample(observed, num_samples, seed=seed).cpu()
    assert target is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as path, open(path, "wb") as file:
        arrays = {"samples": samples.numpy(), "x": observed.numpy(), "names": np.array(fitted.names)}
        np.savez(file, allow_pickle=False, **arrays)
    if single:
        columns = samples.double().numpy()
        quantiles = np.quantile(columns, [0.05, 0.5, 0.95], axis=0)
        rows = np.stack([columns.mean(0), columns.std(0, ddof=1), *quantiles], 1)
        header = ["parameter", "mean", "std", "5 %", "50 %", "95 %"]
        print(table(header, [[name, *(f"{v:.4g}" for v in row)] for name, row in zip(fitted.names, rows, strict=True)]))
    print(f"{num_samples} samples{'' if single else f' of each of {len(observed)} observations'}: {out}")
    if drawing is not None:
        drawing.parent.mkdir(parents=True, exist_ok=True)
        save_figure(pair_plot(samples, fitted.names, known), drawing)
        print(f"figure: {drawing}")
