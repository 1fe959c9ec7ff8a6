"""Models of diffusers as denoisers.

A model is evaluated at its own input and time (`process`), its first output channels are used, and its conditions are
one tensor: integer classes, the embeddings of a prompt, or several inputs packed into one row a sample (`pack`).
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openedm.denoiser import Condition, Preconditioned
from openedm.interop.diffusers.process import LevelRule, process_of

__all__ = ["DiffusersDenoiser", "DiffusersNetwork", "denoiser_of", "from_diffusers"]

Shapes = Mapping[str, tuple[int, ...]]
Call = Callable[[nn.Module, Tensor, Tensor, dict[str, Any]], Tensor]
"""How a model is called: (model, x, timestep, its other inputs by name) → its output."""

ADDED = ("text_embeds", "time_ids", "image_embeds")
"""Inputs that UNet2DConditionModel takes in `added_cond_kwargs`."""

ROUNDING = 1e-6
"""By how much, relatively, the range of noise levels is wider than that of training: schedulers state it in float32."""


def call_model(model: nn.Module, x: Tensor, timestep: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The output of a model that is called as those of diffusers are."""
    output: Tensor = model(x, timestep=timestep, return_dict=False, **inputs)[0]
    return output


class DiffusersNetwork(nn.Module):
    """A model of diffusers as a network of this library: `network(x, timestep, condition)`.

    Args:
        model: the model.
        sign: the factor of its output.
        shapes: the shapes of its packed inputs; None for a condition that is one input.
        num_classes: the number of its classes; 0 if it has none.
        null_class: the label that means no class; None if it has none.
        call: how the model is called.
    """

    def __init__(
        self, model: nn.Module, sign: float, shapes: Shapes | None, num_classes: int, null_class: int | None, call: Call
    ) -> None:
        super().__init__()
        self.model, self.sign, self.call_model = model, sign, call
        self.shapes = None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()}
        self.num_classes, self.null_class = num_classes, null_class
        self.takes_embeddings = "encoder_hidden_states" in inspect.signature(model.forward).parameters

    def forward(
        self, x: Float[Tensor, "batch *event"], timestep: Float[Tensor, " batch"], condition: Condition = None
    ) -> Float[Tensor, "batch *out"]:
        """The model's output."""
        inputs = self.inputs(condition, x)
        timestep = timestep.expand(len(x))
        return self.call_model(self.model, x, timestep, inputs) * self.sign

    def inputs(self, condition: Condition, x: Float[Tensor, "batch *event"]) -> dict[str, Any]:
        """The further inputs of the model by name, one row a sample.

        Raises:
            ValueError: the condition is missing, or the model takes none.
        """
        if condition is not None:
            condition = condition.to(x.device)
            condition = condition.expand(len(x), *condition.shape[1:]) if len(condition) == 1 else condition
        if self.num_classes and self.shapes is None:
            return {"class_labels": self._labels(condition, x)}
        if not (self.takes_embeddings or self.shapes):
            if condition is not None:
                raise ValueError(f"condition must be None for {type(self.model).__name__}, which takes none")
            return {}
        if condition is None:
            raise ValueError(
                f"condition must be given: {type(self.model).__name__} takes "
                + ("the inputs that `denoiser.pack` joins" if self.shapes else "the embeddings of a prompt")
            )
        if self.shapes is None:
            return {"encoder_hidden_states": condition.to(x.dtype)}
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(condition.to(x.dtype), sizes, dim=1)
        named = {
            name: part.reshape(len(x), *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        added = {name: named.pop(name) for name in ADDED if name in named}
        return named | ({"added_cond_kwargs": added} if added else {})

    def _labels(self, condition: Condition, x: Tensor) -> Tensor:
        if condition is None:
            condition = torch.full((len(x),), -1, device=x.device)
        if condition.ndim == 2 and condition.is_floating_point():  # One-hot rows; zeros mean no class.
            condition = torch.where(condition.sum(1) == 0, -1, condition.argmax(1))
        if condition.ndim != 1 or condition.is_floating_point():
            raise ValueError(f"condition must be integer labels, one a sample, got shape {tuple(condition.shape)}")
        if self.null_class is None:
            if bool((condition < 0).any()):
                raise ValueError(
                    f"condition must hold classes between 0 and {self.num_classes - 1}: {type(self.model).__name__} "
                    "has no label for no class (give null_class if one of its labels means that)"
                )
            return condition.long()
        return torch.where(condition < 0, self.null_class, condition).long()


class DiffusersDenoiser(Preconditioned):
    """D(x; σ) of a diffusers model, made by `from_diffusers`. Its data are those of the model, such as latents."""

    network: DiffusersNetwork

    def pack(self, **inputs: Tensor) -> Float[Tensor, "batch features"]:
        """The condition of a model with several inputs: `condition_shapes` names them.

        Args:
            inputs: each input by its name, one row a sample.

        Raises:
            ValueError: the denoiser was made without `condition_shapes`, or the inputs are not those.
        """
        shapes = self.network.shapes
        if shapes is None:
            raise ValueError("pack needs a denoiser made with condition_shapes={name: shape of one sample}")
        given = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
        if given != shapes:
            raise ValueError(f"inputs must be those of condition_shapes, {shapes}, got {given}")
        return torch.cat([inputs[name].flatten(1).float() for name in shapes], dim=1)


def from_diffusers(
    model: nn.Module | Any,
    scheduler: Any,
    *,
    levels: LevelRule = "continuous",
    sigma_data: float | None = None,
    event_shape: tuple[int, ...] | None = None,
    condition_shapes: Shapes | None = None,
    null_class: int | None = None,
    call: Call = call_model,
) -> DiffusersDenoiser:
    """A diffusers model and the scheduler that it was trained with as a denoiser, in evaluation mode.

    Args:
        model: UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel, UNet1DModel, … or any
            module that is called as `model(x, timestep=…, return_dict=False, …)[0]`.
        scheduler: its scheduler: prediction type, betas or noise levels (`process_of`).
        levels: "continuous" to evaluate a model with betas between the steps of its training; "trained" to round noise
            levels to them.
        sigma_data: standard deviation of the data, > 0, which default samplers adapt to; None for the scheduler's own,
            0.5 for models of 1 or 3 channels (pictures in [−1, 1]) and 1 for others (latents).
        event_shape: the shape of one sample; None for that of the model's configuration, where it has one.
        condition_shapes: for models with several further inputs, the shape of each for one sample, by name, such as
            `{"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)}`; the condition is then
            `denoiser.pack(…)`. None for models with one: classes, or the embeddings of a prompt.
        null_class: the label of no class, to which −1 is translated; None for that of the model, if it has one.
        call: how the model is called, for models with other conventions: `call(model, x, timestep, inputs)`.

    Raises:
        TypeError: model or scheduler is of another kind.
        ValueError: the model's process is not known, or it has inputs that `condition_shapes` must name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, such as pipeline.unet, got {type(model).__name__}")
    config: Mapping[str, Any] = getattr(model, "config", {})
    channels = config.get("in_channels")
    process = process_of(scheduler, levels=levels, sigma_data=sigma_data)
    if sigma_data is None and channels in (1, 3) and not type(scheduler).__name__.startswith("EDM"):
        process = process_of(scheduler, levels=levels, sigma_data=0.5)
    num_classes, own_null = _classes(config) if condition_shapes is None else (0, None)
    if condition_shapes is None:
        _check_inputs(model, config)
    network = DiffusersNetwork(
        model, process.sign, condition_shapes, num_classes, own_null if null_class is None else null_class, call
    )
    denoiser = DiffusersDenoiser(
        network,
        process.preconditioning,
        process.sigma_data,
        _event_shape(model, config) if event_shape is None else event_shape,
        num_classes=num_classes,
        condition_shape=None if condition_shapes is None else (sum(map(math.prod, condition_shapes.values())),),
    )
    denoiser.sigma_min, denoiser.sigma_max = process.sigma_min * (1 - ROUNDING), process.sigma_max * (1 + ROUNDING)
    return denoiser.eval()


def denoiser_of(pipeline: Any, **options: Any) -> DiffusersDenoiser:
    """The denoiser of a pipeline: `from_diffusers(pipeline.unet or .transformer, pipeline.scheduler, **options)`.

    Its data are the pipeline's latents where it has a VAE: decode samples with the pipeline's own
    (`pipeline.vae.decode(x / pipeline.vae.config.scaling_factor)`).

    Raises:
        TypeError: the pipeline has neither a `unet` nor a `transformer`, or no scheduler.
    """
    found = [part for name in ("unet", "transformer") if (part := getattr(pipeline, name, None)) is not None]
    if len(found) != 1 or getattr(pipeline, "scheduler", None) is None:
        raise TypeError(
            f"pipeline must have a scheduler and either a unet or a transformer, got {type(pipeline).__name__}: use "
            "from_diffusers(model, scheduler)"
        )
    return from_diffusers(found[0], pipeline.scheduler, **options)


def _event_shape(model: nn.Module, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of one sample in a model's configuration; None if it does not say."""
    size, channels = config.get("sample_size"), config.get("in_channels")
    if size is None or channels is None:
        return None
    name = type(model).__name__
    if "1D" in name:
        return (channels, size)
    if "2D" not in name or "extra_in_channels" in config:
        return None
    return (channels, *size) if isinstance(size, list | tuple) else (channels, size, size)


def _classes(config: Mapping[str, Any]) -> tuple[int, int | None]:
    """The number of classes, and the label of no class."""
    if "num_embeds_ada_norm" in config and "cross_attention_dim" not in config:  # DiT
        count = config["num_embeds_ada_norm"] or 0
        return count, count or None  # One row more is learned for no class.
    if config.get("class_embed_type") is None and "num_class_embeds" in config:
        return config["num_class_embeds"] or 0, None
    return 0, None


def _check_inputs(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise an error if the model has further inputs than its condition."""
    parameters = inspect.signature(model.forward).parameters
    needed = [name for name in ("encoder_hidden_states", "pooled_projections") if name in parameters]
    if config.get("addition_embed_type") == "text_time":
        needed += ["text_embeds", "time_ids"]
    elif config.get("addition_embed_type") or config.get("encoder_hid_dim_type"):
        needed += ["image_embeds"]
    if config.get("class_embed_type") is not None:
        needed += ["class_labels"]
    has_classes = bool(_classes(config)[0])
    if len(needed) + has_classes > 1 or needed == ["class_labels"]:
        raise ValueError(
            f"condition_shapes must name the inputs of {type(model).__name__}, "
            f"{needed + ['class_labels'] * (has_classes and 'class_labels' not in needed)}, with the shape of each for "
            "one sample"
        )
