"""Which candidate posterior is taken, by ln q(θ | x) on simulations that none was trained on.

1. A denoiser learns from the simulations themselves. Where the autocorrelations of a vector tell much more than its
   columns, another one learns from these. Where a least-squares fit alone comes near to the better of them, it is a
   candidate, and another denoiser learns what that fit leaves.
2. For vectors, series, images and volumes, an emulator q(y | θ) is fitted. Prior × learned likelihood, normalised, is a
   posterior too: its samples are those of the denoiser moved by Markov chains. It is taken unless its mean held-out
   ln q is clearly lower.
3. Denoisers learn from draws of the emulator only where its likelihood cannot be used otherwise: of data that are
   summarised for it, or where nothing is to learn from the simulations themselves.

A density that is normalised too low would flatter: the held-out θ itself counts as one of the draws that normalise it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openedm.inference.autocorrelations import MAX_COLUMNS, MIN_COLUMNS
from openedm.inference.candidates import Job, least_squares, linear_base, train_on_draws, train_on_simulations
from openedm.inference.emulator import LearnedSimulator, learn_simulator
from openedm.inference.maps import explained_variance
from openedm.inference.prepare import Prepared, takes_all_columns
from openedm.inference.refine import evidence_near
from openedm.inference.settings import condition_noise
from openedm.inference.shortfall import Shortfall
from openedm.inference.trained import DenoiserPosterior, Parts
from openedm.networks import ConditionalEnsemble

__all__ = ["Verdict", "choose_posterior", "is_gain"]

T = TypeVar("T")

DIRECT = "simulations"
"""The name of the candidate that learns from the simulations themselves, and the beginning of that of another one."""

CORRELATED = f"{DIRECT}, autocorrelations"

LINEAR = f"{DIRECT}, least squares"

NEAR = 0.3
"""Nats a parameter within which a least-squares fit must come for a denoiser of what it leaves to be tried."""

TELLING, MAX_REGRESSED = 0.2, 20_000
"""The share of a parameter's variance, on average, that autocorrelations must explain beyond columns; of so many rows.

Of eleven problems one is tried, AR(1), where it is 0.65; next comes a line whose noise grows along it, 0.12.
"""

JUDGED_REFINED, JUDGING_PILOTS, JUDGING_SEED = 64, 64, 2**40 + 3
"""Chains of so many simulations are run, so many of each: they cost more than the flow's densities."""

JUDGING_DRAWS = 8
"""So many draws a pilot normalise a density: with fewer, ln ∫π errs by tenths of a nat."""


@dataclass(frozen=True)
class Verdict:
    """Which candidate was chosen, and why.

    Attributes:
        parts: those of the candidate, refined where that helps.
        chosen: its name, with how it is refined.
        simulator: the learned simulator; None without.
        log_probs: mean held-out ln q(θ | x) of each candidate, in nats.
        skipped: what was not tried, and why.
        gain: what refinement adds to that of the best; None where it was not tried.
        shortfall: what the chosen one loses for want of simulations.
        seconds: how long each stage took.
    """

    parts: Parts
    chosen: str
    simulator: LearnedSimulator | None
    log_probs: Mapping[str, float]
    skipped: Mapping[str, str]
    gain: float | None
    shortfall: Shortfall
    seconds: Mapping[str, float]


def choose_posterior(data: Prepared, job: Job) -> Verdict:
    """Train what can win, and take the best."""
    work = _Work(data, job)
    settings = data.settings
    if settings.compare:
        work.timed("simulations", work.train_directly)
    simulator = work.timed("emulator", work.try_to_emulate) if work.may_emulate() else None
    if simulator is not None and not work.can_refine(simulator):
        work.timed("draws", partial(work.train_on_draws, simulator))
    elif simulator is not None:
        work.skipped["denoisers of the emulator's draws"] = "its likelihood refines samples of the others"
    return work.timed_verdict(simulator)


