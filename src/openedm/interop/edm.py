"""The networks that the authors of the EDM paper published, from their constructor arguments and state dicts.

Only names differ: `published_names` maps the names of this library to the published ones. The published Fourier
frequencies f are ω = 2πf here, and the published `resample_filter` buffers follow from the constructor arguments, so
that they are compared and not copied. No library has these names; diffusers' converters are for other networks. Source
of the weights: Karras et al. 2022 (arXiv 2206.00364), https://github.com/NVlabs/edm.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm import preconditioning
from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.tensors import misfits
from openedm.interop.pickles import DamagedFileError
from openedm.networks import ADM, DDPMpp, NCSNpp, Signature, SongUNet, UNet
from openedm.networks.blocks import DECODERS, ENCODERS
from openedm.networks.designs import ADM_STYLE
from openedm.networks.layers import filter_kernel
from openedm.networks.unet import SkipPath, level_resolutions
from openedm.preconditioning import Preconditioning

__all__ = [
    "edm_choice",
    "edm_denoiser",
    "edm_network",
    "load_edm_state_dict",
    "published_filters",
    "published_names",
]

Weights = Tensor | np.ndarray
FREQUENCIES_NAME = "map_noise.freqs"
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


def edm_denoiser(
    precond: str,
    kwargs: Mapping[str, Any],
    state_dict: Mapping[str, Weights],
    table: Sequence[float] | None = None,
) -> Preconditioned:
    """The published denoiser: network, weights and preconditioning, in evaluation mode.

    Args:
        precond: the published class: "EDMPrecond", "VPPrecond", "VEPrecond" or "iDDPMPrecond".
        kwargs: its constructor arguments by their published names: those of the class, and those of the network, which
            are passed on to `edm_network`. `use_fp16` has no effect: the network is float32.
        state_dict: its weights by their published names, see `load_edm_state_dict`.
        table: for iDDPM, the levels u_0 > … > u_M = 0 to which σ is rounded; None means those in `state_dict`, or the
            exact ones if it has no levels.

    Raises:
        ValueError: as for `edm_network` and `load_edm_state_dict`, `precond` is unknown, or a table is given for
            another class than iDDPM.
    """
    checks.one_of("precond", precond, PRECONDITIONINGS)
    if table is not None and precond != "iDDPMPrecond":
        raise ValueError(f"table must be None for {precond}: only iDDPMPrecond rounds to a table")
    published = PRECONDITIONINGS[precond]
    arguments, options = published.split(kwargs)
    chosen = {published.names[name]: value for name, value in arguments.items() if name in published.names}
    numbers = {name: float(arguments[name]) for name in published.denoiser_names if name in arguments}
    if precond == "iDDPMPrecond":
        levels = _tensor(state_dict["u"]).tolist() if table is None and "u" in state_dict else table
        chosen["table"] = None if levels is None else tuple(levels)

    chosen_preconditioning = published.kind(**chosen)
    channels, resolution = options.get("img_channels", 0), options.get("img_resolution", 0)
    network = edm_network(options, channels * chosen_preconditioning.outputs_per_channel)
    load_edm_state_dict(network, state_dict)
    denoiser = Preconditioned(
        network,
        chosen_preconditioning,
        sigma_data=numbers.get("sigma_data", 0.5),
        event_shape=(channels, resolution, resolution),
        num_classes=network.signature.num_classes,
    )
    denoiser.sigma_min = numbers.get("sigma_min", denoiser.sigma_min)
    denoiser.sigma_max = numbers.get("sigma_max", denoiser.sigma_max)
    return denoiser.eval()


def edm_network(kwargs: Mapping[str, Any], out_channels: int | None = None) -> UNet:
    """The network that the published constructor arguments describe, with new weights.

    Args:
        kwargs: the published names, as for `edm_choice`.
        out_channels: the channels of F; None means `img_channels` (iDDPM: twice as many).

    Raises:
        ValueError: a name is missing or unknown, or a value is not supported by the network of this library.

    >>> options = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8}
    >>> edm_network(options).resolutions
    (32, 16, 8, 4)
    """
    options = _options(kwargs)
    channels, resolution = options["img_channels"], options["img_resolution"]
    signature = Signature(
        (channels, resolution, resolution),
        channels if out_channels is None else out_channels,
        options["label_dim"],
        options["augment_dim"],
    )
    return edm_choice(kwargs).module(signature, seed=None)


def edm_choice(kwargs: Mapping[str, Any]) -> SongUNet | ADM:
    """The published network as a value, without the shapes of the data, as in a checkpoint of this library.

    Args:
        kwargs: the published names: `img_resolution`, `img_channels`, `model_type` ("SongUNet" or "DhariwalUNet"), and
            the options of that class, with its defaults for those left out. `label_dropout` has no effect, because
            training drops the labels. Resolutions in `attn_resolutions` that no level has are ignored, as in the
            published code.

    Raises:
        ValueError: a name is missing or unknown, or a value is not supported by the network of this library.

    >>> edm_choice({"img_resolution": 64, "img_channels": 3, "model_type": "DhariwalUNet"}).attn_resolutions
    (32, 16, 8)
    """
    options = _options(kwargs)
    own = level_resolutions(options["img_resolution"], len(options["channel_mult"]))
    sizes = {name: options[name] for name in SIZE_ARGUMENTS}
    sizes["channel_mult"] = tuple(sizes["channel_mult"])
    attends = [r in sizes["attn_resolutions"] for r in published_resolutions(own)]
    sizes["attn_resolutions"] = tuple(r for r, has_attention in zip(own, attends, strict=True) if has_attention)
    if options["model_type"] == "DhariwalUNet":
        attending = [mult for mult, has in zip(sizes["channel_mult"], attends, strict=True) if has]
        narrowest = options["model_channels"] * min([*attending, *sizes["channel_mult"][-1:]], default=1)
        return ADM(**sizes, skips_narrow_attention=narrowest < (ADM_STYLE.head_channels or 0))
    checks.one_of("encoder_type", options["encoder_type"], ENCODERS)
    checks.one_of("decoder_type", options["decoder_type"], DECODERS)
    options["resample_filter"] = tuple(options["resample_filter"])
    return SongUNet(**sizes, **{name: options[published] for published, name in DESIGN_ARGUMENTS.items()})


def published_resolutions(resolutions: Sequence[int]) -> list[int]:
    """The resolutions by which published files name the levels of a U-Net: each half of the one before, rounded down.

    >>> published_resolutions((33, 17, 9))
    [33, 16, 8]
    """
    return [resolutions[0] >> level for level in range(len(resolutions))]


def published_names(network: UNet) -> dict[str, str]:
    """For each name in the network's state dict, the name in the published files, without the leading `model.`.

    The constant filters of the published files are not included: see `published_filters`.

    >>> options = {"img_resolution": 16, "img_channels": 3, "model_type": "SongUNet", "channel_mult": (1, 2)}
    >>> published_names(edm_network(options))["encoder.1.down.conv0.weight"]
    'enc.8x8_down.conv0.weight'
    """
    prefixes = dict(_prefixes(network))
    names = {}
    for name in network.state_dict():
        prefix = next(p for p in prefixes if name.startswith(p))
        names[name] = prefixes[prefix] + name.removeprefix(prefix)
    return names


def published_filters(network: UNet) -> dict[str, Tensor]:
    """The `resample_filter` buffers of the published files, by their names, which `published_names` does not include.

    >>> options = {"img_resolution": 16, "img_channels": 3, "model_type": "SongUNet", "channel_mult": (1, 2)}
    >>> list(published_filters(edm_network(options)))[:2]
    ['enc.8x8_down.conv0.resample_filter', 'enc.8x8_down.skip.resample_filter']
    """
    sizes = [f"{r}x{r}" for r in published_resolutions(network.resolutions)]
    owners = [f"enc.{size}_down.{part}" for size in sizes[1:] for part in ("conv0", "skip")]
    for size, level in zip(sizes[1:], list(network.encoder)[1:], strict=True):
        if level.auxiliary is not None:
            owners.append(f"enc.{size}_{'aux_down' if isinstance(level.auxiliary, SkipPath) else 'aux_residual'}")
    owners += [f"dec.{size}_up.{part}" for size in reversed(sizes[:-1]) for part in ("conv0", "skip")]
    if network.up_image is not None:
        owners += [f"dec.{size}_aux_up" for size in reversed(sizes[:-1])]
    kernel = filter_kernel(network.choice.style.resample_filter)[None, None]
    return {f"{owner}.resample_filter": kernel.clone() for owner in owners}


def load_edm_state_dict(network: UNet, state_dict: Mapping[str, Weights]) -> None:
    """Copy published weights to `network`, in the network's dtype and on its device.

    Args:
        network: the result of `edm_network` for the file's constructor arguments.
        state_dict: tensors by their published names, with or without the leading `model.`. The entry `u`, the noise
            levels of iDDPM's preconditioning, is not part of the network and is ignored.

    Raises:
        ValueError: a name is missing or unexpected, a shape differs, weights are integers, NaN or infinite, or the file
            has another resampling filter. The network is then unchanged.
    """
    published_tensors = {
        name.removeprefix("model."): _tensor(value) for name, value in state_dict.items() if name != "u"
    }
    filters = {
        name: published_tensors.pop(name) for name in list(published_tensors) if name.endswith(".resample_filter")
    }
    arguments = network.state_dict()
    targets = {published: arguments[name] for name, published in published_names(network).items()}

    problems = [f"missing {name}" for name in targets if name not in published_tensors]
    problems += [f"unexpected {name}" for name in published_tensors if name not in targets]
    problems += [
        f"{name} {problem}"
        for name, target in targets.items()
        if name in published_tensors
        for problem in misfits(target, published_tensors[name])
    ]
    expected = filter_kernel(network.choice.style.resample_filter)
    problems += [f"{name} is another filter" for name, value in filters.items() if not _same_filter(value, expected)]
    if problems:
        raise ValueError("state_dict does not fit the network: " + "; ".join(problems))
    for name, target in targets.items():
        value = published_tensors[name].to(target)
        target.copy_(2 * math.pi * value if name == FREQUENCIES_NAME else value)


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments with the defaults of their class."""
    checks.one_of("model_type", kwargs.get("model_type", "SongUNet"), DEFAULTS)
    defaults = DEFAULTS[kwargs.get("model_type", "SongUNet")]
    missing = [name for name in REQUIRED_ARGUMENTS if name not in kwargs]
    unknown = sorted(set(kwargs) - set(defaults) - set(REQUIRED_ARGUMENTS))
    if missing or unknown:
        raise ValueError(f"constructor arguments must be complete and known, got missing {missing}, unknown {unknown}")
    return {**defaults, **kwargs}


