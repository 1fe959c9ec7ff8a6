"""Simulations are checked, with errors that name rows and columns, split and standardised."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import ks_2samp
from torch import Tensor

from openedm.inference.absent import (
    Absence,
    Kind,
    describe_refused,
    kind_in,
    kind_of,
    warn_of_marks,
    warn_unlike_members,
)
from openedm.inference.arrays import Values, as_rows
from openedm.inference.composite import as_prior
from openedm.inference.draws import fingerprints
from openedm.inference.likeness import Reference
from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.precision import as_precise_as_needed, coarse_columns, varies
from openedm.inference.priors import Prior, check_names
from openedm.inference.settings import Settings
from openedm.inference.supports import CONTINUOUS
from openedm.inference.unrelated import unrelated_columns
from openedm.networks import Summary, VectorSummary

__all__ = [
    "MIN_SIMULATIONS",
    "Prepared",
    "check_simulations",
    "constant_columns",
    "duplicated_columns",
    "prepare",
    "summary_of",
    "takes_all_columns",
]

MIN_SIMULATIONS = 100
FEW_VALUES = 20
"""A column of parameters with no more different values is discrete."""

ATOM, MIN_ATOM = 0.05, 10
"""A value in more than this share of rows, and in more than so many, has a probability of its own."""

DEPENDENT, UNLIKE_PRIOR = 1e-9, 1e-8
"""The least eigenvalue of the correlations of parameters, and the p-value by which they are no draws of the prior."""

MAX_KNOWN = 4096
"""How many simulations a posterior remembers that it was fitted to."""

MAX_COMPARED = 2000
"""How many simulations of those trained on, and of the others, an observation is compared with, at most."""


@dataclass(frozen=True)
class Prepared:
    """Checked simulations, and how they are standardised.

    Attributes:
        theta, x: the simulations, float32, or float64 where that would lose what a column tells.
        u: θ in unbounded, standardised coordinates, float64.
        parameters: θ ↔ u.
        data: x → y.
        training, held_out: which simulations are trained on, and which stop trainings and judge candidates.
        settings: how to fit.
        seed: of everything random.
        prior: of θ, or None.
        names: of the parameters; None means the prior's.
        dropped: how many simulations were left out, whose values are not finite.
    """

    theta: Float[Tensor, "n d"]
    x: Float[Tensor, "n *event"]
    u: Float64[Tensor, "n d"]
    parameters: ParameterMap
    data: DataMap
    training: Int64[Tensor, " most"]
    held_out: Int64[Tensor, " rest"]
    settings: Settings
    seed: int
    prior: Prior | None
    names: Sequence[str] | None
    dropped: int = 0

    @property
    def refines(self) -> bool:
        """Whether Markov chains may refine samples: they need the prior's density."""
        return self.prior is not None and self.settings.refinement is not None

    @property
    def reference(self) -> Reference:
        """What the observation of a verdict is compared with."""
        rows = (part[_spread(len(part), MAX_COMPARED)] for part in (self.training, self.held_out))
        training, held_out = (self.x[r] if self.data.vector else self.data.forward(self.x[r]) for r in rows)
        return Reference.of(training, held_out, vectors=self.data.vector)

    @property
    def fingerprints(self) -> Int64[Tensor, " some"]:
        """By which simulations of this fit are recognised: of all, or of `MAX_KNOWN` at equal distances."""
        rows = _spread(len(self.theta), MAX_KNOWN)
        return fingerprints(self.theta[rows], self.x[rows])


def _spread(count: int, most: int) -> Int64[Tensor, " some"]:
    """Rows at equal distances, all of them or as many as allowed."""
    return torch.linspace(0, count - 1, min(count, most)).long()


