"""What the benchmarks share: the machine and the versions, interleaved timing, peak memory, the JSON file."""

import json
import math
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.pairs import paired
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openedm.inference.benchmark import machine as this_machine


class Times(NamedTuple):
    """Seconds of repeated runs."""

    minimum: float
    median: float
    runs: int


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What was measured on, with the versions of openedm, torch and `packages`."""
    return {**this_machine(), **{name: metadata.version(name) for name in packages}}


def interleaved(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Run each in turn, round after round, until `seconds` are over: what else the machine does hits all alike.

    The first round warms up and is not counted; at least three are.
    """
    rounds = paired(runs, seconds, time.perf_counter)
    return {name: Times(min(values), statistics.median(values), len(values)) for name, values in rounds.items()}


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, as long as anything refers to them.

    Attributes:
        now: bytes held at this moment.
        peak: the most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what it returns that it was not given."""
        given = {id(storage) for storage in _storages((args, kwargs))}
        returned = func(*args, **(kwargs or {}))
        for storage in _storages(returned):
            if id(storage) not in given and storage not in self._known:
                self._known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return returned

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_memory(run: Callable[[], object]) -> int:
    """The most bytes of tensors that `run` holds at once, beyond those that it was given."""
    held = Held()
    with held:
        run()
    return held.peak


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the numbers of a benchmark, a row a line, with six digits; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = []
    for key, value in content.items():
        text = _dump(value)
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(_dump, value)) + "\n ]"
        fields.append(f" {_dump(key)}: {text}")
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def _dump(content: Any) -> str:
    return json.dumps(_rounded(content), ensure_ascii=False, allow_nan=False)


def _rounded(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content