def _prefixes(network: UNet) -> Iterator[tuple[str, str]]:
    sizes = [f"{r}x{r}" for r in published_resolutions(network.resolutions)]
    yield "embedding.noise.omega", FREQUENCIES_NAME
    yield "embedding.classes", "map_label"
    yield "embedding.augment", "map_augment"
    yield "embedding.layer0", "map_layer0"
    yield "embedding.layer1", "map_layer1"
    yield "conv_in", f"enc.{sizes[0]}_conv"
    for index, (size, level) in enumerate(zip(sizes, network.encoder, strict=True)):
        auxiliary = "aux_skip" if isinstance(level.auxiliary, SkipPath) else "aux_residual"
        yield f"encoder.{index}.down", f"enc.{size}_down"
        yield f"encoder.{index}.auxiliary.conv", f"enc.{size}_{auxiliary}"
        yield f"encoder.{index}.blocks.", f"enc.{size}_block"
    for index, size in enumerate(reversed(sizes)):
        lowest = index == 0
        yield (
            (f"decoder.{index}.enter.", f"dec.{size}_in") if lowest else (f"decoder.{index}.enter.0", f"dec.{size}_up")
        )
        yield f"decoder.{index}.blocks.", f"dec.{size}_block"
        yield f"decoder.{index}.output.", f"dec.{size}_aux_"
    end = "out" if isinstance(network.choice, ADM) else f"dec.{sizes[0]}_aux"
    yield "norm_out", f"{end}_norm"
    yield "conv_out", f"{end}_conv"


