"""The description of a denoiser, without its weights: the content of a checkpoint's `config.json`."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from openedm import preconditioning as preconditionings
from openedm.conditions import ConditionLayout
from openedm.data import Dataset, Statistics, Stored, as_dataset, measure
from openedm.data.autoencoder import Autoencoder
from openedm.data.statistics import measure_conditions
from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.choices import Choice, class_path, is_outside
from openedm.networks import DDPMpp, ModuleNetwork, Network, Signature
from openedm.networks.own import check_answer
from openedm.objective import Objective
from openedm.preconditioning import Preconditioning
from openedm.units import DIGITS, Units

__all__ = ["Model", "channels_last", "count_parameters", "num_parameters"]

SIGMA_DATA = 0.5
"""The standard deviation of data in standard units, for which EDM's numbers were chosen."""


MAX_NUMBERS = 2**30
"""The largest number of numbers in a sample or a condition."""

FAR_FROM_0 = 2.0
"""The distance of the mean of images from 0, in units of σ_data, above which they are standardised: published networks
are for images around 0, and for the darkest usual pictures, digits on black, it is 1.2."""

MANY_CLASSES = 32
"""So many classes or more, of more than half as many as samples, are a warning: labels that are numbers."""

NOT_AROUND_0 = 10.0
"""The same distance for other data, above which there is a warning where they shall not be standardised."""


