"""Random noise levels and design choices, for laws that hold whatever is chosen."""

import math

from hypothesis import strategies as st

from openedm import levels, objective, preconditioning, schedules
from openedm.preconditioning import DataPrediction, EpsilonPrediction, NetworkPrediction, Prediction, VelocityPrediction
from openedm.sampling import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    RK4,
    AdamsBashforth,
    Alpha,
    Ancestral,
    BandEta,
    Churn,
    ConstantEta,
    DPMSolver2M,
    DPMSolver2S,
    DPMSolver3S,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3S,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    Multistep,
    PredictorCorrector,
    Ralston,
    Restart,
    Sampler,
    Solver,
    UniPC,
)
from openedm.schedules import Angle, FlowTime, LogSigma, PowerSigma, Schedule

EPS = 2.0**-52
"""The relative spacing of float64."""


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers evenly spread in their logarithm."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)


def sigmas(low: float = 2e-3, high: float = 200.0) -> st.SearchStrategy[float]:
    """Noise levels that every schedule of `schedules()` reaches."""
    return log_uniform(low, high)


def fitted_vp() -> st.SearchStrategy[schedules.VP]:
    """VP schedules through two given points; β_min may be negative. σ = 2e-3 and 200 lie above their start."""
    return st.builds(schedules.VP.fit, log_uniform(1e-3, 2e-3), log_uniform(20.0, 400.0))


def all_schedules() -> st.SearchStrategy[schedules.Schedule]:
    """Every schedule, with random parameters."""
    return st.one_of(
        st.just(schedules.EDM()),
        st.builds(schedules.VP, beta_d=log_uniform(0.1, 50.0), beta_min=st.floats(0.0, 5.0)),
        fitted_vp(),
        st.just(schedules.VE()),
        st.builds(schedules.Cosine, sigma_min=log_uniform(1e-6, 1e-3), sigma_max=log_uniform(500.0, 1e6)),
        st.just(schedules.RectifiedFlow()),
        st.builds(schedules.PowerSigma, rho=st.floats(0.5, 9.0)),
        st.builds(schedules.Angle, sigma_data=log_uniform(0.1, 10.0), rho=st.floats(0.5, 4.0)),
        st.builds(schedules.FlowTime, sigma_data=log_uniform(0.1, 10.0)),
    )


def all_scalings() -> st.SearchStrategy[schedules.Scaling]:
    """Every scaling."""
    return st.sampled_from([schedules.NoScaling(), schedules.VPScaling(), schedules.FlowScaling()])


def all_solvers() -> st.SearchStrategy[Solver]:
    """Every Runge–Kutta method; α of the family is random in (0, 1]."""
    fixed = st.sampled_from([Euler(), Heun(), Midpoint(), Ralston(), RK4()])
    return st.one_of(fixed, st.builds(Alpha, st.floats(0.05, 1.0)))


def all_predictions() -> st.SearchStrategy[Prediction]:
    """Every quantity that an exponential solver interpolates, of data of random width."""
    widths = log_uniform(0.05, 5.0)
    plain = st.sampled_from([EpsilonPrediction(), DataPrediction()])
    return st.one_of(plain, st.builds(VelocityPrediction, widths), st.builds(NetworkPrediction, widths))


def all_variables() -> st.SearchStrategy[Schedule]:
    """Every variable of interpolation, with random parameters."""
    widths = log_uniform(0.05, 5.0)
    reaching = [schedules.EDM(), schedules.VP(), schedules.VE(), schedules.Cosine(), schedules.RectifiedFlow()]
    return st.one_of(
        st.just(LogSigma()),
        st.builds(PowerSigma, log_uniform(0.5, 10.0)),
        st.builds(Angle, widths),
        st.builds(FlowTime, widths),
        st.sampled_from(reaching),
    )


NAMED = [DDIM(), LMS(), DEIS(), IPNDM(), DPMSolver2M(), DPMSolverPP2M(), DPMSolverPP3M(), UniPC(), AdamsBashforth()]
"""The named settings of `Multistep`."""