def _tensor(value: Weights) -> Tensor:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach()


def _same_filter(value: Tensor, expected: Tensor) -> bool:
    return value.numel() == expected.numel() and torch.allclose(value.to(expected).reshape(expected.shape), expected)


# The limits of the arguments in a file. They are compared with the tensors of the file before a network is built, so
# that the network is never larger than the file.
MAX_INTEGERS = {
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
"""The largest values of integers >= 0."""
FLOAT_ARGUMENTS = {
    "dropout",
    "label_dropout",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "beta_d",
    "beta_min",
    "epsilon_t",
}
FLOAT_ARGUMENTS |= {"C_1", "C_2"}
MAX_LIST_VALUES = {"channel_mult": 2**10, "attn_resolutions": 2**14, "resample_filter": 2**10}
"""The largest values in lists of numbers >= 0, integers except for `resample_filter`, of length ≤ `MAX_LIST_LENGTH`."""
MAX_LIST_LENGTH = 32
STRING_ARGUMENTS = ("model_type", "embedding_type", "encoder_type", "decoder_type")


def check_arguments(class_name: str, kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Check the types of constructor arguments, and that they do not describe a network larger than its weights.

    Args:
        class_name: one of `PRECONDITIONINGS`.
        kwargs: the constructor arguments.
        state_dict: the weights in the file.

    Raises:
        ValueError: an argument has another type or is out of range, or the network would be larger. Unknown arguments
            are not checked here, but in `edm_denoiser`.
    """
    for name, value in kwargs.items():
        allowed = _problem_with(name, value)
        if allowed is not None:
            raise DamagedFileError(f"{name} must be {allowed}, got {repr(value)[:100]}")
    levels, blocks = len(kwargs.get("channel_mult", (1, 2, 3, 4))), kwargs.get("num_blocks", 1)
    if blocks * levels > len(state_dict):
        raise DamagedFileError(
            f"num_blocks must fit the file, got {blocks} blocks on {levels} levels for {len(state_dict)} tensors"
        )
    if class_name == "iDDPMPrecond" and "u" in state_dict:
        size, expected = tuple(state_dict["u"].shape), kwargs.get("M", 1000) + 1
        if size != (expected,):
            raise DamagedFileError(f"u must have M + 1 = {expected} levels, got shape {size}")
    _, options = PRECONDITIONINGS[class_name].split(kwargs)
    with torch.device("meta"):
        network = edm_network(options, options.get("img_channels", 1) * (2 if class_name == "iDDPMPrecond" else 1))
    needed = sum(t.numel() for t in network.state_dict().values())
    present = sum(t.numel() for t in state_dict.values())
    if needed > present:
        raise DamagedFileError(
            f"the file must have the {needed:,} weights of the network that it describes, got {present:,}"
        )


def _problem_with(name: str, value: Any) -> str | None:
    """The allowed values of an argument if it has another one; None if it is allowed, or unknown."""
    if name in MAX_INTEGERS and (type(value) is not int or not 0 <= value <= MAX_INTEGERS[name]):
        return f"an integer between 0 and {MAX_INTEGERS[name]}"
    if name in FLOAT_ARGUMENTS and (type(value) not in (int, float) or math.isnan(value)):
        return "a number"
    if name in STRING_ARGUMENTS and type(value) is not str:
        return "a string"
    if name in MAX_LIST_VALUES:
        kinds = (int, float) if name == "resample_filter" else (int,)
        is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) <= MAX_LIST_LENGTH
        if not is_list or any(type(item) not in kinds or not 0 <= item <= MAX_LIST_VALUES[name] for item in value):
            kind = "integers" if kinds == (int,) else "numbers"
            return f"a list of at most {MAX_LIST_LENGTH} {kind} from 0 to {MAX_LIST_VALUES[name]}"
    return None
