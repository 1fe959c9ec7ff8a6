"""The sampler that chooses solver and levels by rule, from a budget of evaluations or a tolerance.

With a budget of N evaluations: exponential multistep in the velocity ε − D/σ_d of rectified flow and its time σ/(σ+σ_d)
(or in EDM's F and the angle atan(σ/σ_d) where N is small), on levels at the quantiles of a logistic distribution of ln
σ. High orders with a corrector need close levels, so that the order is lower for fewer evaluations:

| N | q | u | predictor, corrector | centre/σ_d, spread of the levels |
|---|---|---|---|---|
| up to 9 | F | angle | 4, 0 | 0.3, 1.5 |
| 10–15 | velocity | flow | 2, 3 | 0.4, 1.5 |
| 16–27 | velocity | flow | 3, 4 | 0.42, 1.5 |
| from 28 | velocity | flow | 4, 5 | 0.4, 2 |

With a tolerance: Dormand & Prince's pair, with a step size for each sample (`adaptive`).

The rule was chosen on 50 exact problems of 1 to 64 dimensions, 40 of them random, for a small geometric mean of the
ratio of its median error to that of the best published sampler for the same problem and budget, and no ratio far above
1. Its errors on other problems are in `benchmarks/README.md`. Levels fitted to the denoiser (`fit_levels`) have lower
errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from openedm import schedules
from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.progress import ShowProgress, showing
from openedm.levels import Explicit, Levels, Logistic
from openedm.levels.rules import MAX_STEPS
from openedm.preconditioning import DataPrediction, NetworkPrediction, VelocityPrediction
from openedm.sampling.fitted import Fit, add_offset, fit_levels
from openedm.sampling.methods.adaptive import DormandPrince
from openedm.sampling.methods.multistep import Multistep
from openedm.sampling.sampler import Sampler, SamplerChoice
from openedm.schedules import Angle, FlowTime

__all__ = ["Auto"]


class Setting(NamedTuple):
    """The solver and levels for budgets of up to `max_nfe` evaluations; None for all larger ones."""

    max_nfe: int | None
    prediction: type[VelocityPrediction] | type[NetworkPrediction]
    variable: type[FlowTime] | type[Angle]
    predictor: int
    corrector: int
    centre: float
    spread: float


SETTINGS = (
    Setting(9, NetworkPrediction, Angle, 4, 0, centre=0.3, spread=1.5),
    Setting(15, VelocityPrediction, FlowTime, 2, 3, centre=0.4, spread=1.5),
    Setting(27, VelocityPrediction, FlowTime, 3, 4, centre=0.42, spread=1.5),
    Setting(None, VelocityPrediction, FlowTime, 4, 5, centre=0.4, spread=2.0),
)
DEFAULT_NFE = 32


@dataclass(frozen=True)
class Auto(SamplerChoice):
    """The default sampler: a rule chooses solver and levels from the number of evaluations or the tolerance.

    Args:
        nfe: the number of network evaluations, ≥ 3; None means 32, unless there is a tolerance.
        tolerance: the error of a sample, a root mean square over its coordinates, in units of the denoiser's σ_data;
            most samples have an error of a tenth of it or less. None means a fixed number of evaluations.
        sigma_min: the lowest noise level, in data units, cut to what the denoiser supports; None means EDM's 0.002
            times σ_data/0.5.
        sigma_max: the highest noise level; None means EDM's 80 times σ_data/0.5.
        relative: whether the tolerance, and the noise levels that are not given, are relative to σ_data. False is the
            rule of version 0.1: a tolerance in data units, and levels from 0.002, or 0.04 σ_data if that is lower, to
            80, or 40 σ_data if that is higher.

    Raises:
        ValueError: both `nfe` and `tolerance`, or a value is out of its range.

    >>> from openedm.exact import GaussianMixture
    >>> Auto(nfe=12).choose(GaussianMixture([1.0], [[3.0]], [[[1e-4]]])).solver.order
    3
    """

    nfe: int | None = None
    tolerance: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    relative: bool = True

    def __post_init__(self) -> None:
        if self.nfe is not None and self.tolerance is not None:
            raise ValueError(
                f"nfe and tolerance are mutually exclusive, got nfe={self.nfe!r} and tolerance={self.tolerance!r}"
            )
        if self.nfe is not None:
            checks.integer("nfe", self.nfe, 3, MAX_STEPS)
        if self.tolerance is not None:
            checks.positive("tolerance", self.tolerance)
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if value is not None:
                checks.positive(name, value)
        if self.sigma_min is not None and self.sigma_max is not None:
            checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def choose(self, denoiser: Denoiser) -> Sampler:
        """The sampler that the rule gives for a denoiser, from its range and σ_data, without an evaluation."""
        width = denoiser.sigma_data
        if self.tolerance is not None:
            levels = Logistic(2, *self._range(width)).for_data(width)
            return Sampler(levels, solver=DormandPrince(self.tolerance, relative=self.relative))
        nfe = self.nfe or DEFAULT_NFE
        rule = next(setting for setting in SETTINGS if setting.max_nfe is None or nfe <= setting.max_nfe)
        solver = Multistep(rule.prediction(width), rule.variable(width), rule.predictor, rule.corrector)
        levels = Logistic(nfe, *self._range(width), rule.centre * width, rule.spread).for_data(width)
        return Sampler(_supported_levels(denoiser, levels), solver=solver)

    def _range(self, width: float) -> tuple[float | None, float | None]:
        if self.relative:
            return self.sigma_min, self.sigma_max
        low = min(0.002, 0.04 * width) if self.sigma_min is None else self.sigma_min
        return low, max(80.0, 40 * width) if self.sigma_max is None else self.sigma_max

    def fit(
        self,
        denoiser: Denoiser,
        *,
        seeds: Sequence[int] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
        progress: ShowProgress = None,
    ) -> Fit:
        """The sampler whose levels, and whose solver among a few, fit the denoiser best, and the errors of the fit.

        Arguments as for `fit_levels`. It needs about 10² N evaluations of the pilots: seconds for small networks.

        Raises:
            ValueError: a tolerance is given instead of a number of evaluations, or as for `fit_levels`.
        """
        if self.tolerance is not None:
            raise ValueError(f"tolerance must be None for a fit, got {self.tolerance}: give nfe instead")
        rule = self.choose(denoiser)
        fits: list[Fit] = []
        with showing(progress) as report:
            for solver in _candidates(self.nfe or DEFAULT_NFE, denoiser.sigma_data, rule):
                fit = fit_levels(
                    denoiser,
                    replace(rule, solver=solver),
                    seeds=seeds,
                    condition=condition,
                    event_shape=event_shape,
                    progress=add_offset(report, sum(f.evaluations for f in fits)),
                )
                fits.append(fit)
        best = min(fits, key=lambda fit: fit.error)
        # The first solver is that of the rule: its error before the fit is the error of the rule.
        return replace(best, error_before=fits[0].error_before, evaluations=sum(f.evaluations for f in fits))


def _supported_levels(denoiser: Denoiser, levels: Logistic) -> Levels:
    """The levels; without repetitions if the denoiser supports fewer levels in their range."""
    inside = levels.within(denoiser.sigma_min, denoiser.sigma_max)
    rounded = denoiser.round_sigma(inside.sigmas()).tolist()
    different = tuple(dict.fromkeys(rounded))
    return levels if len(different) == len(rounded) else Explicit(different)


def _candidates(nfe: int, width: float, rule: Sampler) -> list[Multistep]:
    """The solvers that a fit compares: that of the rule, and those that were best on some problems of its design."""
    assert isinstance(rule.solver, Multistep)
    network, angle = NetworkPrediction(width), Angle(width)
    if nfe < 10:
        return [rule.solver, Multistep(network, angle, 2, 3), Multistep(DataPrediction(), schedules.VP(), 3, 4)]
    return [rule.solver, Multistep(network, angle, 2, 3), Multistep(network, angle, 3, 3)]
