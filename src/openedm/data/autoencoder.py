"""Autoencoders between images and latents: an image becomes N(mean, std²), a latent z becomes an image.

z = mean + std n, n ~ N(0, I)   (Rombach et al. 2022, Section 3.1). The autoencoder is an AutoencoderKL of the package
diffusers, read from safetensors and JSON alone. What a checkpoint and a set of latents have of it is its `Autoencoder`:
where it was, and a digest by which another one is refused.
"""

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.devices import device_of
from openedm.ground.kinds import holding

__all__ = ["Autoencoder", "Codec", "PixelRange", "open_autoencoder", "open_for_latents"]

PixelRange = Literal["signed", "unit"]
CLASS = "AutoencoderKL"
MAX_PIXELS = 2**20
"""The pixels that are decoded at a time: a batch of large images is decoded in parts."""

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<folder>[\w.-]+))?")
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Autoencoder(Choice):
    """The identity of the autoencoder of some latents, without its weights. Two are equal wherever they are kept.

    Args:
        path: its folder; or its name on the Hugging Face Hub, OWNER/NAME or OWNER/NAME/SUBFOLDER.
        hub: whether `path` is a name on the Hub.
        digest: SHA-256 of the weights and of the settings that differ from their defaults.
        image_shape: (channels, height, width) of the images.
        pixels: the numbers of black and white that the autoencoder gets: "signed", −1 and 1; or "unit", 0 and 1.

    Raises:
        ValueError: the digest is not one, or a size is below 1.
    """

    path: str = field(compare=False)
    hub: bool = field(compare=False)
    digest: str
    image_shape: tuple[int, int, int]
    pixels: PixelRange = "signed"

    def __post_init__(self) -> None:
        checks.one_of("pixels", self.pixels, ("signed", "unit"))
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"digest must be 64 hexadecimal digits, got {self.digest!r}")
        for size in self.image_shape:
            checks.size("sizes of image_shape", size, 1, 2**20)

    def __str__(self) -> str:
        """Where it was, and the beginning of its digest."""
        shape = "×".join(map(str, self.image_shape))
        return f"{self.path} ({self.digest[:16]}, images of {shape}, pixels {self.pixels})"

    def load(self, path: str | None = None, device: torch.device | str = "cpu") -> "Codec":
        """The autoencoder itself.

        Args:
            path: where it is, if it is no longer where it was.
            device: where it computes.

        Raises:
            ImportError: the package diffusers is not installed.
            ValueError: it cannot be read, or is another one than that of the latents.
        """
        module, _, _ = _read(path, None) if path is not None else _read(self.path, self.hub)
        found = digest_of(module)
        if found != self.digest:
            raise ValueError(
                f"vae={path or self.path} is another autoencoder (SHA-256 {found[:16]}) than the one that encoded the "
                f"data ({self.digest[:16]}, {self.path}), whose latents it cannot decode: give that one as vae"
            )
        return Codec(module.to(device), self)


def open_autoencoder(
    path: str,
    image_shape: tuple[int, int, int],
    pixels: PixelRange = "signed",
    *,
    device: torch.device | str = "cpu",
) -> "Codec":
    """An autoencoder for images of one shape.

    Args:
        path: a folder that `save_pretrained` of diffusers wrote, or one of a pipeline with a folder vae; or a name on
            the Hugging Face Hub, OWNER/NAME or OWNER/NAME/SUBFOLDER. Weights must be safetensors.
        image_shape: (channels, height, width) of the images; height and width are multiples of its factor.
        pixels: as for `Autoencoder`.
        device: where it computes.

    Raises:
        ImportError: the package diffusers is not installed.
        ValueError: it cannot be read, is of another class, or does not take such images; the message says which sizes
            it takes.
    """
    module: Any
    module, where, hub = _read(path, None)
    channels, height, width = image_shape
    if channels != module.config["in_channels"]:
        raise ValueError(
            f"images must have the {module.config['in_channels']} channels of vae={path}, got {channels}: convert them"
        )
    factor = _factor(module)
    if height % factor or width % factor:
        fits = "x".join(str(max(1, round(side / factor)) * factor) for side in (height, width))
        raise ValueError(
            f"height and width of images must be multiples of {factor}, the factor of vae={path}, got "
            f"{height}×{width}: resize them, for instance to {fits}"
        )
    return Codec(module.to(device), Autoencoder(where, hub, digest_of(module), image_shape, pixels))


def open_for_latents(path: str, latent_shape: tuple[int, int, int], pixels: PixelRange = "signed") -> "Codec":
    """An autoencoder for latents of one shape, such as those of a published network.

    Args:
        path, pixels: as for `open_autoencoder`.
        latent_shape: (channels, height, width) of the latents.

    Raises:
        ImportError, ValueError: as for `open_autoencoder`.
    """
    module: Any
    module, where, hub = _read(path, None)
    channels, height, width = latent_shape
    if channels != module.config["latent_channels"]:
        raise ValueError(f"vae={path} must make latents of {channels} channels, got {module.config['latent_channels']}")
    sides = height * _factor(module), width * _factor(module)
    image_shape = (int(module.config["in_channels"]), *sides)
    return Codec(module, Autoencoder(where, hub, digest_of(module), image_shape, pixels))


