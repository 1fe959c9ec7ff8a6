"""Exponential multistep methods: one evaluation a step, and the directions of past steps.

A step from σ_i interpolates q (see `engine.quadrature`) at the `predictor` levels σ_i, σ_{i−1}, …, and integrates; with
a corrector, once D is known at the new level, the step is taken again with that value among the nodes (the evaluation
is not repeated: PEC). Named methods are settings of the same engine:

| solver | q | u | predictor, corrector | rule | source |
|---|---|---|---|---|---|
| DDIM | ε | | 1, 0 | exact | Song et al. 2021a |
| LMS | ε | σ | 4, 0 | exact | Adams–Bashforth in σ; Crowson 2022 |
| DEIS | ε | ln σ | 3, 0 | exact | Zhang & Chen 2023; other u: tAB-DEIS, ρAB-DEIS |
| IPNDM | ε | index | 4, 0 | adams-bashforth | Liu et al. 2022; Zhang & Chen 2023 |
| DPMSolver2M | ε | ln σ | 2, 0 | midpoint | Lu et al. 2022a |
| DPMSolverPP2M | D | ln σ | 2, 0 | midpoint | Lu et al. 2022b |
| DPMSolverPP3M | D | ln σ | 3, 0 | dpm-solver++ | Lu et al. 2022b |
| UniPC | D | ln σ | 2, 3 | midpoint | Zhao et al. 2023, B(h) = e^h − 1 |
| AdamsBashforth | F | σ^{1/7} | 3, 0 | exact | in the network's output |

Each class also gives its published update, with λ = −ln σ, h = λ_{i+1} − λ_i = ln(σ_i/σ_{i+1}), r = (λ_i − λ_{i−1})/h
and ε_i = (x_i − D_i)/σ_i. Papers write x in their own scale; here it is s = 1, their α = 1.

Start: the first steps interpolate as many levels as there are (a step of order 1, then 2, …); at σ_max, where the path
is nearly straight, this adds almost no error. End: the last step, to 0, returns D at the lowest level.
"""

from dataclasses import dataclass
from itertools import zip_longest

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.preconditioning import DataPrediction, EpsilonPrediction, NetworkPrediction, Prediction
from openedm.sampling.engine.plan import Combination, Grid, Noise, Plan, PlannedSolver, Step
from openedm.sampling.engine.quadrature import RULES, RuleName, stages_at, step_weights, unit_of
from openedm.schedules import LogSigma, PowerSigma, Schedule

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "LMS",
    "AdamsBashforth",
    "DPMSolver2M",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "Multistep",
    "UniPC",
]

MAX_NODES = 6


