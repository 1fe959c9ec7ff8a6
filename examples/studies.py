"""What the two examples of simulation-based inference share: their budget, their evidence, their figures.

The evidence that a posterior is right at the observation is a Markov chain on the exact likelihood, which `fit` has not
seen: differential evolution (ter Braak 2006) in the prior's unbounded coordinates, started from the prior alone.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from openedm.inference import DenoiserPosterior, Refinement, Settings, calibrate, fit, load, predictive_check, simulate
from openedm.inference.tasks import Task
from openedm.metrics.c2st import c2st
from openedm.plots import calibration_plot, pair_plot, posterior_trajectories, predictive_plot, save_figure


@dataclass(frozen=True)
class Budget:
    """How much is computed.

    Args:
        simulations: that the posterior is fitted to.
        settings: of `fit`; None means its rule.
        samples: of the posterior.
        fresh: simulations that calibration is tested on.
        ranked: posterior samples for each of them.
        walkers, steps, burn_in: of the Markov chain on the exact likelihood.
    """

    simulations: int = 20_000
    settings: Settings | None = None
    samples: int = 10_000
    fresh: int = 500
    ranked: int = 200
    walkers: int = 1000
    steps: int = 800
    burn_in: int = 300

    @classmethod
    def quick(cls, dim: int, x_shape: tuple[int, ...]) -> "Budget":
        """Seconds, to see that all runs; its numbers mean nothing."""
        settings = Settings.of(500, dim, x_shape)
        assert settings.emulator is not None
        few = replace(settings.emulator, members=1, components=(1,), steps=30, folds=2)
        base = replace(settings.base, steps=30)
        chains = Refinement(num_steps=3, num_pilots=32, max_steps=6)
        settings = replace(settings, emulator=few, base=base, refinement=chains, images=5_000, passes=5)
        settings = replace(settings, pool=2_000, judged=5)
        return cls(500, settings, samples=300, fresh=20, ranked=20, walkers=50, steps=20, burn_in=5)


def arguments(description: str, given: Sequence[str] | None) -> argparse.Namespace:
    """--out, --posterior, --simulations, --seed, --quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and numbers")
    parser.add_argument("--posterior", type=Path, help="draw from OUT/posterior of an earlier run, and fit nothing")
    parser.add_argument("--simulations", type=int, default=Budget.simulations, help="that the posterior is fitted to")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, and numbers without meaning")
    options = parser.parse_args(given)
    if options.posterior is None and (options.out / "posterior").exists():
        parser.error(f"--out must not hold a posterior: draw from it by --posterior {options.out}/posterior")
    if options.posterior is not None and not options.posterior.is_dir():
        parser.error(f"--posterior must name a folder that an earlier run wrote, got {options.posterior}")
    return options


def fitted(task: Task, budget: Budget, options: argparse.Namespace) -> DenoiserPosterior:
    """The posterior of an earlier run, or a new one, which is saved in OUT/posterior."""
    if options.posterior is not None:
        found = load(options.posterior)
        assert isinstance(found, DenoiserPosterior)
        return found
    say(f"{budget.simulations} simulations, and the fit …")
    simulations = simulate(task.simulate, task.prior, budget.simulations, batched=True, seed=options.seed)
    posterior = fit(simulations.theta, simulations.x, task.prior, seed=options.seed, settings=budget.settings)
    posterior.save(options.out / "posterior")
    return posterior


