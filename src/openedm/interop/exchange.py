"""Published networks as checkpoints, and back: `Published` beside `Model`, and files without pickle.

A published network as NAME.safetensors, its weights by their published names, and NAME.json:
{"format": …, "class_name": "EDMPrecond", "network_name": "SongUNet", "init_kwargs": {…}, "dataset_kwargs": {…}}.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from openedm.denoiser import Preconditioned
from openedm.ground.storage import read_json, read_tensors, replacing, write_json, write_tensors
from openedm.interop.edm import FREQUENCIES, PRECONDITIONINGS, edm_choice, published_filters, published_names
from openedm.interop.published import Published, Reporter, read_pickle
from openedm.interop.records import plain
from openedm.networks import ADM, DDPMpp, NCSNpp, SongUNet, UNetBody
from openedm.preconditioning import IDDPM
from openedm.training import Model

FORMAT = "openedm-published-1"
CLASSES = {kind: name for name, (kind, _) in PRECONDITIONINGS.items()}
OWN = {"EDMPrecond": ("sigma_min", "sigma_max", "sigma_data")}
"""Arguments of preconditionings that are those of the denoiser here."""


def read_published(path: str | Path, key: str = "ema", report: Reporter | None = None) -> Published:
    """Read a published network from a pickle (.pkl) or from safetensors and JSON; nothing in the file is run.

    Args:
        path: NAME.pkl; or NAME.safetensors, with NAME.json beside it.
        key: the entry of a pickle that holds the network.
        report: called after each tensor of a pickle with the bytes read and their number.

    Raises:
        UnsafeFileError: the pickle asks for more than data; says what, and at which byte.
        DamagedFileError: the pickle cannot be read as a published network.
        ValueError: the other files cannot, or the name ends in something else.
        OSError: a pickle cannot be opened.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        return read_pickle(path, key, report)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .pkl or .safetensors, got {str(path)!r}")
    try:
        config = read_json(path.with_suffix(".json"))
    except RecursionError as error:
        raise ValueError(f"{path.with_suffix('.json')} is nested too deeply") from error
    if config.get("format") != FORMAT:
        raise ValueError(f"{path.with_suffix('.json')}: format must be {FORMAT!r}, got {config.get('format')!r}")
    name, network_name, kwargs = (config.get(entry) for entry in ("class_name", "network_name", "init_kwargs"))
    if not isinstance(name, str) or not isinstance(network_name, str | None) or not isinstance(kwargs, dict):
        raise ValueError(f"{path.with_suffix('.json')} must hold a class_name, a network_name and init_kwargs")
    data = plain(config.get("dataset_kwargs", {}), "dataset_kwargs")
    if not isinstance(data, dict):
        raise ValueError(f"{path.with_suffix('.json')}: dataset_kwargs must be an object")
    given = {n: float(v) if v in ("inf", "-inf") else v for n, v in plain(kwargs, "init_kwargs").items()}
    return Published(name, given, read_tensors(path), network_name, data)


def new_published(path: str | Path) -> tuple[Path, Path]:
    """The two files that a published network is written to.

    Raises:
        ValueError: the name does not end in .safetensors, or a file is there already.
    """
    path = Path(path)
    config = path.with_suffix(".json")
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    for there in (path, config):
        if there.exists():
            raise ValueError(f"{there} exists already: a file is never overwritten")
    return path, config


