"""Exponential multistep methods: one evaluation a step, the directions of past steps remembered.

A step from σ_i interpolates q (see `exponential`) at the levels σ_i, σ_{i−1}, …, as many as `predictor` says, and
integrates; with a corrector, once D is known at the new level, the step is taken again with that value among the
nodes (the evaluation is not repeated: PEC). Named methods are settings of the one engine:

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
| AdamsBashforth | F | σ^{1/7} | 3, 0 | exact | in the network's own output |

Start: the first steps interpolate as many levels as there are (a step of order 1, then 2, …); at σ_max, where the path
is nearly straight, this costs next to nothing. End: the last step, to 0, returns D at the lowest level.
"""

from dataclasses import dataclass

import numpy as np
import torch

from openedm.ground import checks
from openedm.sampling.exponential import (
    RULES,
    Array,
    DataPrediction,
    EpsilonPrediction,
    LogSigma,
    NetworkPrediction,
    PowerSigma,
    Prediction,
    Rule,
    Variable,
    Weights,
    step_weights,
)
from openedm.sampling.grid import Grid
from openedm.sampling.plan import Combination, Plan, Stage, Step
from openedm.sampling.solvers import PlannedSolver

MOST = 6


@dataclass(frozen=True)
class Multistep(PlannedSolver):
    """The engine: predicted quantity × variable × predictor × corrector × rule × ODE or SDE.

    Args:
        prediction: q, the quantity that is interpolated.
        variable: u, the variable in which it is.
        predictor: how many levels the predictor interpolates, 1 to 6.
        corrector: how many levels the corrector interpolates, the new one included, 2 to 6; 0 for no corrector.
        rule: how integrals of the interpolant are taken; anything but "exact" is a published method's own shortcut.
        eta: η ≥ 0; 0 follows the ODE, 1 the reverse SDE, and so on (`exponential`).

    Raises:
        ValueError: a value is out of its range, or a corrector is asked for in an SDE.
    """

    prediction: Prediction = EpsilonPrediction()
    variable: Variable = LogSigma()
    predictor: int = 3
    corrector: int = 0
    rule: Rule = "exact"
    eta: float = 0.0

    def __post_init__(self) -> None:
        checks.integer("predictor", self.predictor)
        checks.between("predictor", self.predictor, 1, MOST)
        checks.integer("corrector", self.corrector)
        checks.one_of("corrector", self.corrector, (0, *range(2, MOST + 1)))
        checks.one_of("rule", self.rule, RULES)
        checks.at_least("eta", self.eta, 0)
        checks.finite("eta", self.eta)
        if self.eta > 0 and self.corrector > 0:
            raise ValueError(f"corrector must be 0 where eta > 0 (noise is not corrected), got {self.corrector}")

    @property
    def order(self) -> int:
        """Of the ODE: min(corrector, predictor + 1), or predictor without corrector, each at most 2 by a shortcut.

        The start by lower orders adds an error ∝ N^{−2}, or N^{−3} with a corrector, small where σ_max ≫ σ_data.
        """
        predicted = self._accuracy(self.predictor)
        return min(self._accuracy(self.corrector), predicted + 1) if self.corrector else predicted

    def _accuracy(self, count: int) -> int:
        """The order of steps from `count` levels."""
        shortcut = self.rule == "adams-bashforth" or (self.rule == "dpm-solver++" and count == 3)
        return min(count, 2) if shortcut else count

    @property
    def stochastic(self) -> bool:
        """Whether η > 0."""
        return self.eta > 0

    def evaluations(self, num_steps: int) -> int:
        """One a level."""
        return num_steps

    def plan(self, grid: Grid) -> Plan:
        """Every weight of the run, by one quadrature for all steps that have equally many past levels.

        Raises:
            ValueError: two neighbouring levels are equal (after rounding to what the denoiser knows).
        """
        sigmas = np.array(grid.sigmas)
        predict = self._rows(sigmas, self.predictor, newest=0)
        correct = self._rows(sigmas, self.corrector, newest=1) if self.corrector else []
        # Past directions are x + q D: that of step j carries the weight a(σ_j), or b(σ_j) where a = 0.
        of_x, of_denoised = (np.broadcast_to(c, sigmas.shape) for c in self.prediction.coefficients(sigmas))
        records = [float(b / a) if a != 0 else None for a, b in zip(of_x, of_denoised, strict=True)]
        units = np.where(of_x != 0, of_x, of_denoised)
        steps = []
        for i, sigma in enumerate(grid.sigmas):
            stage = Stage(sigma, torch.tensor(sigma, dtype=torch.float64), 1.0, records[i])
            is_final = i == len(sigmas) - 1
            steps.append(
                Step(
                    index=i,
                    time=sigma,
                    sigma=sigma,
                    scale=1.0,
                    stages=(stage,),
                    advance=None if is_final else _combination(predict[i], i, units),
                    correct=_combination(correct[i - 1], i, units) if correct and i > 0 and not is_final else None,
                    noise_after=0.0 if is_final else float(predict[i].noise_std[0]),
                    sigma_after=0.0 if is_final else grid.sigmas[i + 1],
                    remember=max(self.predictor, self.corrector) - 1,
                )
            )
        return Plan(tuple(steps))

    def _rows(self, sigmas: Array, count: int, newest: int) -> list[Weights]:
        """The weights of every step i → i+1 from `count` levels, σ_{i+newest} first, or as many as there are."""
        rows: list[Weights] = []
        total = len(sigmas) - 1
        for known in range(1, count + 1):
            first = known - 1 - newest  # the first step with so many levels
            steps = np.arange(max(first, 0), total if known == count else min(first + 1, total))
            if first < 0 or len(steps) == 0:
                continue
            nodes = sigmas[steps[:, None] + newest - np.arange(known)]
            found = step_weights(
                self.prediction,
                self.variable,
                sigmas[steps],
                sigmas[steps + 1],
                nodes,
                rule=self.rule,
                eta=np.full(len(steps), float(self.eta)),
            )
            rows += [Weights(*(part[k : k + 1] for part in found)) for k in range(len(steps))]
        return rows


