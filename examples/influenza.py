"""Influenza in a boarding school, 1978: how fast it spread, from the numbers of boys in bed on fourteen days.

    python examples/influenza.py --out runs/influenza

Posterior, predictive check, calibration and paths in σ as figures, beside a Markov chain on the exact likelihood.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import studies
import torch
from torch import Tensor

from openedm.inference import LogNormal
from openedm.inference.tasks import Task
from openedm.inference.tasks.dynamics import trajectory

BOYS = 763
OBSERVED = torch.tensor([3.0, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4])
"""In bed, of 763, from 22 January to 4 February 1978 (British Medical Journal, 4 March 1978)."""

LABELS = (r"$\beta$", r"$\gamma$", "$I_0$", r"$\phi$")


@dataclass(frozen=True)
class Influenza(Task):
    """S' = −βSI/N, I' = βSI/N − γI from I₀ on day 0; in bed x_k ~ NegBin(mean I(k), dispersion φ).

    Days k = 1 … 14, N = 763; the variance of counts of mean m is m + m²/φ, and may exceed N. β ~ LogN(ln 1.5, 0.5),
    γ ~ LogN(ln 0.5, 0.5) (two days in bed, give or take a factor of 1.6), I₀ ~ LogN(0, 0.7), φ ~ LogN(ln 10, 1).
    """

    name = "influenza"
    x_shape = (14,)
    prior = LogNormal(
        (math.log(1.5), math.log(0.5), 0.0, math.log(10)), (0.5, 0.5, 0.7, 1.0), ("beta", "gamma", "I0", "phi")
    )
    steps: int = 10

    def infected(self, theta: Tensor) -> Tensor:
        """Of (n, 4): I on days 1 to 14, (n, 14)."""
        beta, gamma, start, _ = theta.double().unbind(-1)

        def field(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            susceptible, infected = state
            return -beta * infected.exp(), beta * susceptible.exp() - gamma

        share = (start / BOYS).clamp(max=0.999)
        states = trajectory(field, (torch.log1p(-share), share.log()), 1.0, 14, self.steps)
        return BOYS * torch.stack([infected for _, infected in states[1:]], -1).exp()

    def _simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        mean, phi = self.infected(theta).numpy(), theta[:, 3:].numpy()
        noise = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return torch.from_numpy(noise.negative_binomial(phi, phi / (phi + mean)))

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        mean, phi = self.infected(theta), theta[..., 3:]
        ways = torch.lgamma(x + phi) - torch.lgamma(phi) - torch.lgamma(x + 1)
        each: Tensor = ways + phi * (phi / (phi + mean)).log() + torch.xlogy(x, mean / (phi + mean))
        return each.sum(-1)


def predictions(observed: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, dict]:
    """One series."""
    return observed, draws, {"t": range(1, 15), "names": ["boys in bed"], "time_label": "day (1 = 22 January)"}


def main(given: Sequence[str] | None = None) -> None:
    """Simulate, fit, and show what came of it."""
    options = studies.arguments(__doc__.splitlines()[0], given)
    task = Influenza()
    budget = studies.Budget.quick(task.dim, task.x_shape) if options.quick else studies.Budget(options.simulations)
    posterior = studies.fitted(task, budget, options)
    studies.evidence(posterior, task, OBSERVED, budget, options.out, LABELS, predictions, options.seed)


if __name__ == "__main__":
    main()
