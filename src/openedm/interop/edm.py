"""The networks that the authors of the EDM paper published, from their constructor arguments and state dicts.

Only names differ: `published_names` maps the names of this library to the published ones. The published Fourier
frequencies f are ω = 2πf here, and the published `resample_filter` buffers follow from the constructor arguments, so
that they are compared and not copied. No library has these names; diffusers' converters are for other networks. Source
of the weights: Karras et al. 2022 (arXiv 2206.00364), https://github.com/NVlabs/edm.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.tensors import as_tensor, misfits
from openedm.interop.arguments import DESIGN_ARGUMENTS, PRECONDITIONINGS, SIZE_ARGUMENTS, check_values, complete
from openedm.interop.pickles import DamagedFileError
from openedm.networks import ADM, Signature, SongUNet, UNet
from openedm.networks.blocks import DECODERS, ENCODERS
from openedm.networks.designs import ADM_STYLE
from openedm.networks.layers import filter_kernel
from openedm.networks.unet import SkipPath, level_resolutions

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
        TypeError: as for `load_edm_state_dict`.
        ValueError: as for `edm_network` and `load_edm_state_dict`, `precond` is unknown, a value of the preconditioning
            is out of its range, or a table is given for another class than iDDPM.
    """
    check_values(kwargs)
    checks.one_of("precond", precond, PRECONDITIONINGS)
    if table is not None and precond != "iDDPMPrecond":
        raise ValueError(f"table must be None for {precond}: only iDDPMPrecond rounds to a table")
    published = PRECONDITIONINGS[precond]
    arguments, options = published.split(kwargs)
    chosen = {published.names[name]: value for name, value in arguments.items() if name in published.names}
    numbers = {name: float(arguments[name]) for name in published.denoiser_names if name in arguments}
    if precond == "iDDPMPrecond":
        levels = as_tensor("u", state_dict["u"]) if table is None and "u" in state_dict else table
        if isinstance(levels, Tensor) and levels.ndim != 1:
            raise ValueError(f"u must be a list of levels, got shape {tuple(levels.shape)}")
        given = levels.tolist() if isinstance(levels, Tensor) else levels
        chosen["table"] = None if given is None else tuple(given)

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
    if published.denoiser_names:
        denoiser.sigma_min = numbers.get("sigma_min", denoiser.sigma_min)
        denoiser.sigma_max = numbers.get("sigma_max", denoiser.sigma_max)
        checks.at_least("sigma_min", denoiser.sigma_min, 0)
        checks.ordered("sigma_min", denoiser.sigma_min, "sigma_max", denoiser.sigma_max)
    return denoiser.eval()


def edm_network(kwargs: Mapping[str, Any], out_channels: int | None = None) -> UNet:
    """The network that the published constructor arguments describe, with new weights.

    Args:
        kwargs: the published names, as for `edm_choice`.
        out_channels: the channels of F; None means `img_channels`. The networks of iDDPM have twice as many.

    Raises:
        ValueError: a name is missing or unknown, or a value is not supported by the network of this library.

    >>> options = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8}
    >>> edm_network(options).resolutions
    (32, 16, 8, 4)
    """
    options = complete(kwargs)
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
    options = complete(kwargs)
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
        TypeError: an entry is not a tensor, an array or a list of numbers.
        ValueError: a name is missing, unexpected or given twice, a shape differs, weights are integers, NaN or
            infinite in the network's dtype, or the file has another resampling filter. The network is then unchanged.
    """
    named: dict[str, Tensor] = {}
    for full_name, value in state_dict.items():
        name = full_name.removeprefix("model.")
        if name in named:
            raise ValueError(f"state_dict must have one tensor a name, got {name} and model.{name}")
        if full_name != "u":
            named[name] = as_tensor(full_name, value).detach()
    filters = {name: named.pop(name) for name in list(named) if name.endswith(".resample_filter")}
    arguments = network.state_dict()
    targets = {published: arguments[name] for name, published in published_names(network).items()}

    problems = [f"missing {name}" for name in targets if name not in named]
    problems += [f"unexpected {name}" for name in named if name not in targets]
    for name in targets.keys() & named.keys():
        problems += [f"{name} {problem}" for problem in misfits(targets[name], named[name])]
    expected = published_filters(network)
    problems += [f"unexpected {name}" for name in filters if name not in expected]
    for name in expected.keys() & filters.keys():
        if not _same_filter(filters[name], expected[name]):
            problems.append(f"{name} is another filter")
    if problems:
        raise ValueError(f"state_dict does not fit the network: {checks.first_of(sorted(problems))}")
    for name, target in targets.items():
        value = named[name].to(target)
        target.copy_(2 * math.pi * value if name == FREQUENCIES_NAME else value)


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


def _same_filter(value: Tensor, expected: Tensor) -> bool:
    return value.numel() == expected.numel() and torch.allclose(value.to(expected).reshape(expected.shape), expected)


def check_sizes(class_name: str, kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Check, before a network is built, that the arguments in a file do not describe one larger than its weights.

    Args:
        class_name: one of `PRECONDITIONINGS`.
        kwargs: the constructor arguments.
        state_dict: the weights in the file.

    Raises:
        ValueError: as for `edm_choice`, or the network would be larger.
    """
    check_values(kwargs)
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
