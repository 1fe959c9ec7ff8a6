"""EDM of GenSBI: with an MLP, and with its own transformer, Flux1, on standardised θ and x as its documents advise.

The rest is GenSBI's default, but for the number of steps: its learning rate follows a schedule of that many, so as many
are chosen as fit into the budget. Compiling, and the steps that are timed for the choice, do not count.
"""

import itertools
import math
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.inference.exchange import Array, Simulations, cpu_seconds
from flax import nnx
from gensbi.core import DiffusionEDMMethod
from gensbi.recipes import ConditionalPipeline, Flux1DiffusionPipeline

PACKAGES = ("gensbi", "jax", "flax", "numpy")

BATCH, VALIDATION = 256, 1000
"""Samples a step, and of the one batch that GenSBI validates with."""

TIMED = 61
"""Steps of the trial run."""

WIDTH, DEPTH, FREQUENCIES = 128, 4, 8


class MLP(nnx.Module):
    """A residual MLP of θ, x and c_noise with the interface that GenSBI asks of a model."""

    def __init__(self, dim: int, dim_x: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(dim + dim_x + 1 + 2 * FREQUENCIES, WIDTH, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH - 1)])
        self.last = nnx.Linear(WIDTH, dim, rngs=rngs)

    def __call__(self, t: jax.Array, obs: jax.Array, cond: jax.Array, **ignored: Any) -> jax.Array:
        """F, of shape (batch, dim, 1)."""
        batch = len(obs)
        time = jnp.broadcast_to(t.reshape(-1, 1), (batch, 1))
        waves = time * jnp.pi * 2.0 ** (jnp.arange(FREQUENCIES) - 3)
        cond = jnp.broadcast_to(cond, (batch, *cond.shape[1:]))
        inputs = (obs.reshape(batch, -1), cond.reshape(batch, -1), time, jnp.sin(waves), jnp.cos(waves))
        h = nnx.silu(self.first(jnp.concatenate(inputs, axis=1)))
        for layer in self.hidden:
            h = h + nnx.silu(layer(h))
        return self.last(h)[..., None]


class MLPPipeline(ConditionalPipeline):
    """GenSBI's pipeline with that MLP."""

    def __init__(
        self, training: Any, validation: Any, dim: int, dim_x: int, *, training_config: dict[str, Any]
    ) -> None:
        model = MLP(dim, dim_x, nnx.Rngs(42))
        super().__init__(model, training, validation, dim, dim_x, DiffusionEDMMethod(), training_config=training_config)


PIPELINES = {"gensbi": MLPPipeline, "gensbi-flux1": Flux1DiffusionPipeline}


class Batches:
    """Endless shuffled batches (θ, x), each of shape (batch, dim, 1), and when each was asked for.

    Attributes:
        asked: the CPU seconds at every step.
    """

    def __init__(self, theta: Array, x: Array, seed: int) -> None:
        self.theta, self.x, self.seed = theta, x, seed
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """An endless iterator."""
        normal = np.random.default_rng(self.seed)
        size = min(BATCH, len(self.theta))
        while True:
            order = normal.permutation(len(self.theta))
            for rows in itertools.batched(order[: len(order) // size * size], size):
                self.asked.append(cpu_seconds())
                index = np.asarray(rows)
                yield jnp.asarray(self.theta[index])[..., None], jnp.asarray(self.x[index])[..., None]

    def step_seconds(self) -> float:
        """The CPU seconds of a step: median over tens of steps, as calls return before their work is done."""
        ends = self.asked[10::10]
        return statistics.median((after - before) / 10 for before, after in itertools.pairwise(ends))


class Posterior:
    """A trained pipeline, and the scales of θ and x."""

    def __init__(self, pipeline: ConditionalPipeline, scales: tuple[Array, ...], notes: dict[str, Any]) -> None:
        self.pipeline = pipeline
        self.scales = scales
        self.notes = notes

    def sample(self, x: Array, n: int, seed: int) -> Array:
        """Samples (n, d)."""
        mean, std, mean_x, std_x = self.scales
        observed = jnp.asarray((x - mean_x) / std_x)
        found = self.pipeline.sample(jax.random.PRNGKey(seed), observed, nsamples=n, show_progress_bars=False)
        return np.asarray(found, np.float32)[..., 0] * std + mean


def train(method: str, given: Simulations, budget: float, seed: int) -> Posterior:
    """Train for the steps that fit into the budget, at most GenSBI's 50,000, or until it stops early."""
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(dir="."))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    scales = tuple(
        value.astype(np.float32)
        for values in (given.theta, given.x)
        for value in (values.mean(0), np.maximum(values.std(0), 1e-12))
    )
    theta, x = (given.theta - scales[0]) / scales[1], (given.x - scales[2]) / scales[3]
    held = min(VALIDATION, len(theta) // 10)

    def run(steps: int | None) -> tuple[ConditionalPipeline, Batches, int]:
        config = ConditionalPipeline.get_default_training_config()
        config["nsteps"] = steps or config["nsteps"]
        batches = Batches(theta[held:], x[held:], seed)
        validation = [(jnp.asarray(theta[:held])[..., None], jnp.asarray(x[:held])[..., None])]
        pipeline = PIPELINES[method](batches, validation, theta.shape[1], x.shape[1], training_config=config)
        pipeline.train(nnx.Rngs(seed), save_model=False)
        return pipeline, batches, config["nsteps"]

    begun = cpu_seconds()
    steps = None
    if math.isfinite(budget):
        trial = run(TIMED)[1]
        most: int = ConditionalPipeline.get_default_training_config()["nsteps"]
        steps = min(max(int(budget / trial.step_seconds()), 1), most)
    uncounted = cpu_seconds() - begun
    pipeline, batches, planned = run(steps)
    done = len(batches.asked)
    notes = {
        "stopped": "budget" if steps is not None and steps < 50_000 and done >= planned else "itself",
        "steps": done,
        "uncounted_cpu": uncounted,
    }
    return Posterior(pipeline, scales, notes)
