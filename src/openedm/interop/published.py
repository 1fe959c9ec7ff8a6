"""Published networks: files of the EDM releases, read as data and converted to denoisers and checkpoints.

    pickle → records (`records`) → class, constructor arguments and state dict (`Published`) → denoiser, `Model`

The same content also goes to and from a pair of files without any pickle: NAME.safetensors, its weights by their
published names (safetensors reads and writes them), and NAME.json, {"format": …, "class_name": "EDMPrecond",
"network_name": "SongUNet", "init_kwargs": {…}, "dataset_kwargs": {…}}.
"""

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openedm import preconditioning
from openedm.data.autoencoder import open_for_latents
from openedm.data.encoding import EDM2_UNITS
from openedm.denoiser import Preconditioned
from openedm.ground.locks import locked_file
from openedm.ground.progress import Progress, ShowProgress, no_progress, showing
from openedm.ground.storage import new_files, new_path, read_json, read_tensors, write_json, write_tensors
from openedm.interop.arguments import PRECONDITIONINGS, check_values, network_arguments
from openedm.interop.edm import (
    FREQUENCIES_NAME,
    check_sizes,
    edm_choice,
    edm_denoiser,
    published_filters,
    published_names,
    published_resolutions,
)
from openedm.interop.edm2 import (
    EDM2_CLASS,
    EDM2_NETWORK,
    check_edm2_sizes,
    edm2_choice,
    edm2_denoiser,
    publish_edm2,
)
from openedm.interop.modules import named_tensors, read_named
from openedm.interop.pickles import Bytes, DamagedFileError, Machine, UnreadableFileError, describe
from openedm.interop.records import STORAGE_MAGIC, Record, known_globals, plain
from openedm.networks import ADM, DDPMpp, EDM2UNet, NCSNpp, SongUNet, UNet
from openedm.training import Model

__all__ = ["Published", "parse_pickle", "publish", "published_model", "read_published", "write_published"]

FORMAT = "openedm-published-1"
TORCH_SAVE = "of torch.save: published files are plain pickles"
SIGNATURES = (
    (b"pk\x03\x04", f"a zip archive, as {TORCH_SAVE}"),
    (b"\x1f\x8b", "a gzip file: unpack it first, for example with gunzip"),
    (b"bzh", "a bzip2 file: unpack it first"),
    (b"\xfd7zxz", "an xz file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file: unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch it with git lfs pull"),
    (b"<?xml", "an XML page, as of a failed download"),
    (b"<", "an HTML page, as of a failed download: open the address in a browser and download again"),
    (b"{", "a JSON text, as of a failed download"),
    (b"\x89hdf", "an HDF5 file"),
    (b"\x93numpy", "a NumPy array"),
)
"""The first bytes, in lower case, of kinds of files that are taken for pickles, and what to do with them."""
_MAX_SIGNATURE = 64


@dataclass(frozen=True, eq=False)
class Published:
    """A published network: the content of its file, as data.

    Attributes:
        class_name: the class of its preconditioning, such as "EDMPrecond".
        network_name: the class of the network itself, such as "SongUNet"; None if the file does not contain it.
        kwargs: the constructor arguments by their published names; the others have the class's defaults.
        state_dict: the weights by their published names, unchanged.
        dataset_kwargs: the description of the training data, if the file contains it.
    """

    class_name: str
    kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    network_name: str | None = None
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Published({self.class_name!r}, {self.network_name!r}, {len(self.state_dict)} tensors)"

    def denoiser(self) -> Preconditioned:
        """The denoiser, in evaluation mode, by `edm_denoiser` or `edm2_denoiser`.

        Raises:
            ValueError: its class is none of EDM's and EDM2's, its arguments are unknown or out of range, or its weights
                do not fit them.
        """
        if self.class_name not in (*PRECONDITIONINGS, EDM2_CLASS):
            raise ValueError(
                f"class {self.class_name!r} with network {self.network_name!r} is not supported: networks can be "
                f"built for {', '.join((*PRECONDITIONINGS, EDM2_CLASS))}; the tensors of the file can still be read"
            )
        try:
            if self.class_name == EDM2_CLASS:
                check_edm2_sizes(self.kwargs, self.state_dict)
                return edm2_denoiser(self.kwargs, self.state_dict)
            check_sizes(self.class_name, self.kwargs, self.state_dict)
            return edm_denoiser(self.class_name, self.kwargs, self.state_dict)
        except (ArithmeticError, TypeError, RuntimeError) as error:
            raise DamagedFileError(f"constructor arguments must describe a network: {error}") from error


