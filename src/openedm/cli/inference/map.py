"""`openedm inference map`: the mode of a posterior."""

from openedm.cli.inference.arguments import load_given
from openedm.cli.terminal import table


def map(
    posterior: str, x: str | None = None, num_draws: int = 256, seed: int = 0, plain: bool = False, device: str = "cpu"
) -> None:
    """The mode of a posterior, found by ascent from the samples of the highest density.

    Prints the parameters where the density is highest, and the log-density there in nats.

    Args:
        posterior: the folder that `openedm inference fit` made.
        x: the observation, numbers with commas between, --x=-1.0,2.0; or a .npy file.
        num_draws: how many samples to start from.
        seed: of the samples.
        plain: leave refinement out.
        device: where to compute, cpu or cuda.
    """
    given = load_given(posterior, x, device, plain=plain)
    if not given.single:
        raise ValueError(f"x must be one observation {given.posterior.x_shape}, got {tuple(given.x.shape)}")
    mode = given.posterior.map(given.x, num_draws=num_draws, seed=seed)
    density = float(given.posterior.log_prob(mode, given.x))
    values = [[name, f"{value:.6g}"] for name, value in zip(given.posterior.names, mode.tolist(), strict=True)]
    print(table(["parameter", "mode"], [*values, ["log-density", f"{density:.6g}"]]))
