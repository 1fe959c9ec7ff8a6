"""openedm's solvers, all through `Sampler`. To compare another one, add a line.

An entry of `FIXED`, `FITTED` and `STOCHASTIC` is a name and `make(nfe, denoiser)`, the sampler of at most `nfe`
evaluations; of `ADAPTIVE`, a name and `make(tolerance, denoiser)`. The denoiser is there to fit levels with. None means
that the solver can do nothing with so few evaluations.
"""

from collections.abc import Callable, Sequence

from benchmarks.solvers.methods import OURS, SIGMA_MAX, SIGMA_MIN, Denoise, Method, Run
from torch import Tensor

from openedm.denoiser import Denoiser
from openedm.levels import Karras
from openedm.preconditioning import NetworkPrediction
from openedm.sampling import (
    DEIS,
    LMS,
    RK4,
    AdamsBashforth,
    Ancestral,
    Auto,
    BrownianNoise,
    Churn,
    DormandPrince,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Euler,
    EulerMaruyama,
    Exponential23,
    Heun,
    Midpoint,
    PredictorCorrector,
    Restart,
    Sampler,
    SamplerChoice,
    Solver,
    Tsit5,
    UniPC,
)

Make = Callable[[float, Denoiser], SamplerChoice | None]


def karras(num_steps: int) -> Karras:
    """EDM's levels over the range of all problems."""
    return Karras(num_steps, SIGMA_MIN, SIGMA_MAX)


def on_karras(solver: Solver, churn: float = 0.0) -> Make:
    """A solver on EDM's levels, as many as the evaluations allow; with S_churn = `churn` for each level."""

    def make(nfe: float, denoiser: Denoiser) -> Sampler | None:
        for num_steps in range(int(nfe), 1, -1):
            sampler = Sampler(karras(num_steps), solver=solver, churn=Churn(churn * num_steps))
            if sampler.nfe is not None and sampler.nfe <= nfe:
                return sampler
        return None

    return make


def to_tolerance(solver: Callable[[float], Solver]) -> Make:
    """An adaptive solver over the range of all problems."""
    return lambda tolerance, denoiser: Sampler(karras(2), solver=solver(tolerance))


def adams_bashforth(nfe: float, denoiser: Denoiser) -> Sampler | None:
    """Adams–Bashforth on EDM's F, with the σ_data of the denoiser."""
    return on_karras(AdamsBashforth(prediction=NetworkPrediction(denoiser.sigma_data)))(nfe, denoiser)


def automatic(nfe: float, denoiser: Denoiser) -> Auto:
    """What the rule picks, between the noise levels of the others: by itself it takes those of the data's units."""
    low, high = max(SIGMA_MIN, denoiser.sigma_min), min(SIGMA_MAX, denoiser.sigma_max)
    return Auto(nfe=int(nfe), sigma_min=low, sigma_max=high)


def fitted(nfe: float, denoiser: Denoiser) -> Sampler:
    """The rule's pick, fitted to the denoiser on pilots of its own, which are none of the starts."""
    return automatic(nfe, denoiser).fit(denoiser).sampler


FIXED: list[tuple[str, Make]] = [
    ("Euler", on_karras(Euler())),
    ("Heun", on_karras(Heun())),
    ("Midpoint", on_karras(Midpoint())),
    ("RK4", on_karras(RK4())),
    ("DPM-Solver++ 2S", on_karras(DPMSolverPP2S())),
    ("LMS-4", on_karras(LMS())),
    ("DEIS-3", on_karras(DEIS())),
    ("DPM-Solver++ 2M", on_karras(DPMSolverPP2M())),
    ("DPM-Solver++ 3M", on_karras(DPMSolverPP3M())),
    ("UniPC-2", on_karras(UniPC())),
    ("UniPC-3", on_karras(UniPC(predictor=3, corrector=4))),
    ("Adams-Bashforth-3 on F", adams_bashforth),
    ("Auto", automatic),
]

FITTED: list[tuple[str, Make]] = [("Auto, fitted", fitted)]
"""As `FIXED`, but with a long time of preparation."""

ADAPTIVE: list[tuple[str, Make]] = [
    ("Dormand-Prince", to_tolerance(DormandPrince)),
    ("Tsit5", to_tolerance(Tsit5)),
    ("Exponential23", to_tolerance(Exponential23)),
]

STOCHASTIC: list[tuple[str, Make]] = [
    ("Heun, churn 0.2 a step", on_karras(Heun(), churn=0.2)),
    ("Euler, churn 0.4 a step", on_karras(Euler(), churn=0.4)),
    ("Ancestral", on_karras(Ancestral())),
    ("Euler-Maruyama", on_karras(EulerMaruyama())),
    ("DPM-Solver++ 2M SDE", on_karras(DPMSolverPP2M(eta=1.0))),
    ("predictor-corrector", on_karras(PredictorCorrector())),
    ("Restart", on_karras(Restart())),
]

DRAWN = ("Heun", "DEIS-3", "DPM-Solver++ 2M", "UniPC-3", "Auto", "Auto, fitted")
"""Of `FIXED` and `FITTED`, what the figure shows."""

STEPPED = ("Heun", "DEIS-3", "Auto", "Auto, fitted")
"""Of `FIXED` and `FITTED`, those of which errors at one evaluation more are compared unless others are named."""

DETERMINISTIC = [entry for entry in FIXED if entry[0] in ("Euler", "Heun", "DEIS-3", "DPM-Solver++ 2M", "Auto")]
"""Of `FIXED`, those that the stochastic ones are compared with."""


def methods(entries: Sequence[tuple[str, Make]]) -> list[Method]:
    """The entries as the benchmark wants them; samplers that draw noise get a seed for each sample."""

    def prepare(make: Make, budget: float, denoiser: Denoiser) -> Run | None:
        sampler = make(budget, denoiser)
        if sampler is None:
            return None
        stochastic = isinstance(sampler, Sampler) and sampler.stochastic

        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            assert isinstance(denoise, Denoiser)
            return sampler.sample(denoise, range(len(noise)) if stochastic else None, noise=noise)

        return run

    return [Method(OURS, name, lambda b, d, make=make: prepare(make, b, d)) for name, make in entries]


def brownian(nfe: float, denoiser: Denoiser) -> Run:
    """A stochastic solver with noise that is the same path however many the steps."""
    sampler = Sampler(karras(int(nfe)), solver=DPMSolverPP2M(eta=1.0))
    return lambda denoise, noise: sampler.sample(denoise, BrownianNoise(range(len(noise))), noise=noise)


TIMED = ("Euler", "Heun", "LMS-4", "DEIS-3", "DPM-Solver++ 2M", "DPM-Solver++ 3M", "UniPC-2", "Auto")

OVERHEAD = [
    *methods([entry for entry in (*FIXED, *STOCHASTIC) if entry[0] in (*TIMED, "DPM-Solver++ 2M SDE")]),
    Method(OURS, "DPM-Solver++ 2M SDE, Brownian path", brownian),
]
"""What is timed with a denoiser that does nothing."""
