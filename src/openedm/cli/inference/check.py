"""`openedm inference check`: whether to trust a posterior at one observation."""

import math
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from openedm.cli.arguments import function_of
from openedm.cli.inference.arguments import ObservedPosterior, PosteriorOptions, load_observed, simulations_of, usable
from openedm.cli.parsing import Flat
from openedm.cli.terminal import distinct, table
from openedm.ground import checks
from openedm.ground.storage import new_path, replace_nonfinite, write_json
from openedm.inference import local_checks
from openedm.inference.assessing import FEWEST
from openedm.inference.calling import Call, Chunk
from openedm.inference.local_checks import PredictiveCheck
from openedm.inference.results import Form
from openedm.inference.simulation import simulation_seeds
from openedm.inference.simulations import Simulations
from openedm.plots import predictive_histograms, predictive_plot, save_figure

FIRST = 10
"""Simulations after which it is an error that none of them gave a result, before the others are run."""

MOST_HISTOGRAMS = 20
"""Numbers of an observation that get a histogram each."""


def check(
    posterior: str,
    x: str | None = None,
    simulator: str | None = None,
    batched: bool = False,
    arrays: Literal["torch", "numpy"] = "torch",
    simulations: str | None = None,
    num_draws: int = 500,
    num_trials: int = 100,
    seed: int = 0,
    figure: str | None = None,
    out: str | None = None,
    device: str = "cpu",
    options: Flat[PosteriorOptions] = PosteriorOptions(),
) -> None:
    """Say whether to trust a posterior at one observation: trust, more simulations, or model does not fit.

    Prints the numbers behind it: whether the observation is like the simulations, what is lost for want of more of
    them, how far the denoiser agrees with the learned likelihood; with a simulator, whether its data for posterior
    samples are like the observation (a predictive check); with fresh simulations, a classifier test at the observation
    (L-C2ST).

    Args:
        posterior: the folder that `openedm inference fit` wrote.
        x: the observation, numbers separated by commas, --x=-1.0,2.0; or a .npy file; of several kinds of data, an .npz
            file with an array of each name.
        simulator: your function, as file.py:function, as for `openedm inference simulate`, for the predictive check.
        batched: whether the function takes a batch of parameters (b, d).
        arrays: whether the function receives torch tensors or numpy arrays.
        simulations: simulations that were not used in the fit, a store or an npz file, for L-C2ST: thousands of them.
        num_draws: number of data that are simulated for the predictive check, at least 200.
        num_trials: number of classifiers with shuffled labels in L-C2ST; their training takes minutes.
        seed: seed of samples, simulations and classifiers.
        figure: also plot the observation over the data simulated from posterior samples, to this .png, .pdf or .svg
            file; it requires a simulator.
        out: a JSON file for the advice and all numbers.
        device: cpu or cuda.
        options: how posterior samples are drawn.
    """
    drawing, target = new_path("figure", figure, [".png", ".pdf", ".svg"]), new_path("out", out, [".json"])
    checks.at_least("num_draws", num_draws, FEWEST)
    checks.at_least("num_trials", num_trials, 1)
    checks.at_least("seed", seed, 0)
    if simulator is None and (batched or arrays != "torch"):
        raise ValueError("batched and arrays require a simulator")
    if simulator is None and drawing is not None:
        raise ValueError("figure requires a simulator: it shows data simulated from posterior samples")
    function = None if simulator is None else Call(function_of(simulator), batched, arrays)
    observed = load_observed(posterior, x, device, options, single="check")
    fresh = None if simulations is None else usable(observed.posterior, simulations_of(simulations))
    called = None if function is None else _Called(function, observed.form)
    verdict = observed.posterior.verdict(observed.x, simulator=called, num_draws=num_draws, seed=seed)
    print(verdict)
    numbers: dict[str, Any] = {"advice": verdict.advice, **asdict(verdict)}
    if verdict.likeness is not None:
        numbers["likeness"] = verdict.likeness._asdict()
    if called is not None:
        found = local_checks.predictive_check(observed.posterior, called, observed.x, num_draws=num_draws, seed=seed)
        names = names_of_numbers(observed)
        print(_furthest_out(found, names))
        columns = {"observed": found.observed, "share_below": found.tails, "p_value": found.p_values}
        numbers["predictions"] = {"name": names, **{name: values.tolist() for name, values in columns.items()}}
        if drawing is not None:
            save_figure(_predictions(found, observed, names), drawing)
            print(f"figure: {drawing}")
    if fresh is not None:
        local = local_checks.local_c2st(
            observed.posterior, fresh.theta, fresh.x, observed.x, num_trials=num_trials, seed=seed
        )
        print(f"L-C2ST at x: p = {local.p_value:.3g}, statistic {local.statistic:.3g}, {len(fresh)} simulations")
        numbers["local_c2st"] = {"p_value": local.p_value, "statistic": local.statistic, "simulations": len(fresh)}
    if target is not None:
        write_json(target, replace_nonfinite(numbers))
        print(f"all numbers: {target}")


