"""Denoisers: D(x; σ, condition) estimates the clean y from x = y + σ S n. All rooms use this one interface.

S, the denoiser's `scale`, is one number a channel, so that σ means the same in each; 1 unless data have units of their
own. The score is ∇ₓ log p(x; σ) = (D(x; σ) − x)/(σS)²  (Karras et al. 2022, eq. 3).
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from openedm.conditions import ConditionLayout
from openedm.ground import checks
from openedm.ground.devices import device_of, float64_on
from openedm.ground.tensors import all_finite, count_not_finite
from openedm.preconditioning import Preconditioning
from openedm.schedules import Values, float64
from openedm.units import Units, from_standard, like, to_standard

__all__ = ["Condition", "Denoiser", "FunctionDenoiser", "Preconditioned", "configure_execution", "per_sample"]

Condition = Shaped[Tensor, "conditions *features"] | None
"""What a denoiser is conditioned on, one row a sample: integer class labels (−1 for none), one-hot rows or floats; with
classes and floats, those of `openedm.conditions.pack`. A denoiser with a `condition_shape` takes a single row for all
samples, too."""


class Denoiser(nn.Module, ABC):
    """Base class of all denoisers. A subclass defines `denoise`; callers use `denoiser(x, sigma, condition)`.

    Attributes:
        sigma_min: lowest noise level it supports, in data units.
        sigma_max: highest noise level it supports.
        event_shape: the shape of one sample; None if any.
        num_classes: the number of classes it can be conditioned on; 0 if none.
        condition_shape: the shape of the floats that it must be conditioned on; with classes too, the shape of a packed
            condition (`openedm.conditions`); None if there are none.
        condition_dropout: whether it was trained without condition, too, so that None means no condition and a row of
            NaN none for a sample; for denoisers with a `condition_shape`.
        sigma_data: standard deviation of the data, which sets the scale of noise levels; EDM's 0.5 where it is unknown.
        rows: the number of samples for which it has individual settings, such as guidance weights; None if it has none.
        location: the centre of the data's units, in a shape that broadcasts against a sample; None means 0.
        scale: S, likewise; None means 1. Noise levels, σ_data and the range of the denoiser are in units of it.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5
    rows: int | None = None
    event_shape: tuple[int, ...] | None = None
    num_classes: int = 0
    condition_shape: tuple[int, ...] | None = None
    condition_dropout: bool = False
    location: Tensor | None = None
    scale: Tensor | None = None

    @property
    def condition_layout(self) -> ConditionLayout:
        """What a condition holds: classes, floats or both."""
        return ConditionLayout.from_packed(self.num_classes, self.condition_shape)

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float[Tensor, "rows *event_or_ones"] | None:
        """Where its data are, from which samplers start: one row, or one for each row of the condition.

        Here the `location`; None means 0, as for published networks, whose samples start from noise around 0.

        Args:
            sigma_max: the noise level at which a run starts.
            condition: one row a sample, or None.
            event_shape: the shape of one sample, for a denoiser of any shape.
        """
        return None if self.location is None else self.location[None]

    def round_sigma(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """The nearest noise level that the denoiser supports; σ itself unless it was trained at discrete levels."""
        return float64(sigma)

    @abstractmethod
    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """D(x; σ, condition), in the dtype of x; σ of shape () or (batch,)."""

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Values,
        condition: Condition = None,
        *,
        standard: bool = False,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """The denoised x, an estimate of E[y | x].

        Args:
            x: noisy samples y + σ S n, in data units.
            sigma: noise level, in units of S: a number, a tensor of shape () or one value a sample.
            condition: one row a sample, or None. With a `condition_shape`, (batch or 1, *condition_shape): a single row
                is that of all samples, and None is allowed with `condition_dropout` only.
            standard: whether x is given, and D returned, in standard units: (D(m + S x; σ) − m)/S with m the location,
                as in training; the condition is in its own units all the same.
            options: passed on to `denoise`; networks take `augment`, the augmentation label, in training.

        Raises:
            TypeError: x is not a tensor of floating-point numbers, sigma is not a number or a tensor of numbers, or
                the result is not a tensor of floating-point numbers.
            ValueError: shapes do not fit, or a sigma (on the host) is negative or NaN; for networks 0 is an error, too;
                or the result has another shape than x.
        """
        _check_inputs(x, sigma)
        sigma = self._checked(x, sigma, condition)
        denoise = self.denoise_standardised if standard else self.denoise
        denoised = denoise(x, sigma, condition, **options)
        _check_denoised(self, denoised, x)
        return denoised.to(x.dtype)

    def standardise(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """(x − location)/S, in the dtype of x."""
        return to_standard(x, self.location, self.scale)

    def denoise_standardised(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """(D(m + S x; σ) − m)/S: `denoise` in standard units."""
        x = from_standard(x, self.location, self.scale)
        return self.standardise(self.denoise(x, sigma, condition, **options))

    def _checked(self, x: Tensor, sigma: Values, condition: Condition) -> Float64[Tensor, "*batch_or_none"]:
        """σ as a tensor, after the checks of a call."""
        sigma = float64(sigma)
        if sigma.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((sigma >= 0).all()):
            raise ValueError(f"sigma must be >= 0, got {float(sigma[~(sigma >= 0)].flatten()[0])}")
        if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] != x.shape[0]):
            raise ValueError(
                f"sigma must be a number or one value a sample ({x.shape[0]}), got shape {tuple(sigma.shape)}"
            )
        self.check_shape(x)
        self.check_condition(condition, x.shape[0])
        return sigma

    def check_shape(self, x: Tensor) -> None:
        """Raise ValueError unless x has samples of the denoiser's shape."""
        if self.event_shape is not None and tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x must have shape (batch, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}"
            )

    def check_condition(self, condition: Condition, count: int) -> None:
        """Raise an error unless the condition fits `count` samples.

        Raises:
            TypeError: it is not a tensor of rows.
            ValueError: it does not have one row a sample; or, with a `condition_shape`, it is missing, has another
                shape, neither one row a sample nor a single one, or no class where there is one (on the host).
        """
        check_condition_type(condition)
        shape = self.condition_shape
        if shape is None:
            if condition is not None and condition.shape[0] != count:
                raise ValueError(f"condition must have one row a sample ({count}), got {condition.shape[0]} rows")
            return
        if condition is None:
            if self.condition_dropout:
                return
            raise ValueError(f"condition must be given, {_format_shape('batch or 1', shape)}: got None")
        if tuple(condition.shape[1:]) != shape or condition.shape[0] not in (1, count):
            packed = "" if self.num_classes == 0 else ", made by openedm.conditions.pack(classes, values)"
            raise ValueError(
                f"condition must have shape {_format_shape(f'{count} or 1', shape)}{packed}, "
                f"got {tuple(condition.shape)}"
            )
        self.condition_layout.check_classes(condition)

    def condition_of(
        self, condition: Condition, rows: slice | Int64[Tensor, "rows"]
    ) -> Shaped[Tensor, "chosen *features"] | None:
        """The condition of some of the samples; a single row for all samples is returned unchanged."""
        if condition is None or (self.condition_shape is not None and len(condition) == 1):
            return condition
        return condition[rows]

    def __call__(self, x: Tensor, sigma: Values, condition: Condition = None, **options: Any) -> Tensor:
        """See `forward`."""
        denoised: Tensor = super().__call__(x, sigma, condition, **options)
        return denoised

    def score(
        self, x: Float[Tensor, "batch *event"], sigma: Values, condition: Condition = None
    ) -> Float[Tensor, "batch *event"]:
        """∇ₓ log p(x; σ) = (D(x; σ) − x)/(σS)²  (eq. 3)."""
        score = (self(x, sigma, condition) - x) / per_sample(float64(sigma).square(), x)
        return score if self.scale is None else score / like(self.scale, x).square()


