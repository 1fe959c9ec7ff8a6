"""A network as a denoiser: D(x; σ) = c_skip x + c_out F(c_in x; c_noise)   (Karras et al. 2022, eq. 7)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm.denoiser.interface import Condition, Denoiser, StandardisedInside, per_sample
from openedm.ground import checks
from openedm.preconditioning import Preconditioning
from openedm.schedules import Values
from openedm.units import Units, to_standard

__all__ = ["Preconditioned", "configure_execution"]


class Preconditioned(StandardisedInside):
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
        return self.preconditioning.round_sigma(sigma)

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