class Codec:
    """An autoencoder with its weights: encodes images and decodes latents, without gradients.

    Args:
        module: the AutoencoderKL.
        autoencoder: its identity.
    """

    def __init__(self, module: nn.Module, autoencoder: Autoencoder) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.autoencoder = autoencoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent."""
        _, height, width = self.autoencoder.image_shape
        factor = _factor(self.module)
        return int(self.module.config["latent_channels"]), height // factor, width // factor

    @property
    def num_bytes(self) -> int:
        """The memory of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.module.state_dict().values())

    @property
    def bytes_per_image(self) -> int:
        """About the memory of the activations of an image while it is encoded: six tensors of the largest level."""
        _, height, width = self.autoencoder.image_shape
        widest = max(
            channels * height * width // 4**level
            for level, channels in enumerate(self.module.config.block_out_channels)
        )
        return 6 * 4 * int(widest)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch bands rows columns"], Float[Tensor, "batch bands rows columns"]]:
        """Means and standard deviations of the latents of images in [−1, 1], float32 on the host."""
        x = images.to(device_of(self.module), torch.float32)
        found = self.module.encode(x if self.autoencoder.pixels == "signed" else (x + 1) / 2).latent_dist
        return found.mean.float().cpu(), found.std.float().cpu()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch bands rows columns"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Images in [−1, 1] of latents in the units of the autoencoder, float32 on the host; cut to this range."""
        _, height, width = self.autoencoder.image_shape
        device = device_of(self.module)
        parts = torch.split(latents, max(1, MAX_PIXELS // (height * width)))
        x = torch.cat([self.module.decode(part.to(device, torch.float32)).sample.cpu() for part in parts])
        return (x if self.autoencoder.pixels == "signed" else x.clamp(0, 1) * 2 - 1).clamp(-1, 1)


def digest_of(module: nn.Module) -> str:
    """SHA-256 of the weights in float32 by name, and of the settings that differ from their defaults."""
    digest = hashlib.sha256(json.dumps(_settings(module), sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _settings(module: Any) -> dict[str, Any]:
    """The settings of the module that differ from the defaults of its class, which later versions add to."""
    defaults = {name: one.default for name, one in inspect.signature(type(module).__init__).parameters.items()}

    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value, default=str))

    return {
        name: plain(value)
        for name, value in dict(module.config).items()
        if not name.startswith("_") and name in defaults and plain(value) != plain(defaults[name])
    }


def _factor(module: Any) -> int:
    """How many pixels a side of a latent's entry is."""
    return int(2 ** (len(module.config["block_out_channels"]) - 1))


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise ImportError("autoencoders need the package diffusers: pip install 'openedm[latents]'") from error


def _read(path: str, hub: bool | None) -> tuple[nn.Module, str, bool]:
    """The module at a path, the path to find it again, and whether this is a name on the Hub.

    Args:
        path: a folder or a name.
        hub: which of both it is; None for a folder if there is one.
    """
    folder, name = Path(path), _HUB_NAME.fullmatch(path)
    hub = hub if hub is not None else not folder.is_dir()
    where: tuple[str, str | None]
    if not hub:
        if not folder.is_dir():
            raise ValueError(f"vae={path} is not a folder: give the folder of the autoencoder as vae")
        where = (str(folder), "vae" if (folder / "model_index.json").is_file() else None)
        if (other := holding(folder)) is not None or not (folder / (where[1] or "") / "config.json").is_file():
            reason = f"it holds {other}" if other else "it has no config.json"
            raise ValueError(f"vae={path} cannot be read as an autoencoder of diffusers with safetensors: {reason}")
    elif name is None:
        raise ValueError(f"vae must be a folder, or a name on the Hugging Face Hub such as OWNER/NAME, got {path!r}")
    else:
        where = (name["name"], name["folder"])
    module = _from_pretrained(_diffusers().AutoencoderKL, *where, path=path)
    return module, path if hub else str(folder.resolve()), hub


def _from_pretrained(kind: Any, name: str, subfolder: str | None, *, path: str) -> nn.Module:
    """The module of a folder or of the Hub; the settings are checked before weights are read."""
    try:
        config: Mapping[str, Any] = kind.load_config(name, subfolder=subfolder)
        if config.get("_class_name") != CLASS:
            raise ValueError(f"its class is {config.get('_class_name')!r}, which must be {CLASS}")
        module, problems = kind.from_pretrained(
            name, subfolder=subfolder, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
        )
        if wrong := {key: value for key, value in problems.items() if value}:
            raise ValueError(f"its weights do not fit its settings: {wrong}")
    except Exception as error:  # diffusers raises what it meets: OSError, TypeError, SafetensorError, KeyError, …
        reason = str(error).strip().partition("\n")[0] or repr(error)
        raise ValueError(
            f"vae={path} cannot be read as an autoencoder of diffusers with safetensors: {reason}"
        ) from error
    broken = next((name for name, one in module.state_dict().items() if not bool(one.isfinite().all())), None)
    if broken is not None:
        raise ValueError(f"vae={path} has weights that are not finite, in {broken}")
    result: nn.Module = module
    return result
