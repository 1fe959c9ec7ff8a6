"""Random noise levels and design choices, for laws that hold whatever is chosen."""

import math

from hypothesis import strategies as st

from openedm import levels, schedules
from openedm.sampling import RK4, Alpha, Euler, Heun, Midpoint, Ralston, Solver

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
    )


def all_scalings() -> st.SearchStrategy[schedules.Scaling]:
    """Every scaling."""
    return st.sampled_from([schedules.NoScaling(), schedules.VPScaling(), schedules.FlowScaling()])


def all_solvers() -> st.SearchStrategy[Solver]:
    """Every one-step solver; α of the family is random in (0, 1]."""
    fixed = st.sampled_from([Euler(), Heun(), Midpoint(), Ralston(), RK4()])
    return st.one_of(fixed, st.builds(Alpha, st.floats(0.05, 1.0)))


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