@dataclass(frozen=True)
class Model(Choice):
    """The description of a denoiser, from which it can be built.

    Args:
        network: the architecture of F.
        preconditioning: how F becomes D.
        sigma_data: standard deviation of the training data, between 1e-15 and 1e15.
        event_shape: shape of one sample.
        num_classes: number of classes; 0 if unconditional.
        class_names: the names of the classes, if known.
        images: whether samples are images in [-1, 1].
        condition_shape: shape of the float condition of each sample, without its class; None if there is none.
        condition_dropout: whether training also leaves float conditions out (`options.label_dropout` > 0), so that the
            denoiser works without condition.
        augment_dim: width of the augmentation labels of the network in training; 0 for none.
        stored: the numbers and axes of the training data, in which samples are written; None for images of bytes, and
            for numbers that are used as they are.

        units: location and scale of the data, in which they have the standard deviation `sigma_data`; None for data
            without units of their own, such as images in [-1, 1].
        condition_units: those of the float conditions; None if there are none, or they are images in [-1, 1].
        condition_range: the lowest and the highest number in each channel of the float conditions of the training data;
            None if it is not known.
        noise_range: the lowest and the highest noise level that the network supports; None for those of the
            preconditioning, between which they must be.
        autoencoder: that which made the samples, latents, of images; its weights are not part of the model.
        consistency: whether the network was trained as a consistency function f(x; σ), which gives the end of a path of
            the ODE instead of the mean of the clean y.

    Raises:
        ValueError: a value is out of its range, the names do not fit the classes, units or a range do not fit their
            shape, or there is `condition_dropout` without a `condition_shape`.
    """

    network: Network = DDPMpp()
    preconditioning: Preconditioning = preconditionings.EDM()
    sigma_data: float = 0.5
    event_shape: tuple[int, ...] = (3, 32, 32)
    num_classes: int = 0
    class_names: tuple[str, ...] | None = None
    images: bool = True
    condition_shape: tuple[int, ...] | None = None
    augment_dim: int = 0
    condition_dropout: bool = False
    stored: Stored | None = None
    units: Units | None = None
    condition_units: Units | None = None
    condition_range: tuple[tuple[float, float], ...] | None = None
    noise_range: tuple[float, float] | None = None
    autoencoder: Autoencoder | None = None
    consistency: bool = False

    def __post_init__(self) -> None:
        checks.positive("sigma_data", self.sigma_data)
        checks.between("sigma_data", self.sigma_data, 1e-15, 1e15)  # squares stay far inside float32
        checks.size("num_classes", self.num_classes, 0)
        checks.size("augment_dim", self.augment_dim, 0)
        if not self.event_shape or min(self.event_shape) < 1:
            raise ValueError(f"event_shape must hold sizes >= 1, got {self.event_shape}")
        checks.size("the product of event_shape", math.prod(self.event_shape), high=MAX_NUMBERS)
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names must hold {self.num_classes} names, got {len(self.class_names)}")
        if self.condition_shape is not None:
            if not self.condition_shape or min(self.condition_shape) < 1:
                raise ValueError(f"condition_shape must hold sizes >= 1, got {self.condition_shape}")
            checks.size("the product of condition_shape", math.prod(self.condition_shape), high=MAX_NUMBERS)
        elif self.condition_dropout:
            raise ValueError("condition_dropout must be false without a condition_shape, got True")
        if self.units is not None:
            self.units.check("units", self.event_shape)
        if self.condition_units is not None:
            if self.condition_shape is None:
                raise ValueError(f"condition_units must be None without a condition_shape, got {self.condition_units}")
            self.condition_units.check("condition_units", self.condition_shape)
        if self.condition_range is not None:
            _check_range(self.condition_range, self.condition_shape)
        if self.autoencoder is not None and len(self.event_shape) != 3:
            raise ValueError(f"autoencoder must be None for samples of shape {self.event_shape}, which are no latents")
        low, high = self.sigma_range
        checks.ordered("noise_range[0]", low, "noise_range[1]", high)
        checks.at_least("noise_range[0]", low, self.preconditioning.sigma_min)
        checks.between("noise_range[1]", high, low, self.preconditioning.sigma_max)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest noise level that the denoiser supports."""
        own = self.preconditioning
        return (own.sigma_min, own.sigma_max) if self.noise_range is None else self.noise_range

    @property
    def condition_layout(self) -> ConditionLayout:
        """What a condition holds: classes, floats or both."""
        return ConditionLayout(self.num_classes, self.condition_shape)

    @classmethod
    def for_data(
        cls,
        dataset: Dataset,
        network: Network | nn.Module | Callable[..., nn.Module],
        preconditioning: Preconditioning | None = None,
        *,
        conditional: bool = True,
        augment_dim: int = 0,
        condition_dropout: bool = False,
        standardise: bool = True,
    ) -> "Model":
        """The description of a denoiser for `dataset`, with the shapes, classes, units and σ_data of the data.

        Data that come with units of their own, such as latents, are standardised by these. Images in [-1, 1] stay as
        they are, with their own σ_data, unless their mean is more than 2 σ_data from 0, as of
        dark pictures without contrast. All other data are standardised, each channel to mean 0 and EDM's σ_data of 0.5,
        and so are float conditions, each channel to mean 0 and a standard deviation of 1.

        Args:
            dataset: the training data, or what `openedm.data.as_dataset` takes.
            network: the architecture; or an `nn.Module` that is called as `network(x, c_noise, condition=None,
                augment=None)`, its class, or a function that makes one (`openedm.networks.ModuleNetwork`).
            preconditioning: EDM's by default.
            conditional: whether the denoiser is conditioned on the classes or conditions of the data, if there are any.
            augment_dim: width of the augmentation labels, `options.augment_dim`; 0 for training without them.
            condition_dropout: whether training also leaves conditions out, `options.label_dropout > 0`. It has an
                effect with float conditions only; networks with classes alone always take samples without class.
            standardise: whether such data, and conditions, are standardised; False for data that already are: they are
                then used as they are, with the σ_data that is measured.

        Raises:
            ValueError: the data are constant, or hold a value that is not finite; or `standardise` is False for data
                that come with units.

        Warns:
            UserWarning: a few values, or a number that stands for missing ones, decide how wide the data or conditions
                are (`Statistics.outliers`, `Statistics.markers`); `standardise` is False for data that are far from 0;
                or nearly each sample has a class of its own.
        """
        dataset = as_dataset(dataset)
        condition_shape = dataset.condition_shape if conditional else None
        num_classes = dataset.num_classes if conditional else 0
        if num_classes >= MANY_CLASSES and 2 * num_classes > len(dataset):
            warnings.warn(
                f"the labels of {len(dataset)} samples are {num_classes} classes, of which little is learned from one "
                "sample each: give numbers as conditions of floats (conditions in place of labels), or leave labels "
                "out (conditional=False, --conditional false)",
                stacklevel=2,
            )
        statistics, condition_units, condition_range = measure(dataset), None, None
        if condition_shape is not None:
            condition_units, condition_range = _measure_conditions(dataset, condition_shape, standardise=standardise)
        if statistics.std == 0:
            raise ValueError(
                f"the data are constant, {statistics.mean:g} in all {statistics.count} samples that were read: their "
                "standard deviation, sigma_data, must be > 0"
            )
        if dataset.units is not None:
            if not standardise:
                raise ValueError(f"standardise must be true for {dataset.describe()}, which come with their units")
        elif dataset.kind == "images":
            standardise = standardise and abs(statistics.mean) > FAR_FROM_0 * statistics.std
        elif standardise:
            _warn_of_width("data", statistics)
        elif abs(statistics.mean) > NOT_AROUND_0 * statistics.std:
            warnings.warn(
                f"standardise is false, but the data are not around 0, where samplers start: {statistics.mean:.6g} ± "
                f"{statistics.std:.3g}",
                stacklevel=2,
            )
        return cls(
            network=network,  # type: ignore[arg-type]  # a module is adopted
            preconditioning=preconditionings.EDM() if preconditioning is None else preconditioning,
            # Six digits: further ones depend on the number of threads, and a resumed run must compute the same number.
            sigma_data=SIGMA_DATA if standardise else float(f"{statistics.std:.6g}"),
            event_shape=dataset.event_shape,
            num_classes=num_classes,
            class_names=dataset.class_names if num_classes else None,
            images=dataset.kind == "images",
            condition_shape=condition_shape,
            augment_dim=augment_dim,
            condition_dropout=condition_dropout and condition_shape is not None,
            stored=dataset.stored,
            units=dataset.units or (_units(statistics) if standardise else None),
            condition_units=condition_units,
            condition_range=condition_range,
            autoencoder=dataset.autoencoder,
        )

    @property
    def standardised(self) -> bool:
        """Whether data or conditions are in units of their own."""
        return self.units is not None or self.condition_units is not None

    def build(self, seed: int | None = 0) -> Preconditioned:
        """A new denoiser; its weights are a function of `seed` alone.

        Raises:
            ValueError: the network cannot be built for these shapes, or does not support float conditions but has one.
        """
        # A network of one's own may define `build` without this argument.
        optional: dict[str, bool] = {"condition_dropout": True} if self.condition_dropout else {}
        network = self.network.build(
            self.event_shape,
            num_classes=self.num_classes,
            augment_dim=self.augment_dim,
            condition_shape=self.condition_shape,
            out_channels=self.event_shape[0] * self.preconditioning.outputs_per_channel,
            seed=seed,
            **optional,
        )
        denoiser = self.wrap(network)
        if isinstance(self.network, ModuleNetwork) or is_outside(class_path(type(self.network))):
            self._check_answer(denoiser)
        return denoiser

    def build_on(self, device: torch.device, seed: int | None = 0) -> Preconditioned:
        """A new denoiser as it is trained: on a device, with the weights of images with channels last.

        Errors as for `build`.
        """
        return channels_last(self.build(seed).to(device))

    def _check_answer(self, denoiser: Preconditioned) -> None:
        """Check what a network of the user's own returns, before any long work."""
        channels = self.event_shape[0] * self.preconditioning.outputs_per_channel
        signature = Signature(
            self.event_shape, channels, self.num_classes, self.augment_dim, self.condition_shape, self.condition_dropout
        )
        condition = None
        if denoiser.condition_shape is not None:
            condition = torch.zeros(2, *denoiser.condition_shape)
        elif denoiser.num_classes:
            condition = torch.zeros(2, dtype=torch.int64)
        name = getattr(self.network, "name", type(self.network).__name__)
        check_answer(denoiser.network, signature, condition, name=name)

    def wrap(self, network: nn.Module) -> Preconditioned:
        """A denoiser around an existing network."""
        denoiser = Preconditioned(
            network,
            self.preconditioning,
            self.sigma_data,
            event_shape=self.event_shape,
            num_classes=self.num_classes,
            condition_shape=self.condition_layout.packed_shape,
            condition_dropout=self.condition_dropout,
            units=self.units,
            condition_units=self.condition_units,
        )
        denoiser.sigma_min, denoiser.sigma_max = self.sigma_range
        denoiser.consistency = self.consistency
        return denoiser

    def trained_with(self, objective: Objective) -> "Model":
        """What training with an objective makes of this model: a denoiser or a consistency function."""
        return replace(self, consistency=objective.trains_consistency)