def _furthest_out(found: PredictiveCheck, names: list[str]) -> str:
    """The five numbers of the observation that are least likely among the data."""
    rows = [
        [
            names[i],
            distinct(found.observed[i], float(found.draws[:, i].std())),
            f"{found.tails[i]:.3f}",
            f"{found.p_values[i]:.3g}",
        ]
        for i in found.p_values.argsort(kind="stable")[:5]
    ]
    among = "p" if len(names) == 1 else f"p, one of {len(names)}"
    return table(["furthest out", "observed", "share of draws below", among], rows)


def names_of_numbers(observed: ObservedPosterior) -> list[str]:
    """The place of each number of an observation that is not absent, such as x[0] or image[0, 3, 1]."""
    kinds = observed.form.kinds or (("x", observed.form.shape),)
    places = [(name, index) for name, shape in kinds for index in np.ndindex(*shape)]
    present = (~observed.posterior._observations(observed.x)[0][0].cpu().flatten().isnan()).tolist()
    return [f"{name}{list(index)}" for (name, index), there in zip(places, present, strict=True) if there]


def _predictions(found: PredictiveCheck, observed: ObservedPosterior, names: list[str]) -> Figure:
    """Bands over time of series that are complete; else a histogram of each number, or bands over their places."""
    shape, count = observed.form.shape, len(found.observed)
    if len(shape) == 2 and count == math.prod(shape) and shape[1] > 1 and observed.posterior.parts.data.absence is None:
        seen, draws = found.observed.reshape(shape), found.draws.reshape(-1, *shape)
        series = [f"x[{i}]" for i in range(shape[0])]
        return predictive_plot(seen, draws, np.arange(shape[1]), names=series, time_label="number in the series")
    if count <= MOST_HISTOGRAMS:
        return predictive_histograms(found.observed, found.draws, names=names)
    return predictive_plot(found.observed, found.draws, np.arange(count), time_label="number in x")


class _Called:
    """The user's simulator as a function of (θ, seed), which keeps its last data; simulations that fail are NaN.

    Args:
        call: how it is called.
        form: of one observation.
    """

    def __init__(self, call: Call, form: Form) -> None:
        self.call, self.form = call, form
        self.last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, theta: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n ..."]:
        if self.last is not None and self.last[1] == seed and torch.equal(self.last[0], theta):
            return self.last[2]
        count = len(theta)
        chunk = Chunk(np.arange(count), theta.cpu().numpy(), simulation_seeds(count, seed))
        done = self._simulated(chunk.rows(slice(FIRST)))
        if len(chunk) > FIRST:
            done = Simulations.joined([done, self._simulated(chunk.rows(slice(FIRST, None)), few=True)])
        x = torch.full((count, *self.form.shape), torch.nan, dtype=done.x.dtype)
        x[done.index] = done.x
        self.last = theta, seed, x
        return x

    def _simulated(self, chunk: Chunk, *, few: bool = False) -> Simulations:
        """The results of a chunk; an error where there are none, unless `few` of others do."""
        outcome = self.call.run(chunk, self.form)
        if outcome.interrupted:
            raise KeyboardInterrupt
        if not len(outcome.simulations) and not few:
            failure = outcome.simulations.failures[0]
            raise ValueError(f"simulator: none of {len(chunk)} gave a result of shape {self.form}; {failure}")
        return outcome.simulations