class _Work:
    """The candidates so far, with their held-out densities."""

    def __init__(self, data: Prepared, job: Job) -> None:
        self.data, self.job = data, job
        self.rows = data.held_out[: data.settings.judged]
        self.posteriors: dict[str, DenoiserPosterior] = {}
        self.scores: dict[str, Float[Tensor, " judged"]] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """What the work returns; its time is kept."""
        started = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        return result

    def add(self, name: str, parts: Parts) -> None:
        """Judge a candidate."""
        posterior = DenoiserPosterior(parts, prior=self.data.prior, names=self.data.names)
        self.posteriors[name] = posterior
        self.scores[name] = _log_probs(posterior, self.data, self.rows)

    def train_directly(self) -> None:
        """On the simulations themselves."""
        data = self.data
        self.add(DIRECT, train_on_simulations(data, self.job, DIRECT, None))
        if tell_more(data):
            data = self.train_on_autocorrelations(with_autocorrelations(data))
        name = f"{DIRECT}, linear"
        if not data.data.vector or "linear" not in data.settings.bases:
            return
        y = data.data.forward(data.x)
        if len(data.training) <= 20 * y.shape[1]:
            self.skipped[name] = "fewer than 20 simulations a column"
            return
        u = data.u.float()
        base = linear_base(u[data.training], y[data.training], data.seed)
        with torch.no_grad():
            fitted = base.log_prob(u[self.rows], y[self.rows]) + data.parameters.log_det(data.theta[self.rows])
        lost = float(max(score.mean() for score in self.scores.values()) - fitted.mean())
        if lost > NEAR * u.shape[1]:
            self.skipped[name] = f"a least-squares fit alone is {lost:.2f} nats worse than the denoiser"
        else:
            self.add(LINEAR, least_squares(data, base))
            self.add(name, train_on_simulations(data, self.job, name, base))

    def train_on_autocorrelations(self, data: Prepared) -> Prepared:
        """On what describes the data as a series of noise; the simulations in the form that is the better one."""
        self.add(CORRELATED, train_on_simulations(data, self.job, CORRELATED, None))
        return data if self.scores[CORRELATED].mean() > self.scores[DIRECT].mean() else self.data

    def may_emulate(self) -> bool:
        """Whether an emulator is fitted; of data that are no vectors only where its likelihood can refine samples."""
        data = self.data
        if data.settings.emulator is None:
            return False
        if data.data.vector or data.refines:
            return True
        self.skipped["emulator"] = "without a prior of known density its likelihood cannot refine samples"
        return False

    def emulate(self) -> LearnedSimulator:
        """Fit an emulator."""
        return learn_simulator(self.data, partial(self.job.progress, "emulator"))

    def try_to_emulate(self) -> LearnedSimulator | None:
        """Fit an emulator; of data that are no vectors none, where these have no density that it could learn."""
        if self.data.data.vector:
            return self.emulate()
        try:
            return self.emulate()
        except FloatingPointError as error:
            self.skipped["emulator"] = f"{error}"
            return None

    def can_refine(self, simulator: LearnedSimulator) -> bool:
        """Whether the emulator's likelihood can refine samples of denoisers that did not learn from it."""
        return bool(self.posteriors) and self.data.refines and simulator.data.reduction is None

    def train_on_draws(self, simulator: LearnedSimulator) -> None:
        """On draws of the emulator, whitened in each of the ways."""
        if self.data.prior is None and self.posteriors:
            self.skipped["denoisers of the emulator's draws"] = "there is no prior"
            return
        for base in self.data.settings.bases:
            self.add(f"emulator, {base}", train_on_draws(simulator, base, self.data, self.job))

    def timed_verdict(self, simulator: LearnedSimulator | None) -> Verdict:
        """Compare all."""
        started, data = time.perf_counter(), self.data
        means = {name: float(score.mean()) for name, score in self.scores.items()}
        ranks = {name: mean if math.isfinite(mean) else -math.inf for name, mean in means.items()}
        chosen = max(ranks, key=lambda name: ranks[name])
        posterior, held_out, gain = self.posteriors[chosen], self.scores[chosen], None
        refined = None if simulator is None else self._refined(simulator, ranks)
        trained = _some_trained(data, self.rows)
        if refined is not None:
            log_probs = _refined_log_probs(refined, data, self.rows[:JUDGED_REFINED])
            gains = (log_probs - held_out[:JUDGED_REFINED]).tolist()
            gain = sum(gains) / len(gains)
            means["prior × learned likelihood"] = means[chosen] + gain  # of fewer simulations: the difference counts
            self.job.progress("judging", 0.5)
            if is_gain(gains):
                posterior, held_out, chosen = refined, log_probs, f"{self._start(simulator, ranks)}, refined"
        scored = _refined_log_probs if posterior.refined else _log_probs
        dim, count = data.theta.shape[1], len(data.theta)
        shortfall = Shortfall.of(scored(posterior, data, trained[: len(held_out)]), held_out, dim, count)
        parts = posterior.parts
        # For `repeated`, where the product of likelihoods may be better; not of summaries, which other candidates lack.
        if refined is not None and not posterior.refined and refined.parts.data.reduction is None:
            parts = replace(parts, emulator=refined.parts.emulator, target=refined.parts.target)
        self.job.progress("judging", 1.0)
        self.seconds["judging"] = round(time.perf_counter() - started, 1)
        return Verdict(parts, chosen, simulator, means, self.skipped, gain, shortfall, self.seconds)

    def _start(self, simulator: LearnedSimulator | None, ranks: Mapping[str, float]) -> str | None:
        """The best candidate among those whose samples the emulator can refine."""
        summarised = simulator is None or simulator.data.reduction is not None
        names = [name for name in ranks if not (summarised and name.startswith(DIRECT))]
        return max(names, key=lambda name: ranks[name], default=None)

    def _refined(self, simulator: LearnedSimulator, ranks: Mapping[str, float]) -> DenoiserPosterior | None:
        """Prior × learned likelihood, whose chains start from the best candidate."""
        start, refinement = self._start(simulator, ranks), self.data.settings.refinement
        if start is None or refinement is None or self.data.prior is None:
            return None
        parts = replace(
            self.posteriors[start].parts,
            emulator=simulator.density,
            target=simulator.target,
            refinement=refinement,
        )
        return DenoiserPosterior(parts, prior=self.data.prior, names=self.data.names)


