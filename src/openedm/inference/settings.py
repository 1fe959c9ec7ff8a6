"""How posteriors are fitted, and the rule that chooses it from the number of simulations and their shape."""

import math
from dataclasses import dataclass, field, replace

from openedm import objective
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.inference.absent import Kind
from openedm.inference.refine import Refinement
from openedm.networks import (
    ConditionalEnsemble,
    ConditionalMLP,
    ImageSummary,
    Network,
    SeriesSummary,
    SetSummary,
    Summary,
    VectorSummary,
)
from openedm.networks.placed import MAX_AXES
from openedm.networks.structured import PLACED, STRUCTURES
from openedm.objective import Objective
from openedm.training import HalfLife, Options

__all__ = ["CLOSE", "NOISE", "MixtureOptions", "Settings", "condition_noise", "has_places"]

NOISE = objective.EDM(noise=objective.LogNormal(p_mean=-0.6, p_std=1.6), stratified=True)
"""σ from 0.02 to 15 with σ_data = 1: from fine structure of posteriors to where D must equal E[θ | x]."""

FEWEST_OF_CURVE = 8
"""Columns that may be a curve."""

MOST_PLACED = 1024
"""Values of a series, an image or a volume whose likelihood is learned: of more, Markov chains would take long."""

CLOSE = 1.0
"""Nats within which a short trial does not decide: many Gaussians learn fast at first where few suffice in the end."""