def _units(statistics: Statistics) -> Units:
    return Units.measured(statistics.channel_means, statistics.channel_stds, SIGMA_DATA)


def _warn_of_width(name: str, statistics: Statistics) -> None:
    """Warn where few values, or a number that stands for missing ones, decide how wide a channel is."""
    if statistics.markers:
        channel, value, share, low, high = statistics.markers[0]
        more = f", and so has channel {statistics.markers[1].channel}" if len(statistics.markers) > 1 else ""
        warnings.warn(
            f"the {name} have the number {value:g} in {share:.2g} of the entries of channel {channel}, and all others "
            f"are from {low:g} to {high:g}{more}: if it stands for missing values, put a number between the others in "
            "its place, such as their mean, because it decides how wide the channel is, and the others are learned "
            "poorly",
            stacklevel=4,
        )
    elif statistics.outliers:
        _warn_of_few(name, statistics)


def _warn_of_few(name: str, statistics: Statistics) -> None:
    channel = statistics.outliers[0]
    more = f", and in {len(statistics.outliers) - 1} more channels" if len(statistics.outliers) > 1 else ""
    warnings.warn(
        f"a few values decide how wide the {name} are, in channel {channel} with mean "
        f"{statistics.channel_means[channel]:g} and standard deviation {statistics.channel_stds[channel]:g}{more}: all "
        "others are close together in these units, and are learned poorly. Leave such values out, cut them, or take a "
        "logarithm",
        stacklevel=5,
    )


