"""Errors for samples that are NaN or infinite: which of them, of which seed, and at which noise level of the run.

The check reads the samples of a run once, at its end, so that no step waits for a device. Only if it fails is the run
repeated, to find the level.
"""

from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from openedm.ground.tensors import all_finite, first_not_finite
from openedm.sampling.engine.steps import State

__all__ = ["check_given", "check_samples", "name_sample", "restarted"]


def check_given(name: str, x: Float[Tensor, "batch *event"]) -> None:
    """Raise ValueError if what is given to a run holds NaN or infinity; `name` is the name of the argument."""
    if not all_finite(x):
        row = first_not_finite(x)
        bad = x[row][~x[row].isfinite()]
        raise ValueError(f"{name} must be finite, got {float(bad.flatten()[0])} in sample {row}")


def restarted(seeds: Any) -> Any:
    """What gives the noise of the same seeds once more; a source that cannot be restarted continues."""
    return seeds.restarted() if hasattr(seeds, "restarted") else seeds


def name_sample(row: int, seeds: object) -> str:
    """The sample's number, with its seed if `seeds` are seeds or a source of noise with an attribute `seeds`."""
    known = getattr(seeds, "seeds", seeds)
    try:
        return f"sample {row} (seed {int(known[row])})"  # type: ignore[index]
    except (IndexError, TypeError, ValueError):
        return f"sample {row}"


def check_samples(
    x: Float[Tensor, "batch *event"],
    seeds: object,
    repeat: Callable[[], Iterator[State]] | None = None,
    what: str = "samples",
) -> None:
    """Raise an error unless the samples of a run are finite.

    Args:
        x: the samples.
        seeds: the seeds of the run, a source of noise, or None.
        repeat: begins the same run once more; None if it cannot be repeated.
        what: what x holds, for the message.

    Raises:
        FloatingPointError: a sample is NaN or infinite; the message names the first one, its seed and the level.
    """
    if all_finite(x):
        return
    row = first_not_finite(x)
    bad = len(x) - int(x.isfinite().flatten(1).all(1).sum())
    why = (None if repeat is None else _first_level(repeat())) or (
        "the denoiser is not finite, or the solver diverges; openedm info names weights that are NaN, and more steps "
        "or a lower s_churn help a solver"
    )
    raise FloatingPointError(
        f"{bad} of {len(x)} {what} are NaN or infinite, the first is {name_sample(row, seeds)}: {why}"
    )


def _first_level(states: Iterator[State]) -> str | None:
    """Where the first values appear that are not finite, and what may help; None if there are none."""
    before = None
    try:
        for state in states:
            if not all_finite(state.x):
                after = "at the start" if before is None else f"after sigma = {before:.6g}"
                return (
                    f"the state is not finite {after}: either the denoiser is not (openedm info names weights that are "
                    "NaN), or the solver diverges (more steps, a lower s_churn or a lower order may help)"
                )
            if not all_finite(state.denoised):
                return (
                    f"the denoiser returns NaN or infinity at sigma = {state.sigma:.6g}; check its weights (openedm "
                    "info names those that are NaN), its condition and, in half precision, its range"
                )
            before = state.sigma
    except FloatingPointError:
        pass
    return None
