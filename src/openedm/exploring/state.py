"""The state of the explorer's page: a frozen value, which a URL, a command line and lines of Python each write in full.

Everything on the page follows from this value, and it names no file: a run is one of those that the command was given.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from openedm import objective, preconditioning
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.guidance import GuidanceWeight, Interval
from openedm.objective import Objective
from openedm.preconditioning import Preconditioning
from openedm.sampling import Sampler

__all__ = ["Data1D", "Data2D", "State", "View"]

View = Literal["exact", "samples", "walk", "levels", "compare"]
Data1D = Literal["two_modes", "three_modes"]
Data2D = Literal["two_moons", "eight_gaussians", "spiral", "checkerboard", "pinwheel", "rings"]

MAX_NUM, MAX_SEED, MAX_CLASS, MAX_STEPS = 256, 2**32 - 1, 10_000, 256
"""Bounds of what a page may ask for."""


@dataclass(frozen=True)
class State(Choice):
    """What the page shows.

    Args:
        view: exact, toy data whose best denoiser is known in closed form; or of a run: samples; walk, from the noise of
            one seed to that of another; levels, the denoised sample at every noise level; compare, two runs on the same
            seeds.
        data: the two-dimensional toy data.
        data_1d: the one-dimensional toy data.
        sampler: levels, schedule, scaling, solver and churn.
        guidance: the weight of guidance, 1 for none. Toy data are guided from all of the data towards the class
            `label`, runs by classifier-free guidance.
        label: the class to sample; null means all.
        preconditioning: for the figures of the coefficients and of the loss; a run has its own.
        objective: the distribution p(σ) and the weighting λ(σ), for the same figures.
        num: the number of samples, 1 to 256.
        seed: the seed of the first sample, and the start of a walk; the others follow it.
        seed_to: the seed where a walk ends.
        run: the run to sample, by its name on the page; null means the first.
        against: the run to compare it with; null means the second.

    Raises:
        ValueError: a value is out of its range.
    """

    view: View = "exact"
    data: Data2D = "two_moons"
    data_1d: Data1D = "two_modes"
    sampler: Sampler = Sampler()
    guidance: GuidanceWeight = Interval()
    label: int | None = None
    preconditioning: Preconditioning = preconditioning.EDM()
    objective: Objective = objective.EDM()
    num: int = 16
    seed: int = 0
    seed_to: int = 1
    run: str | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        checks.one_of("view", self.view, get_args(View))
        checks.one_of("data", self.data, get_args(Data2D))
        checks.one_of("data_1d", self.data_1d, get_args(Data1D))
        for name, value, low, high in (
            ("num", self.num, 1, MAX_NUM),
            ("seed", self.seed, 0, MAX_SEED),
            ("seed_to", self.seed_to, 0, MAX_SEED),
            ("label", 0 if self.label is None else self.label, 0, MAX_CLASS),
            # A rule of one's own may lack it, which is said where levels are computed.
            ("sampler.levels.num_steps", getattr(self.sampler.levels, "num_steps", 1), 1, MAX_STEPS),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