def _measure_conditions(
    dataset: Dataset, shape: tuple[int, ...], *, standardise: bool
) -> tuple[Units | None, tuple[tuple[float, float], ...] | None]:
    """The units of the float conditions, None for images in [-1, 1], which join those of the data; and their range."""
    statistics, largest = measure_conditions(dataset)
    pairs = list(zip(statistics.channel_lows, statistics.channel_highs, strict=True))
    if statistics.count > 1 and all(low == high for low, high in pairs):
        warnings.warn(
            f"the conditions are the same for all {statistics.count} samples that were read: they have no effect",
            stacklevel=3,
        )
    limits = tuple((float(f"{low:.{DIGITS}g}"), float(f"{high:.{DIGITS}g}")) for low, high in pairs)
    known = None if any(low > high for low, high in limits) else limits  # a channel without any number
    is_image = dataset.kind == "images" and len(shape) == len(dataset.event_shape) and largest <= 1
    if is_image or not standardise:
        return None, known
    _warn_of_width("conditions", statistics)
    return Units.measured(statistics.channel_means, statistics.channel_stds, 1.0), known


def _check_range(limits: tuple[tuple[float, float], ...], shape: tuple[int, ...] | None) -> None:
    if shape is None:
        raise ValueError(f"condition_range must be None without a condition_shape, got {limits}")
    if len(limits) != shape[0] or not all(math.isfinite(b - a) and a <= b for a, b in limits):
        raise ValueError(f"condition_range must hold {shape[0]} pairs of a lowest and a highest number, got {limits}")


def num_parameters(module: torch.nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_parameters(weights: Mapping[str, torch.Tensor]) -> int:
    """How many numbers were trained, without those of Fourier features; no network is built to count them.

    Features are known by their names: omega, with or without a phase beside it.
    """
    features = {name.removesuffix("omega") for name in weights if name.rpartition(".")[2] == "omega"}
    fixed = {prefix + name for prefix in features for name in ("omega", "phase")}
    return sum(tensor.numel() for name, tensor in weights.items() if name not in fixed)


def channels_last(denoiser: Preconditioned) -> Preconditioned:
    """The denoiser of images with its weights in the memory format in which they are fastest; others unchanged."""
    if len(denoiser.event_shape or ()) != 3:
        return denoiser
    return denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