def check_simulations(
    theta: Values,
    x: Values,
    prior: Prior | None,
    *,
    drop_nonfinite: bool = False,
    absent: Kind | None = None,
    at_least: int = MIN_SIMULATIONS,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n *event"]]:
    """θ and x as tensors with one row a simulation.

    Args:
        theta, x, prior: as for `fit`.
        drop_nonfinite: whether simulations with NaN or infinities are left out, not refused.
        absent: what NaN in x may mark, "members" of sets or "values"; None for nothing.
        at_least: how many simulations there must be.
        dtype: of both tensors; None means float32, or float64 where that would lose what a column tells.

    Raises:
        TypeError: something else than real numbers.
        ValueError: shapes that do not fit, too few simulations, values that are not finite, or θ outside the support,
            constant or discrete.

    Warns:
        UserWarning: how many simulations are left out.
    """
    parameters, values = (as_rows(name, given).detach() for name, given in (("theta", theta), ("x", x)))
    parameters, values = (as_precise_as_needed(v) if dtype is None else v.to(dtype) for v in (parameters, values))
    if parameters.ndim != 2 or parameters.shape[1] == 0:
        raise ValueError(f"theta must have shape (n, d), got {tuple(parameters.shape)}")
    if values.ndim < 2 or values[:1].numel() == 0:
        raise ValueError(f"x must have shape (n, *x_shape) with at least one value each, got {tuple(values.shape)}")
    if len(parameters) != len(values):
        raise ValueError(f"theta and x must have one row a simulation, got {len(parameters)} and {len(values)}")
    if prior is not None and prior.dim != parameters.shape[1]:
        raise ValueError(f"prior must have as many parameters as theta, {parameters.shape[1]}, got {prior.dim}")
    valid = values.flatten(1).isfinite().all(1) if absent is None else Absence(absent, 1, 1).is_valid(values)
    bad = ~(parameters.isfinite().all(1) & valid)
    if bool(bad.any()):
        if not drop_nonfinite:
            rows = bad.nonzero()[:, 0].tolist()
            raise ValueError(
                f"theta and x must be finite, but {len(rows)} of {len(bad)} simulations are not: {_named(rows)}; "
                f"{describe_refused(values, absent)}"
            )
        warnings.warn(
            f"{int(bad.sum())} of {len(bad)} simulations are left out, because theta or x is not finite: the posterior "
            f"is conditional on the simulator's success; they are {_named(bad.nonzero()[:, 0].tolist())}",
            stacklevel=4,
        )
        parameters, values = parameters[~bad], values[~bad]
    if len(parameters) < at_least:
        raise ValueError(f"there must be at least {at_least} simulations, got {len(parameters)}")
    if prior is not None:
        outside = (~(prior.log_prob(parameters) > -math.inf)).nonzero()[:, 0].tolist()
        if outside:
            raise ValueError(f"theta must lie in the prior's support, but {len(outside)} do not: {_named(outside)}")
    constant = constant_columns(parameters)
    if constant:
        raise ValueError(f"theta must vary, but these columns are constant: {_named(constant)}")
    if discrete := discrete_columns(parameters):
        listed = _named(discrete)
        raise ValueError(f"theta must be {CONTINUOUS}, but these columns hold few different values: {listed}")
    _check_atoms(parameters)
    _check_dependence(parameters)
    _warn_of_coarse("theta", parameters)
    _warn_of_coarse("x", values.flatten(1))
    return parameters, values


def _warn_of_coarse(name: str, values: Float[Tensor, "n columns"]) -> None:
    if coarse := coarse_columns(values):
        warnings.warn(
            f"columns of {name} that are too coarse in float32, which tells few of their values apart: "
            f"{_named(coarse)}; subtract a constant in the simulator, or give float64 throughout",
            stacklevel=5,
        )


def prepare(
    theta: Values,
    x: Values,
    prior: Any = None,
    *,
    settings: Settings | None = None,
    embedding: Any = None,
    names: Sequence[str] | None = None,
    drop_nonfinite: bool = False,
    seed: int = 0,
) -> Prepared:
    """Check simulations, choose the settings, split the simulations and find how they are standardised.

    Args:
        theta, x, prior, settings, embedding, names, seed: as for `fit`.
        drop_nonfinite: whether simulations with NaN or infinities are left out, not refused.

    Raises:
        TypeError, ValueError: as for `check_simulations`; x does not vary, settings with an emulator for x that are not
            vectors, or settings beside an embedding.

    Warns:
        UserWarning: how many simulations are left out; columns of x that are constant, equal to others or unrelated to
            everything, which are left out.
    """
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"settings must be a Settings or None, got {type(settings).__name__}")
    known, values = as_prior(prior, names), as_rows("x", x)
    if embedding is not None and settings is not None:
        raise ValueError(
            "embedding and settings are mutually exclusive: settings=Settings(network="
            "ConditionalMLP(summary=embedding), emulator=None) has both"
        )
    summary = None if embedding is None else summary_of(embedding)
    if settings is None and summary is None:
        absent = kind_in(values)
    else:
        absent = kind_of(summary if settings is None else settings.network)
    theta, x = check_simulations(theta, values, known, drop_nonfinite=drop_nonfinite, absent=absent)
    if names is not None:
        check_names(names, theta.shape[1])
    if known is not None:
        _warn_of_other_prior(theta, known)
    shape = tuple(x.shape[1:])
    parameters = ParameterMap.of(theta, None if known is None else known.bijection)
    u, keep = parameters.forward(theta), tuple[int, ...]()
    whole = len(shape) == 1 and (summary is not None if settings is None else takes_all_columns(settings))
    if whole and len(constant_columns(x)) == x.shape[1]:
        raise ValueError("x must vary, but all its columns are constant")
    if len(shape) == 1:
        screened = not whole and (settings is None or settings.screen)
        keep = tuple(range(x.shape[1])) if whole else _columns_to_keep(x, u if screened else None)
    if settings is None:
        settings = Settings.of(len(theta), theta.shape[1], (len(keep),) if keep else shape, absent, summary)
    if len(shape) > 1:
        settings.check_emulator(shape, absent if absent == "members" or bool(x.isnan().any()) else None)
    if len(shape) > 1 and bool((x[~x.isnan()] == x[~x.isnan()][0]).all()):
        raise ValueError("x must vary, but all its values are the same")
    count = min(max(1, round(settings.held_out * len(theta))), len(theta) // 2)
    folds = 0 if settings.emulator is None else settings.emulator.folds
    if len(theta) - count < 10 * folds:
        raise ValueError(
            f"settings.emulator.folds must be <= {(len(theta) - count) // 10}, a tenth of the {len(theta) - count} "
            f"simulations that are trained on, got {folds}"
        )
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(seed))
    held, training = order[:count].sort().values, order[count:].sort().values
    data = _data_map(x, training, keep, settings)
    dropped = len(values) - len(theta)
    return Prepared(theta, x, u, parameters, data, training, held, settings, seed, known, names, dropped)