@dataclass(frozen=True)
class Multistep(PlannedSolver):
    """The engine: predicted quantity × variable × predictor × corrector × rule × ODE or SDE.

    Args:
        prediction: q, the quantity that is interpolated.
        variable: the schedule in whose time u it is interpolated.
        predictor: the number of levels that the predictor interpolates, 1 to 6.
        corrector: the number of levels that the corrector interpolates, including the new one, 2 to 6; 0 for no
            corrector.
        rule: the rule for integrals of the interpolant (`engine.quadrature`); rules other than "exact" are the
            approximations of published methods.
        eta: η ≥ 0; 0 is the ODE, 1 the reverse SDE (`engine.quadrature`).
        correction: the share c of the correction that a step takes, in (0, 1]: the corrected state is that of the
            predictor plus c times the difference. Errors of predictor and corrector often have opposite signs, and less
            than 1 then has smaller errors where levels are far apart.

    Raises:
        ValueError: a value is out of its range, a corrector is given for an SDE, or `correction` without a corrector.
    """

    prediction: Prediction = EpsilonPrediction()
    variable: Schedule = LogSigma()
    predictor: int = 3
    corrector: int = 0
    rule: RuleName = "exact"
    eta: float = 0.0
    correction: float = 1.0

    def __post_init__(self) -> None:
        checks.integer("predictor", self.predictor)
        checks.between("predictor", self.predictor, 1, MAX_NODES)
        checks.integer("corrector", self.corrector)
        checks.one_of("corrector", self.corrector, (0, *range(2, MAX_NODES + 1)))
        checks.one_of("rule", self.rule, tuple(RULES))
        checks.at_least("eta", self.eta, 0)
        checks.finite("eta", self.eta)
        if self.eta > 0 and self.corrector > 0:
            raise ValueError(f"corrector must be 0 if eta > 0 (noise is not corrected), got {self.corrector}")
        checks.between("correction", self.correction, 1e-9, 1)
        if self.correction != 1 and not self.corrector:
            raise ValueError(f"correction must be 1 without a corrector, got {self.correction}")

    @property
    def order(self) -> int:
        """The order for the ODE: min(corrector, predictor + 1), or min(corrector, predictor) with part of it,
        or predictor without corrector; at most 2 for some rules.

        The start by lower orders adds an error ∝ N^{−2}, or N^{−3} with a corrector, small where σ_max ≫ σ_data.
        """
        predicted = self._accuracy(self.predictor)
        reached = predicted + (self.correction == 1)
        return min(self._accuracy(self.corrector), reached) if self.corrector else predicted

    def _accuracy(self, count: int) -> int:
        """The order of steps from `count` levels."""
        shortcut = self.rule == "adams-bashforth" or (self.rule == "dpm-solver++" and count == 3)
        return min(count, 2) if shortcut else count

    @property
    def one_step(self) -> bool:
        """Whether it interpolates a single level."""
        return self.predictor == 1 and self.corrector == 0

    @property
    def stochastic(self) -> bool:
        """Whether η > 0."""
        return self.eta > 0

    def evaluations(self, num_steps: int) -> int:
        """One evaluation a level."""
        return num_steps

    def plan(self, grid: Grid) -> Plan:
        """Every weight of the run.

        Raises:
            ValueError: two neighbouring levels are equal (after rounding to those that the denoiser supports).
        """
        sigmas = torch.tensor(grid.sigmas, dtype=torch.float64)
        prediction = self.prediction.for_data(grid.sigma_data)
        *stages, last = stages_at(prediction, sigmas)
        predict = self._combinations(prediction, sigmas, self.predictor, newest=0)
        correct = self._combinations(prediction, sigmas, self.corrector, newest=1) if self.corrector else []
        if self.correction != 1:
            correct = [
                (_between(old, new, self.correction), 0.0) for (old, _), (new, _) in zip(predict, correct, strict=True)
            ]
        steps = [
            Step(
                time=sigma,
                sigma=sigma,
                scale=1.0,
                stages=(stage,),
                advance=advance,
                correct=correct[i - 1][0] if correct and i > 0 else None,
                after=Noise(std, between=(sigma, grid.sigmas[i + 1])) if std > 0 else None,
                remember=max(self.predictor + (self.correction != 1), self.corrector) - 1,
            )
            for i, (sigma, stage, (advance, std)) in enumerate(zip(grid.sigmas[:-1], stages, predict, strict=True))
        ]
        return Plan((*steps, Step(grid.sigmas[-1], grid.sigmas[-1], 1.0, (last,), None)))

    def _combinations(
        self, prediction: Prediction, sigmas: Float64[Tensor, "levels"], count: int, newest: int
    ) -> list[tuple[Combination, float]]:
        """Every step i → i+1 from up to `count` levels, σ_{i+newest} first, and its noise.

        All steps with the same number of past levels are computed together.
        """
        known = (torch.arange(len(sigmas) - 1) + 1 + newest).clamp(max=count)
        found: list[tuple[Combination, float]] = []
        for number in sorted(set(known.tolist())):
            steps = (known == number).nonzero()[:, 0]
            nodes = sigmas[steps[:, None] + newest - torch.arange(number)]
            ends = sigmas[steps], sigmas[steps + 1]
            weights = step_weights(prediction, self.variable, *ends, nodes, rule=self.rule, eta=self.eta)
            of_past = (weights.of_past * unit_of(prediction, nodes)).tolist()
            for keep, row, std in zip(weights.keep.tolist(), of_past, weights.noise_std.tolist(), strict=True):
                found.append((Combination(keep, tuple(row)), std))
        return found


def _between(predicted: Combination, corrected: Combination, share: float) -> Combination:
    """The step with a share of the correction; the predictor does not have the newest direction."""
    weights = zip_longest((0.0, *predicted.weights), corrected.weights, fillvalue=0.0)
    return Combination(corrected.keep, tuple((1 - share) * old + share * new for old, new in weights))


@dataclass(frozen=True)
class DDIM(Multistep):
    """DDIM (Song et al. 2021a): order 1; Euler's method in σ, with η > 0 its SDE with exact noise.

    x_{i+1} = D_i + σ_{i+1} ε_i = x_i + (σ_{i+1} − σ_i) ε_i; with η > 0, x_i + (1+η) (σ_{i+1} − σ_i) ε_i
    + √(η (σ_i² − σ_{i+1}²)) n.
    """

    predictor: int = 1


