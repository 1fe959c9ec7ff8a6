"""Hudson Bay lynx and hare, 1900–1920: the parameters of predator and prey from 21 years of pelts.

    python examples/lynx_hare.py --out runs/lynx-hare

Posterior, predictive check, calibration and paths in σ as figures, beside a Markov chain on the exact likelihood.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import studies
import torch
from torch import Tensor

from openedm.inference import LogNormal
from openedm.inference.tasks import Task
from openedm.inference.tasks.dynamics import trajectory

# fmt: off
HARE = (30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1,
        40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7)
LYNX = (4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4,
        8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6)
# fmt: on
"""Thousands of pelts (Howard 2009, after Elton & Nicholson 1942)."""

OBSERVED = torch.tensor(HARE + LYNX, dtype=torch.float32)
LABELS = (r"$\alpha$", r"$\beta$", r"$\gamma$", r"$\delta$", "$u_0$", "$v_0$", r"$\sigma_x$")


@dataclass(frozen=True)
class LynxHare(Task):
    """Hares u and lynxes v: u' = αu − βuv, v' = −γv + δuv from (u₀, v₀) in 1900; pelts ~ LogN(ln u, σ), LogN(ln v, σ).

    Time in years, u and v in thousands of pelts, cut to [10⁻³, 10⁴]; x holds 21 years of hares, then 21 of lynxes.
    α, γ ~ LogN(−0.125, 0.5) and β, δ ~ LogN(−3, 0.5) as in the task lotka_volterra; u₀, v₀ ~ LogN(ln 10, 1) and
    σ ~ LogN(−1, 0.5), as in Carpenter (2018, "Predator-prey population dynamics"), where the last is twice as wide.
    """

    name = "lynx_hare"
    x_shape = (42,)
    prior = LogNormal(
        (-0.125, -3.0, -0.125, -3.0, math.log(10), math.log(10), -1.0),
        (0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 0.5),
        ("alpha", "beta", "gamma", "delta", "u0", "v0", "sigma"),
    )
    steps: int = 20

    def log_populations(self, theta: Tensor) -> Tensor:
        """Of (n, 7): ln u, then ln v in each year, (n, 42)."""
        alpha, beta, gamma, delta, u0, v0, _ = theta.double().unbind(-1)

        def field(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            hares, lynxes = state
            return alpha - beta * lynxes.exp(), delta * hares.exp() - gamma

        states = trajectory(field, (u0.log(), v0.log()), 1.0, 20, self.steps)
        found = torch.stack([u for u, _ in states] + [v for _, v in states], -1)
        # A path that left the numbers is cut, too.
        return found.nan_to_num(math.inf).clamp(math.log(1e-3), math.log(1e4))

    def _simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        centre = self.log_populations(theta)
        noise = torch.randn(centre.shape, dtype=centre.dtype, generator=generator)
        return (centre + theta[:, 6:] * noise).exp()

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        sigma = theta[..., 6:]
        off = (x.log() - self.log_populations(theta)) / sigma
        each: Tensor = -off.square() / 2 - sigma.log() - x.log() - math.log(2 * math.pi) / 2
        return each.sum(-1)


def predictions(observed: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, dict]:
    """Two series, on a logarithmic axis."""
    how = {"t": range(1900, 1921), "names": ["hares", "lynxes"], "time_label": "year", "scale": "log"}
    return observed.reshape(2, 21), draws.reshape(-1, 2, 21), how


def main(given: Sequence[str] | None = None) -> None:
    """Simulate, fit, and show what came of it."""
    options = studies.arguments(__doc__.splitlines()[0], given)
    task = LynxHare()
    budget = studies.Budget.quick(task.dim, task.x_shape) if options.quick else studies.Budget(options.simulations)
    posterior = studies.fitted(task, budget, options)
    studies.evidence(posterior, task, OBSERVED, budget, options.out, LABELS, predictions, options.seed)


if __name__ == "__main__":
    main()
