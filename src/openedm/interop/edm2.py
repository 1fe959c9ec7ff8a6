"""The networks that the authors of EDM2 published, from their constructor arguments and state dicts.

Only names differ, and gains are numbers there and vectors of one number here. Weights are taken as they are: published
files hold averages in half precision, which no longer have magnitude 1, and layers normalise what they use. Source of
the weights: Karras et al. 2024 (arXiv 2312.02696), https://github.com/NVlabs/edm2.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm import preconditioning
from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.tensors import as_tensor, misfits
from openedm.interop.arguments import check_values
from openedm.interop.edm import published_resolutions
from openedm.interop.pickles import DamagedFileError
from openedm.networks import EDM2UNet, MagnitudePreservingUNet, Signature
from openedm.networks.unet import level_resolutions
from openedm.training import Model

__all__ = [
    "EDM2_CLASS",
    "EDM2_NETWORK",
    "check_edm2_sizes",
    "edm2_choice",
    "edm2_denoiser",
    "edm2_names",
    "publish_edm2",
]

Weights = Tensor | np.ndarray
EDM2_CLASS, EDM2_NETWORK = "Precond", "UNet"
"""The published classes of the preconditioning and of the network."""
REQUIRED = ("img_resolution", "img_channels")
DEFAULTS: dict[str, Any] = {
    "label_dim": 0,
    "use_fp16": True,
    "sigma_data": 0.5,
    "logvar_channels": 128,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "num_blocks": 3,
    "attn_resolutions": (16, 8),
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "resample_filter": (1, 1),
    "channels_per_head": 64,
    "dropout": 0.0,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}
"""The constructor arguments that a file may leave out."""
FIXED = ("channel_mult_noise", "channel_mult_emb", "resample_filter", "clip_act")
"""Those that have no other value here."""
OWN_NAMES = {
    "model_channels": "model_channels",
    "num_blocks": "num_blocks",
    "dropout": "dropout",
    "head_channels": "channels_per_head",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "res_balance",
    "attn_balance": "attn_balance",
    "uncertainty_channels": "logvar_channels",
}
"""Fields of `EDM2UNet` and their published names; `channel_mult` and `attn_resolutions` are lists."""
PARTS = {
    "gain": "emb_gain",
    "conv0.weight": "conv_res0.weight",
    "affine.weight": "emb_linear.weight",
    "conv1.weight": "conv_res1.weight",
    "skip.weight": "conv_skip.weight",
    "qkv.weight": "attn_qkv.weight",
    "proj.weight": "attn_proj.weight",
}
"""The tensors of a block and their published names."""
SINGLE = {
    "embedding.noise.omega": "unet.emb_fourier.freqs",
    "embedding.noise.phase": "unet.emb_fourier.phases",
    "embedding.layer.weight": "unet.emb_noise.weight",
    "embedding.classes.weight": "unet.emb_label.weight",
    "conv_out.weight": "unet.out_conv.weight",
    "gain_out": "unet.out_gain",
    "uncertainty_head.features.omega": "logvar_fourier.freqs",
    "uncertainty_head.features.phase": "logvar_fourier.phases",
    "uncertainty_head.layer.weight": "logvar_linear.weight",
}


def _complete(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    check_values(kwargs)
    missing = [name for name in REQUIRED if name not in kwargs]
    unknown = sorted(set(kwargs) - set(DEFAULTS) - set(REQUIRED))
    if missing or unknown:
        raise ValueError(f"constructor arguments must be complete and known, got missing {missing}, unknown {unknown}")
    for name in FIXED:
        given = kwargs.get(name, DEFAULTS[name])
        if (tuple(given) if isinstance(given, list | tuple) else given) != DEFAULTS[name]:
            raise ValueError(f"{name} must be {DEFAULTS[name]}, the only one supported, got {given!r}")
    return {**DEFAULTS, **kwargs}


def edm2_choice(kwargs: Mapping[str, Any]) -> EDM2UNet:
    """The published network as a value, without the shapes of the data, as in a checkpoint of this library.

    Args:
        kwargs: the constructor arguments by their published names, with the published defaults for those left out.
            `use_fp16` has no effect: the network is float32. Resolutions in `attn_resolutions` that no level has are
            ignored, as in the published code.

    Raises:
        ValueError: a name is missing or unknown, or a value is not supported.

    >>> edm2_choice({"img_resolution": 64, "img_channels": 4, "model_channels": 128}).attn_resolutions
    (16, 8)
    """
    options = _complete(kwargs)
    own = level_resolutions(options["img_resolution"], len(options["channel_mult"]))
    attends = [r in options["attn_resolutions"] for r in published_resolutions(own)]
    return EDM2UNet(
        channel_mult=tuple(options["channel_mult"]),
        attn_resolutions=tuple(r for r, has_attention in zip(own, attends, strict=True) if has_attention),
        **{name: options[published] for name, published in OWN_NAMES.items()},
    )


def _network(kwargs: Mapping[str, Any]) -> MagnitudePreservingUNet:
    options = _complete(kwargs)
    channels, resolution = options["img_channels"], options["img_resolution"]
    signature = Signature((channels, resolution, resolution), channels, options["label_dim"])
    return edm2_choice(kwargs).module(signature, seed=None)


def edm2_denoiser(kwargs: Mapping[str, Any], state_dict: Mapping[str, Weights]) -> Preconditioned:
    """The published denoiser: network, weights and EDM's preconditioning, in evaluation mode.

    Args:
        kwargs: the constructor arguments, as for `edm2_choice`.
        state_dict: the weights by their published names, in any precision.

    Raises:
        TypeError: an entry is not a tensor, an array or a list of numbers.
        ValueError: as for `edm2_choice`; or a name is missing or unexpected, a shape differs, or weights are integers,
            NaN or infinite.
    """
    network = _network(kwargs)
    _load(network, state_dict)
    return Preconditioned(
        network,
        preconditioning.EDM(),
        sigma_data=float(_complete(kwargs)["sigma_data"]),
        event_shape=network.signature.event_shape,
        num_classes=network.signature.num_classes,
    ).eval()


def edm2_names(network: MagnitudePreservingUNet) -> dict[str, str]:
    """For each name in the network's state dict, the name in the published files.

    >>> network = EDM2UNet(16, (1, 4), 1, head_channels=16).build((1, 16, 16))
    >>> edm2_names(network)["decoder.1.enter.0.conv0.weight"]
    'unet.dec.16x16_up.conv_res0.weight'
    """
    blocks, names = dict(_block_names(network)), {}
    single = SINGLE | {"conv_in.weight": f"unet.enc.{_sizes(network)[0]}_conv.weight"}
    for name in network.state_dict():
        if name in single:
            names[name] = single[name]
            continue
        block = next(prefix for prefix in blocks if name.startswith(f"{prefix}."))
        names[name] = f"unet.{blocks[block]}.{PARTS[name.removeprefix(f'{block}.')]}"
    return names


def _sizes(network: MagnitudePreservingUNet) -> list[str]:
    return [f"{r}x{r}" for r in published_resolutions(network.resolutions)]


def _block_names(network: MagnitudePreservingUNet) -> Iterator[tuple[str, str]]:
    """The names of all blocks, without those of their parts."""
    sizes, count = _sizes(network), network.choice.num_blocks
    for level, size in enumerate(sizes):
        yield f"encoder.{level}.down", f"enc.{size}_down"
        yield from ((f"encoder.{level}.blocks.{i}", f"enc.{size}_block{i}") for i in range(count))
    for level, size in enumerate(reversed(sizes)):
        entries = [f"dec.{size}_in0", f"dec.{size}_in1"] if level == 0 else [f"dec.{size}_up"]
        yield from ((f"decoder.{level}.enter.{i}", name) for i, name in enumerate(entries))
        yield from ((f"decoder.{level}.blocks.{i}", f"dec.{size}_block{i}") for i in range(count + 1))


def _load(network: MagnitudePreservingUNet, state_dict: Mapping[str, Weights]) -> None:
    targets = {published: network.state_dict()[own] for own, published in edm2_names(network).items()}
    named = {name: as_tensor(name, value).detach() for name, value in state_dict.items()}
    named = {name: value.reshape(1) if value.ndim == 0 else value for name, value in named.items()}
    problems = [f"missing {name}" for name in targets if name not in named]
    problems += [f"unexpected {name}" for name in named if name not in targets]
    for name in targets.keys() & named.keys():
        problems += [f"{name} {problem}" for problem in misfits(targets[name], named[name])]
    if problems:
        raise ValueError(f"state_dict does not fit the network: {checks.first_of(sorted(problems))}")
    for name, target in targets.items():
        target.copy_(named[name])


def check_edm2_sizes(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Check, before a network is built, that the arguments in a file do not describe one larger than its weights.

    Raises:
        ValueError: as for `edm2_choice`, or the network would be larger.
    """
    options = _complete(kwargs)
    levels, blocks = len(options["channel_mult"]), options["num_blocks"]
    if blocks * levels > len(state_dict):
        raise DamagedFileError(
            f"num_blocks must fit the file, got {blocks} blocks on {levels} levels for {len(state_dict)} tensors"
        )
    with torch.device("meta"):
        needed = sum(t.numel() for t in _network(kwargs).state_dict().values())
    present = sum(t.numel() for t in state_dict.values())
    if needed > present:
        raise DamagedFileError(
            f"the file must have the {needed:,} weights of the network that it describes, got {present:,}"
        )