def takes_all_columns(settings: Settings) -> bool:
    """Whether the network has an embedding of the user's, which expects the columns of a vector as they were given."""
    summary = getattr(settings.network, "summary", None)
    return settings.emulator is None and summary is not None and not isinstance(summary, VectorSummary)


def summary_of(embedding: Any) -> Summary:
    """A user's embedding of x as a summary.

    Raises:
        TypeError: it is neither a module, nor something that makes one, nor a `Summary`.
    """
    summary = embedding if isinstance(embedding, Summary) else Summary.adopt(embedding)
    if not isinstance(summary, Summary):
        raise TypeError(
            "embedding must be an nn.Module, its class, a function that makes one, or a Summary, got "
            f"{type(embedding).__name__}"
        )
    return summary


def _data_map(
    x: Float[Tensor, "n *event"], training: Int64[Tensor, " most"], keep: tuple[int, ...], settings: Settings
) -> DataMap:
    """How data are standardised, and what of them may be absent; warns of sets whose members are not alike."""
    absent, absence = kind_of(settings.network), None
    if absent is not None and bool(x.isnan().any()):
        absence = Absence.of(absent, x)
        if kind_in(x) == "members":
            warn_unlike_members(x) if absent == "members" else _warn_of_sets()
    if x.ndim > 2:
        some = x[_spread(len(x), MAX_COMPARED)]
        warn_of_marks(some.movedim(-1, 1) if absent == "members" else some)
    return DataMap.of(x[training], keep, absence, sets=absent == "members")


def _warn_of_sets() -> None:
    warnings.warn(
        "x has whole rows of NaN, as absent members of sets, but settings.network takes it as series (channels, time); "
        "for sets give settings.network=ConditionalMLP(summary=SetSummary())",
        stacklevel=5,
    )


