"""`openedm inference map`: the mode of a posterior."""

from openedm.cli.inference.reading import observation_of
from openedm.cli.inference.reporting import table
from openedm.inference.trained import DenoiserPosterior


def map(
    posterior: str, x: str | None = None, num_draws: int = 256, seed: int = 0, plain: bool = False, device: str = "cpu"
) -> None:
    """The mode of a posterior, climbed from the highest of some samples.

    Prints the parameters where the density is highest, and the log-density there in nats.

    Args:
        posterior: the folder that `openedm inference fit` made.
        x: the observation, numbers with commas between, --x=-1.0,2.0; or a .npy file.
        num_draws: how many samples to start from.
        seed: of the samples.
        plain: leave refinement out.
        device: where to compute, cpu or cuda.
    """
    loaded = DenoiserPosterior.load(posterior, device)
    observed = observation_of(x, loaded)
    if tuple(observed.shape) != loaded.x_shape:
        raise ValueError(f"x must be one observation {loaded.x_shape}, got {tuple(observed.shape)}")
    fitted = loaded.plain() if plain else loaded
    mode = fitted.map(observed, num_draws=num_draws, seed=seed)
    rows = [[name, f"{value:.6g}"] for name, value in zip(fitted.names, mode.tolist(), strict=True)]
    print(table(["parameter", "mode"], [*rows, ["log-density", f"{float(fitted.log_prob(mode, observed)):.6g}"]]))