@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep in σ (Crowson 2022): Adams–Bashforth on ε for the spacing of the levels; order 4.

    x_{i+1} = x_i + Σ_j ε_{i−j} ∫_{σ_i}^{σ_{i+1}} ℓ_j(σ) dσ, ℓ_j the Lagrange polynomials of σ_i … σ_{i−3}.
    """

    variable: Schedule = PowerSigma(1.0)
    predictor: int = 4


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS (Zhang & Chen 2023): exponential Adams–Bashforth on ε; order 3.

    x_{i+1} = x_i + Σ_j ε_{i−j} ∫ ℓ_j(u) (dσ/du) du from u(σ_i) to u(σ_{i+1}), ℓ_j the Lagrange polynomials of
    u(σ_i) … u(σ_{i−2}). Here u = ln σ; `VP()` is the paper's tAB, `PowerSigma(1.0)` its ρAB.
    """


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM (Liu et al. 2022; Zhang & Chen 2023): DDIM with Adams–Bashforth's constants; order 2 on uneven levels.

    x_{i+1} = x_i + (σ_{i+1} − σ_i) (55 ε_i − 59 ε_{i−1} + 37 ε_{i−2} − 9 ε_{i−3})/24, after steps with the constants 1;
    3/2, −1/2; 23/12, −16/12, 5/12.
    """

    predictor: int = 4
    rule: RuleName = "adams-bashforth"


@dataclass(frozen=True)
class DPMSolver2M(Multistep):
    """DPM-Solver in its multistep form (Lu et al. 2022a): ε in ln σ; order 2.

    x_{i+1} = x_i − σ_{i+1} (e^h − 1) ((1 + 1/(2r)) ε_i − 1/(2r) ε_{i−1}).
    """

    predictor: int = 2
    rule: RuleName = "midpoint"


@dataclass(frozen=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): D in ln σ; order 2. With η = 1 it is its SDE variant.

    x_{i+1} = σ_{i+1}/σ_i x_i − (e^{−h} − 1) ((1 + 1/(2r)) D_i − 1/(2r) D_{i−1}); SDE: σ_{i+1}/σ_i e^{−ηh} x_i −
    (e^{−(1+η)h} − 1) (as above) + σ_{i+1} √(1 − e^{−2ηh}) n.
    """

    prediction: Prediction = DataPrediction()
    predictor: int = 2
    rule: RuleName = "midpoint"


@dataclass(frozen=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++(3M) as published: D in ln σ from three levels.

    With r_0 = r, r_1 = (λ_{i−1} − λ_{i−2})/h, d_0 = (D_i − D_{i−1})/r_0, d_1 = (D_{i−1} − D_{i−2})/r_1 and
    D' = d_0 + r_0 (d_0 − d_1)/(r_0 + r_1), D'' = (d_0 − d_1)/(r_0 + r_1):
    x_{i+1} = σ_{i+1}/σ_i x_i − (e^{−h} − 1) D_i + ((e^{−h} − 1)/h + 1) D' − ((e^{−h} − 1 + h)/h² − ½) D''.

    Its weight of D'' is half of the exact integral, which makes its order 2; `rule="exact"` is the method of order 3.
    """

    prediction: Prediction = DataPrediction()
    predictor: int = 3
    rule: RuleName = "dpm-solver++"


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC (Zhao et al. 2023) with B(h) = e^h − 1: UniP-p predicts, UniC-p corrects with one node more; order p + 1.

    x_{i+1} = σ_{i+1}/σ_i x_i − (e^{−h} − 1) (D_i + Σ_k ρ_k (D(r_k) − D_i)/r_k), with D at λ_i + r_k h: past levels in
    UniP, and D_{i+1} at r_k = 1 in UniC. Σ_k ρ_k r_k^{n−1} = n! ψ_n/(e^{−h} − 1), n = 1, 2, …, with ψ_0 = e^{−h} − 1
    and ψ_n = −ψ_{n−1}/h − 1/n!; but ρ_1 = ½ if there is only one r_k.

    The default is p = 2; `predictor=3, corrector=4` is UniPC-3.
    """

    prediction: Prediction = DataPrediction()
    predictor: int = 2
    corrector: int = 3
    rule: RuleName = "midpoint"


@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    """Adams–Bashforth on the network's output F in σ^{1/7}; order 3.

    x_{i+1} = Φ_{i+1} (x_i/Φ_i − σ_d Σ_j F_{i−j} ∫_{σ_i}^{σ_{i+1}} ℓ_j(σ^{1/7}) dσ/Φ²), Φ = √(σ² + σ_d²), ℓ_j the
    Lagrange polynomials of σ_i^{1/7} … σ_{i−2}^{1/7}.
    """

    prediction: Prediction = NetworkPrediction()
    variable: Schedule = PowerSigma(7.0)
