"""Sampling with a consistency function f: noise, a jump to the data, noise up to the next level, a jump again.

x = m + σ_0 n_0;   x̂ = f(x; σ_0);   for i = 1, …, N − 1:  x = x̂ + σ_i n_i,  x̂ = f(x; σ_i)

(Song et al. 2023, Algorithm 1, with f(x; 0) = x as in Geng et al. 2024, so that noise of the whole σ_i² is added.)
"""

from dataclasses import dataclass

from openedm.sampling.methods.stochastic import OneEvaluationSolver

__all__ = ["MultistepConsistency"]


@dataclass(frozen=True)
class MultistepConsistency(OneEvaluationSolver):
    """Multistep consistency sampling: one jump to the data a level, with fresh noise before each but the first.

    It is for consistency functions only (`ConsistencyTuning`, `openedm distill`), and they have no other solver: the
    direction from x to f(x; σ) is not that of the ODE. One level is one evaluation.
    """

    for_consistency = True
    uses_path_noise = False

    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """−σ, σ': x' = x̂ + σ' n."""
        return -sigma, sigma_next