def _check_inputs(x: object, sigma: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}: write x.float()" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of floating-point numbers, got {got}")
    if not isinstance(sigma, Tensor | list | tuple):
        checks.number("sigma", sigma)


def _check_denoised(denoiser: Denoiser, denoised: object, x: Tensor) -> None:
    """Raise an error unless the result of a denoiser is like x: broadcasting would hide another shape."""
    function = getattr(denoiser, "function", None)
    name = f"the function of {type(denoiser).__name__}" if function is not None else type(denoiser).__name__
    call = f"{name}, called as D(x, sigma, condition) with x of shape {tuple(x.shape)} and {x.dtype},"
    if not isinstance(denoised, Tensor):
        raise TypeError(f"{call} must return a tensor of that shape, got {type(denoised).__name__}")
    if denoised.shape != x.shape:
        raise ValueError(f"{call} must return that shape, got {tuple(denoised.shape)}")
    if not denoised.is_floating_point():
        raise TypeError(f"{call} must return floating-point numbers, got {denoised.dtype}")
    if denoised.device != x.device:
        raise ValueError(f"{call} must return a tensor on {x.device}, got one on {denoised.device}")


def _format_shape(rows: str, shape: tuple[int, ...]) -> str:
    return f"({', '.join((rows, *map(str, shape)))})"


