"""`openedm inference check`: whether to trust a posterior at one observation."""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openedm.cli.arguments import function_of
from openedm.cli.inference.arguments import PosteriorOptions, load_observed, simulations_of
from openedm.cli.parsing import Flat
from openedm.cli.terminal import table
from openedm.ground import checks
from openedm.inference import local_checks
from openedm.inference.assessing import FEWEST
from openedm.inference.calling import Call, Chunk
from openedm.inference.simulation import simulation_seeds


def check(
    posterior: str,
    x: str | None = None,
    simulator: str | None = None,
    batched: bool = False,
    arrays: Literal["torch", "numpy"] = "torch",
    simulations: str | None = None,
    num_draws: int = 500,
    num_trials: int = 100,
    seed: int = 0,
    device: str = "cpu",
    options: Flat[PosteriorOptions] = PosteriorOptions(),
) -> None:
    """Say whether to trust a posterior at one observation: trust, more simulations, or model does not fit.

    Prints the numbers behind it: whether the observation is like the simulations, what is lost for want of more of
    them, how far the denoiser agrees with the learned likelihood; with a simulator, whether its data for posterior
    samples are like the observation (a predictive check); with fresh simulations, a classifier test at the observation
    (L-C2ST).

    Args:
        posterior: the folder that `openedm inference fit` wrote.
        x: the observation, numbers separated by commas, --x=-1.0,2.0; or a .npy file.
        simulator: your function, as file.py:function, as for `openedm inference simulate`, for the predictive check.
        batched: whether the function takes a batch of parameters (b, d).
        arrays: whether the function receives torch tensors or numpy arrays.
        simulations: simulations that were not used in the fit, a store or an npz file, for L-C2ST: thousands of them.
        num_draws: number of data that are simulated for the predictive check, at least 200.
        num_trials: number of classifiers with shuffled labels in L-C2ST; their training takes minutes.
        seed: seed of samples, simulations and classifiers.
        device: cpu or cuda.
        options: how posterior samples are drawn.
    """
    checks.at_least("num_draws", num_draws, FEWEST)
    if simulator is None and (batched or arrays != "torch"):
        raise ValueError("batched and arrays require a simulator")
    function = None if simulator is None else Call(function_of(simulator), batched, arrays)
    fresh = None if simulations is None else simulations_of(simulations)
    observed = load_observed(posterior, x, device, options)
    if not observed.single:
        raise ValueError(f"x must be one observation {observed.posterior.x_shape}, got {tuple(observed.x.shape)}")
    called = None if function is None else _Called(function, observed.posterior.x_shape)
    print(observed.posterior.verdict(observed.x, simulator=called, num_draws=num_draws, seed=seed))
    if called is not None:
        found = local_checks.predictive_check(observed.posterior, called, observed.x, num_draws=num_draws, seed=seed)
        order = found.p_values.argsort(kind="stable")[:5]
        rows = [[f"x[{i}]", f"{found.observed[i]:.4g}", f"{found.tails[i]:.3f}"] for i in order]
        print(table(["furthest out", "observed", "share of draws below"], rows))
    if fresh is not None:
        local = local_checks.local_c2st(
            observed.posterior, fresh.theta, fresh.x, observed.x.float(), num_trials=num_trials, seed=seed
        )
        print(f"L-C2ST at x: p = {local.p_value:.3g}, statistic {local.statistic:.3g}")


class _Called:
    """The user's simulator as a function of (θ, seed), which keeps its last data; simulations that fail are NaN.

    Args:
        call: how it is called.
        x_shape: shape of one observation.
    """

    def __init__(self, call: Call, x_shape: tuple[int, ...]) -> None:
        self.call, self.x_shape = call, x_shape
        self.last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, theta: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n ..."]:
        if self.last is not None and self.last[1] == seed and torch.equal(self.last[0], theta):
            return self.last[2]
        count = len(theta)
        chunk = Chunk(np.arange(count), theta.cpu().float().numpy(), simulation_seeds(count, seed))
        done: Any = self.call.run(chunk, self.x_shape).simulations
        if not len(done):
            raise ValueError(f"simulator: none of {count} gave a result of shape {self.x_shape}; {done.failures[0]}")
        x = torch.full((count, *self.x_shape), torch.nan)
        x[done.index] = done.x
        self.last = theta, seed, x
        return x