def publish_edm2(model: Model, denoiser: Preconditioned) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The constructor arguments and the weights of a denoiser of this library, by their published names.

    Args:
        model: its description.
        denoiser: the network with its weights.

    Raises:
        ValueError: it is not an `EDM2UNet` of square images or latents with EDM's preconditioning and a u(σ) of its
            own, or has augmentation labels.
    """
    choice, network = model.network, denoiser.network
    assert isinstance(choice, EDM2UNet)
    assert isinstance(network, MagnitudePreservingUNet)
    if type(model.preconditioning) is not preconditioning.EDM or model.noise_range is not None:
        raise ValueError(
            f"preconditioning must be EDM() without noise_range for an EDM2UNet to have published names, got "
            f"{model.preconditioning} and {model.noise_range}"
        )
    if model.augment_dim:
        raise ValueError(f"augment_dim must be 0 for an EDM2UNet to have published names, got {model.augment_dim}")
    if choice.uncertainty_channels == 0:
        raise ValueError(
            "network must have uncertainty_channels >= 1 to have published names, got 0: the files hold a u(σ)"
        )
    if len(model.event_shape) != 3 or model.event_shape[1] != model.event_shape[2]:
        raise ValueError(f"samples must be square images to have published names, got {model.event_shape}")
    channels, height, _ = model.event_shape
    kwargs: dict[str, Any] = {"img_resolution": height, "img_channels": channels, "label_dim": model.num_classes}
    kwargs |= {"use_fp16": False, "sigma_data": model.sigma_data, "channel_mult": list(choice.channel_mult)}
    kwargs |= {published: getattr(choice, name) for name, published in OWN_NAMES.items()}
    names = dict(zip(network.resolutions, published_resolutions(network.resolutions), strict=True))
    kwargs["attn_resolutions"] = [names[r] for r in choice.attention_at(network.resolutions)]
    check_values(kwargs)
    state = {published: network.state_dict()[own] for own, published in edm2_names(network).items()}
    gains = {name: t.reshape(()) for name, t in state.items() if name.endswith("_gain")}
    return kwargs, state | gains