def per_sample(values: Float64[Tensor, "*batch_or_none"], x: Float[Tensor, "batch *event"]) -> Tensor:
    """`values`, of shape () or (batch,), in a shape that broadcasts against x, in x's dtype.

    σ arithmetic (float64) meets data only here. A scalar stays on the host: the product needs neither a copy to the
    device nor a synchronisation.
    """
    if values.ndim == 0:
        return values.to(x.dtype)
    return values.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))


DROPOUT_TYPES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_condition_type(condition: object) -> None:
    """Raise TypeError unless the condition is None or a tensor with at least one dimension."""
    if condition is None:
        return
    if not isinstance(condition, Tensor):
        raise TypeError(f"condition must be a tensor with one row a sample, or None, got {type(condition).__name__}")
    if condition.ndim == 0:
        raise TypeError(f"condition must be a tensor with one row a sample, got a single number, {condition.item()}")


def check_denoiser(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a denoiser; the message says how functions, networks and files become one."""
    if isinstance(value, Denoiser):
        return
    calls = (
        "a function D(x, sigma) or D(x, sigma, condition) as openedm.FunctionDenoiser(function), a network as "
        "openedm.Preconditioned(network, preconditioning), a checkpoint as openedm.load_denoiser(path)"
    )
    got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    raise TypeError(f"{name} must be a Denoiser, got {got}: wrap {calls}")


def check_evaluation_mode(denoiser: Denoiser) -> None:
    """Raise an error unless `denoiser` is a denoiser in evaluation mode; with dropout every call has another result.

    Raises:
        TypeError: it is not a denoiser.
        ValueError: a dropout is active; the message names it.
    """
    check_denoiser("denoiser", denoiser)
    for name, module in denoiser.named_modules():
        if isinstance(module, DROPOUT_TYPES) and module.training and module.p > 0:
            raise ValueError(f"denoiser must be in evaluation mode, but dropout {name!r} is on: call denoiser.eval()")


def check_no_per_sample_settings(denoiser: Denoiser) -> None:
    """Raise an error for a denoiser with individual settings of samples, where samples leave the batch during a run.

    Raises:
        ValueError: it has such settings.
    """
    if denoiser.rows is not None:
        raise ValueError(
            f"denoiser must have one setting for all samples, but has a guidance weight or measurement for each of "
            f"{denoiser.rows}: finished samples leave the batch here. Give one for all, or use fixed levels"
        )


class Preconditioned(Denoiser):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise)   (eq. 7), for x and D in standard units.

    With `units` it is called in data units: D(x; σ) = m + S D′((x − m)/S; σ), with D′ as above. The network runs in its
    own dtype, or in what `configure_execution` has set; the arithmetic around it runs in the dtype of x.

    Args:
        network: F, an `nn.Module` or function called as `network(x, c_noise, condition)`, further options by keyword.
        preconditioning: the four functions c_skip, c_out, c_in, c_noise.
        sigma_data: standard deviation of the data, > 0. It is stored here only; weightings receive it from the
            denoiser.
        event_shape: the shape of one sample; None if any.
        num_classes: the number of classes of the condition; 0 if none.
        condition_shape: the shape of one float condition. The network receives it in the network's dtype, (batch or 1,
            *condition_shape); with classes too, the packed condition in float32 or better, as half precision would
            round its classes. None if there is no such condition.
        condition_dropout: whether None and rows of NaN mean no condition, with a `condition_shape`.
        units: location m and scale S of the data; None means 0 and 1.
        condition_units: those of the float conditions, which are given in their own units; None means 0 and 1.

    Raises:
        ValueError: sigma_data is not > 0, num_classes < 0, or units have no shape to fit or do not fit it. When called:
            the condition does not fit, or the network does not return the shape of x, possibly with further channels.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        preconditioning: Preconditioning,
        sigma_data: float = 0.5,
        event_shape: tuple[int, ...] | None = None,
        num_classes: int = 0,
        condition_shape: tuple[int, ...] | None = None,
        condition_dropout: bool = False,
        units: Units | None = None,
        condition_units: Units | None = None,
    ) -> None:
        super().__init__()
        checks.positive("sigma_data", sigma_data)
        checks.at_least("num_classes", num_classes, 0)
        if condition_dropout and condition_shape is None:
            raise ValueError("condition_dropout must be false without a condition_shape, got True")
        network = _as_module(network)
        checks.instance(
            "preconditioning", preconditioning, Preconditioning, "a Preconditioning, such as preconditioning.EDM()"
        )
        self.network = network
        self.preconditioning = preconditioning
        self.sigma_data = sigma_data
        self.event_shape = event_shape
        self.num_classes = num_classes
        self.condition_shape = condition_shape
        self.condition_dropout = condition_dropout
        self.location, self.scale = _tensors("units", units, event_shape)
        own = _tensors("condition_units", condition_units, self.condition_layout.shape)
        self._condition_location, self._condition_scale = own
        self.sigma_min = preconditioning.sigma_min
        self.sigma_max = preconditioning.sigma_max
        self._autocast: torch.dtype | None = None

    def round_sigma(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """The preconditioning's `round_sigma`."""
        return self.preconditioning.round_sigma(float64(sigma))

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """m + S D′((x − m)/S; σ)."""
        denoised = self.denoise_standardised(self.standardise(x), sigma, condition, **options)
        return from_standard(denoised, self.location, self.scale)

    def denoise_standardised(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """D′, c_skip x + c_out F(c_in x; c_noise)."""
        c_skip, c_out, c_in, c_noise = self.preconditioning.coefficients(sigma, self.sigma_data)
        parameter = next(self.network.parameters(), x)
        # c_noise reaches 999 with VP: half precision would round it.
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if c_noise.ndim == 0:
            if not c_noise.isfinite():
                raise ValueError(f"sigma must be finite and > 0 for {self.preconditioning}, got {float(sigma)}")
            # A network that broadcasts embeds σ and a single condition once for all samples.
            rows = len(condition) if condition is not None and _broadcasts(self.network) else x.shape[0]
            c_noise = torch.full((rows,), float(c_noise), dtype=dtype, device=x.device)
        if condition is not None and self.condition_shape is not None:
            condition = self._standardise_condition(condition).to(dtype if self.num_classes else parameter.dtype)
        noisy, c_noise = (per_sample(c_in, x) * x).to(parameter.dtype), c_noise.to(x.device, dtype)
        with nullcontext() if self._autocast is None else torch.autocast(x.device.type, self._autocast):
            predicted: Tensor = self.network(noisy, c_noise, condition, **options)
        if not isinstance(predicted, Tensor) or predicted.ndim != x.ndim or not predicted.is_floating_point():
            raise TypeError(_wrong_answer(x, predicted))
        predicted = predicted[:, : x.shape[1]].to(x.dtype)
        if predicted.shape != x.shape:
            raise ValueError(_wrong_answer(x, predicted))
        return per_sample(c_skip, x) * x + per_sample(c_out, x) * predicted

    def _standardise_condition(self, condition: Tensor) -> Tensor:
        """The condition with its floats in standard units."""
        layout, scale = self.condition_layout, self._condition_scale
        values = None if scale is None else layout.unpack(condition)[1]
        if values is None:
            return condition
        return layout.with_values(condition, to_standard(values, self._condition_location, scale))


class _FunctionNetwork(nn.Module):
    """A function in place of a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition = None, **options: Any) -> Tensor:
        return self.function(x, c_noise, condition, **options)


def _as_module(network: Any) -> nn.Module:
    """The network; a function as a module without parameters.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(network, nn.Module):
        return network
    if callable(network) and not isinstance(network, type):
        return _FunctionNetwork(network)
    got = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
    build = ": write network.build(event_shape)" if hasattr(network, "build") else ""
    raise TypeError(
        f"network must be an nn.Module or a function, called as network(x, c_noise, condition=None, augment=None), "
        f"got {got}{build}"
    )


AnyDenoiser = TypeVar("AnyDenoiser", bound=Denoiser)


def configure_execution(
    denoiser: AnyDenoiser, *, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False
) -> AnyDenoiser:
    """Set the precision of a denoiser's networks, and compile them; returns the denoiser itself.

    Weights, files and the arithmetic around the networks stay as they are.

    Args:
        denoiser: any denoiser; if it consists of several, as a guided one does, all their networks are set.
        precision: "bf16" for automatic mixed precision, as in training, with two to three digits; "fp32" for none.
        compile: compile the networks with torch.compile; the first evaluations are slow. False leaves compiled networks
            compiled.

    Raises:
        ValueError: another precision, or a setting without effect on a denoiser without a network.

    >>> from openedm.networks import MLP
    >>> from openedm.preconditioning import EDM
    >>> fast = configure_execution(Preconditioned(MLP().build((2,)), EDM(), event_shape=(2,)), precision="bf16")
    """
    checks.one_of("precision", precision, ("fp32", "bf16"))
    found = [module for module in denoiser.modules() if isinstance(module, Preconditioned)]
    if not found and (compile or precision != "fp32"):
        raise ValueError(
            f"precision and compile have no effect on {type(denoiser).__name__}, which has no network: leave them at "
            "their defaults"
        )
    for module in found:
        module._autocast = torch.bfloat16 if precision == "bf16" else None
        if compile:
            module.network.compile()
    return denoiser


def _wrong_answer(x: Tensor, predicted: object) -> str:
    """The message for a network that returns something else than it must."""
    got = type(predicted).__name__
    if isinstance(predicted, Tensor):
        got = f"{tuple(predicted.shape)} of {predicted.dtype}"
    return (
        f"network must return the shape of x, {tuple(x.shape)}, got {got}: it is called as network(x, c_noise, "
        "condition=None, augment=None) and returns floating-point numbers"
    )


def _tensors(name: str, units: Units | None, shape: tuple[int, ...] | None) -> tuple[Tensor | None, Tensor | None]:
    """Location and scale in a shape that broadcasts against a sample; float64, on the host."""
    if units is None:
        return None, None
    if shape is None:
        raise ValueError(f"{name} must be None without a shape of what they belong to, got {units}")
    units.check(name, shape)
    return units.location_of(shape), units.scale_of(shape)


def _broadcasts(network: nn.Module) -> bool:
    return bool(getattr(network, "broadcasts", False))


class FunctionDenoiser(Denoiser):
    """A denoiser from any function D(x, sigma, condition), for closed forms and experiments.

    Args:
        function: called as `function(x, sigma, condition)`, or as `function(x, sigma)` if it takes two arguments;
            sigma is a float64 tensor of shape () or (batch,).
        event_shape: the shape of one sample; None if any.
        sigma_min: lowest noise level the function supports.
        sigma_max: highest noise level the function supports.
        sigma_data: standard deviation of the data, > 0.
        mean: where its data are, from which samplers start: a number, or a tensor that broadcasts against a sample.
            None means D(0; σ_max): one evaluation more in each run, with one row for each row of the condition.

    >>> shrink = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2))
    >>> shrink(torch.ones(1, 2), 3.0)
    tensor([[0.1000, 0.1000]])
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor, Condition], Tensor] | Callable[[Tensor, Tensor], Tensor],
        event_shape: tuple[int, ...] | None = None,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = Denoiser.sigma_data,
        mean: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        checks.positive("sigma_data", sigma_data)
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"function must be a function D(x, sigma, condition), got {function!r}")
        self.sigma_data = sigma_data
        self.function = function
        self._takes_condition = _takes_three(function)
        self.event_shape = event_shape
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        checks.at_least("sigma_min", sigma_min, 0)
        checks.ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
        self._mean = None if mean is None else _mean_for(mean, event_shape)

    @torch.no_grad()
    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float[Tensor, "rows *event_or_ones"]:
        """The given mean, or D(0; σ_max), one row or one for each row of the condition."""
        if self._mean is not None:
            return self._mean[None]
        shape = self.event_shape if event_shape is None else tuple(event_shape)
        if shape is None:
            raise ValueError("event_shape must be given for a denoiser without event_shape, got None")
        device = device_of(self, condition)
        origin = torch.zeros(1 if condition is None else len(condition), *shape, device=device)
        return self(origin.to(float64_on(device)), sigma_max, condition)

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """`function(x, sigma, condition)`."""
        if self._takes_condition:
            return self.function(x, sigma, condition)  # type: ignore[call-arg]
        if condition is not None:
            raise ValueError("condition must be None for a function D(x, sigma): write it as D(x, sigma, condition)")
        return self.function(x, sigma)  # type: ignore[call-arg]


def _mean_for(mean: float | Tensor, event_shape: tuple[int, ...] | None) -> Float64[Tensor, "*event_or_ones"]:
    found = torch.as_tensor(mean, dtype=torch.float64)
    if not all_finite(found):
        raise ValueError(f"mean must be finite, got {count_not_finite(found)}")
    if event_shape is not None and (
        found.ndim > len(event_shape)
        or any(size not in (1, wanted) for size, wanted in zip(found.shape[::-1], event_shape[::-1], strict=False))
    ):
        raise ValueError(f"mean must be a number or broadcast against a sample {event_shape}, got {tuple(found.shape)}")
    return found


def _takes_three(function: Callable[..., Tensor]) -> bool:
    """Whether a function can be called with three arguments; True where that is not known.

    Raises:
        TypeError: it can be called with neither two nor three.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count == 3
    raise TypeError(f"function must be called as D(x, sigma, condition) or D(x, sigma), got one with {signature}")