def evidence(
    posterior: DenoiserPosterior,
    task: Task,
    observed: Tensor,
    budget: Budget,
    out: Path,
    labels: Sequence[str],
    predictions: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict]],
    seed: int = 0,
) -> dict:
    """Draw all figures into `out`, write summary.json and table.md there, and return the summary.

    Args:
        posterior: of the task.
        task: prior, simulator and likelihood.
        observed: (*x_shape).
        budget: how much is computed.
        out: folder.
        labels: of the parameters in figures.
        predictions: from the observation and draws (n, *x_shape) to the arguments of `predictive_plot`.
        seed: of everything.
    """
    out.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    samples = posterior.sample(observed, budget.samples, seed=seed)
    sampling = perf_counter() - started
    say(f"chosen: {posterior.report['chosen']}; seconds: {posterior.report['seconds']}")
    say(f"{budget.samples} samples in {sampling:.1f} s; a Markov chain on the exact likelihood …")
    started = perf_counter()
    chain = markov_chain(task, observed, budget, seed)
    walking = perf_counter() - started
    exact = chain.flatten(0, 1)
    chosen = torch.randperm(len(exact), generator=torch.Generator().manual_seed(seed))[: len(samples)]
    exact = exact[chosen]
    before = task.prior.sample(10 * len(samples), seed)
    save(pair_plot({"openedm": samples, "MCMC": exact}, labels, prior=before), out / "pairs.png")

    say("new data from the posterior, and calibration on fresh simulations …")
    check = predictive_check(posterior, task.simulate, observed, num_draws=4000, seed=seed + 1)
    seen, draws, how = predictions(observed, torch.from_numpy(check.draws))
    save(predictive_plot(seen, draws, **how), out / "predictive.png")

    fresh = simulate(task.simulate, task.prior, budget.fresh, batched=True, seed=seed + 1)
    started = perf_counter()
    calibration = calibrate(posterior, fresh.theta, fresh.x, num_samples=budget.ranked, seed=seed)
    calibrating = perf_counter() - started
    save(calibration_plot(calibration.sbc, calibration.tarp, names=labels), out / "calibration.png")
    save(trajectories(posterior, observed, labels), out / "trajectories.png")

    numbers = [torch.stack([s.mean(0), s.std(0)]) for s in (samples, exact)]
    columns = ("mean", "std", "mcmc_mean", "mcmc_std")
    rows = [
        {"name": name, **dict(zip(columns, values, strict=True))}
        for name, values in zip(posterior.names, torch.cat(numbers).T.tolist(), strict=True)
    ]
    verdict = posterior.verdict(observed, simulator=task.simulate)
    few = min(5000, len(samples), len(exact))
    summary = {
        "report": posterior.report,
        "parameters": rows,
        "verdict": str(verdict),
        "c2st": c2st(samples[:few], exact[:few]),
        "mcmc_r_hat": r_hat(chain),
        "predictive_tails_outside_95": float((check.p_values < 0.05).mean()),
        "sbc_p_values": dict(zip(posterior.names, calibration.sbc_p_values.tolist(), strict=True)),
        "tarp_p_value": calibration.tarp_p_value,
        "seconds": {"sampling": sampling, "mcmc": walking, "calibration": calibrating},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    (out / "table.md").write_text(table(rows))
    say(table(rows))
    say(f"C2ST against the Markov chain {summary['c2st']:.3f} (0.5 is perfect), its R̂ {summary['mcmc_r_hat']:.3f}")
    say(calibration.summary())
    say(f"verdict on the observation: {verdict}")
    return summary


def markov_chain(task: Task, observed: Tensor, budget: Budget, seed: int = 0) -> Tensor:
    """Samples of p(θ | x) by the exact likelihood, (steps − burn_in, walkers, d)."""
    generator = torch.Generator().manual_seed(seed)
    bijection, half = task.prior.bijection, budget.walkers // 2

    def target(z: Tensor) -> Tensor:
        theta = bijection.inverse(z)
        found = task.log_likelihood(theta, observed) + task.prior.log_prob(theta) - bijection.log_det(theta)
        return found.nan_to_num(-math.inf)

    z = bijection.forward(task.prior.sample(50 * budget.walkers, seed).double())
    value = torch.cat([target(part) for part in z.split(5000)])
    best = value.topk(2 * half).indices[torch.randperm(2 * half, generator=generator)]
    halves = [[z[rows], value[rows]] for rows in best.split(half)]
    kept = []
    for step in range(budget.steps):
        # Each half moves along differences within the other one.
        for mine, others in ((0, 1), (1, 0)):
            (z, value), partners = halves[mine], halves[others][0]
            first, second = (torch.randint(half, (half,), generator=generator) for _ in range(2))
            factor = 1.0 if step % 10 == 9 else 2.38 / math.sqrt(2 * task.dim)
            factors = factor * (0.2 + 0.8 * torch.rand(half, 1, generator=generator, dtype=z.dtype)) ** (step % 10 != 9)
            noise = 1e-4 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
            moved = z + factors * (partners[first] - partners[second]) + noise
            theirs = target(moved)
            accepted = torch.rand(half, generator=generator, dtype=z.dtype).log() < theirs - value
            halves[mine] = [torch.where(accepted[:, None], moved, z), torch.where(accepted, theirs, value)]
        if step < budget.burn_in // 2 and step % 20 == 19:
            halves = [_gathered(z, value, task.dim, generator) for z, value in halves]
        if step >= budget.burn_in:
            kept.append(bijection.inverse(torch.cat([z for z, _ in halves])))
    return torch.stack(kept).float()


def _gathered(z: Tensor, value: Tensor, dim: int, generator: torch.Generator) -> list[Tensor]:
    """Walkers in places without mass, 3 d nats below the best, moved onto others."""
    good = (value > value.max() - 3 * dim).nonzero()[:, 0]
    drawn = good[torch.randint(len(good), (len(z),), generator=generator)]
    rows = torch.where(value > value.max() - 3 * dim, torch.arange(len(z)), drawn)
    return [z[rows], value[rows]]


def r_hat(chain: Tensor) -> float:
    """The largest split-R̂ of the parameters (Gelman et al. 2013): near 1 where walkers agree."""
    length = len(chain) // 2
    parts = torch.cat([chain[:length], chain[-length:]], 1).double()
    within, between = parts.var(0).mean(0), parts.mean(0).var(0)
    return float(((length - 1) / length + between / within).sqrt().max())


def trajectories(posterior: DenoiserPosterior, observed: Tensor, labels: Sequence[str]) -> Figure:
    """Samples on their way from noise, in the coordinates that the denoiser works in."""
    denoiser = posterior.parts.denoiser
    condition = posterior.parts.data.forward(observed[None])
    states = list(posterior.sampler.choose(denoiser).steps(denoiser, seeds=range(400), condition=condition))
    names = labels if posterior.parts.base is None else [f"{label}, whitened" for label in labels]
    return posterior_trajectories(states, names)


def save(figure: Figure, path: Path) -> None:
    """A PNG of 48 colours, a third of the size."""
    save_figure(figure, path)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(48, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def table(rows: Sequence[dict]) -> str:
    """Means and standard deviations side by side, in Markdown."""
    lines = [
        "| | openedm | exact likelihood | difference of means / std | ratio of stds |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        off, ratio = (r["mean"] - r["mcmc_mean"]) / r["mcmc_std"], r["std"] / r["mcmc_std"]
        pairs = [f"{r[a]:.3g} ± {r[b]:.2g}" for a, b in (("mean", "std"), ("mcmc_mean", "mcmc_std"))]
        lines.append(f"| {r['name']} | {pairs[0]} | {pairs[1]} | {off:+.2f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, flush=True)
