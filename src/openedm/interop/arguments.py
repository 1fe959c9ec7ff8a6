"""The constructor arguments of the published networks: their names and those of this library, defaults and limits.

A class of preconditioning passes on what it does not know to the class of its network, `model_type`. Arguments that a
file leaves out have the defaults of its classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from openedm import preconditioning
from openedm.ground import checks
from openedm.networks import ADM, DDPMpp, NCSNpp, SongUNet
from openedm.preconditioning import Preconditioning

__all__ = [
    "DESIGN_ARGUMENTS",
    "PRECONDITIONINGS",
    "SIZE_ARGUMENTS",
    "PublishedClass",
    "check_values",
    "complete",
    "network_arguments",
]

REQUIRED_ARGUMENTS = ("img_resolution", "img_channels", "model_type")
SIZE_ARGUMENTS = ("model_channels", "channel_mult", "channel_mult_emb", "num_blocks", "attn_resolutions", "dropout")
"""The constructor arguments of networks that have the same names in this library."""
DESIGN_ARGUMENTS = {
    "embedding_type": "embedding",
    "channel_mult_noise": "channel_mult_noise",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
}
"""Constructor arguments of `SongUNet` with other names in this library, or that are part of the style."""


@dataclass(frozen=True)
class PublishedClass:
    """A published preconditioning.

    Attributes:
        kind: the class of this library.
        names: its constructor arguments, in order, and their names in this library.
        denoiser_names: the arguments that the denoiser has in this library, with the same names.
        model_type: the default class of its network.
    """

    kind: type[Preconditioning]
    names: Mapping[str, str]
    denoiser_names: tuple[str, ...] = ()
    model_type: str = "DhariwalUNet"

    def split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of the preconditioning, and those of the network with `model_type`."""
        names = {*self.names, *self.denoiser_names, "use_fp16"}
        arguments = {name: value for name, value in kwargs.items() if name in names}
        rest = {name: value for name, value in kwargs.items() if name not in names}
        return arguments, {"model_type": self.model_type, **rest}


PRECONDITIONINGS = {
    "EDMPrecond": PublishedClass(preconditioning.EDM, {}, ("sigma_min", "sigma_max", "sigma_data")),
    "VPPrecond": PublishedClass(
        preconditioning.VP,
        {"beta_d": "beta_d", "beta_min": "beta_min", "M": "num_levels", "epsilon_t": "epsilon_t"},
        model_type="SongUNet",
    ),
    "VEPrecond": PublishedClass(
        preconditioning.VE, {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}, model_type="SongUNet"
    ),
    "iDDPMPrecond": PublishedClass(preconditioning.IDDPM, {"C_1": "c_1", "C_2": "c_2", "M": "num_levels"}),
}


def network_arguments(choice: ADM | DDPMpp | NCSNpp | SongUNet) -> dict[str, Any]:
    """The published constructor arguments of a network, without the shapes of its data; the inverse of `edm_choice`."""
    sizes = {name: getattr(choice, name) for name in SIZE_ARGUMENTS}
    if isinstance(choice, ADM):
        return {"model_type": "DhariwalUNet", **sizes}
    design = {published: getattr(choice.style, name) for published, name in DESIGN_ARGUMENTS.items()}
    return {"model_type": "SongUNet", **sizes, **design}


DEFAULT_SHAPES = {"label_dim": 0, "augment_dim": 0, "label_dropout": 0}
DEFAULTS = {
    "SongUNet": DEFAULT_SHAPES | network_arguments(SongUNet(channel_mult=(1, 2, 2, 2), attn_resolutions=(16,))),
    "DhariwalUNet": DEFAULT_SHAPES | network_arguments(ADM(attn_resolutions=(32, 16, 8))),
}
"""The constructor arguments of each class of network, and their defaults."""


def complete(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments of a network, with the defaults of its class for those left out.

    Raises:
        ValueError: an argument is missing or unknown, or as for `check_values`.
    """
    check_values(kwargs)
    checks.one_of("model_type", kwargs.get("model_type", "SongUNet"), DEFAULTS)
    defaults = DEFAULTS[kwargs.get("model_type", "SongUNet")]
    missing = [name for name in REQUIRED_ARGUMENTS if name not in kwargs]
    unknown = sorted(set(kwargs) - set(defaults) - set(REQUIRED_ARGUMENTS))
    if missing or unknown:
        raise ValueError(f"constructor arguments must be complete and known, got missing {missing}, unknown {unknown}")
    return {**defaults, **kwargs}


MAX_INTEGERS = {
    "img_resolution": 2**14,
    "img_channels": 2**12,
    "label_dim": 2**20,
    "augment_dim": 2**12,
    "model_channels": 2**14,
    "channel_mult_emb": 2**8,
    "channel_mult_noise": 2**8,
    "num_blocks": 2**10,
    "channels_per_head": 2**14,
    "logvar_channels": 2**12,
    "M": 2**17,
}
"""The largest values of integers >= 0."""
FLOAT_ARGUMENTS = {"dropout", "label_dropout", "sigma_min", "sigma_max", "sigma_data"}
FLOAT_ARGUMENTS |= {"label_balance", "concat_balance", "res_balance", "attn_balance"}
FLOAT_ARGUMENTS |= {"beta_d", "beta_min", "epsilon_t", "C_1", "C_2"}
MAX_LIST_VALUES = {"channel_mult": 2**10, "attn_resolutions": 2**14, "resample_filter": 2**10}
"""The largest values in lists of integers >= 0, and of the numbers of `resample_filter` without their signs."""
MAX_LIST_LENGTH = 32
STRING_ARGUMENTS = ("model_type", "embedding_type", "encoder_type", "decoder_type")


def check_values(kwargs: Mapping[str, Any]) -> None:
    """Check the types and limits of constructor arguments, those of the preconditioning included.

    Raises:
        ValueError: an argument has another type or is out of range. Unknown ones are passed over: see `complete`.
    """
    for name, value in kwargs.items():
        allowed = _problem_with(name, value)
        if allowed is not None:
            raise ValueError(f"{name} must be {allowed}, got {repr(value)[:100]}")


def _problem_with(name: str, value: Any) -> str | None:
    """The allowed values of an argument if it has another one; None if it is allowed, or unknown."""
    if name in MAX_INTEGERS and not (_is_number(value, Integral) and 0 <= value <= MAX_INTEGERS[name]):
        return f"an integer between 0 and {MAX_INTEGERS[name]}"
    if name in FLOAT_ARGUMENTS and not (_is_number(value, Real) and not math.isnan(value)):
        return "a number"
    if name in STRING_ARGUMENTS and not isinstance(value, str):
        return "a string"
    if name not in MAX_LIST_VALUES:
        return None
    low, kind = (-MAX_LIST_VALUES[name], Real) if name == "resample_filter" else (0, Integral)
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) <= MAX_LIST_LENGTH
    if is_list and all(_is_number(item, kind) and low <= item <= MAX_LIST_VALUES[name] for item in value):
        return None
    word = "integers" if kind is Integral else "numbers"
    return f"a list of at most {MAX_LIST_LENGTH} {word} from {low} to {MAX_LIST_VALUES[name]}"


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
