"""The networks that the authors of the EDM paper published, from their constructor arguments and state dicts.

Only names differ: `published_names` lists which of their names stands for which of ours. Their Fourier frequencies f
are kept as ω = 2πf here, and their `resample_filter` buffers follow from the constructor arguments, so they are
compared and not copied. Source of the weights: Karras et al. 2022 (arXiv 2206.00364), https://github.com/NVlabs/edm.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm import preconditioning
from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.networks import ADM, ADMUNet, SongUNet, UNetBody, level_resolutions
from openedm.networks.body import DECODERS, ENCODERS, SkipPath
from openedm.networks.layers import filter_kernel
from openedm.networks.unet import EMBEDDINGS
from openedm.preconditioning import Preconditioning

Weights = Tensor | np.ndarray
FREQUENCIES = "map_noise.freqs"
# The published constructor arguments of each class of network and what they are when left out.
SHARED: dict[str, Any] = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.10, "label_dropout": 0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        **SHARED,
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": (1, 1),
    },
    "DhariwalUNet": {
        **SHARED,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}
REQUIRED = ("img_resolution", "img_channels", "model_type")
# The published preconditionings: which of ours each is, and its constructor arguments by their names here.
PRECONDITIONINGS: dict[str, tuple[type[Preconditioning], dict[str, str]]] = {
    "EDMPrecond": (preconditioning.EDM, {}),
    "VPPrecond": (
        preconditioning.VP,
        {"beta_d": "beta_d", "beta_min": "beta_min", "M": "num_levels", "epsilon_t": "epsilon_t"},
    ),
    "VEPrecond": (preconditioning.VE, {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}),
    "iDDPMPrecond": (preconditioning.IDDPM, {"C_1": "c_1", "C_2": "c_2", "M": "num_levels"}),
}


def edm_denoiser(
    precond: str,
    kwargs: Mapping[str, Any],
    state_dict: Mapping[str, Weights],
    table: Sequence[float] | None = None,
) -> Preconditioned:
    """The published denoiser: network, weights and preconditioning, in evaluation mode.

    Args:
        precond: its class: "EDMPrecond", "VPPrecond", "VEPrecond" or "iDDPMPrecond".
        kwargs: its constructor arguments by their published names: those of the class, passed on to `edm_network` where
            they are the network's. `use_fp16` has no effect: the network is float32 until it is cast.
        state_dict: its weights by their published names, see `load_edm_state_dict`.
        table: for iDDPM, the levels u_0 > … > u_M = 0 that σ is rounded to; None means those in `state_dict`, or,
            where it has none, the exact ones.

    Raises:
        ValueError: as `edm_network` and `load_edm_state_dict`, `precond` is another, or a table is given to another
            than iDDPM.
    """
    checks.one_of("precond", precond, PRECONDITIONINGS)
    if table is not None and precond != "iDDPMPrecond":
        raise ValueError(f"table must be None for {precond}: only iDDPMPrecond rounds to a table")
    kind, names = PRECONDITIONINGS[precond]
    options = {"model_type": "SongUNet" if precond in ("VPPrecond", "VEPrecond") else "DhariwalUNet", **kwargs}
    options.pop("use_fp16", None)
    chosen = {own: options.pop(name) for name, own in names.items() if name in options}
    if precond == "iDDPMPrecond":
        levels = _tensor(state_dict["u"]).tolist() if table is None and "u" in state_dict else table
        chosen["table"] = None if levels is None else tuple(levels)
    own_names = ("sigma_min", "sigma_max", "sigma_data") if precond == "EDMPrecond" else ()
    numbers = {name: float(options.pop(name)) for name in own_names if name in options}

    made = kind(**chosen)
    channels, resolution = options.get("img_channels", 0), options.get("img_resolution", 0)
    network = edm_network(options, channels * made.outputs_per_channel)
    load_edm_state_dict(network, state_dict)
    denoiser = Preconditioned(
        network,
        made,
        sigma_data=numbers.get("sigma_data", 0.5),
        event_shape=(channels, resolution, resolution),
        num_classes=network.num_classes,
    )
    denoiser.sigma_min = numbers.get("sigma_min", denoiser.sigma_min)
    denoiser.sigma_max = numbers.get("sigma_max", denoiser.sigma_max)
    return denoiser.eval()


def edm_network(kwargs: Mapping[str, Any], out_channels: int | None = None) -> UNetBody:
    """The network that the published constructor arguments describe, with new weights.

    Args:
        kwargs: the published names, as for `edm_choice`.
        out_channels: the channels of F; default `img_channels` (iDDPM: twice as many).

    Raises:
        ValueError: a name is missing or unknown, or a value is none that the network here has.

    >>> options = {"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8}
    >>> edm_network(options).resolutions
    (32, 16, 8, 4)
    """
    options = _options(kwargs)
    shape = (options["img_channels"], options["img_resolution"], options["img_resolution"])
    network: UNetBody = edm_choice(kwargs).build(
        shape, num_classes=options["label_dim"], augment_dim=options["augment_dim"], out_channels=out_channels
    )
    return network


def edm_choice(kwargs: Mapping[str, Any]) -> SongUNet | ADM:
    """The published network as a value: what a checkpoint of ours keeps of it beside the shape of the data.

    Args:
        kwargs: the published names: `img_resolution`, `img_channels`, `model_type` ("SongUNet" or "DhariwalUNet"), and
            the options of that class, with its defaults for those left out. `label_dropout` has no effect: whoever
            trains drops the labels. Resolutions in `attn_resolutions` that no level has are passed over, as the
            published code does.

    Raises:
        ValueError: a name is missing or unknown, or a value is none that the network here has.

    >>> edm_choice({"img_resolution": 64, "img_channels": 3, "model_type": "DhariwalUNet"}).attn_resolutions
    (32, 16, 8)
    """
    options = _options(kwargs)
    channel_mult = tuple(options["channel_mult"])
    resolutions = level_resolutions(options["img_resolution"], len(channel_mult))
    sizes: dict[str, Any] = {
        "model_channels": options["model_channels"],
        "channel_mult": channel_mult,
        "channel_mult_emb": options["channel_mult_emb"],
        "num_blocks": options["num_blocks"],
        "attn_resolutions": tuple(r for r in options["attn_resolutions"] if r in resolutions),
        "dropout": options["dropout"],
    }
    if options["model_type"] == "DhariwalUNet":
        return ADM(**sizes)
    for name, known in (("embedding_type", EMBEDDINGS), ("encoder_type", ENCODERS), ("decoder_type", DECODERS)):
        checks.one_of(name, options[name], known)
    return SongUNet(
        **sizes,
        embedding=options["embedding_type"],
        channel_mult_noise=options["channel_mult_noise"],
        encoder=options["encoder_type"],
        decoder=options["decoder_type"],
        resample_filter=tuple(options["resample_filter"]),
    )


def published_names(network: UNetBody) -> dict[str, str]:
    """For each name in the network's state dict, the name in the published files, without the leading `model.`.

    The constant filters of the published files have no name here: see `published_filters`.

    >>> from openedm.networks import UNet
    >>> published_names(UNet(16, 3, 3, model_channels=8, channel_mult=(1, 2)))["encoder.1.down.conv0.weight"]
    'enc.8x8_down.conv0.weight'
    """
    prefixes = dict(_prefixes(network))
    names = {}
    for name in network.state_dict():
        prefix = next(p for p in prefixes if name.startswith(p))
        names[name] = prefixes[prefix] + name.removeprefix(prefix)
    return names


def published_filters(network: UNetBody) -> dict[str, Tensor]:
    """The `resample_filter` buffers of the published files, by their names: what `published_names` leaves out.

    >>> from openedm.networks import UNet
    >>> list(published_filters(UNet(16, 3, 3, model_channels=8, channel_mult=(1, 2))))[:2]
    ['enc.8x8_down.conv0.resample_filter', 'enc.8x8_down.skip.resample_filter']
    """
    sizes = [f"{r}x{r}" for r in network.resolutions]
    owners = [f"enc.{size}_down.{part}" for size in sizes[1:] for part in ("conv0", "skip")]
    for size, level in zip(sizes[1:], list(network.encoder)[1:], strict=True):
        if level.auxiliary is not None:
            owners.append(f"enc.{size}_{'aux_down' if isinstance(level.auxiliary, SkipPath) else 'aux_residual'}")
    owners += [f"dec.{size}_up.{part}" for size in reversed(sizes[:-1]) for part in ("conv0", "skip")]
    if network.up_image is not None:
        owners += [f"dec.{size}_aux_up" for size in reversed(sizes[:-1])]
    kernel = filter_kernel(network.resample_filter)[None, None]
    return {f"{owner}.resample_filter": kernel.clone() for owner in owners}


def load_edm_state_dict(network: UNetBody, state_dict: Mapping[str, Weights]) -> None:
    """Copy published weights into `network`, in the network's own dtype and on its device.

    Args:
        network: made by `edm_network` from the file's constructor arguments.
        state_dict: tensors by their published names, with or without the leading `model.`. The entry `u`, the noise
            levels of iDDPM's preconditioning, is no part of the network and is passed over.

    Raises:
        ValueError: a name is missing or unexpected, a shape differs, or the file resamples by another filter. The
            network is then unchanged.
    """
    given = {name.removeprefix("model."): _tensor(value) for name, value in state_dict.items() if name != "u"}
    filters = {name: given.pop(name) for name in list(given) if name.endswith(".resample_filter")}
    own = network.state_dict()
    targets = {published: own[name] for name, published in published_names(network).items()}

    problems = [f"missing {name}" for name in targets if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in targets]
    problems += [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(target.shape)}"
        for name, target in targets.items()
        if name in given and given[name].shape != target.shape
    ]
    expected = filter_kernel(network.resample_filter)
    problems += [f"{name} is another filter" for name, value in filters.items() if not _same_filter(value, expected)]
    if problems:
        raise ValueError("state_dict does not fit the network: " + "; ".join(problems))
    for name, target in targets.items():
        value = given[name].to(target)
        target.copy_(2 * math.pi * value if name == FREQUENCIES else value)


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments with the defaults of their class."""
    checks.one_of("model_type", kwargs.get("model_type", "SongUNet"), DEFAULTS)
    defaults = DEFAULTS[kwargs.get("model_type", "SongUNet")]
    missing = [name for name in REQUIRED if name not in kwargs]
    unknown = sorted(set(kwargs) - set(defaults) - set(REQUIRED))
    if missing or unknown:
        raise ValueError(f"constructor arguments: missing {missing}, unknown {unknown}")
    return {**defaults, **kwargs}


def _prefixes(network: UNetBody) -> Iterator[tuple[str, str]]:
    sizes = [f"{r}x{r}" for r in network.resolutions]
    yield "embedding.noise.omega", FREQUENCIES
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
    end = "out" if isinstance(network, ADMUNet) else f"dec.{sizes[0]}_aux"
    yield "norm_out", f"{end}_norm"
    yield "conv_out", f"{end}_conv"


def _tensor(value: Weights) -> Tensor:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach()


def _same_filter(value: Tensor, expected: Tensor) -> bool:
    return value.numel() == expected.numel() and torch.allclose(value.to(expected).reshape(expected.shape), expected)
