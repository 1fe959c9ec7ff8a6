"""`openedm inference log_prob`: log-densities of parameters under a posterior."""

from openedm.cli.arguments import numbers_of
from openedm.cli.inference.arguments import PosteriorOptions, load_observed
from openedm.ground.storage import new_path, write_array


def log_prob(
    posterior: str,
    x: str | None = None,
    theta: str | None = None,
    plain: bool = False,
    together: bool = False,
    out: str | None = None,
    device: str = "cpu",
) -> None:
    """Log-densities of parameters under a posterior, in nats.

    Prints one number a line; minus infinity outside the prior's support.

    Args:
        posterior: the folder that `openedm inference fit` wrote.
        x: the observation, numbers separated by commas, --x=-1.0,2.0; or a .npy file; of several kinds of data, an .npz
            file with an array of each name.
        theta: the parameters, numbers separated by commas; or a .npy file of one (d,) or many (n, d).
        plain: leave out refinement.
        together: whether the rows of x are independent observations of the same parameters: one posterior given all.
        out: write the numbers to this .npy file instead of printing them.
        device: cpu or cuda.
    """
    target = new_path("out", out, [".npy"])
    observed = load_observed(posterior, x, device, PosteriorOptions(plain=plain), together=together, theta=theta)
    points = numbers_of("theta", theta)
    values = observed.given.log_prob(points, observed.x).detach().cpu()
    if target is None:
        print("\n".join(f"{value:.6g}" for value in values.flatten().tolist()))
        return
    write_array(target, values)
    print(f"{values.numel()} log-densities: {out}")
