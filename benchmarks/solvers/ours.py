"""openedm's solvers, all through `Sampler`. To compare another one, add a line.

An entry of `FIXED` and `STOCHASTIC` is a name and `make(nfe, denoiser)`, the sampler of at most `nfe` evaluations; of
`ADAPTIVE`, a name and `make(tolerance, denoiser)`. The denoiser is there to fit levels with. None means that the solver
can do nothing with so few evaluations.
"""

from collections.abc import Callable, Sequence

from benchmarks.solvers.methods import SIGMA_MAX, SIGMA_MIN, Denoise, Method, Run
from torch import Tensor

from openedm.denoiser import Denoiser
from openedm.levels import Karras, LogLinear
from openedm.sampling import RK4, Churn, Euler, Heun, Midpoint, Sampler, Solver

Make = Callable[[float, Denoiser], Sampler | None]


def karras(num_steps: int) -> Karras:
    """EDM's levels over the range of all problems."""
    return Karras(num_steps, SIGMA_MIN, SIGMA_MAX)


def one_step(solver: Solver, churn: Churn = Churn()) -> Make:
    """A one-step solver on EDM's levels: as many steps as the evaluations allow."""
    stages = len(solver.tableau.b)

    def make(nfe: float, denoiser: Denoiser) -> Sampler | None:
        num_steps = (int(nfe) - 1) // stages + 1
        return Sampler(karras(num_steps), solver=solver, churn=churn) if num_steps >= 2 else None

    return make


def log_linear_euler(nfe: float, denoiser: Denoiser) -> Sampler:
    """Euler on levels evenly spaced in ln σ."""
    return Sampler(LogLinear(int(nfe), SIGMA_MIN, SIGMA_MAX), solver=Euler())


FIXED: list[tuple[str, Make]] = [
    ("Euler", one_step(Euler())),
    ("Euler, log-linear levels", log_linear_euler),
    ("Heun", one_step(Heun())),
    ("Midpoint", one_step(Midpoint())),
    ("RK4", one_step(RK4())),
]

ADAPTIVE: list[tuple[str, Make]] = []

STOCHASTIC: list[tuple[str, Make]] = [
    ("Heun, churn 0.2 a step", lambda nfe, denoiser: one_step(Heun(), Churn(0.2 * nfe / 2))(nfe, denoiser)),
    ("Euler, churn 0.4 a step", lambda nfe, denoiser: one_step(Euler(), Churn(0.4 * nfe))(nfe, denoiser)),
]

OVERHEAD: list[tuple[str, Make]] = [entry for entry in FIXED if entry[0] in ("Euler", "Heun")]
"""Of `FIXED`, what is timed with a denoiser that does nothing: nothing that fits levels."""


def methods(entries: Sequence[tuple[str, Make]], stochastic: bool = False) -> list[Method]:
    """The entries as the benchmark wants them; stochastic ones get a seed for each sample."""

    def prepare(make: Make, budget: float, denoiser: Denoiser) -> Run | None:
        sampler = make(budget, denoiser)
        if sampler is None:
            return None

        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            assert isinstance(denoise, Denoiser)
            return sampler.sample(denoise, range(len(noise)) if stochastic else None, noise=noise)

        return run

    return [Method("openedm", name, lambda b, d, make=make: prepare(make, b, d)) for name, make in entries]