def read_published(path: str | Path, key: str = "ema", progress: ShowProgress = None) -> Published:
    """Read a published network from a pickle (.pkl) or from safetensors and JSON; no code in the file is run.

    Args:
        path: NAME.pkl; or NAME.safetensors, with NAME.json beside it.
        key: the entry of a pickle that holds the network; of the other files it must be "ema".
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called after each
            tensor of a pickle with the share of the bytes that are read. A pickle is mapped, not loaded: beside the
            weights themselves, memory holds one storage at a time.

    Raises:
        UnsafeFileError: the pickle names a function to run; the message has its name and position.
        DamagedFileError: the pickle cannot be read as a published network.
        ValueError: the other files cannot be read, a key is given for them, or the name has another suffix.
        OSError: a pickle cannot be opened.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        with showing(progress) as report:
            return _read_pickle(path, key, report)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .pkl or .safetensors, got {str(path)!r}")
    if key != "ema":
        raise ValueError(f"key must be 'ema' for {path.name}, which holds one network, got {key!r}")
    config = read_json(path.with_suffix(".json"))
    if config.get("format") != FORMAT:
        raise ValueError(f"{path.with_suffix('.json')}: format must be {FORMAT!r}, got {config.get('format')!r}")
    name, network_name, kwargs = (config.get(entry) for entry in ("class_name", "network_name", "init_kwargs"))
    if not isinstance(name, str) or not isinstance(network_name, str | None) or not isinstance(kwargs, dict):
        raise ValueError(f"{path.with_suffix('.json')} must hold a class_name, a network_name and init_kwargs")
    data = plain(config.get("dataset_kwargs", {}), "dataset_kwargs")
    if not isinstance(data, dict):
        raise ValueError(f"{path.with_suffix('.json')}: dataset_kwargs must be an object")
    given = {n: float(v) if v in ("inf", "-inf") else v for n, v in plain(kwargs, "init_kwargs").items()}
    return Published(name, given, read_tensors(path, path.with_suffix(".json")), network_name, data)


def new_published(path: str | Path, name: str = "path") -> tuple[Path, Path]:
    """The two new files for a published network; `name` is that of the argument, for messages.

    A description without weights is what a killed process left; it is written again if it is the same.

    Raises:
        ValueError: the name does not end in .safetensors, or a file is there already.
    """
    path = Path(path)
    new_path(name, path, [".safetensors"])
    config = path.with_suffix(".json")
    if config.exists() and not (config.is_file() and read_json(config).get("format") == FORMAT):  # one lock for both
        raise ValueError(f"{name}={config} exists already: a file is never overwritten, choose another name")
    return path, config


def write_published(path: str | Path, published: Published) -> None:
    """Write a published network to NAME.safetensors and NAME.json; both appear complete, the weights last.

    Raises:
        ValueError: the name does not end in .safetensors, a file is there already, another process writes it, or the
            arguments are not plain values, which JSON can hold.
    """
    content = {
        "format": FORMAT,
        "class_name": published.class_name,
        "network_name": published.network_name,
        "init_kwargs": _without_infinities(plain(published.kwargs, "kwargs")),
        "dataset_kwargs": plain(published.dataset_kwargs, "dataset_kwargs"),
    }
    with locked_file(Path(path)):
        path, config = new_published(path)
        with new_files(config, path) as folder:
            write_tensors(folder / path.name, published.state_dict)
            write_json(folder / config.name, content, files=(path.name,))
            if config.exists() and config.read_bytes() != (folder / config.name).read_bytes():
                raise ValueError(f"path={config} exists already: a file is never overwritten, choose another name")


def _read_pickle(path: Path, key: str, progress: Progress) -> Published:
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            raise DamagedFileError(f"{path}: the file is empty")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return parse_pickle(memoryview(content), key, progress)
    except UnreadableFileError as error:
        raise type(error)(f"{path}: {error.problem}", error.position) from error


def parse_pickle(content: Bytes, key: str = "ema", progress: Progress = no_progress) -> Published:
    """The published network in the content of a pickle.

    Raises:
        UnsafeFileError, DamagedFileError: as for `read_published`.
    """
    other = _other_kind(bytes(content[:_MAX_SIGNATURE]))
    if other is not None:
        raise DamagedFileError(f"the file must be a published pickle, got {other}", 0)
    machine = Machine(content, known_globals())
    top = machine.read()
    if type(top) is int and top == STORAGE_MAGIC:
        raise DamagedFileError(f"the file must be a published pickle, got a file {TORCH_SAVE}", 0)
    if machine.end != len(content):
        raise DamagedFileError("the file must end with the pickle, but is longer", machine.end)
    if not isinstance(top, dict):
        raise DamagedFileError(f"the file must contain a dict with {key!r}, got {describe(top)}")
    if not isinstance(top.get(key), Record):
        found = f"got {describe(top[key])}" if key in top else "the file has no such entry"
        raise DamagedFileError(f"entry {key!r} must be a network, but {found}: {_entries_by_kind(top)}")
    record: Record = top[key]
    kwargs = _named_arguments(
        record.class_name,
        plain(record.state.get("_init_args", ()), "constructor arguments"),
        plain(record.state.get("_init_kwargs", {}), "constructor arguments"),
    )
    data = plain(top.get("dataset_kwargs") or {}, "dataset_kwargs")
    return Published(
        record.class_name,
        kwargs,
        read_named(named_tensors(record), progress),
        _network_name(record),
        data if isinstance(data, dict) else {},
    )


def _other_kind(start: bytes) -> str | None:
    """What a file is that begins with these bytes, if it is a known kind other than a pickle."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "safetensors: name it NAME.safetensors, with NAME.json beside it, or load it with its own library"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for signature, kind in SIGNATURES if text.startswith(signature)), None)


