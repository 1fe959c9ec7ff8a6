"""What the globals of a published pickle stand for: records, dictionaries, sets, numbers and unread tensors.

The list is closed. A record is what is left of an object: the name of its class and its attributes; the source text
that the file holds for the class is dropped unread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from openedm.interop.errors import DamagedFileError
from openedm.interop.pickles import Buildable, Bytes, Known, Machine, describe, strings
from openedm.interop.storages import load_from_bytes, rebuild_parameter, rebuild_tensor

VERSION = 6
"""The version of the records in all published files."""


@dataclass(slots=True, eq=False, repr=False)
class Record(Buildable):
    """An object of a file, as data.

    Attributes:
        class_name: the name of its class.
        state: its attributes; empty until the file has told them.
    """

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)
    _built: bool = False

    def build(self, machine: Machine, state: Any) -> None:
        """Take the attributes, once."""
        if self._built or type(state) is not dict:
            machine.damaged(f"the state of {self.class_name} must be given once, as a dict, is {describe(state)}")
        self.state, self._built = state, True


class EasyDict(dict[str, Any], Buildable):
    """A dictionary that may also be given a state, as long as that is empty."""

    def build(self, machine: Machine, state: Any) -> None:
        """Refuse all but nothing."""
        if type(state) is not dict or state:
            machine.damaged(f"an EasyDict must have no state, got {describe(state)}")


@dataclass(slots=True, eq=False, repr=False)
class NumberType(Buildable):
    """A type of numpy's numbers, such as "f8"."""

    code: str

    def build(self, machine: Machine, state: Any) -> None:
        """Take the state (version, byte order, None, None, None, -1, -1, 0), the only one of plain numbers."""
        plain = (None, None, None, -1, -1, 0)
        if type(state) is not tuple or len(state) != 8 or any(type(v) not in (int, str, type(None)) for v in state):
            machine.damaged("the state of a number's type must be a tuple of eight plain values")
        if state[1] not in ("<", "|", "=") or state[2:] != plain:
            machine.damaged("a number's type must be little-endian and plain")


@cache
def known_globals() -> Mapping[str, Known]:
    """The globals that a published pickle may name, and what each makes.

    Those of spec/checkpoints.md, and `_codecs.encode` and `builtins.set`, in which protocols 2 and 3 spell bytes and
    sets.
    """
    calls: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
        "torch_utils.persistence _reconstruct_persistent_obj": _persistent_object,
        "collections OrderedDict": _empty_dict,
        "torch._utils _rebuild_parameter": rebuild_parameter,
        "torch._utils _rebuild_tensor_v2": rebuild_tensor,
        "torch.storage _load_from_bytes": load_from_bytes,
        "numpy dtype": _number_type,
        "_codecs encode": _encode,
    }
    calls |= {f"numpy.{core}.multiarray scalar": _number for core in ("_core", "core")}
    calls |= {f"{builtins} set": _set for builtins in ("builtins", "__builtin__")}
    known = {name: Known(name, call=call) for name, call in calls.items()}
    for kind in ("ModuleDict", "ModuleList", "ParameterDict", "ParameterList"):
        name = f"torch.nn.modules.container {kind}"
        known[name] = Known(name, new=_container(kind))
    known["dnnlib.util EasyDict"] = Known("dnnlib.util EasyDict", call=_easy_dict, new=_easy_dict)
    return known


def _persistent_object(machine: Machine, arguments: tuple[Any, ...]) -> Record:
    if len(arguments) != 1 or not isinstance(arguments[0], dict):
        machine.damaged("an object must be described by one dict")
    meta = arguments[0]
    kind, version, name, state = (meta.get(key) for key in ("type", "version", "class_name", "state"))
    if type(kind) is not str or kind != "class" or type(version) is not int or version != VERSION:
        machine.damaged(f"an object must be described in version {VERSION}, as a class")
    if type(name) is not str or not name.isidentifier() or len(name) > 100 or type(state) is not dict:
        machine.damaged("an object must have the name of a class and a dict of attributes")
    return Record(name, state, _built=True)


def _container(kind: str) -> Callable[[Machine, tuple[Any, ...]], Record]:
    def make(machine: Machine, arguments: tuple[Any, ...]) -> Record:
        if arguments:
            machine.damaged(f"{kind} must be made without arguments")
        return Record(kind)

    return make


def _empty_dict(machine: Machine, arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        machine.damaged("OrderedDict must be made without arguments")
    return {}


def _easy_dict(machine: Machine, arguments: tuple[Any, ...]) -> EasyDict:
    if arguments:
        machine.damaged("EasyDict must be made without arguments")
    return EasyDict()


def _set(machine: Machine, arguments: tuple[Any, ...]) -> set[str]:
    if len(arguments) != 1:
        machine.damaged("a set must be made of one list")
    items = strings(machine, arguments[0])
    machine.charge(64 * len(items))  # one opcode copies a whole list
    return set(items)


def _encode(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """`_codecs.encode(text, "latin1")`: bytes in protocol 2."""
    if len(arguments) != 2 or any(type(a) is not str for a in arguments) or arguments[1] != "latin1":
        machine.unsafe("_codecs.encode of anything but latin1 is refused")
    machine.charge(len(arguments[0]))
    try:
        return bytes(arguments[0], "latin1")
    except UnicodeEncodeError:
        return machine.damaged("bytes are no latin1")


NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def _number_type(machine: Machine, arguments: tuple[Any, ...]) -> NumberType:
    if not arguments or type(arguments[0]) is not str or arguments[0] not in NUMBERS:
        machine.damaged(f"a number's type must be one of {', '.join(NUMBERS)}")
    return NumberType(arguments[0])


def _number(machine: Machine, arguments: tuple[Any, ...]) -> int | float | bool:
    if len(arguments) != 2 or type(arguments[0]) is not NumberType or not isinstance(arguments[1], Bytes):
        machine.damaged("a number must be given as type and bytes")
    dtype = np.dtype(f"<{arguments[0].code}")
    if len(arguments[1]) != dtype.itemsize:
        machine.damaged(f"a number of type {arguments[0].code} must have {dtype.itemsize} bytes")
    return np.frombuffer(bytes(arguments[1]), dtype)[0].item()  # type: ignore[no-any-return]


MAX_PLAIN = 10_000
MAX_PLAIN_DEPTH = 16
MAX_PLAIN_TEXT = 1_000


def plain(value: Any, what: str) -> Any:
    """A copy of a value that holds nothing but numbers, short strings, None, lists and dicts, and few of them.

    Args:
        value: what a file holds; tuples become lists.
        what: what it is called in messages.

    Raises:
        DamagedFileError: it holds something else, or too much.
    """
    count = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_PLAIN or depth > MAX_PLAIN_DEPTH:
            raise DamagedFileError(f"{what} hold more than such a file needs")
        if value is None or type(value) in (bool, int, float):
            return value
        if type(value) is str and len(value) <= MAX_PLAIN_TEXT:
            return value
        if type(value) in (list, tuple):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, dict) and all(len(key) <= MAX_PLAIN_TEXT for key in value):
            return {key: copy(item, depth + 1) for key, item in value.items()}
        raise DamagedFileError(f"{what} hold {describe(value)}, which is no plain value")

    return copy(value, 0)