def multistep_solvers() -> st.SearchStrategy[Multistep]:
    """Every named exponential multistep method, and settings of the engine at random that follow the ODE."""
    some = st.builds(
        Multistep,
        prediction=all_predictions(),
        variable=all_variables(),
        predictor=st.integers(1, 4),
        corrector=st.sampled_from([0, 2, 3, 4]),
        rule=st.sampled_from(["exact", "midpoint", "dpm-solver++", "adams-bashforth"]),
    )
    return st.one_of(st.sampled_from(NAMED), some)


def exponential_solvers() -> st.SearchStrategy[Solver]:
    """Every exponential method that follows the ODE, of one step or of several."""
    two = st.sampled_from([DPMSolver2S, DPMSolverPP2S])
    three = st.sampled_from([DPMSolver3S, DPMSolverPP3S])
    return st.one_of(
        multistep_solvers(),
        two.flatmap(lambda kind: st.builds(kind, st.floats(0.1, 0.9))),
        three.flatmap(lambda kind: st.builds(kind, st.floats(0.1, 0.45), st.floats(0.5, 0.9))),
    )


def stochastic_solvers() -> st.SearchStrategy[Solver]:
    """Every solver that draws noise of its own."""
    etas = st.one_of(st.builds(ConstantEta, st.floats(0.1, 2.0)), st.builds(BandEta, st.floats(0.1, 2.0)))
    sde = st.sampled_from([DDIM, DPMSolverPP2M, DPMSolverPP3M])
    return st.one_of(
        st.builds(EulerMaruyama, etas),
        st.builds(Ancestral, st.floats(0.1, 2.0)),
        sde.flatmap(lambda kind: st.builds(kind, eta=st.floats(0.1, 2.0))),
        st.builds(Restart, st.sampled_from([Heun(), UniPC()]), repeats=st.integers(1, 3)),
        st.builds(PredictorCorrector, st.sampled_from([Heun(), Ancestral(), DDIM()]), log_uniform(0.01, 0.3)),
    )


@st.composite
def continuous_levels(draw: st.DrawFn, max_steps: int = 64) -> levels.Levels:
    """Every rule that spans its range exactly, with random range and number."""
    num_steps = draw(st.integers(1, max_steps))
    sigma_max = draw(log_uniform(0.1, 1e4))
    # The VP rule exists only where ln(1+σ_min²) < ε_s ln(1+σ_max²); the others take the same range.
    epsilon_s = draw(log_uniform(1e-4, 1e-1))
    limit = math.sqrt(math.expm1(epsilon_s * math.log1p(sigma_max**2)))
    sigma_min = limit * draw(st.floats(0.02, 0.98))
    ends = {"num_steps": num_steps, "sigma_min": sigma_min, "sigma_max": sigma_max}
    return draw(
        st.sampled_from(
            [
                levels.Karras(**ends, rho=draw(st.floats(0.5, 50.0))),
                levels.VP(**ends, epsilon_s=epsilon_s),
                levels.VE(**ends),
                levels.LogLinear(**ends),
            ]
        )
    )


def tables(last: float = 0.0) -> st.SearchStrategy[tuple[float, ...]]:
    """Trained noise levels u_0 > … > u_M = `last`."""
    steps = st.lists(log_uniform(1e-3, 10.0), min_size=2, max_size=40)
    return steps.map(lambda gaps: (*(last + sum(gaps[i:]) for i in range(len(gaps))), last))


def all_levels() -> st.SearchStrategy[levels.Levels]:
    """Every rule, with random parameters."""
    kept = st.builds(
        lambda table: levels.IDDPM(len(table) - 1, sigma_min=table[-2], sigma_max=table[0], table=table), tables()
    )
    given = tables().map(lambda table: levels.Explicit(table[:-1]))
    return st.one_of(continuous_levels(), kept, given, st.builds(levels.IDDPM, st.integers(1, 500)))