def tell_more(data: Prepared) -> bool:
    """Whether regression on autocorrelations explains parameters much better than on the columns of a vector."""
    maps, rows = data.data, data.training[:MAX_REGRESSED]
    is_series = maps.vector and not maps.exchangeable and MIN_COLUMNS <= len(maps.keep) <= MAX_COLUMNS
    if not is_series or maps.reduction is not None or takes_all_columns(data.settings):
        return False
    x, u = data.x[rows], data.u[rows]
    of_columns, of_features = (explained_variance(form.forward(x), u) for form in (maps, maps.correlated(x)))
    return float((of_features - of_columns)[: u.shape[1]].mean()) > TELLING


def with_autocorrelations(data: Prepared) -> Prepared:
    """The same simulations, with autocorrelations for the columns of x; fewer numbers get less noise."""
    maps, settings = data.data.correlated(data.x[data.training]), data.settings
    network = settings.network
    if isinstance(network, ConditionalEnsemble):
        noise = min(network.condition_noise, condition_noise(maps.shape[0], len(data.theta)))
        settings = replace(settings, network=replace(network, condition_noise=noise))
    return replace(data, data=maps, settings=settings)


def _log_probs(posterior: DenoiserPosterior, data: Prepared, rows: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """ln q(θ | x) of some simulations, by the flow."""
    return posterior.log_prob(data.theta[rows, None], data.x[rows])[:, 0]


@torch.no_grad()
def _refined_log_probs(
    posterior: DenoiserPosterior, data: Prepared, rows: Int64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """ln of prior × learned likelihood, normalised, of some simulations."""
    theta, x, refinement = data.theta[rows], data.x[rows], posterior.parts.refinement
    assert refinement is not None
    few = replace(refinement, num_pilots=min(refinement.num_pilots, JUDGING_PILOTS))
    flow = posterior.refined_flow
    pilots, _ = flow.settled_pilots(x, few, JUDGING_SEED)
    u, values = data.parameters.forward(theta), []
    for i in range(len(rows)):
        target = flow.target(x[i : i + 1])
        draws = JUDGING_DRAWS * few.num_pilots
        total, _ = evidence_near(pilots[i], target.in_coordinates, seed=i, draws=draws, known=u[i])
        values.append(target.log_prob(theta[i : i + 1])[0] - total)
    return torch.stack(values)


def _some_trained(data: Prepared, held_out: Int64[Tensor, " judged"]) -> Int64[Tensor, " rows"]:
    """As many simulations that were trained on as are judged, from the same part of all."""
    last = int(held_out.max())
    rows = data.training[data.training <= last]
    rows = rows if len(rows) > len(held_out) else data.training
    return rows[torch.linspace(0, len(rows) - 1, min(len(held_out), len(rows))).long()]


def is_gain(gains: Sequence[float]) -> bool:
    """Whether refined samples are taken, by gains in held-out log-density, of which nine in ten must be finite.

    They are, unless their mean is below zero by more than its standard error: where the two cannot be told apart so,
    refined samples are mostly nearer to the posterior, and the mean is decided by a few simulations that they lose at.
    """
    values = torch.tensor([g for g in gains if math.isfinite(g)], dtype=torch.float64)
    if len(values) < max(1.0, 0.9 * len(gains)):
        return False
    return float(values.mean()) > -float(values.std(correction=0)) / math.sqrt(len(values))
