"""The options of training, without model and data: those of Karras et al. 2022, Table 7, and more."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from openedm.data import Dataset, measure
from openedm.data.autoencoder import Autoencoder
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.objective import ConsistencyTuning, Objective
from openedm.training.augmentation import LABEL_DIM, Augmentation
from openedm.training.averaging import HalfLife, PowerFunction
from openedm.training.model import Model

__all__ = ["Options", "check_compatibility", "warn_of_units"]

DATA, LEVELS, NOISE, DROPOUT, VALIDATION, ITEMS, AUGMENT = range(7)
"""Streams of random numbers. Every step derives its generators from the seed, the stream and its number, so that a run
has no random state to save."""

TAILS = (-3.5, -2.25, 2.25, 3.5)
"""Φ of these are the quantiles of p(σ) beyond the equally likely levels of the validation loss."""

MAX_BATCH, MAX_NOISES, MAX_SEED = 2**24, 1024, 2**63 - 1

OTHER_PLACE, OTHER_WIDTH = 5.0, 50.0
"""How many widths the mean of data is away, and the ratio of the widths, where they are in other units most likely."""
SHORT = 10
"""How many times longer than a run a ramp-up of the learning rate may be without a warning."""

NUM_COMPARED, FEW = 256, 8
"""The largest number of samples whose units are compared, and the number from which they have a width."""


@dataclass(frozen=True)
class Options(Choice):
    """The options of training. Lengths are numbers of images seen, so that they do not depend on the batch size.

    The defaults suit runs of minutes to hours; the paper has 200 million images, batch 512, ramp-up 10 million.

    Args:
        images: number of images to train on, rounded up to whole batches.
        batch_size: number of images in one optimiser step, over all processes and accumulation rounds.
        accumulate: number of rounds into which the part of a batch of each process is split, for less memory; the step
            is the same. None means the fewest that fit into the memory that is free before the first step.
        noises: number of noise levels at which each sample of a batch is trained on. More than one helps where data are
            few and the network embeds large conditions, which it then does once for all levels of a sample.
        learning_rate: Adam's, after the ramp-up; > 0.
        beta_1: Adam's β₁.
        beta_2: Adam's β₂.
        epsilon: Adam's ε.
        rampup: number of images over which the learning rate rises linearly at the start.
        schedule: the learning rate α(n) after the ramp-up, n images seen: "constant"; "cosine", which decreases to 0 at
            `images`; or "inverse_sqrt", α/√max(n/decay_after, 1), for weights of fixed magnitude (EDM2).
        decay_after: number of images after which an "inverse_sqrt" rate decreases, ≥ 1; None with the other schedules.
            EDM2's t_ref counts batches: 70,000 of 2048 are 143,360,000.
        weight_decay: each step shrinks the weights by this number times the learning rate (AdamW); 0 is plain Adam.
        average: the weight average for sampling.
        power_average: further averages, whose snapshots are written to the run folder, so that `openedm ema` can
            rebuild an average of any width after training; None for none.
        augmentation: transforms of the training images, whose parameters are labels of the network; None for none.
            Samples and the validation loss have no transforms.
        label_dropout: probability that a sample is trained without its condition (its class, its floats, or both
            together), for classifier-free guidance.
        clip_norm: gradients are scaled down to this norm; None leaves them unchanged.
        precision: "fp32"; "bf16" for automatic mixed precision (weights and optimiser stay fp32); or "auto", which
            times a pass of the network in both before the first step and takes bf16 where it is at least 1.1 times as
            fast and what the network adds to a denoised sample differs by at most 5 %. What was chosen is recorded in
            the run, and kept when it is resumed; of several processes the main one chooses.
        compile: compile the network with torch.compile; the first steps are slow.
        sharding: "none": each process has all weights, moments and averages. "fsdp": each process has a slice of them
            (FSDP2), for networks too large for one device. The steps are the same.
        seed: seed of the weights, the order of the data and all noise.
        validate_every: number of images between two measurements of the validation loss; 0 for never.
        validate_samples: largest number of samples for the validation loss.
        validate_levels: number of noise levels for the validation loss.
        validate_tails: whether the loss at four levels in the tails of p(σ), which is no part of the mean, is measured
            as well, for figures.
        keep_best: whether training returns, and checkpoints contain for sampling, the averaged weights with the lowest
            validation loss so far instead of the last ones.
        stop_after: number of consecutive measurements without a new lowest validation loss after which training ends; 0
            for never.
        checkpoint_every: number of images between two checkpoints; one is always written at the end.
        snapshot_every: number of images between two snapshots (sample grids); 0 for none.
        keep: number of checkpoints to keep; 0 keeps all.
        workers: number of processes that load data; 0 loads in the main process.
        patience: number of consecutive steps with a loss or gradient that is not finite after which training fails.
            Each such step is skipped and counted.

    Raises:
        ValueError: a value is out of its range.
    """

    images: int = 1_000_000
    batch_size: int = 128
    accumulate: int | None = None
    noises: int = 1
    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    rampup: int = 10_000
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    weight_decay: float = 0.0
    average: HalfLife = HalfLife(half_life=50_000.0)
    power_average: PowerFunction | None = None
    augmentation: Augmentation | None = None
    label_dropout: float = 0.0
    clip_norm: float | None = None
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    compile: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    seed: int = 0
    validate_every: int = 50_000
    validate_samples: int = 256
    validate_levels: int = 8
    validate_tails: bool = True
    keep_best: bool = False
    stop_after: int = 0
    checkpoint_every: int = 100_000
    snapshot_every: int = 50_000
    keep: int = 2
    workers: int = 0
    patience: int = 50
    decay_after: int | None = None

    def __post_init__(self) -> None:
        checks.size("batch_size", self.batch_size, high=MAX_BATCH)
        for name in ("images", "batch_size", "checkpoint_every", "patience"):
            checks.at_least(name, getattr(self, name), 1)
        if self.accumulate is not None:
            checks.at_least("accumulate", self.accumulate, 1)
        checks.integer("noises", self.noises, 1, MAX_NOISES)
        for name in ("validate_samples", "validate_levels"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("rampup", "seed", "validate_every", "snapshot_every", "keep", "workers", "stop_after"):
            checks.at_least(name, getattr(self, name), 0)
        checks.between("seed", self.seed, 0, MAX_SEED)
        checks.positive("learning_rate", self.learning_rate)
        checks.between("beta_1", self.beta_1, 0, 1 - 1e-9)
        checks.between("beta_2", self.beta_2, 0, 1 - 1e-9)
        checks.positive("epsilon", self.epsilon)
        checks.between("label_dropout", self.label_dropout, 0, 1)
        if self.clip_norm is not None:
            checks.positive("clip_norm", self.clip_norm)
        checks.one_of("precision", self.precision, ("fp32", "bf16", "auto"))
        checks.one_of("sharding", self.sharding, ("none", "fsdp"))
        if self.sharding == "fsdp" and self.precision == "auto":
            raise ValueError("precision must be fp32 or bf16 with sharding='fsdp', got 'auto', which times one process")
        if self.sharding == "fsdp" and self.compile:
            raise ValueError("compile must be false with sharding='fsdp', got True")
        checks.one_of("schedule", self.schedule, ("constant", "cosine", "inverse_sqrt"))
        if (self.schedule == "inverse_sqrt") != (self.decay_after is not None):
            rule = "a number of images" if self.decay_after is None else "None"
            raise ValueError(f"decay_after must be {rule} with schedule={self.schedule!r}, got {self.decay_after}")
        if self.decay_after is not None:
            checks.at_least("decay_after", self.decay_after, 1)
        checks.at_least("weight_decay", self.weight_decay, 0)
        checks.finite("weight_decay", self.weight_decay)
        if self.schedule == "cosine":
            checks.ordered("rampup", self.rampup, "images", self.images)
        for name in ("keep_best", "stop_after"):
            if getattr(self, name) and self.validate_every == 0:
                raise ValueError(f"validate_every must be > 0 with {name}={getattr(self, name)}, got 0")

    @property
    def rounds(self) -> int:
        """The number of rounds of a batch; 1 until it is chosen."""
        return 1 if self.accumulate is None else self.accumulate

    @property
    def augment_dim(self) -> int:
        """The width of the augmentation labels that the model must have."""
        return 0 if self.augmentation is None else LABEL_DIM

    @property
    def tracks_best(self) -> bool:
        """Whether the lowest validation loss has an effect on the run."""
        return self.keep_best or self.stop_after > 0

    @property
    def noisy_samples(self) -> int:
        """The number of noisy samples of a step."""
        return self.batch_size * self.noises

    @property
    def measured_levels(self) -> int:
        """The number of noise levels of a validation, tails included."""
        return self.validate_levels + (len(TAILS) if self.validate_tails else 0)

    def occasions(self, every: int, images_seen: int = 0) -> int:
        """How often a thing is due in the rest of a run without `stop_after`: at multiples of `every`, and at its end.

        Args:
            every: number of images between two occasions; 0 for none.
            images_seen: the images seen so far.
        """
        left = every and images_seen < self.images
        return math.ceil(self.images / every) - images_seen // every if left else 0

    def evaluations(self, samples: int, grid_evaluations: int, images_seen: int = 0) -> int:
        """The evaluations of a sample for validation losses and grids in the rest of a run without `stop_after`.

        Args:
            samples: the number of samples of the validation data.
            grid_evaluations: those of a grid.
            images_seen: the images seen so far.
        """
        validations = self.occasions(self.validate_every, images_seen)
        measured = validations * min(self.validate_samples, samples) * self.measured_levels
        return measured + self.occasions(self.snapshot_every, images_seen) * grid_evaluations

    def learning_rate_at(self, images_seen: int) -> float:
        """The learning rate of a step that brings the images seen to `images_seen`."""
        rate = self.learning_rate * min(images_seen / max(self.rampup, 1), 1.0)
        if self.decay_after is not None:
            return rate / math.sqrt(max(images_seen / self.decay_after, 1.0))
        if self.schedule == "constant":
            return rate
        fraction = min(max((images_seen - self.rampup) / (self.images - self.rampup), 0.0), 1.0)
        return rate * 0.5 * (1 + math.cos(math.pi * fraction))


def check_compatibility(
    model: Model, dataset: Dataset, validation: Dataset | None, objective: Objective, options: Options
) -> Model:
    """Check before any step that data, objective and options fit the model, and return what training makes of it.

    Raises:
        ValueError: shapes, classes or conditions differ; there is label dropout without a condition, or of the floats
        of a model without `condition_dropout`, or the reverse; there is augmentation
            of samples that are not images, or of a network without augmentation labels; or a tenth or more of the noise
            levels are outside the model's range.

    Warns:
        UserWarning: the data are in other units than those that the model was made for; or training ends in the first
            tenth of a ramp-up that is not the default.
    """
    for name, data in (("dataset", dataset), ("validation", validation)):
        if data is not None and data.event_shape != model.event_shape:
            raise ValueError(f"{name} must have samples of shape {model.event_shape}, got {data.event_shape}")
        if data is not None and model.num_classes and data.num_classes != model.num_classes:
            raise ValueError(f"{name} must have {model.num_classes} classes, got {data.num_classes}")
        if data is not None and model.condition_shape not in (None, data.condition_shape):
            raise ValueError(
                f"{name} must have conditions of shape {model.condition_shape}, got {data.condition_shape}"
            )
        if data is not None:
            _check_autoencoder(name, model.autoencoder, data)
            if name == "dataset" or data is not dataset:
                warn_of_units(name, model, data)
    _check_dropout(model, options)
    if SHORT * options.images <= options.rampup != Options.rampup:
        warnings.warn(
            f"options.rampup is {options.rampup:,} images, and options.images {options.images:,}: the learning rate "
            f"ends at {options.learning_rate_at(options.images):.3g} and never reaches {options.learning_rate:g}",
            stacklevel=3,
        )
    if options.augmentation is not None and model.autoencoder is not None:
        raise ValueError(
            f"augmentation must be None for latents, got {options.augmentation}: a transformed latent is not the "
            "latent of the transformed image; openedm data encode --mirror true encodes mirrored images, too"
        )
    if options.augmentation is not None and (len(model.event_shape) != 3 or min(model.event_shape[1:]) < 2):
        raise ValueError(f"augmentation must be None for samples of shape {model.event_shape}: it transforms images")
    if options.augmentation is not None and model.augment_dim != options.augment_dim:
        raise ValueError(
            f"model must have augment_dim={options.augment_dim} with augmentation, got {model.augment_dim}: "
            "Model.for_data(…, augment_dim=options.augment_dim)"
        )
    low, high = model.sigma_range
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    sigmas = objective.noise.for_data(model.sigma_data).quantile(quantiles)
    fraction_outside = float(((sigmas < low * (1 - 1e-9)) | (sigmas > high * (1 + 1e-9))).double().mean())
    if fraction_outside > 0.1:
        raise ValueError(
            f"objective: {fraction_outside:.0%} of the noise levels of {objective.noise} are outside "
            f"[{low:.4g}, {high:.4g}], the range of {model.preconditioning}: give both the same schedule or range"
        )
    if isinstance(objective, ConsistencyTuning):
        _check_consistency(model, objective, options)
    return model.trained_with(objective)


def warn_of_units(name: str, model: Model, data: Dataset) -> None:
    """Warn of data that cannot be in the units of those that a model was made for, such as °C for kelvin.

    Args:
        name: of the data in the message.
        model: the model.
        data: some samples of its shape.
    """
    if model.units is None or data.units is not None:
        return
    found, units = measure(data, NUM_COMPARED), model.units
    for i, (mean, std) in enumerate(zip(found.channel_means, found.channel_stds, strict=True)):
        location, scale = (own[i if len(own) > 1 else 0] for own in (units.location, units.scale))
        width = scale * model.sigma_data
        narrow = len(data) >= FEW and 0 < std < width / OTHER_WIDTH
        if abs(mean - location) > OTHER_PLACE * max(width, std) or std > OTHER_WIDTH * width or narrow:
            warnings.warn(
                f"{name} seems to be in other units than the data of the model: channel {i} is {mean:.6g} ± {std:.3g}, "
                f"and that of the model {location:.6g} ± {width:.3g}",
                stacklevel=4,
            )
            return


def _check_consistency(model: Model, objective: ConsistencyTuning, options: Options) -> None:
    if options.tracks_best:
        raise ValueError(
            f"keep_best must be False and stop_after 0 with ConsistencyTuning, got {options.keep_best} and "
            f"{options.stop_after}: its validation loss, how well neighbouring levels agree, does not rank models"
        )
    if options.compile:
        raise ValueError(
            "compile must be False with ConsistencyTuning, got True: both evaluations of a pair must have one dropout "
            "mask, and compiled ones, with and without gradient, have not"
        )
    if objective.guidance == 1:
        return
    if not model.num_classes and not model.condition_dropout:
        raise ValueError(
            "objective.guidance must be 1 for a model without classes, or floats trained with label_dropout, got "
            f"{objective.guidance}"
        )
    if options.augmentation is not None:
        raise ValueError(f"augmentation must be None with objective.guidance={objective.guidance}: give one of them")


def _check_autoencoder(name: str, own: Autoencoder | None, data: Dataset) -> None:
    """Refuse latents of another autoencoder than that of the model, wherever it is kept."""
    if own is None:
        return
    if data.autoencoder is None:
        raise ValueError(f"{name} must be latents of the autoencoder {own.path}, got {data.describe()}")
    if data.autoencoder != own:
        raise ValueError(f"{name} must be latents of the model's autoencoder, {own}, got those of {data.autoencoder}")


def _check_dropout(model: Model, options: Options) -> None:
    if options.label_dropout > 0 and model.num_classes == 0 and model.condition_shape is None:
        raise ValueError(f"label_dropout must be 0 without classes or conditions, got {options.label_dropout}")
    if model.condition_shape is not None and model.condition_dropout != (options.label_dropout > 0):
        raise ValueError(
            f"model must have condition_dropout={options.label_dropout > 0} with label_dropout="
            f"{options.label_dropout}, got {model.condition_dropout}: "
            "Model.for_data(…, condition_dropout=options.label_dropout > 0)"
        )