@dataclass(frozen=True)
class MixtureOptions(Choice):
    """How a conditional mixture is fitted.

    Args:
        members: of the ensemble.
        components: numbers of Gaussians to try; where there are several, one member of each is trained for
            `pilot_steps`, those that come within `CLOSE` of the best for four times as many, at most `steps`, and the
            number with the highest held-out likelihood is taken. Only "full" and "independent" have more than one.
        structures: of the noise, of `openedm.networks.structured.STRUCTURES`, tried in the same way; "independent" only
            where the columns of x are exchangeable, "heavy" only where some have long tails, "stationary" only where
            they may be a process in its steady state, "placed" for series, images and volumes, and
            nothing else there, but "placed_heavy" where some channels have long tails.
        width, num_blocks: sizes of each member.
        larger: further pairs (width, num_blocks) to try, by one member each; those with the highest held-out likelihood
            are taken.
        larger_trials: whether structures of one component are tried with networks of these sizes too, where those learn
            a mean better: small networks that have not learned it prefer noise that hides what they miss.
        trend: whether a smooth part of the mean is also learned by kernel regression (`fit_trend`), and kept where the
            held-out likelihood of the rest, by one member, is higher by more than the standard error of that.
        steps: of Adam; the learning rate falls to zero as a half cosine.
        pilot_steps: of the trials.
        batch_size: rows a member and step.
        learning_rate: Adam's.
        folds: each member's held-out part is one of so many.
        validate_every: steps between two measurements of the held-out likelihood.
        stop_after: stop after so many of them without improvement of any member.

    Raises:
        ValueError: a count is out of its range.
    """

    members: int = 4
    components: tuple[int, ...] = (1, 8)
    structures: tuple[str, ...] = STRUCTURES
    curves: bool = False
    width: int = 64
    num_blocks: int = 2
    larger: tuple[tuple[int, int], ...] = ()
    larger_trials: bool = False
    trend: bool = False
    steps: int = 5000
    pilot_steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 2e-3
    folds: int = 10
    validate_every: int = 100
    stop_after: int = 12

    def __post_init__(self) -> None:
        for name in ("members", "width", "num_blocks", "steps", "pilot_steps", "batch_size", "validate_every"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("folds", self.folds, max(2, self.members))
        checks.at_least("stop_after", self.stop_after, 1)
        checks.positive("learning_rate", self.learning_rate)
        if not self.components or min(self.components) < 1:
            raise ValueError(f"components must hold counts >= 1, got {self.components}")
        if not self.structures:
            raise ValueError("structures must name at least one structure, got none")
        for i, size in enumerate(self.larger):
            checks.at_least(f"larger[{i}]", min(size), 1)
        for i, structure in enumerate(self.structures):
            checks.one_of(f"structures[{i}]", structure, STRUCTURES)

    @property
    def sizes(self) -> "tuple[MixtureOptions, ...]":
        """These options with each of the sizes, their own first."""
        return self, *(replace(self, width=width, num_blocks=blocks) for width, blocks in self.larger)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        warm = min(step / max(1, min(200, self.steps // 10)), 1.0)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))


@dataclass(frozen=True)
class Settings(Choice):
    """Everything that `fit` chooses. `Settings.of(n, dim, x_shape)` is the rule; it depends on nothing else.

    Args:
        network: F of denoisers that learn from the simulations themselves.
        drawn_network: F of denoisers that learn from draws of an emulator.
        objective: p(σ), λ(σ).
        members: denoisers that are trained, each from a seed of its own, and averaged.
        images: samples that the denoiser is trained on with an emulator, fresh draws all.
        passes: how often one without an emulator is trained on each simulation, at most; early stopping ends before.
        noises: at how many noise levels it is trained on a simulation each time. Batches have fewer simulations then.
        batch_size, learning_rate: of the denoisers' trainings, with a warm-up and a half cosine to zero. Without an
            emulator a batch is at most half of the simulations.
        weight_decay: AdamW's, where a denoiser learns from the simulations themselves.
        emulator: how the learned likelihood of vectors, series, images or volumes is fitted; None for none.
        pool: how many draws of the emulator are made.
        bases: what draws of the emulator are whitened by: "linear", a least-squares fit, "Gaussian", a conditional
            Gaussian learned by a network, or both in turn, and the better one is taken. With "linear" the simulations
            themselves are also tried in that form, besides as they are.
        base: how the latter is fitted: one member with one component.
        compare: whether denoisers trained on the simulations themselves are tried, too.
        refinement: the Markov chains that refine samples, where held-out simulations show that they help; None for
            none.
        held_out: share of the simulations that judges the candidates and stops trainings, between 0 and ½.
        reduce_above: vectors with more columns than this are summarised by least squares for the emulator; with more
            than 64 wherever its likelihood cannot refine samples, as without a prior.
        judged: how many of the held-out simulations the candidates' densities are compared on.
        screen: whether columns of a vector x are left out that are found to have to do neither with θ nor with columns
            that have (`unrelated`), where these are half of them or more.

    Raises:
        ValueError: a value is out of its range.
    """

    network: Network = ConditionalEnsemble()
    drawn_network: Network = ConditionalMLP()
    objective: Objective = NOISE
    members: int = 1
    images: int = 3_000_000
    passes: int = 100
    noises: int = 1
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    emulator: MixtureOptions | None = MixtureOptions()
    pool: int = 400_000
    bases: tuple[str, ...] = ("linear", "Gaussian")
    base: MixtureOptions = field(
        default=MixtureOptions(members=1, components=(1,), width=128, steps=2500, batch_size=512, folds=2)
    )
    compare: bool = True
    refinement: Refinement | None = Refinement(num_steps=25, max_steps=500, density_steps=True)
    held_out: float = 0.1
    reduce_above: int = MOST_PLACED
    judged: int = 128
    screen: bool = True

    def __post_init__(self) -> None:
        for name in ("members", "images", "passes", "noises", "batch_size", "pool", "reduce_above", "judged"):
            checks.integer(name, getattr(self, name), 1)
        checks.positive("learning_rate", self.learning_rate)
        checks.at_least("weight_decay", self.weight_decay, 0)
        checks.finite("weight_decay", self.weight_decay)
        for i, base in enumerate(self.bases):
            checks.one_of(f"bases[{i}]", base, ("linear", "Gaussian"))
        if (self.base.members, self.base.components) != (1, (1,)):
            raise ValueError(
                f"base must have one member and components=(1,): it is a single Gaussian, got members="
                f"{self.base.members} and components={self.base.components}"
            )
        if not self.bases:
            raise ValueError("bases must name at least one of 'linear' and 'Gaussian', got none")
        checks.between("held_out", self.held_out, 0.001, 0.5)
        if self.emulator is None and not self.compare:
            raise ValueError("compare must be True without an emulator: nothing would be trained")

    @classmethod
    def of(
        cls,
        simulations: int,
        dim: int,
        x_shape: tuple[int, ...],
        absent: Kind | None = None,
        embedding: Summary | None = None,
    ) -> "Settings":
        """The rule.

        * Data that are vectors get an emulator, of one or eight Gaussians (of one above 16 columns), of a width and
          number of blocks that trials choose: below 3000 simulations of 64 × 2 or 64 × 6, or 64 × 2 with a trend, below
          30,000 of 64 × 2 or 128 × 3, which kinds of noise may be tried with as well, else of 128 × 2 or 128 × 4. It
          takes 10,000 · √(n / 10,000) steps, half as many for up to two parameters, between 2000 and 25,000. Its factor
          is "full" only where that has at most a tenth as many entries as there are simulations, and 64 columns. Above
          1024 columns x is summarised.
        * Series, images and volumes of up to 1024 numbers, all of them finite, get an emulator whose mean and noise are
          functions of the place, of 1500 · √(n / 1000) steps, between 1000 and 10,000; other data get none.
        * Counts of 8 to 1024 columns, and others above 64, may be a curve, below 30,000 simulations.
        * Vectors get an ensemble of three denoisers of width 64, from 3000 simulations on 96 and from 30,000 on 128, of
          3000 · √(n / 1000) steps, between 2000 and 20,000, with half of the simulations in a batch, 512 at most. Up to
          3000 simulations a tenth of the hidden numbers is dropped, up to 30,000 a twentieth. The noise on x is, at
          1000 simulations, 0.005 standard deviations a column, 0.1 at most, and falls as 1/√n: few columns stay exact.
        * Denoisers of draws of the emulator, where they are trained, have width 96 and a million samples for up to two
          parameters, else 128 and 3 million (1000 a simulation at most), 1.6 times as many from 30,000 simulations on.
        * Other data make 100 · √(1000 / n) passes, 60 · √(1000 / n) where x has more than 100 numbers, 20 to 200, with
          eight noise levels each time, for which x is embedded once. The noise on x is, at 1000 simulations, 0.005
          standard deviations a number of x, 0.3 at most, and falls as 1/√n.
        * Matrices are series (channels, time), or sets (members, features) where members are absent; arrays with three
          axes are images.
        * With an embedding of the user's, all data are treated as those other data are, with that embedding.
        * At least 100 and at most 2000 simulations are held out, a tenth if that is between the two.

        Args:
            simulations: how many there are.
            dim: number of parameters.
            x_shape: shape of one observation.
            absent: what NaN in the data mark, "members" of sets or "values" of series; None where there are no NaN.
            embedding: the user's network that summarises an observation; None for that of the rule.
        """
        enough, many = simulations >= 3000, simulations >= 30_000
        held = min(max(simulations / 10, 100), 2000) / max(simulations, 1)
        samples = 1_000_000 if dim <= 2 else min(3_000_000, 1000 * simulations)
        steps = round(min(max((5000 if dim <= 2 else 10_000) * (simulations / 10_000) ** 0.5, 2000), 25_000))
        columns = min(x_shape[0], 64)
        every = STRUCTURES if columns * (columns + 1) <= simulations / 5 else STRUCTURES[1:]
        emulator = MixtureOptions(
            pilot_steps=500 if simulations <= 3000 else 1000,
            components=(1, 8) if x_shape[0] <= 16 else (1,),
            structures=every,
            width=128 if many else 64,
            larger=(((128, 4) if many else (128, 3)) if enough else (64, 6),),
            larger_trials=enough,
            trend=not enough,
            curves=FEWEST_OF_CURVE <= x_shape[0] <= MOST_PLACED and not many,
            steps=steps,
            batch_size=512 if many else 256,
            folds=min(10, max(4, round(simulations * (1 - min(held, 0.5))) // 10)),
        )
        if len(x_shape) > 1:
            placed = min(max(1500 * (simulations / 1000) ** 0.5, 1000), 10_000)
            emulator = replace(
                emulator,
                structures=PLACED,
                components=(1,),
                larger=(),
                larger_trials=False,
                trend=False,
                curves=True,
                steps=round(placed),
            )
        network, passes, noises = _direct(simulations, dim, x_shape, absent, embedding)
        return cls(
            network=network,
            drawn_network=ConditionalMLP(width=96 if dim <= 2 else 128),
            bases=("Gaussian",) if dim <= 2 else ("linear", "Gaussian"),
            passes=passes,
            noises=noises,
            images=round(max(samples, 100_000) * (1.6 if many else 1.0)),
            emulator=emulator if embedding is None and (len(x_shape) == 1 or has_places(x_shape, absent)) else None,
            held_out=min(held, 0.5),
        )

    def check_emulator(self, shape: tuple[int, ...], absent: Kind | None) -> None:
        """Raise ValueError unless the emulator can model data of this shape, which are no vectors.

        Args:
            shape: of one observation.
            absent: what NaN in the data mark; None where there are no NaN.
        """
        if self.emulator is None:
            return
        if not has_places(shape, absent):
            what = f"x of shape {shape}" if absent is None else f"x with absent {absent}"
            raise ValueError(f"settings.emulator must be None for {what}: it needs vectors, series, images or volumes")
        if "placed" not in (known := self.emulator.structures):
            raise ValueError(f"settings.emulator.structures must hold 'placed' for x of shape {shape}, got {known}")
        if not self.compare:
            raise ValueError(f"settings.compare must be True for x of shape {shape}: samples start from a denoiser")

    def options(self, images: int, rows: int, *, seed: int, stop_after: int, samples: int) -> Options:
        """The trainer's options. A batch has at most half of the rows, but 64 at least.

        Args:
            images: how many samples to train on.
            rows: how many different ones there are.
            seed: of the training.
            stop_after: measurements of the validation loss without improvement that end it; 0 for never.
            samples: held-out samples that it is measured on.
        """
        noises = self.noises if stop_after else 1
        batch_size = min(self.batch_size, max(64, rows // 2)) if noises == 1 else max(8, self.batch_size // noises)
        return Options(
            images=images,
            batch_size=batch_size,
            noises=noises,
            learning_rate=self.learning_rate,
            beta_2=0.99,
            rampup=min(100_000, images // 10),
            average=HalfLife(half_life=min(100_000.0, images / 25) if stop_after else 100_000.0),
            schedule="cosine",
            weight_decay=self.weight_decay if stop_after else 0.0,
            clip_norm=5.0,
            seed=seed,
            validate_every=max(batch_size * (50 if noises == 1 else 8), images // 40 // batch_size * batch_size),
            validate_samples=samples if noises == 1 else min(samples, 500),
            validate_levels=16 if noises == 1 else 8,  # each embeds every condition
            validate_tails=False,
            keep_best=True,
            stop_after=stop_after,
            checkpoint_every=images,
            snapshot_every=0,
            keep=1,
        )


def has_places(shape: tuple[int, ...], absent: Kind | None) -> bool:
    """Whether an emulator of series, images and volumes may be fitted to data of this shape."""
    return 2 <= len(shape) <= 1 + MAX_AXES and absent is None and math.prod(shape) <= MOST_PLACED


def condition_noise(columns: int, simulations: int) -> float:
    """The rule's noise on the data of a vector's network, in standard deviations of a column."""
    return min(min(0.005 * columns, 0.1) * math.sqrt(1000 / simulations), 0.2)


def _direct(
    simulations: int, dim: int, x_shape: tuple[int, ...], absent: Kind | None, embedding: Summary | None
) -> tuple[Network, int, int]:
    """The network of a denoiser that learns from the simulations, its passes, and noise levels each time."""
    n = max(simulations, 1)
    if len(x_shape) == 1 and embedding is None:
        width, dropout = (64, 0.1) if n < 3000 else (96, 0.05) if n < 30_000 else (128, 0.0)
        noise = condition_noise(x_shape[0], n)
        steps = min(max(3000 * math.sqrt(n / 1000), 2000), 20_000)
        batch = min(512, max(64, n // 2))
        return ConditionalEnsemble(width=width, dropout=dropout, condition_noise=noise), round(steps * batch / n), 1
    matrix = SetSummary() if absent == "members" else SeriesSummary()
    kinds: dict[int, Summary] = {2: matrix, 3: ImageSummary()}
    numbers = math.prod(x_shape)
    passes = (60 if numbers > 100 else 100) * math.sqrt(1000 / n)
    noise = min(min(0.005 * numbers, 0.3) * math.sqrt(1000 / n), 0.3)
    summary = kinds.get(len(x_shape), VectorSummary()) if embedding is None else embedding
    network = ConditionalMLP(width=96 if dim <= 2 else 128, summary=summary, condition_noise=noise)
    return network, round(min(max(passes, 20), 200)), 8