def write_published(path: str | Path, published: Published) -> None:
    """Write a published network to NAME.safetensors and NAME.json; each appears complete or not at all.

    Raises:
        ValueError: the name does not end in .safetensors, or a file is there already.
    """
    path, config = new_published(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, replacing(config) as description:
        write_tensors(temporary, published.state_dict)
        write_json(
            description,
            {
                "format": FORMAT,
                "class_name": published.class_name,
                "network_name": published.network_name,
                "init_kwargs": _without_infinities(published.kwargs),
                "dataset_kwargs": published.dataset_kwargs,
            },
        )


def published_model(published: Published, denoiser: Preconditioned) -> Model:
    """The description of a published network in a checkpoint.

    Args:
        published: the network.
        denoiser: what it made.

    Raises:
        ValueError: the file limits the noise levels, which a checkpoint does not keep.
    """
    own = denoiser.preconditioning
    if (denoiser.sigma_min, denoiser.sigma_max) != (own.sigma_min, own.sigma_max):
        raise ValueError(
            f"sigma_min and sigma_max must be {own.sigma_min} and {own.sigma_max} for {own}, got {denoiser.sigma_min} "
            f"and {denoiser.sigma_max}: a checkpoint keeps no range of its own; build the denoiser in Python instead"
        )
    names = {*PRECONDITIONINGS[published.class_name][1], *OWN.get(published.class_name, ()), "use_fp16"}
    network: UNetBody = denoiser.network  # type: ignore[assignment]
    default = "SongUNet" if published.class_name in ("VPPrecond", "VEPrecond") else "DhariwalUNet"
    options = {"model_type": default} | {n: value for n, value in published.kwargs.items() if n not in names}
    return Model(
        network=edm_choice(options),
        preconditioning=own,
        sigma_data=denoiser.sigma_data,
        event_shape=denoiser.event_shape or (),
        num_classes=denoiser.num_classes,
        augment_dim=network.augment_dim,
    )


def publish(model: Model, denoiser: Preconditioned) -> Published:
    """A network of ours by the published names, for `write_published`.

    Args:
        model: its description, as `read_model` gives it.
        denoiser: the network with its weights.

    Raises:
        ValueError: it is no U-Net for square images with one of EDM's preconditionings.
    """
    precond, choice, network = model.preconditioning, model.network, denoiser.network
    if type(precond) not in CLASSES:
        raise ValueError(f"preconditioning must be one of {', '.join(c.__name__ for c in CLASSES)}, got {precond}")
    if not isinstance(network, UNetBody) or not isinstance(choice, ADM | DDPMpp | NCSNpp | SongUNet):
        raise ValueError(f"network must be DDPMpp, NCSNpp, SongUNet or ADM to have published names, got {choice}")
    channels, height, width = model.event_shape
    if height != width:
        raise ValueError(f"images must be square to have published names, got {model.event_shape}")
    class_name = CLASSES[type(precond)]
    kwargs: dict[str, Any] = {"img_resolution": height, "img_channels": channels, "label_dim": model.num_classes}
    kwargs |= {"augment_dim": network.augment_dim, **_network_arguments(choice, network)}
    kwargs |= {name: getattr(precond, own) for name, own in PRECONDITIONINGS[class_name][1].items()}
    if class_name == "EDMPrecond":
        kwargs["sigma_data"] = model.sigma_data
    elif model.sigma_data != Preconditioned.sigma_data:
        raise ValueError(f"sigma_data must be 0.5 for {class_name}, which has no such argument, got {model.sigma_data}")
    state = {f"model.{name}": network.state_dict()[own] for own, name in published_names(network).items()}
    if f"model.{FREQUENCIES}" in state:
        state[f"model.{FREQUENCIES}"] = state[f"model.{FREQUENCIES}"] / (2 * math.pi)
    state |= {f"model.{name}": kernel for name, kernel in published_filters(network).items()}
    if isinstance(precond, IDDPM) and precond.table is not None:
        state["u"] = torch.tensor(precond.table, dtype=torch.float64)
    return Published(class_name, kwargs, state, kwargs["model_type"])


def _network_arguments(choice: ADM | DDPMpp | NCSNpp | SongUNet, network: UNetBody) -> dict[str, Any]:
    levels = list(network.encoder)
    sizes = {
        "model_channels": choice.model_channels,
        "channel_mult": list(choice.channel_mult),
        "channel_mult_emb": choice.channel_mult_emb,
        "num_blocks": choice.num_blocks,
        "attn_resolutions": [r for r, level in zip(network.resolutions, levels, strict=True) if _attends(level)],
        "dropout": choice.dropout,
    }
    if isinstance(choice, ADM):
        return {"model_type": "DhariwalUNet", **sizes}
    if isinstance(choice, DDPMpp):
        choice = SongUNet()
    elif isinstance(choice, NCSNpp):
        choice = SongUNet(embedding="fourier", channel_mult_noise=2, encoder="residual", resample_filter=(1, 3, 3, 1))
    return {
        "model_type": "SongUNet",
        **sizes,
        "embedding_type": choice.embedding,
        "channel_mult_noise": choice.channel_mult_noise,
        "encoder_type": choice.encoder,
        "decoder_type": choice.decoder,
        "resample_filter": list(choice.resample_filter),
    }


def _attends(level: Any) -> bool:
    return bool(level.blocks[0].has_attention)


def _without_infinities(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in kwargs.items()
    }
