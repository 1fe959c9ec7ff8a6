"""The modules in a pickle, as records: their tensors by dotted names, as in the state dict of the network.

Modules are visited and their tensors named here, because libraries would need the classes of the file.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openedm.ground.progress import Progress
from openedm.interop.pickles import DamagedFileError, describe
from openedm.interop.records import Record, StoredTensor

__all__ = ["named_tensors", "read_named"]

MAX_TENSORS = 100_000
KINDS = ("_parameters", "_buffers", "_modules")
MAX_ENTRIES = 200_000
"""Entries of all dicts of all modules; the published networks have about 10⁴."""
MAX_MODULES = 100_000
MAX_DEPTH = 32
MAX_NAME = 500


def named_tensors(record: Record) -> dict[str, StoredTensor]:
    """The tensors of a module and of all modules in it, by their dotted names.

    It visits `_modules`, `_parameters` and `_buffers` in the order of `Module.state_dict`, without recursion.
    """
    found: dict[str, StoredTensor] = {}
    pending, num_modules = [("", record, 0)], 0
    entries = 0  # of all visits: modules may be shared, and contain themselves
    while pending:
        prefix, module, depth = pending.pop()
        num_modules += 1
        if num_modules > MAX_MODULES or depth > MAX_DEPTH or len(found) > MAX_TENSORS or len(prefix) > MAX_NAME:
            raise DamagedFileError("the network must not have more or deeper modules than any published network")
        entries += sum(len(d) for kind in KINDS if isinstance(d := module.state.get(kind), dict))
        if entries > MAX_ENTRIES:
            raise DamagedFileError(f"the network's modules must have at most {MAX_ENTRIES} entries")
        transient = module.state.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(module, kind):
                if value is None or (kind == "_buffers" and isinstance(transient, set) and name in transient):
                    continue
                if not isinstance(value, StoredTensor):
                    raise DamagedFileError(f"{prefix}{name} must be a tensor, got {describe(value)}")
                if prefix + name in found:
                    raise DamagedFileError(f"{prefix}{name} must be one tensor, but two have this name")
                found[prefix + name] = value
        for name, value in reversed(_entries(module, "_modules")):
            if value is None:
                continue
            if not isinstance(value, Record):
                raise DamagedFileError(f"{prefix}{name} must be a module, got {describe(value)}")
            pending.append((f"{prefix}{name}.", value, depth + 1))
    return found


def _entries(module: Record, kind: str) -> list[tuple[str, Any]]:
    entries = module.state.get(kind, {})
    if not isinstance(entries, dict) or any(len(name) > MAX_NAME for name in entries):
        raise DamagedFileError(f"{kind} of {module.class_name} must be a dict with names, got {describe(entries)}")
    return list(entries.items())


def read_named(found: Mapping[str, StoredTensor], progress: Progress) -> dict[str, Tensor]:
    """All tensors; each storage is read once."""
    sizes = {id(t.storage): len(t.storage.content) for t in found.values()}
    total, done = sum(sizes.values()), 0
    tensors, elements = {}, 0
    for name, stored in found.items():
        tensors[name] = stored.read()
        elements += tensors[name].nbytes
        if elements > total:
            raise DamagedFileError(
                f"{name} and others must not have more elements than their storages", stored.position
            )
        done += sizes.pop(id(stored.storage), 0)
        progress("reading", done / max(total, 1))
    return tensors
