"""What of a learned likelihood held-out simulations choose: the form of the data, the noise, and the size of networks.

Each choice is a trial of one member; what was tried is kept, so that no later choice trains it again.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.inference.mixtures import fit_mixture, folds
from openedm.inference.settings import CLOSE, MixtureOptions
from openedm.inference.trends import FittedTrend, fit_trend
from openedm.networks.structured import PLACED, REACHING

__all__ = [
    "Form",
    "Trials",
    "choose_curve",
    "choose_form",
    "choose_reach",
    "choose_size",
    "choose_structure",
    "choose_trend",
    "simplest",
]

MIN_INDEPENDENT = 8
"""Gaussians in one dimension are cheap, and draws of one distribution are many: at least so many of them."""

FEW = 3
"""Negative binomial distributions of draws that are counts, beside a single one."""

COUNTS = ("counts", "dispersed_counts", "totals")
"""Structures for columns of counts that are no draws of one distribution; of zeros and ones the first says it all. The
last where it is clearly better alone: more than what seems to be the total may be seen later."""

ATOMS = ("censored", "atoms", "independent_atoms")
"""Structures for columns with values that recur, the first of such that are ends, the last of draws; where these are
nothing else is tried."""

SPECIAL = ("independent", "heavy", "stationary", *COUNTS, "independent_counts", "shares", *ATOMS, *PLACED)
"""Structures for columns of a certain kind, or for data that are no vectors, only."""


NEIGHBOURS = 4
"""The reach of noise that is tried beside independent noise and that of all columns."""

LONG, MOST_CORRELATED = 64, 128
"""Columns above which the noise is first that of neighbours, and above which that of all columns is not tried."""

FEWEST_REACHING = 8
"""Columns from which on the noise of fewer than all is tried."""


class Form(NamedTuple):
    """What a mixture models: a form of the data by its number, the noise, how many Gaussians, whether a curve, and how
    far the noise reaches.
    """

    number: int
    structure: str
    components: int
    curve: bool = False
    reach: int | None = None


CURVED = (*COUNTS, "censored", "atoms")
"""Structures whose columns may share one function of their place: of others with few columns the gain is smaller, and
single members may learn a curve badly, which widens posteriors."""

Trials = dict[tuple[Form, MixtureOptions], Tensor]
"""ln q of each held-out row by the mixtures that were tried for some data, so that none is trained twice."""


def choose_form(
    forms: Sequence[tuple[Float[Tensor, "rows dim"], float]],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    *,
    exchangeable: bool = False,
    heavy: bool = False,
    steady: bool = False,
    counts: bool = False,
    seed: int = 0,
    trials: Trials | None = None,
) -> Form:
    """Which form of the data a mixture fits best, with which noise and how many components: by trials of one member.

    The form is chosen with the first kind of noise, and again with long tails or a process, then the noise: the
    simplest that is worse than the best by no more than the standard error of the difference. On few rows, or where a
    few of them decide, the best is so by chance, and what has more functions of u errs more elsewhere.

    Several Gaussians learn faster at first than one: if they are behind then, they are not tried further.

    With `larger_trials` the first kind of noise also says which sizes single Gaussians are tried with: the smallest if
    it is as good by that standard, else those within `CLOSE` of the best. Several Gaussians need no larger networks.

    Args:
        forms: the data standardised in one way or another, each with its mean ln |dy/dx|.
        u: the condition.
        options: structures and components are tried, for `pilot_steps`, and those that come close for up to four times
            as many, those by the size that did best in the first trial.
        exchangeable: whether the columns are draws of one distribution; only then "independent" is tried, and nothing
            else but counts.
        heavy: whether columns have long tails; only then "heavy" is tried, with each form.
        steady: whether columns may be a process in its steady state; only then "stationary" is tried, with each form.
        counts: whether the last form are counts as they are; structures of counts are tried with it, those of
            exchangeable columns or the others, or "shares" where their sum is always the same, and nothing else.
        seed: as for `fit_mixture`.
        trials: what was tried for these data; new ones are added.
    """
    known: Trials = {} if trials is None else trials
    short, long = options.pilot_steps, min(4 * options.pilot_steps, options.steps)

    def rows_of(form: Form, size: MixtureOptions, steps: int) -> Tensor:
        return _tried(forms[form.number][0], u, replace(size, steps=steps), form, seed, known)

    kinds, others = _kinds(options, exchangeable), range(len(forms) - counts)

    def form_of(number: int, structure: str, components: int) -> Form:
        long = structure in REACHING and forms[number][0].shape[1] > LONG
        return Form(number, structure, components, reach=NEIGHBOURS if long else None)

    sizes: tuple[MixtureOptions, ...] = (options,)
    if options.larger_trials and kinds[0][1] == 1:
        sizes = _sizes_worth_trying(options.sizes, [rows_of(form_of(0, *kinds[0]), s, short) for s in options.sizes])

    def size_of(form: Form) -> MixtureOptions:
        if form.components > 1:
            return options
        return sizes[0] if len(sizes) == 1 else max(sizes, key=lambda s: float(rows_of(form, s, short).mean()))

    def rows(form: Form, steps: int) -> Tensor:
        return rows_of(form, size_of(form), steps) + forms[form.number][1]

    def trial(form: Form, steps: int) -> float:
        return float(rows(form, steps).mean())

    def best_form(structure: str, components: int) -> Form:
        number = max(others, key=lambda i: trial(form_of(i, structure, components), short)) if len(others) > 1 else 0
        return form_of(number, structure, components)

    number = best_form(*kinds[0]).number
    tried = [form_of(number, *kind) for kind in kinds]
    further = [("heavy", heavy), ("stationary", steady)]
    for structure in [s for s, may in further if may and not exchangeable and s in options.structures]:
        place = 0 if structure == "stationary" else 1
        tried.insert(place, best_form(structure, 1))
    if counts:
        kinds = [("independent_counts", k) for k in (1, FEW)] if exchangeable else [(s, 1) for s in COUNTS]
        kinds = kinds if float(forms[-1][0].max()) > 1.5 else kinds[:1]
        if not exchangeable and "shares" in options.structures and _have_one_sum(forms[-1][0]):
            kinds = [("shares", 1)]
        tried[:0] = [Form(len(forms) - 1, *kind) for kind in kinds if kind[0] in options.structures]
    if len(tried) == 1:
        return tried[0]
    first = _lost([rows(form, short) for form in tried])
    close = [form for form, lost in zip(tried, first, strict=True) if _may_win(form, lost)]
    return close[0] if len(close) == 1 else close[simplest([rows(form, long) for form in close])]


def _have_one_sum(y: Float[Tensor, "rows dim"]) -> bool:
    """Whether counts have the same sum in all rows, so that each follows from the others."""
    sums = y.double().round().sum(1)
    return y.shape[1] > 1 and bool((sums == sums[0]).all())


def simplest(log_probs: Sequence[Float[Tensor, " rows"]]) -> int:
    """The first whose mean is below the highest mean by at most the standard error of that difference, and by `CLOSE`.

    Args:
        log_probs: of the same rows, at least two, by one model after the other, the simplest first.
    """
    return next(i for i, lost in enumerate(_lost(log_probs)) if lost.mean <= min(lost.error, CLOSE))


def _may_win(form: Form, lost: "Lost") -> bool:
    """Whether a form that loses so much in a short trial is tried further: several Gaussians of a matrix each learn
    faster at first than one, and cost the most.
    """
    if form.structure == "full" and form.components > 1:
        return lost.mean <= lost.error
    return lost.mean < max(CLOSE, lost.error)


def _sizes_worth_trying(
    sizes: Sequence[MixtureOptions], log_probs: Sequence[Float[Tensor, " rows"]]
) -> tuple[MixtureOptions, ...]:
    """The first size where it learns the mean as well as the others, else those within `CLOSE` of the best."""
    if simplest(log_probs) == 0:
        return (sizes[0],)
    return tuple(size for size, lost in zip(sizes, _lost(log_probs), strict=True) if lost.mean < CLOSE)


class Lost(NamedTuple):
    """By how much a mean is below the highest one, and the standard error of that, which few rows may make large."""

    mean: float
    error: float


def _lost(log_probs: Sequence[Float[Tensor, " rows"]]) -> list[Lost]:
    """What each model loses to the one whose mean is highest."""
    means = [float(each.mean()) for each in log_probs]
    best = means.index(max(means))
    errors = [float((log_probs[best] - each).std()) / math.sqrt(len(each)) for each in log_probs]
    return [
        Lost(0.0 if i == best else means[best] - means[i], error if i != best else 0.0)
        for i, error in enumerate(errors)
    ]


def choose_structure(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    structures: Sequence[str],
    *,
    seed: int = 0,
    trials: Trials,
) -> Form:
    """The simplest of some structures of one component that is as good as the best, by trials of one member.

    Args:
        y, u: standardised rows.
        options: of the mixture.
        structures: at least one, the simplest first.
        seed: as for `fit_mixture`.
        trials: what was tried for these data; new ones are added.
    """
    forms = [Form(0, structure, 1) for structure in structures]
    if len(forms) == 1:
        return forms[0]
    options = replace(options, steps=min(4 * options.pilot_steps, options.steps))
    return forms[simplest([_tried(y, u, options, form, seed, trials) for form in forms])]


def choose_reach(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    form: Form,
    *,
    seed: int = 0,
    trials: Trials,
) -> Form:
    """The form with noise that is independent, of neighbours or of all columns: the first that is as good as the best.

    Args:
        y, u, options, form, seed, trials: as for `choose_curve`.
    """
    if form.structure not in REACHING or form.components > 1 or y.shape[1] < FEWEST_REACHING:
        return form
    options = replace(options, steps=min(4 * options.pilot_steps, options.steps))
    reaches = (0, NEIGHBOURS, *([None] if y.shape[1] <= MOST_CORRELATED else []))
    forms = [form._replace(reach=reach) for reach in reaches]
    return forms[simplest([_tried(y, u, options, each, seed, trials) for each in forms])]


def choose_curve(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    form: Form,
    *,
    seed: int = 0,
    trials: Trials,
) -> Form:
    """The form with columns that share one function of their place, where its held-out likelihood is clearly higher.

    Of many columns of Gaussian noise, that of a series whose noise may depend on u is tried as well.

    Args:
        y, u: standardised rows.
        options: of the mixture; whether a curve is tried.
        form: noise and number of Gaussians.
        seed: as for `fit_mixture`.
        trials: what was tried for these data; new ones are added.
    """
    long = form.structure in REACHING and y.shape[1] > LONG
    if not options.curves or form.components > 1 or not (form.structure in CURVED or long):
        return form
    options = replace(options, steps=min(4 * options.pilot_steps, options.steps))
    forms = [form, form._replace(curve=True)]
    placed = PLACED[form.structure == "heavy"]
    if long and placed in options.structures:
        forms.append(Form(form.number, placed, 1, curve=True))
    return forms[simplest([_tried(y, u, options, each, seed, trials) for each in forms])]


def choose_size(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    form: Form,
    *,
    seed: int = 0,
    trials: Trials | None = None,
) -> MixtureOptions:
    """The options with the size of the highest held-out likelihood: a mean that bends much needs depth, noise little.

    Args:
        y, u: standardised rows.
        options: the sizes `larger` are tried beside its own, by one member each that takes all steps: on a shorter
            schedule deep networks have not come to where they learn the noise by heart. With `larger_trials` none that
            is far behind after a shorter one takes them all, and none does if all are at most twice as many as that.
        form: structure and number of Gaussians.
        seed: as for `fit_mixture`.
        trials: what was tried for these data; new ones are added.
    """
    if not options.larger or form.curve:
        return options
    known = {} if trials is None else trials

    def trial(size: MixtureOptions) -> float:
        return float(_tried(y, u, size, form, seed, known).mean())

    sizes = options.sizes
    if options.larger_trials:
        steps = min(4 * options.pilot_steps, options.steps)
        short = [trial(replace(size, steps=steps)) for size in sizes]
        sizes = tuple(size for size, mean in zip(sizes, short, strict=True) if mean >= max(short) - CLOSE)
        if options.steps <= 2 * steps:
            return options.sizes[short.index(max(short))]
    return sizes[0] if len(sizes) == 1 else max(sizes, key=trial)


def choose_trend(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    form: Form,
    alone: MixtureOptions,
    *,
    seed: int = 0,
    trials: Trials,
) -> FittedTrend | None:
    """The smooth part of the mean by kernels, where its rest has a higher held-out likelihood; else None.

    Higher by more than the standard error of the difference: the rows that judge the rest had a part in the kernels.

    Args:
        y, u: standardised rows.
        options: of the mixture of the rest; whether a trend is tried.
        form: the noise; of one Gaussian whose mean the kernels may be.
        alone: options of the mixture without a trend, which was tried.
        seed: as for `fit_mixture`.
        trials: what was tried for these data.

    Warns:
        UserWarning: the kernels of these rows cannot be told apart, so that no trend could be tried.
    """
    if not options.trend or form.components > 1 or form.structure in SPECIAL or form.curve:
        return None
    try:
        trend = fit_trend(y, u, members=options.members, seed=seed)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        warnings.warn(f"the mean is learned without kernel regression, which failed: {error}", stacklevel=2)
        return None
    if trend is None:
        return None
    rest = _tried((y - trend.left_out).float(), u, options, form, seed, {})
    return None if simplest([_tried(y, u, alone, form, seed, trials), rest]) == 0 else trend


def _tried(
    y: Float[Tensor, "rows dim"],
    u: Float[Tensor, "rows condition"],
    options: MixtureOptions,
    form: Form,
    seed: int,
    trials: Trials,
) -> Float[Tensor, " held"]:
    """ln q of the held-out rows, by one member that is fitted with these options; −∞ where it is not finite."""
    key = form, replace(options, members=1)
    if key not in trials:
        fitted = fit_mixture(
            y, u, key[1], form.components, structure=form.structure, curve=form.curve, reach=form.reach, seed=seed
        )
        held_out = folds(len(y), key[1], torch.Generator().manual_seed(seed))[1][0]
        trials[key] = fitted.mixture.log_prob(y[held_out], u[held_out]).nan_to_num(-math.inf, neginf=-math.inf)
    return trials[key]


def _kinds(options: MixtureOptions, exchangeable: bool) -> list[tuple[str, int]]:
    """Structures with numbers of components, the simplest first."""
    if exchangeable and "independent" in options.structures:
        return [("independent", max(*options.components, MIN_INDEPENDENT))]
    kinds = [(s, 1) for s in reversed(options.structures) if s not in ("full", *SPECIAL)]
    if "full" in options.structures or not kinds:
        kinds += [("full", count) for count in options.components]
    return kinds
