"""Published networks: files of the EDM releases read as data, and what they hold made into denoisers and checkpoints.

    pickle → records (`records`) → class, constructor arguments and state dict (`Published`) → denoiser, `Model`

The same content also goes to and from a pair of files without any pickle, NAME.safetensors and NAME.json.
"""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from openedm.denoiser import Preconditioned
from openedm.interop.arguments import check_arguments, named_arguments
from openedm.interop.edm import PRECONDITIONINGS, edm_denoiser
from openedm.interop.errors import DamagedFileError, UnreadableFileError
from openedm.interop.pickles import Bytes, Machine, describe
from openedm.interop.records import Record, known_globals, plain
from openedm.interop.storages import StoredTensor

MAX_TENSORS = 100_000
KINDS = ("_parameters", "_buffers", "_modules")
MAX_ENTRIES = 200_000
"""In all dicts of all modules; the published networks have some 10⁴."""
MAX_MODULES = 100_000
MAX_DEPTH = 32
MAX_NAME = 500

Reporter = Callable[[int, int], object]
"""Told after each tensor how many bytes have been read, and of how many."""


@dataclass(frozen=True, eq=False)
class Published:
    """A published network: what its file says, as data.

    Attributes:
        class_name: the class that preconditions it, "EDMPrecond" for example.
        network_name: the class of the network itself, "SongUNet" for example; None where the file does not say.
        kwargs: the constructor arguments by their published names; those left out have the class's defaults.
        state_dict: the weights by their published names, as the file has them.
        dataset_kwargs: what it was trained on, where the file says so.
    """

    class_name: str
    kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    network_name: str | None = None
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Published({self.class_name!r}, {self.network_name!r}, {len(self.state_dict)} tensors)"

    def denoiser(self) -> Preconditioned:
        """The denoiser, in evaluation mode, by `edm_denoiser`.

        Raises:
            ValueError: it is of a class that is none of EDM's (EDM2's `Precond`, for example), its arguments are
                unknown or out of range, or its weights do not fit them. Says which.
        """
        if self.class_name not in PRECONDITIONINGS:
            raise ValueError(
                f"class {self.class_name!r} with network {self.network_name!r} is not supported: networks can be "
                f"built for {', '.join(PRECONDITIONINGS)}; the tensors of the file can be read all the same"
            )
        try:
            check_arguments(self.class_name, self.kwargs, self.state_dict)
            return edm_denoiser(self.class_name, self.kwargs, self.state_dict)
        except (ArithmeticError, TypeError, RuntimeError) as error:
            raise DamagedFileError(f"no network has these constructor arguments: {error}") from error