def _columns_to_keep(x: Float[Tensor, "n columns"], u: Float64[Tensor, "n d"] | None) -> tuple[int, ...]:
    """The columns that are neither constant nor equal to earlier ones, nor unrelated to u; warns about the others."""
    constant, twins = constant_columns(x), duplicated_columns(x)
    if constant:
        warnings.warn(f"columns of x that are constant are left out: {_named(constant)}", stacklevel=4)
    if twins:
        pairs = ", ".join(f"{later} (as {first})" for first, later in twins[:8])
        warnings.warn(f"columns of x that equal others are left out: {pairs}", stacklevel=4)
    left_out = {*constant, *(later for _, later in twins)}
    keep = tuple(i for i in range(x.shape[1]) if i not in left_out)
    if not keep:
        raise ValueError("x must vary, but all its columns are constant")
    if u is not None and (found := unrelated_columns(x[:, list(keep)], u)):
        unrelated = [keep[i] for i in found]
        warnings.warn(
            f"columns of x that have to do neither with theta nor with the other columns are left out: "
            f"{_named(unrelated)}; settings=Settings(screen=False) keeps them",
            stacklevel=4,
        )
        keep = tuple(i for i in keep if i not in set(unrelated))
    return keep


def constant_columns(values: Float[Tensor, "rows columns"]) -> list[int]:
    """The columns without variance, beside errors of rounding."""
    return (~varies(values)).nonzero()[:, 0].tolist()


def discrete_columns(values: Float[Tensor, "rows columns"]) -> list[int]:
    """The columns of few values that repeat, of a hundred rows or more.

    At most `FEW_VALUES` different ones, or integers that are at most a quarter as many as the rows.
    """
    if len(values) < MIN_SIMULATIONS:
        return []
    counts = [len(column.unique()) for column in values.T]
    whole = (values == values.round()).all(0).tolist()
    return [i for i, count in enumerate(counts) if count <= FEW_VALUES or (whole[i] and 4 * count <= len(values))]


def _check_atoms(theta: Float[Tensor, "n d"]) -> None:
    """Raise ValueError where one value of a parameter has a probability of its own."""
    for i, column in enumerate(theta.T):
        values, counts = column.unique(return_counts=True)
        most = int(counts.argmax())
        if int(counts[most]) > max(MIN_ATOM, ATOM * len(theta)):
            raise ValueError(
                f"theta must be continuous, but in column {i} one value, {float(values[most]):g}, stands in "
                f"{int(counts[most])} of {len(theta)} rows, and has no density: fit the rows with it, without this "
                "column, and the others apart, and weigh the two posteriors"
            )


def _check_dependence(theta: Float[Tensor, "n d"]) -> None:
    """Raise ValueError where parameters follow from others, so that they have no density."""
    unit = (theta.double() - theta.double().mean(0)) / theta.double().std(0)
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    if float(values[0]) > DEPENDENT or len(theta) <= theta.shape[1]:
        return
    involved = (vectors[:, 0].abs() > 0.01).nonzero()[:, 0].tolist()
    raise ValueError(
        "theta must hold parameters that do not follow from one another, but these columns are linearly dependent, as "
        f"copies or as shares that sum to one are: {_named(involved)}; leave one of them out"
    )


def _warn_of_other_prior(theta: Float[Tensor, "n d"], prior: Prior) -> None:
    """Warn where parameters have another distribution than the prior, by Kolmogorov–Smirnov tests of each."""
    drawn = prior.sample(MAX_COMPARED).double()
    part = theta[_spread(len(theta), MAX_COMPARED)].double()
    tests = [ks_2samp(a.unique().numpy(), b.numpy()) for a, b in zip(part.T.cpu(), drawn.T, strict=True)]
    if other := [i for i, test in enumerate(tests) if test.pvalue < UNLIKE_PRIOR / len(tests)]:
        warnings.warn(
            f"columns of theta that do not look like draws of the prior: {_named(other)}; the posterior is that of a "
            "prior from which theta was drawn: give that one, or draw theta from this",
            stacklevel=4,
        )


def duplicated_columns(values: Float[Tensor, "rows columns"]) -> list[tuple[int, int]]:
    """Pairs (first, later) of columns that hold the same numbers, each later one once; constant columns apart."""
    seen: dict[bytes, int] = {}
    pairs = []
    constant = set(constant_columns(values))
    for i, column in enumerate(values.T.contiguous().cpu()):
        first = i if i in constant else seen.setdefault(column.numpy().tobytes(), i)
        if first != i:
            pairs.append((first, i))
    return pairs


def _named(indices: Sequence[int], most: int = 8) -> str:
    """Indices for an error message: the first few, and how many more."""
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return ", ".join(map(str, indices[:most])) + more
