"""Files in the layout of the published EDM checkpoints, made here: for tests and for `benchmarks.fuzz_checkpoints`.

Only writing needs the modules that such files name; they are in `sys.modules` while a file is written, and a call of
what they hold is recorded in `CALLED`.
"""

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openedm.interop import edm2_choice, edm2_names, edm_network, published_names
from openedm.networks.layers import filter_kernel

CALLED: list[str] = []
"""What of a file has been called; stays empty."""

PRECONDITIONING = (
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "beta_d",
    "beta_min",
    "epsilon_t",
    "C_1",
    "C_2",
    "M",
)
"""The constructor arguments that are not the network's."""

SOURCE = "raise RuntimeError('the source text of a file was executed')\n" * 20


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    CALLED.append(meta["class_name"])


class EasyDict(dict[str, Any]):
    """The dictionary of `dnnlib.util`, as far as pickling sees it."""


@contextmanager
def published_modules() -> Iterator[None]:
    """The modules `torch_utils.persistence` and `dnnlib.util`, while they are needed."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    modules = {name: ModuleType(name) for name in names}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    before = (_reconstruct_persistent_obj.__module__, EasyDict.__module__)
    _reconstruct_persistent_obj.__module__, EasyDict.__module__ = "torch_utils.persistence", "dnnlib.util"
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        _reconstruct_persistent_obj.__module__, EasyDict.__module__ = before


class Persistent(nn.Module):
    """A module that is pickled as the published ones are: by one record with its class's source text."""

    def __init__(self, class_name: str, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)
        self.__dict__["class_name"] = class_name

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key != "class_name"}
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.__dict__["class_name"]}
        return _reconstruct_persistent_obj, ({**meta, "state": state},)


def weights(kwargs: Mapping[str, Any], outputs_per_channel: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Random weights for the published constructor arguments of a network, by their published names."""
    own = {name: value for name, value in kwargs.items() if name not in PRECONDITIONING}
    network = edm_network(own, kwargs["img_channels"] * outputs_per_channel)
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"model.{name}": network.state_dict()[own].shape for own, name in published_names(network).items()}
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    kernel = filter_kernel(network.choice.style.resample_filter)[None, None].contiguous()
    resized = [name for name in state if "_down.conv0.weight" in name or "_up.conv0.weight" in name]
    return state | {name.replace(".weight", ".resample_filter"): kernel.clone() for name in resized}


def modules(
    class_name: str,
    kwargs: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    network: str | None = None,
    **attributes: Any,
) -> Persistent:
    """The tree of modules whose state dict is `state`; `network` is the class of its network, by default EDM's."""
    network = kwargs.get("model_type", "SongUNet") if network is None else network
    given = {"_init_args": (), "_init_kwargs": EasyDict(kwargs)}
    top = Persistent(class_name, **given, **attributes)
    for name, value in state.items():
        module: nn.Module = top
        *path, last = name.split(".")
        for depth, part in enumerate(path):
            if part not in module._modules:
                kind = network if depth == 0 else "UNetBlock"
                made = nn.ModuleDict() if part in ("enc", "dec") else Persistent(kind)
                module._modules[part] = made
            module = module._modules[part]  # type: ignore[assignment]
        if last in ("resample_filter", "freqs", "phases", "u"):
            module.register_buffer(last, value)
        else:
            module.register_parameter(last, nn.Parameter(value))
    return top


def published_file(
    class_name: str,
    kwargs: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    protocol: int = 4,
    extra: Mapping[str, Any] = {},
    **attributes: Any,
) -> bytes:
    """A file of the EDM release that holds such a network, with further entries."""
    content = {
        "ema": modules(class_name, kwargs, state, **attributes),
        "loss_fn": Persistent("EDMLoss", P_mean=-1.2, P_std=1.2, sigma_data=0.5),
        "augment_pipe": None,
        "dataset_kwargs": EasyDict(path="cifar10-32x32.zip", use_labels=True, max_size=50000, xflip=False),
        "_": OrderedDict(),
        **extra,
    }
    with published_modules():
        return pickle.dumps(content, protocol=protocol)


def edm2_weights(kwargs: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Random weights for the constructor arguments of a network of EDM2, by their published names."""
    channels, side = kwargs["img_channels"], kwargs["img_resolution"]
    network = edm2_choice(kwargs).build((channels, side, side), num_classes=kwargs["label_dim"])
    generator = torch.Generator().manual_seed(0)
    shapes = {name: network.state_dict()[own].shape for own, name in edm2_names(network).items()}  # type: ignore[arg-type]
    shapes = {name: torch.Size() if name.endswith("gain") else shape for name, shape in shapes.items()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def edm2_file(kwargs: Mapping[str, Any], state: Mapping[str, Tensor]) -> bytes:
    """A file of the EDM2 release that holds such a network, with the encoder of latents."""
    scale, bias = np.float32([1.0, 2.0]), np.zeros((2, 1), np.float32)
    encoder = Persistent("StabilityVAEEncoder", scale=scale, bias=bias)
    return published_file("Precond", kwargs, state, network="UNet", extra={"encoder": encoder})
