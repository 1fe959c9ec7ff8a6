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
from jaxtyping import Float
from torch import Tensor

from openedm.inference.columns import Columns
from openedm.inference.exchangeable import are_steady
from openedm.inference.forms import Form, Trials, choose_curve, choose_form, choose_size, choose_trend
from openedm.inference.maps import DataMap
from openedm.inference.mixtures import FittedMixture, fit_mixture
from openedm.inference.prepare import Prepared
from openedm.inference.settings import MixtureOptions
from openedm.networks.mixtures import ConditionalDensity
from openedm.networks.trends import KernelTrend, TrendedMixture

__all__ = ["LearnedSimulator", "draw_simulations", "learn_simulator"]

CHUNK_ROWS = 16_384
"""Rows that a mixture evaluates at a time where draws are made or whitened."""

MOST_COUNTS = 512
"""Columns of counts that are modelled as they are, where other data with as many would be summarised."""


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
        data: the simulations; x are vectors, and there are settings of an emulator.
        progress: called with the share of the fit that is done.

    Raises:
        FloatingPointError, ValueError: as `fit_mixture`.
    """
    settings, seed = data.settings, data.seed
    options = settings.emulator
    assert options is not None
    theta, x, maps = data.theta[data.training], data.x[data.training], data.data
    if len(maps.keep) > settings.reduce_above and not maps.exchangeable:
        if "counts" in options.structures and all(maps.counts) and len(maps.keep) <= MOST_COUNTS:
            options = replace(options, structures=("counts",))
        else:
            maps = maps.reduced(x, data.u[data.training])
    kept, inputs = maps.jittered(x, seed), data.parameters.inputs_of(theta)
    trials: Trials = {}
    target, form = _choose_target(maps, kept, inputs, options, seed, trials)
    y = maps.of_kept(kept) if target is None else target.forward(kept).float()
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