def all_preconditionings() -> st.SearchStrategy[preconditioning.Preconditioning]:
    """Every preconditioning, with random parameters."""
    betas = {"beta_d": log_uniform(0.1, 50.0), "beta_min": st.floats(0.0, 5.0)}
    adapters = st.one_of(
        st.builds(
            preconditioning.Adapter,
            predicts=st.sampled_from(["epsilon", "sample", "velocity"]),
            schedule=all_schedules(),
            time_scale=log_uniform(0.1, 1000.0),
        ),
        st.builds(preconditioning.Adapter, predicts=st.just("v"), schedule=st.builds(schedules.VP, **betas)),
        st.builds(preconditioning.Adapter, table=tables().map(lambda table: table[::-1])),
    )
    return st.one_of(
        st.just(preconditioning.EDM()),
        st.builds(preconditioning.VP, **betas, num_levels=st.integers(2, 4000), epsilon_t=log_uniform(1e-6, 1e-2)),
        st.builds(preconditioning.VE, sigma_min=log_uniform(1e-3, 0.1), sigma_max=log_uniform(1.0, 1e3)),
        st.builds(preconditioning.IDDPM, num_levels=st.integers(10, 200)),
        tables().map(lambda table: preconditioning.IDDPM(num_levels=len(table) - 1, table=table)),
        adapters,
    )


def continuous_noise() -> st.SearchStrategy[objective.NoiseDistribution]:
    """Every continuous p(σ), with random parameters."""
    return st.one_of(
        st.builds(objective.LogNormal, p_mean=st.floats(-3.0, 3.0), p_std=st.floats(0.1, 3.0)),
        st.builds(
            objective.UniformTime,
            schedule=st.one_of(
                st.builds(schedules.VP, beta_d=log_uniform(0.1, 50.0), beta_min=st.floats(0.0, 5.0)),
                st.just(schedules.RectifiedFlow()),
            ),
            epsilon_t=log_uniform(1e-6, 1e-2),
            t_max=st.floats(0.1, 0.99),
        ),
        st.builds(objective.LogUniform, sigma_min=log_uniform(1e-3, 0.1), sigma_max=log_uniform(1.0, 1e3)),
    )


def all_objectives() -> st.SearchStrategy[objective.Objective]:
    """Every column of Table 1, and objectives of random parts."""
    weightings = st.sampled_from([objective.EDMWeighting(), objective.InverseVariance()])
    noise = st.one_of(continuous_noise(), st.builds(objective.UniformTable, tables()))
    kinds = st.sampled_from([objective.EDM, objective.VP, objective.VE, objective.IDDPM, objective.EDM2])
    return st.one_of(
        kinds.flatmap(lambda kind: st.builds(kind, stratified=st.booleans(), learned_uncertainty=st.booleans())),
        st.builds(
            objective.Objective,
            noise=noise,
            weighting=weightings,
            stratified=st.booleans(),
            learned_uncertainty=st.booleans(),
        ),
    )


def all_churns() -> st.SearchStrategy[Churn]:
    """No churn, or churn at random in random places."""
    some = st.builds(
        Churn,
        s_churn=log_uniform(0.1, 100.0),
        s_min=st.floats(0.0, 1.0),
        s_max=st.one_of(st.just(math.inf), log_uniform(1.0, 100.0)),
        s_noise=st.floats(0.9, 1.1),
    )
    return st.one_of(st.just(Churn()), some)


def all_samplers() -> st.SearchStrategy[Sampler]:
    """Any levels × schedule × scaling × solver × churn × end; solvers without a curve on levels alone."""
    curved = st.builds(
        Sampler,
        levels=all_levels(),
        schedule=all_schedules(),
        scaling=st.one_of(st.none(), all_scalings()),
        solver=all_solvers(),
        churn=all_churns(),
        final=st.sampled_from(["denoise", "euler"]),
    )
    return st.one_of(curved, st.builds(Sampler, all_levels(), solver=exponential_solvers() | stochastic_solvers()))
