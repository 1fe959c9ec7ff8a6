"""`openedm inference map`: the mode of a posterior."""

import torch

from openedm.cli.inference.arguments import PosteriorOptions, load_observed
from openedm.cli.terminal import table


def map(
    posterior: str,
    x: str | None = None,
    num_draws: int = 256,
    seed: int = 0,
    plain: bool = False,
    together: bool = False,
    device: str = "cpu",
) -> None:
    """Find the mode of a posterior, by ascent from the samples of the highest density.

    Prints the parameters with the highest density, and their log-density in nats.

    Args:
        posterior: the folder that `openedm inference fit` wrote.
        x: the observation, numbers separated by commas, --x=-1.0,2.0; or a .npy file; of several kinds of data, an .npz
            file with an array of each name.
        num_draws: number of samples to start from.
        seed: seed of the samples.
        plain: leave out refinement.
        together: whether the rows of x are independent observations of the same parameters: one posterior given all.
        device: cpu or cuda.
    """
    observed = load_observed(posterior, x, device, PosteriorOptions(plain=plain), single="map", together=together)
    mode = observed.given.map(observed.x, num_draws=num_draws, seed=seed)
    density = float(observed.given.log_prob(mode, observed.x))
    digits = 15 if mode.dtype == torch.float64 else 6  # where float32 would not tell values apart
    values = [
        [name, f"{value:.{digits}g}"] for name, value in zip(observed.posterior.names, mode.tolist(), strict=True)
    ]
    print(table(["parameter", "mode"], [*values, ["log-density", f"{density:.6g}"]]))
