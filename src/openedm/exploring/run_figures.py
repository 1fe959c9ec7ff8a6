"""Figures of trained runs: samples, a walk between seeds, the denoised sample at every level, two runs on one noise."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from openedm.data.autoencoder import Codec
from openedm.denoiser import Condition, Denoiser
from openedm.exploring.problems import Budget
from openedm.exploring.state import State
from openedm.generation import CheckpointSampler, SamplingOptions
from openedm.guidance import ClassifierFree
from openedm.plots.arrays import event_grid
from openedm.plots.images import denoising_trajectory, sample_grid
from openedm.plots.sampling import Run, trajectories_2d
from openedm.plots.style import COLOURS, GREY, evenly, format_sigma, plain
from openedm.sampling import State as Step
from openedm.sampling import initial_noise
from openedm.training import Model, find_checkpoint, load_denoiser, read_model

__all__ = ["Runs", "figures_of_runs", "walk_noise"]

BATCH = 64
LEVELS_OF = 4
"""So many samples are shown at all levels."""


class Trained(NamedTuple):
    """A run that was opened.

    Attributes:
        path: as given.
        model: what its denoiser is.
        denoiser: in evaluation mode, on the device that there is.
        codec: decodes the samples of a model of latents; None for others.
    """

    path: str
    model: Model
    denoiser: Denoiser
    codec: Codec | None = None


class Runs:
    """The runs that a page may sample from, by name. Weights are loaded when they are first used.

    Args:
        paths: run or checkpoint folders by name.
        device: where denoisers are.

    Raises:
        ValueError: there is no checkpoint.
    """

    def __init__(self, paths: Mapping[str, str] = {}, device: torch.device | str = "cpu") -> None:
        self.paths, self.device = dict(paths), torch.device(device)
        self._folders = {name: find_checkpoint(path) for name, path in paths.items()}
        self._loaded: dict[str, Trained] = {}
        self.lock = threading.Lock()

    def name(self, name: str | None, option: str = "run", position: int = 0) -> str:
        """The name of a run; of the one at a position if none is given.

        Raises:
            ValueError: there is no such run.
        """
        names = list(self.paths)
        if not names:
            raise ValueError("run must be given on the command line: openedm explore RUN")
        if name is None:
            if position >= len(names):
                raise ValueError(f"{option} requires a second run on the command line: openedm explore RUN OTHER")
            return names[position]
        if name not in names:
            raise ValueError(f"{option} must be one of {', '.join(names)}, got {name!r}")
        return name

    def get(self, name: str) -> Trained:
        """A run, loaded."""
        if name not in self._loaded:
            folder: Path = self._folders[name]
            denoiser, model = load_denoiser(folder).to(self.device).eval(), read_model(folder)
            codec = None if model.autoencoder is None else model.autoencoder.load(device=self.device)
            self._loaded[name] = Trained(self.paths[name], model, denoiser, codec)
        return self._loaded[name]


class Drawn(NamedTuple):
    """Samples, and the states of their run if they were kept."""

    x: Float64[Tensor, "batch *event"]
    labels: Tensor | None
    steps: Sequence[Step] = ()


def _draw(
    state: State, run: Trained, seeds: Sequence[int], budget: Budget, *, noise: Tensor | None = None, keep: bool = False
) -> Drawn:
    """Samples of a run with the sampler, class and guidance of a state; the library refuses what does not fit."""
    options = SamplingOptions(nfe=None, sampler=state.sampler, guidance=state.guidance)
    if run.model.condition_shape is not None and not run.model.condition_dropout:
        raise ValueError(
            f"run {run.path} needs conditions of floats, which this page does not have: use openedm sample"
        )
    conditions = None if run.model.condition_shape is None else "none"
    source = CheckpointSampler(run.path, options, None if state.label is None else [state.label], conditions=conditions)
    denoiser = run.denoiser if state.guidance.is_one else ClassifierFree(run.denoiser, state.guidance)
    state.sampler.check(denoiser)
    labels = source.labels(seeds)
    steps: list[Step] = []
    parts: list[Tensor] = []
    hook = denoiser.register_forward_pre_hook(lambda *_: budget.spend())
    try:
        for start in range(0, len(seeds), BATCH):
            part = slice(start, start + BATCH)
            condition: Condition = None if labels is None else labels[part].to(denoiser_device(denoiser))
            rows = None if noise is None else noise[part]
            given = seeds[part] if noise is None or state.sampler.stochastic else None
            parts.append(
                state.sampler.sample(
                    denoiser, given, noise=rows, condition=condition, callback=steps.append if keep else None
                ).cpu()
            )
    finally:
        hook.remove()
    return Drawn(torch.cat(parts), labels, steps)


def denoiser_device(denoiser: Denoiser) -> torch.device:
    """Where the weights of a denoiser are."""
    return next((p.device for p in denoiser.parameters()), torch.device("cpu"))


def samples(state: State, runs: Runs, budget: Budget) -> Figure:
    """The samples of successive seeds."""
    run = runs.get(runs.name(state.run))
    drawn = _draw(state, run, _seeds(state), budget)
    return _grid(_shown(run, drawn.x), _titles(drawn.labels, run.model))


def other_samples(state: State, runs: Runs, budget: Budget) -> Figure:
    """The same of the other run."""
    return samples(replace(state, run=runs.name(state.against, "against", 1)), runs, budget)


def walk(state: State, runs: Runs, budget: Budget) -> Figure:
    """The samples of a walk from the noise of one seed to that of another, all of the class of the first."""
    run = runs.get(runs.name(state.run))
    noise = walk_noise(state.seed, state.seed_to, max(state.num, 2), run.model.event_shape)
    drawn = _draw(state, run, [state.seed] * len(noise), budget, noise=noise)
    titles = [f"seed {state.seed}", *[""] * (len(noise) - 2), f"seed {state.seed_to}"]
    return _grid(_shown(run, drawn.x), titles, columns=min(len(noise), 8))


def walk_noise(first: int, last: int, count: int, event_shape: Sequence[int]) -> Float64[Tensor, "count *event"]:
    """cos θ n₀ + sin θ n₁ with θ from 0 to π/2, which is unit noise at every θ: n₀ and n₁ are the noise of two seeds.

    Args:
        first: the seed of n₀.
        last: the seed of n₁.
        count: how many, both ends included; ≥ 2.
        event_shape: of a sample.
    """
    ends = initial_noise([first, last], tuple(event_shape)).double()
    angles = torch.linspace(0, math.pi / 2, count, dtype=torch.float64).reshape(-1, *[1] * len(event_shape))
    noise: Tensor = angles.cos() * ends[0] + angles.sin() * ends[1]
    return noise


def levels(state: State, runs: Runs, budget: Budget) -> Figure:
    """The noisy and the denoised samples of the first seeds at levels from the highest to the lowest."""
    run = runs.get(runs.name(state.run))
    drawn = _draw(state, run, _seeds(state)[:LEVELS_OF], budget, keep=True)
    denoiser, shape = run.denoiser, run.model.event_shape
    location = 0.0 if denoiser.location is None else denoiser.location.cpu()
    steps = [replace(step, x=step.x.cpu(), denoised=step.denoised.cpu()) for step in drawn.steps]
    if _is_image(shape) and run.codec is None:
        return denoising_trajectory(steps, columns=10, sigma_data=denoiser.sigma_data, location=location)
    if shape == (2,):
        return trajectories_2d({"samples": Run(state.sampler, steps)}, sigma_data=denoiser.sigma_data)
    shown = [steps[i] for i in evenly(len(steps), 8)]
    figure = _grid(_shown(run, torch.stack([step.denoised[0].double() for step in shown])), columns=4)
    for axes, step in zip(figure.axes, shown, strict=False):
        axes.set_title(f"σ = {format_sigma(step.sigma)}", fontsize=8)
    return figure


def compared(state: State, runs: Runs, budget: Budget) -> Figure:
    """How far the samples of two runs from the same noise are apart, seed by seed."""
    names = runs.name(state.run), runs.name(state.against, "against", 1)
    first, second = (_draw(state, runs.get(name), _seeds(state), budget).x for name in names)
    if first.shape != second.shape:
        shapes = tuple(first.shape[1:]), tuple(second.shape[1:])
        raise ValueError(f"run and against must have samples of one shape, got {shapes[0]} and {shapes[1]}")
    apart = (first - second).flatten(1).square().mean(1).sqrt()
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = plain(figure.subplots())
    axes.bar(range(state.seed, state.seed + len(apart)), apart.tolist(), color=COLOURS[0])
    axes.axhline(float(apart.mean()), color=GREY, linestyle="--", linewidth=1, label=f"mean {float(apart.mean()):.3g}")
    axes.set(xlabel="seed", ylabel="distance (rms, data units)", title=f"{names[0]} to {names[1]}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


Draw = Callable[[State, Runs, Budget], Figure]


def figures_of_runs(view: str) -> Mapping[str, tuple[str, Draw]]:
    """The figures of a view: a title, in which {run} and {against} stand for names, and the function that draws."""
    return {
        "samples": {"samples": ("Samples of {run}, one a seed", samples)},
        "walk": {"walk": ("{run}: a walk from the noise of one seed to that of another", walk)},
        "levels": {"levels": ("{run}: noisy and denoised at every level", levels)},
        "compare": {
            "samples": ("{run}", samples),
            "other_samples": ("{against}, on the same noise", other_samples),
            "compared": ("How far apart", compared),
        },
    }[view]


def _seeds(state: State) -> list[int]:
    return [(state.seed + i) % 2**32 for i in range(state.num)]


def _shown(run: Trained, x: Float64[Tensor, "batch *event"]) -> Float64[Tensor, "batch *shown"]:
    """Samples as they are shown: decoded, if they are latents."""
    return x if run.codec is None else run.codec.decode(x).double()


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3, 4)


def _titles(labels: Tensor | None, model: Model) -> list[str] | None:
    if labels is None:
        return None
    names = model.class_names
    return [str(label) if names is None else names[label][:12] for label in labels.tolist()]


def _grid(
    x: Float64[Tensor, "batch *event"], titles: Sequence[str] | None = None, columns: int | None = None
) -> Figure:
    """Samples of any shape: images, series, fields and volumes side by side; points of two numbers in a plane."""
    shape = x.shape[1:]
    if _is_image(shape):
        return sample_grid(x, columns, titles)
    if len(shape) > 1:
        return event_grid(x, columns)
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = plain(figure.subplots())
    if shape == (2,):
        axes.plot(*x.T.numpy(), "o", color=COLOURS[0], markersize=4)
        axes.set(xlabel="$x_1$ (data units)", ylabel="$x_2$ (data units)", aspect="equal")
    elif shape == (1,):
        axes.hist(x[:, 0].numpy(), bins=max(10, len(x) // 8), color=COLOURS[0])
        axes.set(xlabel="x (data units)", ylabel="samples")
    else:
        axes.plot(x.T.numpy(), color=COLOURS[0], linewidth=0.8, alpha=0.6)
        axes.set(xlabel="number of the entry", ylabel="x (data units)")
    return figure