def _combination(weights: Weights, newest: int, units: Array) -> Combination:
    """The sum over directions, newest first, of which the newest is that of level `newest`."""
    of_past = weights.of_past[0] * units[newest - np.arange(weights.of_past.shape[1])]
    return Combination(float(weights.keep[0]), tuple(of_past.tolist()))


@dataclass(frozen=True)
class DDIM(Multistep):
    """DDIM (Song et al. 2021a): order 1; Euler's method in σ, with η > 0 its SDE with exact noise."""

    predictor: int = 1


@dataclass(frozen=True)
class LMS(Multistep):
    """Linear multistep in σ (Crowson 2022): Adams–Bashforth on ε with the levels' own spacing; order 4."""

    variable: Variable = PowerSigma(1.0)
    predictor: int = 4


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS (Zhang & Chen 2023): exponential Adams–Bashforth on ε; order 3.

    Interpolation is in ln σ; `ScheduleTime(VP())` is the paper's tAB, `PowerSigma(1.0)` its ρAB.
    """


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM (Liu et al. 2022; Zhang & Chen 2023): DDIM with Adams–Bashforth's constants; order 2 on uneven levels."""

    predictor: int = 4
    rule: Rule = "adams-bashforth"


@dataclass(frozen=True)
class DPMSolver2M(Multistep):
    """DPM-Solver in its multistep form (Lu et al. 2022a): ε in ln σ; order 2."""

    predictor: int = 2
    rule: Rule = "midpoint"


@dataclass(frozen=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): D in ln σ; order 2. With η = 1 it is its SDE variant."""

    prediction: Prediction = DataPrediction()
    predictor: int = 2
    rule: Rule = "midpoint"


@dataclass(frozen=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++(3M) as published: D in ln σ from three levels.

    Its weight of the second difference is half of the exact integral, which makes its order 2; `rule="exact"` is the
    method of order 3.
    """

    prediction: Prediction = DataPrediction()
    predictor: int = 3
    rule: Rule = "dpm-solver++"


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC (Zhao et al. 2023) with B(h) = e^h − 1: UniP-p predicts, UniC-p corrects with one node more; order p + 1.

    The default is p = 2; `predictor=3, corrector=4` is UniPC-3.
    """

    prediction: Prediction = DataPrediction()
    predictor: int = 2
    corrector: int = 3
    rule: Rule = "midpoint"


@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    """Adams–Bashforth on the network's own output F in σ^{1/7}; order 3."""

    prediction: Prediction = NetworkPrediction()
    variable: Variable = PowerSigma(7.0)
