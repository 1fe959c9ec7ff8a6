"""NPE, NPSE and FMPE of the sbi package, with its defaults.

Between epochs sbi asks whether training has converged. When the CPU time is over the answer is yes, and the best
weights so far are put back, as sbi does itself.
"""

import math
from typing import Any

import torch
from benchmarks.inference.exchange import LOG_NORMAL, NORMAL, UNIFORM, Array, Simulations, cpu_seconds
from sbi.inference import FMPE, NPE, NPSE
from sbi.utils import BoxUniform
from torch.distributions import Distribution, Independent, LogNormal, MultivariateNormal

PACKAGES = ("sbi", "torch", "numpy")


class Budgeted:
    """Stops the training of the class beside it when the CPU time is over."""

    budget = math.inf
    begun = 0.0
    stopped = "itself"

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        converged: bool = super()._converged(epoch, stop_after_epochs)  # type: ignore[misc]
        if not converged and epoch > 0 and cpu_seconds() - self.begun >= self.budget:
            self.stopped = "budget"
            best = self._best_model_state_dict  # type: ignore[attr-defined]
            if best is not None:
                self._neural_net.load_state_dict(best)  # type: ignore[attr-defined]
            return True
        return converged


class BudgetedNPE(Budgeted, NPE):
    """NPE within a budget."""


class BudgetedNPSE(Budgeted, NPSE):
    """NPSE within a budget."""


class BudgetedFMPE(Budgeted, FMPE):
    """FMPE within a budget."""


METHODS = {"npe": BudgetedNPE, "npse": BudgetedNPSE, "fmpe": BudgetedFMPE}


def prior(given: Simulations) -> Distribution:
    """The prior as a torch distribution."""
    first = torch.as_tensor(given.first, dtype=torch.float32)
    second = torch.as_tensor(given.second, dtype=torch.float32)
    if given.prior == UNIFORM:
        return BoxUniform(first, second)
    if given.prior == NORMAL:
        return MultivariateNormal(first, second)
    assert given.prior == LOG_NORMAL
    return Independent(LogNormal(first, second), 1)


class Posterior:
    """A posterior of sbi."""

    def __init__(self, posterior: Any, notes: dict[str, Any]) -> None:
        self.posterior = posterior
        self.notes = notes

    def sample(self, x: Array, n: int, seed: int) -> Array:
        """Samples (n, d)."""
        torch.manual_seed(seed)
        found = self.posterior.sample((n,), x=torch.as_tensor(x), show_progress_bars=False)
        return found.detach().numpy()


def train(method: str, given: Simulations, budget: float, seed: int) -> Posterior:
    """Train until sbi finds that it has converged, or the budget is spent at the end of an epoch."""
    torch.manual_seed(seed)
    trainer = METHODS[method](prior(given), show_progress_bars=False)
    trainer.budget, trainer.begun = budget, cpu_seconds()
    trainer.append_simulations(torch.as_tensor(given.theta), torch.as_tensor(given.x)).train()
    return Posterior(trainer.build_posterior(), {"stopped": trainer.stopped, "epochs": trainer.epoch})
