"""Whether an observation is like the simulations: a distance, calibrated by simulations that it was not measured on.

    z = standardised x;   f = (whitened principal components of z, ln of what they leave of it);   d = |f − f_(k)|

f_(k) is the k-th nearest of the reference simulations, so that nothing is assumed of the shape of their distribution (x
in the hollow of a ring is far from all). The share of held-out simulations that are at least as far is an exact p-value
where x comes from the same distribution.

Beside the distance it knows what is exact in the simulations: columns that are one of two numbers, no and yes, and
numbers that entries of a simulation share, such as the limit at which a sensor stops. Other ones may lie in the middle.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground.choices import from_config, to_config
from openedm.inference.columns import Columns
from openedm.networks.recurring import SAME, recurring

__all__ = ["FAR", "OUTSIDE", "Likeness", "Reference"]

COMPONENTS, POINTS, NEIGHBOURS = 32, 1000, 5
"""Principal components at most; simulations that distances are measured to, and calibrated by; k."""

OUTSIDE, FAR = 4 / 3, 2.0
"""Ratios of distances above which an observation is outside of the simulations, and far from them."""

PREFIX = "reference."
MOST_SHARED, MOST_ENTRIES = 20, 2**22
"""Numbers that entries of simulations share, of more of which nothing follows; entries that are looked at for them."""

FLOOR = 1e-6
"""Components with a smaller share of the largest variance count as none: columns that are constant or repeated."""


class Likeness(NamedTuple):
    """How like the simulations an observation is.

    Attributes:
        p_value: the share of simulations that are at least as far from the others; never below 1/(their number + 1).
        ratio: the distance, divided by that of the farthest of these simulations.
    """

    p_value: float
    ratio: float

    @property
    def outside(self) -> bool:
        """Whether the observation is farther than any of the simulations by a third: far from all that was learned."""
        return self.ratio > OUTSIDE


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of simulations, and their distances.

    Args:
        columns: standardises vectors; None where x comes standardised, as other data do.
        tensors: mean and basis of the components, their standard deviations, mean and deviation of the logarithm of
            what is left, the reference points and the sorted distances of others; where there are such, the places of
            columns that are one of two numbers, and these; and the numbers that entries of a simulation share.
    """

    columns: Columns | None
    tensors: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        training: Float[Tensor, "rows *event"],
        held_out: Float[Tensor, "others *event"],
        *,
        vectors: bool,
        own: bool = True,
    ) -> "Reference":
        """The reference of simulations; others calibrate the distances.

        Args:
            training, held_out: x, as they are where they are vectors, else standardised; NaN marks what is absent.
            vectors: whether columns are standardised one by one.
            own: whether simulations that the components were fitted to calibrate the distances, too.
        """
        columns = Columns.of(training) if vectors else None
        most = 2 * POINTS if training[0].numel() <= 256 else POINTS // 2
        part = training[torch.linspace(0, len(training) - 1, min(len(training), most)).long()]
        z = _flat(part, columns)
        mean = z.mean(0)
        scores = torch.linalg.svd(z - mean, full_matrices=False)
        deviations = scores.S / math.sqrt(max(1, len(z) - 1))
        kept = int((deviations.square() > FLOOR * deviations[0].square()).sum())
        kept = max(1, min(kept, COMPONENTS))
        tensors = {"mean": mean, "basis": scores.Vh[:kept].T, "deviations": deviations[:kept]}
        unit = cls(columns, {**tensors, "left": torch.tensor([0.0, 1.0], dtype=torch.float64)})
        left = unit._features(part)[:, -1]
        tensors["left"] = torch.stack([left.mean(), left.std().clamp_min(0.1)])
        points = cls(columns, tensors)._features(part[::2] if own else part)
        known = cls(columns, {**tensors, "points": points})
        others = torch.cat([held_out, part[1::2]]) if own else held_out
        distances = known._distances(others[:POINTS]).sort().values
        found = {**known.tensors, "distances": distances, **_shared(training)} | (_either(training) if vectors else {})
        return cls(columns, {name: t.float().contiguous() for name, t in found.items()})

    def to_config(self) -> dict[str, Any]:
        """The plain-data part."""
        return {"columns": self.columns and to_config(self.columns)}

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors, by names that begin with "reference."."""
        return {f"{PREFIX}{name}": tensor for name, tensor in self.tensors.items()}

    @classmethod
    def from_stored(cls, config: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> "Reference | None":
        """What `to_config` and `stored` described; None without."""
        if config is None:
            return None
        own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        return cls(config["columns"] and from_config(Columns, config["columns"]), own)

    def __call__(self, x: Float[Tensor, "rows *event"]) -> list[Likeness]:
        """How like the simulations each observation is."""
        known = self.tensors["distances"].double()
        farthest = max(float(known[-1]), 1e-12)
        return [
            Likeness((1 + int((known >= d).sum())) / (1 + len(known)), d / farthest)
            for d in self._distances(x).tolist()
        ]

    def exceptions(self, x: Float[Tensor, "one *event"]) -> list[str]:
        """What no simulation has in an observation: a column that is neither of two numbers, entries that share one."""
        flat, found = x[0].cpu().double().flatten(), []
        if "places" in self.tensors:
            places, values = self.tensors["places"].long(), self.tensors["values"].double()
            given = flat[places]
            distance = (given[:, None] - values).abs().amin(1)
            others = (distance > SAME * values.abs().amax(1)).nonzero().flatten().tolist()  # not of NaN
            for i in others[:1]:
                either = " or ".join(f"{value:g}" for value in dict.fromkeys(values[i].tolist()))
                found.append(f"x must be {either} in column {places[i]}, as in all simulations, got {given[i]:g}")
        if "shared" in self.tensors:
            finite, known = flat[~flat.isnan()], self.tensors["shared"].double()
            for value in recurring(finite):
                if bool((finite != value).any()) and not bool(((known - value).abs() <= SAME * abs(value)).any()):
                    same = flat == value
                    found.append(
                        f"{int(same.sum())} of the {len(flat)} entries of x are the same number, entry "
                        f"{int(same.nonzero()[0])} the first of them, as no simulation has it: a limit, and what "
                        "stands for missing values, must be the same in both"
                    )
        return found

    def _distances(self, x: Float[Tensor, "rows *event"]) -> Float64[Tensor, " rows"]:
        points = self.tensors["points"].double()
        count = min(NEIGHBOURS, len(points))
        rows = [torch.cdist(part, points).kthvalue(count, 1).values for part in torch.split(self._features(x), 256)]
        return torch.cat(rows)

    def _features(self, x: Float[Tensor, "rows *event"]) -> Float64[Tensor, "rows features"]:
        names = ("mean", "basis", "deviations", "left")
        mean, basis, deviations, left = (self.tensors[name].double() for name in names)
        z = _flat(x, self.columns) - mean
        components = z @ basis
        rest = (z - components @ basis.T).square().sum(1)
        floor = FLOOR * deviations.square().sum()
        logs = ((rest + floor).log() - left[0]) / left[1]
        return torch.cat([components / deviations, logs[:, None]], 1)


def _either(x: Float[Tensor, "rows columns"]) -> dict[str, Tensor]:
    """The places of columns in which all numbers are the lowest or the highest, and these."""
    x = x.cpu().double()
    low, high = (-(-x).nan_to_num(-math.inf).amax(0), x.nan_to_num(-math.inf).amax(0))
    places = (((x == low) | (x == high) | x.isnan()).all(0) & low.isfinite()).nonzero().flatten()
    return {"places": places, "values": torch.stack([low, high], 1)[places]} if len(places) else {}


def _shared(x: Float[Tensor, "rows *event"]) -> dict[str, Tensor]:
    """The numbers that entries of a simulation share where others do not, of all simulations; nothing for many."""
    flat = x.cpu().flatten(1)
    flat = flat[:: math.ceil(flat.numel() / MOST_ENTRIES)].double()
    rows = [*flat[:: math.ceil(len(flat) / (2 * POINTS))], flat.flatten()]  # a rare limit recurs in all together
    values = {value for row in rows for value in recurring(row[row.isfinite()])}
    return {} if len(values) > MOST_SHARED else {"shared": torch.tensor(sorted(values), dtype=torch.float64)}


def _flat(x: Float[Tensor, "rows *event"], columns: Columns | None) -> Float64[Tensor, "rows numbers"]:
    """Standardised numbers in a row, the mean where one is absent; what is far beyond all is cut off."""
    flat = x.cpu().double().flatten(1) if columns is None else columns.forward(x.cpu())
    return torch.nan_to_num(flat, 0.0).clamp(-1e6, 1e6)