def read_pickle(path: str | Path, key: str = "ema", report: Reporter | None = None) -> Published:
    """Read a published pickle; nothing in it is run.

    The file is mapped, not loaded: beside the weights themselves, memory holds one storage at a time.

    Args:
        path: the file.
        key: the entry of its dictionary that holds the network.
        report: called after each tensor.

    Raises:
        UnsafeFileError: the file names a global that no published network has, or otherwise asks for code to be run.
            Says what, and at which byte.
        DamagedFileError: it is incomplete, contradicts itself or exceeds the limits of such files.
        OSError: it cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            raise DamagedFileError(f"{path}: the file is empty")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return parse_pickle(memoryview(content), key, report)
    except UnreadableFileError as error:
        raise type(error)(f"{path}: {error.problem}", error.position) from error


def parse_pickle(content: Bytes, key: str = "ema", report: Reporter | None = None) -> Published:
    """The same for what a file holds.

    Raises:
        UnsafeFileError, DamagedFileError: as `read_pickle`.
    """
    if bytes(content[:2]) == b"PK":
        raise DamagedFileError("a zip archive (torch.save writes them), not one of the published pickles", 0)
    machine = Machine(content, known_globals())
    top = machine.read()
    if machine.end != len(content):
        raise DamagedFileError("the file goes on where it should end", machine.end)
    if not isinstance(top, dict):
        raise DamagedFileError(f"the file must hold a dict with {key!r}, holds {describe(top)}")
    if not isinstance(top.get(key), Record):
        raise DamagedFileError(f"entry {key!r} must be a network, is {describe(top.get(key))}")
    record: Record = top[key]
    kwargs = named_arguments(
        record.class_name,
        plain(record.state.get("_init_args", ()), "constructor arguments"),
        plain(record.state.get("_init_kwargs", {}), "constructor arguments"),
    )
    data = plain(top.get("dataset_kwargs") or {}, "dataset_kwargs")
    return Published(
        record.class_name,
        kwargs,
        _read_tensors(_named_tensors(record), report),
        _network_name(record),
        data if isinstance(data, dict) else {},
    )


def _network_name(record: Record) -> str | None:
    modules = record.state.get("_modules")
    network = modules.get("model") if isinstance(modules, dict) else None
    return network.class_name if isinstance(network, Record) else None


def _named_tensors(record: Record) -> dict[str, StoredTensor]:
    """The tensors of a module and of all modules below it, by their dotted names.

    Walks `_modules`, `_parameters` and `_buffers` as `Module.state_dict` does, without recursion.
    """
    found: dict[str, StoredTensor] = {}
    waiting, seen = [("", record, 0)], 0
    entries = 0  # of all modules, as often as they are walked: modules may be shared, and hold themselves
    while waiting:
        prefix, module, depth = waiting.pop()
        seen += 1
        if seen > MAX_MODULES or depth > MAX_DEPTH or len(found) > MAX_TENSORS or len(prefix) > MAX_NAME:
            raise DamagedFileError("the network has more modules, or deeper ones, than any published network")
        entries += sum(len(d) for kind in KINDS if isinstance(d := module.state.get(kind), dict))
        if entries > MAX_ENTRIES:
            raise DamagedFileError(f"the network's modules have more than {MAX_ENTRIES} entries")
        passing = module.state.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(module, kind):
                if value is None or (kind == "_buffers" and isinstance(passing, set) and name in passing):
                    continue
                if not isinstance(value, StoredTensor):
                    raise DamagedFileError(f"{prefix}{name} must be a tensor, is {describe(value)}")
                found[prefix + name] = value
        for name, value in reversed(_entries(module, "_modules")):
            if value is None:
                continue
            if not isinstance(value, Record):
                raise DamagedFileError(f"{prefix}{name} must be a module, is {describe(value)}")
            waiting.append((f"{prefix}{name}.", value, depth + 1))
    return found


def _entries(module: Record, kind: str) -> list[tuple[str, Any]]:
    entries = module.state.get(kind, {})
    if not isinstance(entries, dict) or any(len(name) > MAX_NAME for name in entries):
        raise DamagedFileError(f"{kind} of {module.class_name} must be a dict with names, is {describe(entries)}")
    return list(entries.items())


def _read_tensors(found: Mapping[str, StoredTensor], report: Reporter | None) -> dict[str, Tensor]:
    """All tensors, each storage read once."""
    sizes = {id(t.storage): len(t.storage.content) for t in found.values()}
    total, done = sum(sizes.values()), 0
    tensors, elements = {}, 0
    for name, stored in found.items():
        tensors[name] = stored.read()
        elements += tensors[name].nbytes
        if elements > total:
            raise DamagedFileError(f"{name} and others have more elements than their storages", stored.position)
        done += sizes.pop(id(stored.storage), 0)
        if report is not None:
            report(done, total)
    return tensors


def dtypes(tensors: Mapping[str, Tensor]) -> str:
    """The element types of tensors, for people: "float32" or "float16, float32"."""
    return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))


def num_elements(tensors: Mapping[str, Tensor]) -> int:
    """The number of elements of all tensors."""
    return sum(t.numel() for t in tensors.values())
