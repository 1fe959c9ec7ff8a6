"""The groups of numbers, each with what is taken to be equal."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from benchmarks.recorded import densities, learning, posteriors, sampling, scores, tables
from benchmarks.recorded.storage import Arrays, Named, as_array


@dataclass(frozen=True)
class Group:
    """Some numbers and their tolerance.

    Attributes:
        make: gives their names and values.
        tolerance: the largest difference that is taken to be rounding, relative to `scale`.
        scale: "number", each number itself, or "array", the largest of its array: for samples, of which single
            coordinates may lie close to 0.
        magnified: a pattern of names whose differences may be a hundred times as large.
    """

    make: Callable[[], Named]
    tolerance: float = 1e-12
    scale: Literal["number", "array"] = "array"
    magnified: str | None = None

    def tolerance_of(self, name: str) -> float:
        """The tolerance of the numbers of this name."""
        return self.tolerance * (100 if self.magnified is not None and re.search(self.magnified, name) else 1)


TRAINED = 1e-9
"""For what is learned or fitted. Float32 has steps of 6e-8: there it means that every bit must agree."""

GROUPS = {
    "levels": Group(tables.levels, scale="number"),
    "schedules": Group(tables.schedules, scale="number"),
    "coefficients": Group(tables.coefficients, scale="number"),
    "objectives": Group(tables.objectives, scale="number"),
    "guidance-weights": Group(tables.guidance_weights, scale="number"),
    "data": Group(tables.data),
    "runge-kutta": Group(sampling.runge_kutta),
    "multistep": Group(sampling.named_multistep),
    # Weights of five or six levels solve a Vandermonde system that magnifies rounding of the times: with other sums
    # alone (ATEN_CPU_CAPABILITY=default) version 0.1 differs from itself by 7e-12 there.
    "engine": Group(sampling.engine, magnified=r"/[56]/"),
    "singlestep": Group(sampling.singlestep),
    "restarts": Group(sampling.restarts),
    "adaptive": Group(sampling.adaptive),
    "automatic": Group(sampling.automatic),
    "fitted-levels": Group(sampling.fitted, TRAINED),
    "other-levels": Group(sampling.other_levels),
    "inversions": Group(sampling.inversions),
    "paths": Group(sampling.paths),
    "rounded": Group(sampling.rounded),
    "counts": Group(sampling.counts),
    "likelihoods": Group(densities.likelihoods),
    "guidance": Group(densities.guidance),
    "conditioning": Group(densities.conditioning),
    "networks": Group(learning.double_networks),
    "networks-float32": Group(learning.single_networks, TRAINED),
    "mixtures": Group(learning.mixtures),
    "training": Group(learning.training, TRAINED),
    "priors": Group(posteriors.priors),
    "simulations": Group(posteriors.simulations),
    "posteriors": Group(posteriors.fitted, TRAINED),
    "joint": Group(posteriors.joint, TRAINED),
    "distances": Group(scores.distances),
    "evaluations": Group(scores.evaluations, TRAINED),
}


def recorded(group: Group) -> Arrays:
    """The group's arrays, now.

    Raises:
        ValueError: a name occurs twice.
    """
    arrays: Arrays = {}
    for name, value in group.make():
        if name in arrays:
            raise ValueError(f"names must differ within a group, got {name!r} twice")
        arrays[name] = as_array(value)
    return arrays


def difference(group: Group, before: np.ndarray, now: np.ndarray) -> float:
    """The largest relative difference; 0 where every bit agrees, NaN counting as equal to NaN; infinite for shapes."""
    if before.shape != now.shape:
        return np.inf
    unlike = ~((before == now) | (np.isnan(before) & np.isnan(now)))
    if not unlike.any():
        return 0.0
    if not np.isfinite(before[unlike] - now[unlike]).all():
        return np.inf
    finite = np.isfinite(before) & np.isfinite(now)
    sizes = np.maximum(abs(before), abs(now))
    size = sizes[unlike] if group.scale == "number" else sizes[finite].max()
    return float((abs(before - now)[unlike] / size).max())
