"""A simulator learned from simulations: q(y | u), from which any number of further simulations is drawn.

Simulations are few, and a network that is trained on each many times memorises them. The likelihood is often simpler
than the posterior (Papamakarios et al. 2019, arXiv 1805.07226): an ensemble of conditional mixtures of Gaussians is
fitted to it by maximum likelihood, each member stopped by simulations of its own that it is not trained on, and the
posterior's denoiser learns from fresh draws of it. Simulations held out from both show whether that helps (`judge`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openedm.inference.columns import Columns
from openedm.inference.exchangeable import are_steady
from openedm.inference.forms import (
    ATOMS,
    LONG,
    MIN_INDEPENDENT,
    Form,
    Trials,
    choose_curve,
    choose_form,
    choose_reach,
    choose_size,
    choose_structure,
    choose_trend,
)
from openedm.inference.maps import DataMap
from openedm.inference.mixtures import FittedMixture, fit_mixture
from openedm.inference.prepare import Prepared
from openedm.inference.settings import MixtureOptions
from openedm.networks.mixtures import ConditionalDensity
from openedm.networks.recurring import recurring
from openedm.networks.structured import REACHING
from openedm.networks.trends import KernelTrend, TrendedMixture

__all__ = ["LearnedSimulator", "draw_simulations", "learn_simulator"]

CHUNK_ROWS = 16_384
"""Rows that a mixture evaluates at a time where draws are made or whitened."""

MOST_COUNTS = 512
"""Columns of counts that are modelled as they are, where other data with as many would be summarised."""

LEAST_AT_ATOMS = 0.01
"""The share of values that recur, in one column at least, from which on these are modelled as such."""


class LearnedSimulator(NamedTuple):
    """A fitted emulator.

    Attributes:
        fitted: q, of what `target` makes of x, less the trend.
        target: the map from the kept columns of x to what q models; None means y.
        data: x → y, also for denoisers that learn from its draws.
        trend: the smooth part of the mean; None where the networks learn all of it.
    """

    fitted: FittedMixture
    target: Columns | None
    data: DataMap
    trend: KernelTrend | None = None

    @property
    def density(self) -> ConditionalDensity:
        """q of what `target` makes of x."""
        return self.fitted.mixture if self.trend is None else TrendedMixture(self.trend, self.fitted.mixture)

    def modelled(self, data: Prepared) -> Float[Tensor, "rows dim"]:
        """What q models of the x of the simulations that are trained on."""
        kept = self.data.jittered(data.x[data.training], data.seed)
        y = self.data.of_kept(kept) if self.target is None else self.target.forward(kept)
        return y.float()


def learn_simulator(data: Prepared, progress: Callable[[float], object]) -> LearnedSimulator:
    """Fit an emulator to the simulations that are trained on.

    Args:
        data: the simulations; there are settings of an emulator.
        progress: called with the share of the fit that is done.

    Raises:
        FloatingPointError, ValueError: as `fit_mixture`.
    """
    settings, seed = data.settings, data.seed
    options = settings.emulator
    assert options is not None
    theta, x, maps = data.theta[data.training], data.x[data.training], data.data
    if not maps.vector:
        y, inputs = maps.forward(x), data.parameters.inputs_of(theta)
        heavy = "asinh" in Columns.of(y.movedim(1, -1).flatten(0, -2)).kinds
        structure = "placed_heavy" if heavy and "placed_heavy" in options.structures else "placed"
        fitted = fit_mixture(
            y.flatten(1),
            inputs,
            options,
            1,
            structure=structure,
            curve=True,
            shape=y.shape[1:],
            seed=seed,
            progress=progress,
        )
        return LearnedSimulator(fitted, None, maps)
    if len(maps.keep) > min(settings.reduce_above, LONG) and not maps.exchangeable:
        few = len(maps.keep) <= MOST_COUNTS
        most = settings.reduce_above if data.refines and settings.compare else min(settings.reduce_above, LONG)
        if "counts" in options.structures and all(maps.counts) and few:
            options = replace(options, structures=("counts",))
        elif few and _mostly_recur(maps, maps.jittered(x, seed)):
            options = replace(options, structures=ATOMS)
        elif len(maps.keep) > most or not set(options.structures) & set(REACHING):
            maps = maps.reduced(x, data.u[data.training])
        else:  # a full factor of so many columns cannot be learned
            options = replace(options, structures=tuple(s for s in options.structures if s != "full"))
    kept, inputs = maps.jittered(x, seed), data.parameters.inputs_of(theta)
    trials: Trials = {}
    target, form = _choose_target(maps, kept, inputs, options, seed, trials)
    y = maps.of_kept(kept) if target is None else target.forward(kept).float()
    form = choose_reach(y, inputs, options, form, seed=seed, trials=trials)
    form = choose_curve(y, inputs, options, form, seed=seed, trials=trials)
    larger = choose_size(y, inputs, options, form, seed=seed, trials=trials)
    trend = choose_trend(y, inputs, options, form, larger, seed=seed, trials=trials)
    y, options = (y, larger) if trend is None else ((y - trend.left_out).float(), options)
    fitted = fit_mixture(
        y,
        inputs,
        options,
        form.components,
        structure=form.structure,
        curve=form.curve,
        reach=form.reach,
        seed=seed,
        progress=progress,
    )
    if target is not None and set(target.kinds) != {"identity"} and not maps.exchangeable:
        maps = replace(maps, columns=target)
    return LearnedSimulator(fitted, target, maps, trend and trend.trend)


def draw_simulations(
    simulator: LearnedSimulator, data: Prepared
) -> tuple[Float[Tensor, "draws d"], Float[Tensor, "draws y"]]:
    """Draws (u, y) of prior and emulator, hardly further out than the simulations; without a prior of simulated θ.

    Args:
        simulator: of these simulations.
        data: the simulations; the settings say how many draws.
    """
    generator, count = torch.Generator().manual_seed(data.seed), data.settings.pool
    if data.prior is None:
        rows = torch.randint(len(data.training), (count,), generator=generator)
        theta = data.theta[data.training[rows]]
    else:
        theta = data.prior.sample(count, data.seed + 1)
    maps, target, mixture = simulator.data, simulator.target, simulator.density
    y = simulator.modelled(data)
    chunks = [mixture.sample(data.parameters.inputs_of(part), generator) for part in torch.split(theta, CHUNK_ROWS)]
    low, high = y.min(0).values, y.max(0).values
    margin = 0.1 * (high - low)
    drawn = torch.minimum(torch.maximum(torch.cat(chunks), low - margin), high + margin)
    return data.parameters.forward(theta).float(), drawn if target is None else maps.of_kept(target.inverse(drawn))


def _choose_target(
    maps: DataMap,
    kept: Float[Tensor, "n kept"],
    inputs: Float[Tensor, "n d"],
    options: MixtureOptions,
    seed: int,
    trials: Trials,
) -> tuple[Columns | None, Form]:
    """What the emulator models, and how: x warped, as it is, or its logarithms, by trials."""
    if maps.reduction is not None:
        return None, choose_form([(maps.of_kept(kept), 0.0)], inputs, options, seed=seed, trials=trials)
    at = None if all(maps.counts) else _at_atoms(maps, kept)
    found = None if at is None else _with_atoms(kept, at, inputs, maps, options, seed, trials)
    if found is not None:
        return found
    steady = not maps.exchangeable and are_steady(kept, inputs)
    same = maps.exchangeable or steady
    all_columns = (
        [Columns.alike(kept), Columns.alike(kept, warp=False)]
        if same
        else [maps.columns, Columns.of(kept, warp=False), Columns.logarithms(kept)]
    )
    columns = list({each.kinds: each for each in all_columns}.values())
    counts = bool(maps.counts) and all(maps.counts)
    if counts and options.structures == ("counts",) and not maps.exchangeable:
        return Columns.plain(kept.shape[1]), Form(0, "counts", 1)
    if counts:
        columns.append(Columns.plain(kept.shape[1]))
    forms = [(each.forward(kept).float(), float(each.log_det(kept).mean())) for each in columns]
    heavy = "asinh" in maps.columns.kinds
    exchangeable = maps.exchangeable
    kinds = {"exchangeable": exchangeable, "heavy": heavy, "steady": steady, "counts": counts}
    form = choose_form(forms, inputs, options, **kinds, seed=seed, trials=trials)
    return columns[form.number], form


def _at_atoms(maps: DataMap, kept: Float[Tensor, "n kept"]) -> Bool[Tensor, "n kept"] | None:
    """Which values recur in their columns, or in all of draws of one distribution; None where hardly any do."""
    columns = kept.reshape(-1, 1) if maps.exchangeable else kept
    values = [torch.tensor(recurring(each), dtype=kept.dtype, device=kept.device) for each in columns.T]
    at = torch.stack([torch.isin(column, each) for column, each in zip(columns.T, values, strict=True)], 1)
    return at.reshape(kept.shape) if float(at.double().mean(0).max()) >= LEAST_AT_ATOMS else None


def _mostly_recur(maps: DataMap, kept: Float[Tensor, "n kept"]) -> bool:
    """Whether values recur in half of the columns or more."""
    at = _at_atoms(maps, kept)
    return at is not None and float(at.any(0).double().mean()) >= 0.5


def _with_atoms(
    kept: Float[Tensor, "n kept"],
    at: Bool[Tensor, "n kept"],
    inputs: Float[Tensor, "n d"],
    maps: DataMap,
    options: MixtureOptions,
    seed: int,
    trials: Trials,
) -> tuple[Columns, Form] | None:
    """How columns are modelled in which single values recur; None where that may not be tried.

    Args:
        kept, at: values, and which of them recur.
        inputs, maps, options, seed, trials: as for `_choose_target`.
    """
    others = torch.where(at, torch.nan, kept)
    if maps.exchangeable:
        form = Form(0, "independent_atoms", max(*options.components, MIN_INDEPENDENT))
        return (Columns.alike(others), form) if form.structure in options.structures else None
    low, high = (others.nan_to_num(end).aminmax(dim=0) for end in (torch.inf, -torch.inf))
    ends = bool((~at | (kept < low.min) | (kept > high.max)).all()) and bool((~at).any(0).all())
    structures = [s for s in ("censored", "atoms") if s in options.structures and (ends or s == "atoms")]
    if not structures:
        return None
    target = Columns.of(others)
    y = target.forward(kept).float()
    return target, choose_structure(y, inputs, options, structures, seed=seed, trials=trials)