def _entries_by_kind(top: Mapping[str, Any]) -> str:
    """The entries of a file, those that are networks first, for an error."""
    networks = [name for name, value in top.items() if isinstance(value, Record)]
    others = [name for name in top if name not in networks]
    listed = {"networks": networks, "other entries": others}
    shown = " and ".join(
        f"{what} {', '.join(repr(name[:40]) for name in names[:20])}" for what, names in listed.items() if names
    )
    return f"it has {shown}; name a network as key" if networks else f"it has no network; {shown or 'nothing'}"


def _named_arguments(class_name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    """Positional and named constructor arguments of a class as one dict."""
    if not isinstance(args, list) or not isinstance(kwargs, dict) or len(kwargs) > 100:
        raise DamagedFileError("constructor arguments must be a list and a dict of at most 100")
    names = tuple(f"argument {i}" for i in range(len(args)))
    if class_name in PRECONDITIONINGS:
        published = PRECONDITIONINGS[class_name]
        names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
        names += (*published.names, *published.denoiser_names, "model_type")
    elif class_name == EDM2_CLASS:
        names = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys():
        raise DamagedFileError(f"constructor arguments of {class_name} must be unique and at most {len(names)}")
    return given | kwargs


def _network_name(record: Record) -> str | None:
    modules = record.state.get("_modules")
    network = modules.get("model", modules.get("unet")) if isinstance(modules, dict) else None
    return network.class_name if isinstance(network, Record) else None


def published_model(published: Published, denoiser: Preconditioned, vae: str | None = None) -> Model:
    """The description of a published network in a checkpoint.

    Args:
        published: the network.
        denoiser: its denoiser.
        vae: for a network of latents of EDM2: the autoencoder that decodes them, as for
            `openedm.data.autoencoder.open_autoencoder`. Samples then have its units instead of standard ones, by the
            numbers of EDM2, and are decoded.

    Raises:
        ValueError: `vae` is given for another network, or is not for such latents.
    """
    if vae is not None:
        model = published_model(published, denoiser)
        if published.class_name != EDM2_CLASS or model.images or model.event_shape[0] != len(EDM2_UNITS.scale):
            raise ValueError(f"vae must not be given for a network that is not one of latents of EDM2, got {vae!r}")
        channels, height, width = model.event_shape
        codec = open_for_latents(vae, (channels, height, width), "unit")
        return replace(model, units=EDM2_UNITS, autoencoder=codec.autoencoder)
    if published.class_name == EDM2_CLASS:
        return Model(
            network=edm2_choice(published.kwargs),
            preconditioning=denoiser.preconditioning,
            sigma_data=denoiser.sigma_data,
            event_shape=denoiser.event_shape or (),
            num_classes=denoiser.num_classes,
            images=published.kwargs["img_channels"] in (1, 3),  # others are latents
        )
    own, limits = denoiser.preconditioning, (denoiser.sigma_min, denoiser.sigma_max)
    network: UNet = denoiser.network  # type: ignore[assignment]
    return Model(
        network=edm_choice(PRECONDITIONINGS[published.class_name].split(published.kwargs)[1]),
        preconditioning=own,
        sigma_data=denoiser.sigma_data,
        event_shape=denoiser.event_shape or (),
        num_classes=denoiser.num_classes,
        augment_dim=network.signature.augment_dim,
        noise_range=None if limits == (own.sigma_min, own.sigma_max) else limits,
    )


def publish(model: Model, denoiser: Preconditioned) -> Published:
    """A network of this library with the published names, for `write_published`; without the names of its classes.

    Args:
        model: its description.
        denoiser: the network with its weights.

    Raises:
        ValueError: it is a consistency function, is not a U-Net for square images with one of EDM's preconditionings,
            is conditioned on floats, is not for images in [-1, 1], or has values that published files may not have,
            such as a range of noise levels with another preconditioning than `EDM`.
    """
    denoiser.check_gives_mean()
    if model.condition_shape is not None:
        raise ValueError(
            f"condition_shape must be None to have published names, got {model.condition_shape}: such files have "
            "classes alone"
        )
    if model.noise_range is not None and type(model.preconditioning) is not preconditioning.EDM:
        raise ValueError(
            f"noise_range must be None to have published names, got {model.noise_range}: only files with EDM's "
            "preconditioning have a range"
        )
    if model.units is not None and not (isinstance(model.network, EDM2UNet) and model.units == EDM2_UNITS):
        raise ValueError(
            f"units must be None to have published names, got {model.units}: such files have no place for location and "
            "scale, and hold images in [-1, 1]"
        )
    if isinstance(model.network, EDM2UNet):
        kwargs, state = publish_edm2(model, denoiser)
        return Published(EDM2_CLASS, kwargs, state, EDM2_NETWORK)
    precond, choice, network = model.preconditioning, model.network, denoiser.network
    classes = {published.kind: name for name, published in PRECONDITIONINGS.items()}
    if type(precond) not in classes:
        raise ValueError(f"preconditioning must be one of {', '.join(c.__name__ for c in classes)}, got {precond}")
    if not isinstance(network, UNet) or not isinstance(choice, ADM | DDPMpp | NCSNpp | SongUNet):
        raise ValueError(
            f"network must be DDPMpp, NCSNpp, SongUNet, ADM or EDM2UNet to have published names, got {choice}"
        )
    if choice.patch_size > 1:
        raise ValueError(f"network must have patch_size=1 to have published names, got {choice.patch_size}")
    if network.choice != choice:
        raise ValueError(f"denoiser must have the network that model describes, {choice}, got {network.choice}")
    if len(model.event_shape) != 3 or model.event_shape[1] != model.event_shape[2]:
        raise ValueError(f"samples must be square images to have published names, got {model.event_shape}")
    if not model.images:
        raise ValueError("images must be true to have published names, got False: such files hold images in [-1, 1]")
    channels, height, _ = model.event_shape
    class_name = classes[type(precond)]
    kwargs = {"img_resolution": height, "img_channels": channels, "label_dim": model.num_classes}
    kwargs["augment_dim"] = network.signature.augment_dim
    arguments = network_arguments(choice).items()
    kwargs |= {name: list(value) if isinstance(value, tuple) else value for name, value in arguments}
    names = dict(zip(network.resolutions, published_resolutions(network.resolutions), strict=True))
    kwargs["attn_resolutions"] = [names[r] for r in choice.attention_at(network.resolutions)]
    kwargs |= {name: getattr(precond, own) for name, own in PRECONDITIONINGS[class_name].names.items()}
    if class_name == "EDMPrecond":
        kwargs["sigma_data"] = model.sigma_data
        if model.noise_range is not None:
            kwargs["sigma_min"], kwargs["sigma_max"] = model.noise_range
    elif model.sigma_data != Preconditioned.sigma_data:
        raise ValueError(f"sigma_data must be 0.5 for {class_name}, which has no such argument, got {model.sigma_data}")
    state = {f"model.{name}": network.state_dict()[own] for own, name in published_names(network).items()}
    if f"model.{FREQUENCIES_NAME}" in state:
        state[f"model.{FREQUENCIES_NAME}"] = state[f"model.{FREQUENCIES_NAME}"] / (2 * math.pi)
    check_values(kwargs)
    state |= {f"model.{name}": kernel for name, kernel in published_filters(network).items()}
    if isinstance(precond, preconditioning.IDDPM) and precond.table is not None:
        state["u"] = torch.tensor(precond.table, dtype=torch.float64)
    return Published(class_name, kwargs, state, kwargs["model_type"])


def _without_infinities(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in kwargs.items()
    }
