"""Observations of varying size, where NaN marks what is absent: members of sets, values of series.

| kind | an observation | NaN marks | taken by |
|---|---|---|---|
| "members" | (members, features) | absent members: whole rows | `SetSummary` |
| "values" | (channels, time) or any other shape | values that were not measured | `SeriesSummary` |

A network has seen as many members or values as were simulated. Fewer are an extrapolation, which gives a warning, and
more are refused. An observation with fewer rows, or of fewer times, than the simulations' arrays is filled up with NaN.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import ks_2samp
from torch import Tensor
from torch.nn import functional

from openedm.data.statistics import find_markers
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.networks import Network
from openedm.networks.summaries import ABSENT, Summary

__all__ = ["Absence", "Kind", "describe_refused", "kind_in", "kind_of", "warn_of_marks", "warn_unlike_members"]

Kind = Literal["members", "values"]

MAX_ROWS = 2000
"""Simulations by which members of sets are compared."""


@dataclass(frozen=True)
class Absence(Choice):
    """Which parts of an observation may be absent, and how many were present in the simulations.

    Args:
        kind: "members" of sets, whole rows, or "values".
        fewest, most: members or values that are present in a simulation.

    Raises:
        ValueError: an unknown kind, or not 1 <= fewest <= most.
    """

    kind: Kind
    fewest: int
    most: int

    def __post_init__(self) -> None:
        checks.one_of("kind", self.kind, ABSENT)
        checks.integer("fewest", self.fewest, 1)
        checks.at_least("most", self.most, self.fewest)

    @classmethod
    def of(cls, kind: Kind, x: Float[Tensor, "rows *event"]) -> "Absence":
        """The absence in simulations, each of which `is_valid`."""
        counts = cls(kind, 1, 1).counts(x)
        return cls(kind, int(counts.min()), int(counts.max()))

    def counts(self, x: Float[Tensor, "rows *event"]) -> Int64[Tensor, " rows"]:
        """How many members or values of each observation are present."""
        present = ~x.isnan()
        return (present.any(2) if self.kind == "members" else present.flatten(1)).sum(1)

    def is_valid(self, x: Float[Tensor, "rows *event"]) -> Bool[Tensor, " rows"]:
        """Which observations a network can take: not empty, without infinities, without members that are partly NaN."""
        valid = ~x.flatten(1).isinf().any(1) & (self.counts(x) > 0)
        if self.kind == "members":
            absent = x.isnan()
            valid &= (absent.any(2) == absent.all(2)).all(1)
        return valid

    def accepts(self, x: Float[Tensor, "rows *event"]) -> Bool[Tensor, " rows"]:
        """Which observations are valid and not larger than the largest simulation."""
        return self.is_valid(x) & (self.counts(x) <= self.most)

    def complete(self, x: Float[Tensor, "..."], shape: tuple[int, ...]) -> Float[Tensor, "..."]:
        """One observation or a batch, filled up with NaN to the size of the simulations' arrays.

        Of larger arrays the end is cut off where all of it is NaN. Other shapes are returned as they are.

        Raises:
            ValueError: the end of a larger array is not NaN.
        """
        axis, other = (-2, -1) if self.kind == "members" else (-1, -2)
        if len(shape) != 2 or x.ndim not in (2, 3) or x.shape[other] != shape[other] or x.shape[axis] == 0:
            return x
        have, size = x.shape[axis], shape[axis]
        if have <= size:
            filling = (0, 0, 0, size - have) if axis == -2 else (0, size - have)
            return functional.pad(x, filling, value=torch.nan)
        if not bool(x.narrow(axis, size, have - size).isnan().all()):
            raise ValueError(self._too_large(int(self.counts(x.reshape(-1, *x.shape[-2:])).max())))
        return x.narrow(axis, 0, size)

    def check(self, x: Float[Tensor, "rows *event"]) -> None:
        """Compare observations with the simulations.

        Raises:
            ValueError: an observation is not valid, or has more members or values than any simulation.

        Warns:
            UserWarning: an observation has fewer than any simulation.
        """
        valid, counts = self.is_valid(x), self.counts(x)
        if not bool(valid.all()):
            row = int((~valid).nonzero()[0])
            rule = "at least one member, and no member that is partly NaN" if self.kind == "members" else "values"
            raise ValueError(f"x must have {rule}, without infinities, but observation {row} has not")
        if (largest := int(counts.max())) > self.most:
            raise ValueError(self._too_large(largest))
        if (smallest := int(counts.min())) < self.fewest:
            warnings.warn(
                f"x has {smallest} {self.kind}, the smallest simulation {self.fewest}: the posterior is extrapolated; "
                "fit it to simulations of that size as well",
                stacklevel=5,
            )

    def _too_large(self, size: int) -> str:
        return (
            f"x must have at most {self.most} {self.kind}, as the largest simulation, got {size}: the posterior is not "
            "known for more; simulate larger ones and fit again"
        )

    def describe(self, x_shape: tuple[int, ...]) -> str:
        """A line for the report of a fit."""
        if self.kind == "members":
            return f"sets of {self.fewest} to {self.most} members of {x_shape[-1]} values"
        total = torch.Size(x_shape).numel()
        return f"arrays {list(x_shape)} with {self.fewest} to {self.most} of {total} values measured"


def kind_in(x: Float[Tensor, "rows *event"]) -> Kind | None:
    """What NaN in simulations mark by their pattern; None without NaN, or where observations are not matrices.

    Most of the simulations with NaN decide: whole rows are absent members of sets, anything else are values of series.
    Simulations that are all NaN have failed and are no part of it.
    """
    if x.ndim != 3:
        return None
    absent = x.isnan()
    some = absent.flatten(1).any(1) & ~absent.flatten(1).all(1)
    if not bool(some.any()):
        return None
    whole = (absent[some].any(2) == absent[some].all(2)).all(1)
    return "members" if 2 * int(whole.sum()) > len(whole) else "values"


def kind_of(network: Network | Summary | None) -> Kind | None:
    """What NaN in a condition of this network mark; None where it takes no NaN.

    That is the attribute `absent` of its summary, or of the network itself.
    """
    found = getattr(getattr(network, "summary", network), "absent", None)
    return found if _is_kind(found) else None


def _is_kind(value: object) -> TypeGuard[Kind]:
    return value in ABSENT


def describe_refused(x: Float[Tensor, "rows *event"], kind: Kind | None) -> str:
    """What a user can do whose simulations have NaN or infinities that the network does not take.

    Args:
        x: the simulations.
        kind: what NaN mark for the network.
    """
    drop = "fit(…, on_nonfinite='drop') leaves them out"
    if not bool(x.isnan().any()):
        return drop
    if bool((never := x.isnan().all(0)).any()) and not bool(x.isnan()[:, ~never].any()):
        share = float(never.double().mean())
        return f"{share:.2g} of the entries of x are NaN in all simulations: leave them out, or fill them with a number"
    if kind == "members":
        return f"NaN may only mark absent members of sets, whole rows of x, and not all of them; {drop}"
    if kind == "values":
        return f"NaN may only mark values that were not measured, and not all of them; {drop}"
    if x.ndim == 2:
        return (
            f"{drop}; NaN is taken in sets of varying size, x (n, members, features) with rows of NaN, and in series "
            f"with gaps, x (n, channels, time): these vectors as x[:, None], (n, 1, {x.shape[1]})"
        )
    if x.ndim == 3:
        summary = "SetSummary" if kind_in(x) == "members" else "SeriesSummary"
        return (
            f"{drop}; settings.network=ConditionalMLP(summary={summary}()) takes them, with NaN for absent "
            "members of sets (SetSummary) or for values of series that were not measured (SeriesSummary)"
        )
    return f"{drop}; NaN is taken in sets (n, members, features) and series (n, channels, time) alone"


def warn_of_marks(x: Float[Tensor, "rows channels *rest"]) -> None:
    """Warn where a number in place of missing values decides how wide a channel is.

    Args:
        x: some simulations, the axis that has units of its own in front.

    Warns:
        UserWarning: several entries have one number far from all others.
    """
    for channel, value, share, low, high in find_markers(x)[:1]:
        warnings.warn(
            f"x has the number {value:g} in {share:.2g} of the entries of channel {channel}, and all others are from "
            f"{low:g} to {high:g}: if it stands for missing values, put a number between the others in its place, such "
            "as their mean, because all are standardised together, and what the others tell is lost",
            stacklevel=6,
        )


def warn_unlike_members(x: Float[Tensor, "rows members features"]) -> None:
    """Warn where the rows of x do not look like members of sets, which all have one distribution.

    By Kolmogorov–Smirnov tests of each row against the first, corrected for their number.

    Warns:
        UserWarning: a row has another distribution.
    """
    first, *others = x[:MAX_ROWS].unbind(1)
    level = 1e-6 / max(1, len(others) * x.shape[2])
    for number, row in enumerate(others, 1):
        for feature in range(x.shape[2]):
            a, b = _present(first, feature), _present(row, feature)
            if min(len(a), len(b)) > 20 and ks_2samp(a.numpy(), b.numpy()).pvalue < level:
                warnings.warn(
                    f"x has whole rows of NaN and is taken as sets of up to {x.shape[1]} members, whose order carries "
                    f"no information, but row {number} has another distribution than row 0; if rows are different "
                    "quantities, give settings.network=ConditionalMLP(summary=SeriesSummary())",
                    stacklevel=5,
                )
                return


def _present(column: Float[Tensor, "rows features"], feature: int) -> Float[Tensor, " present"]:
    values = column[:, feature]
    return values[~values.isnan()].double().cpu()
