"""The constructor arguments of published networks: their names, and checks before anything is built from a file.

A file may ask for a network of any size. Its arguments are compared with the tensors that it holds first, so that what
is built is never larger than the file.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from openedm.interop.edm import PRECONDITIONINGS, edm_network
from openedm.interop.errors import DamagedFileError

POSITIONS = {
    "EDMPrecond": ("sigma_min", "sigma_max", "sigma_data", "model_type"),
    "VPPrecond": ("beta_d", "beta_min", "M", "epsilon_t", "model_type"),
    "VEPrecond": ("sigma_min", "sigma_max", "model_type"),
    "iDDPMPrecond": ("C_1", "C_2", "M", "model_type"),
}
"""The order of the classes' arguments after `FIRST`."""
FIRST = ("img_resolution", "img_channels", "label_dim", "use_fp16")

LARGEST = {
    "img_resolution": 2**14,
    "img_channels": 2**12,
    "label_dim": 2**20,
    "augment_dim": 2**12,
    "model_channels": 2**14,
    "channel_mult_emb": 2**8,
    "channel_mult_noise": 2**8,
    "num_blocks": 2**10,
    "M": 2**17,
}
"""Integers >= 0, and the largest of each."""
NUMBERS = {"dropout", "label_dropout", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "epsilon_t"}
NUMBERS |= {"C_1", "C_2"}
LISTS = {"channel_mult": 2**10, "attn_resolutions": 2**14, "resample_filter": 2**10}
"""Lists of numbers, none larger than these and at most `LONGEST` in number."""
LONGEST = 32
WORDS = ("model_type", "embedding_type", "encoder_type", "decoder_type")


def named_arguments(class_name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    """Positional and named constructor arguments of a class as one dict.

    Raises:
        DamagedFileError: they are no list and dict, there are too many, or an argument is given twice.
    """
    if not isinstance(args, list) or not isinstance(kwargs, dict) or len(kwargs) > 100:
        raise DamagedFileError("constructor arguments must be a list and a dict of at most 100")
    names = (*FIRST, *POSITIONS[class_name]) if class_name in POSITIONS else ()
    if class_name not in POSITIONS:
        names = tuple(f"argument {i}" for i in range(len(args)))
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys():
        raise DamagedFileError(f"{class_name} has too many constructor arguments, or one of them twice")
    return given | kwargs


def check_arguments(class_name: str, kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Refuse arguments of another type than the class's, and those of a network that is larger than its weights.

    Args:
        class_name: one of EDM's preconditionings.
        kwargs: its arguments.
        state_dict: the weights in the file.

    Raises:
        ValueError: an argument has another type or is out of range, or the network would be larger. Unknown ones are
            left to `edm_denoiser`.
    """
    for name, value in kwargs.items():
        _check_argument(name, value)
    levels = len(kwargs.get("channel_mult", (1, 2, 3, 4)))
    if kwargs.get("num_blocks", 1) * levels > len(state_dict):
        raise DamagedFileError(
            f"num_blocks={kwargs['num_blocks']} blocks on {levels} levels are more than the file has"
        )
    table = state_dict.get("u")
    if class_name == "iDDPMPrecond" and table is not None and tuple(table.shape) != (kwargs.get("M", 1000) + 1,):
        raise DamagedFileError(
            f"u must hold M + 1 = {kwargs.get('M', 1000) + 1} levels, has shape {tuple(table.shape)}"
        )
    own = {*PRECONDITIONINGS[class_name][1], "use_fp16"}
    own |= {"sigma_min", "sigma_max", "sigma_data"} if class_name == "EDMPrecond" else set()
    default = "SongUNet" if class_name in ("VPPrecond", "VEPrecond") else "DhariwalUNet"
    options = {"model_type": default} | {name: value for name, value in kwargs.items() if name not in own}
    with torch.device("meta"):
        network = edm_network(options, options.get("img_channels", 1) * (2 if class_name == "iDDPMPrecond" else 1))
    needed = sum(t.numel() for t in network.state_dict().values())
    there = sum(t.numel() for t in state_dict.values())
    if needed > there:
        raise DamagedFileError(f"the network that the file describes has {needed:,} weights, the file {there:,}")


def _check_argument(name: str, value: Any) -> None:
    if name in LARGEST:
        if type(value) is not int or not 0 <= value <= LARGEST[name]:
            raise DamagedFileError(f"{name} must be an integer between 0 and {LARGEST[name]}, got {_short(value)}")
    elif name in NUMBERS:
        if type(value) not in (int, float) or math.isnan(value):
            raise DamagedFileError(f"{name} must be a number, got {_short(value)}")
    elif name in LISTS:
        if not _is_list(value, LISTS[name]):
            raise DamagedFileError(
                f"{name} must be a list of at most {LONGEST} numbers up to {LISTS[name]}, got {_short(value)}"
            )
        if name != "resample_filter" and any(type(item) is not int for item in value):
            raise DamagedFileError(f"{name} must be a list of integers, got {_short(value)}")
    elif name in WORDS and type(value) is not str:
        raise DamagedFileError(f"{name} must be a string, got {_short(value)}")


def _is_list(value: Any, largest: float) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) <= LONGEST
        and all(type(item) in (int, float) and 0 <= item <= largest for item in value)
    )


def _short(value: Any) -> str:
    return repr(value)[:100]
