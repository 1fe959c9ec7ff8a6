"""The objects of the globals of a published pickle: records, dictionaries, sets, numbers and unread tensors.

The list is closed. A record represents an object by the name of its class and its attributes; the source text of the
class in the file is not read.

A storage is a nested file of `torch.save`: five pickles (a magic number, a version, facts of the machine, a persistent
id that describes the storage, the list of its keys), the number of elements in eight bytes, and the elements. All of
that is compared with the size of the file before an element is read, and elements are read when they are needed.
`torch.load(weights_only=True)` also reads such a file, but allocates the declared tensors before it checks the size.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm.interop.pickles import Buildable, Bytes, DamagedFileError, KnownGlobal, Machine, UnsafeFileError, describe

__all__ = ["Record", "Storage", "StoredTensor", "known_globals", "plain", "rebuild_tensor"]

VERSION = 6
"""The version of the records in all published files."""
NUMBER_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
"""The supported types of numpy's numbers."""
MAX_PLAIN, MAX_PLAIN_DEPTH, MAX_PLAIN_TEXT = 10_000, 16, 1_000
"""The largest number of values, depth and length of a string in `plain`."""
STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001
MAX_STORAGE_OPCODES = 200
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**40

DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch.storage UntypedStorage": torch.uint8,
}
"""The element types of storages by their names in files."""


@dataclass(slots=True, eq=False, repr=False)
class Record(Buildable):
    """An object of a file, as data.

    Attributes:
        class_name: the name of its class.
        state: its attributes; empty until they are set.
    """

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)
    _built: bool = False

    def build(self, machine: Machine, state: Any) -> None:
        """Set the attributes, once."""
        if self._built or type(state) is not dict:
            machine.damaged(f"the state of {self.class_name} must be given once, as a dict, got {describe(state)}")
        self.state, self._built = state, True


class EasyDict(dict[str, Any], Buildable):
    """A dictionary whose state, if given, must be empty."""

    def build(self, machine: Machine, state: Any) -> None:
        """Check that the state is empty."""
        if type(state) is not dict or state:
            machine.damaged(f"an EasyDict must have no state, got {describe(state)}")


@dataclass(slots=True, eq=False, repr=False)
class NumberType(Buildable):
    """A type of numpy's numbers, such as "f8"."""

    code: str

    def build(self, machine: Machine, state: Any) -> None:
        """Check the state (version, byte order, None, None, None, -1, -1, 0), the only one of plain numbers."""
        plain = (None, None, None, -1, -1, 0)
        if type(state) is not tuple or len(state) != 8 or any(type(v) not in (int, str, type(None)) for v in state):
            machine.damaged("the state of a number's type must be a tuple of eight plain values")
        if state[1] not in ("<", "|", "=") or state[2:] != plain:
            machine.damaged("a number's type must be little-endian and plain")


@dataclass(slots=True, eq=False, repr=False)
class NumberArray(Buildable):
    """An array of numpy in an attribute that is not read, such as the scale of an encoder."""

    def build(self, machine: Machine, state: Any) -> None:
        """Check the state: version, shape, type, order and bytes."""
        kinds = (int, tuple, NumberType, bool)
        if type(state) is not tuple or tuple(map(type, state[:4])) != kinds or len(state) != 5:
            machine.damaged("the state of an array must be its version, shape, type, order and bytes")
        if not isinstance(state[4], memoryview | bytes):
            machine.damaged(f"an array must be given as bytes, got {describe(state[4])}")


@dataclass(slots=True, eq=False, repr=False)
class Storage:
    """A storage that is still in the file.

    Attributes:
        content: the nested file.
        position: the byte at which the file refers to it.
    """

    content: Bytes
    position: int
    _read: Tensor | None = field(default=None)

    def read(self) -> Tensor:
        """The elements, one-dimensional; read once.

        Raises:
            DamagedFileError: the nested file is damaged, or in torch's zip format.
            UnsafeFileError: it names an object other than a storage.
        """
        if self._read is None:
            self._read = _read_storage(self.content, self.position)
        return self._read


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredTensor:
    """A tensor that is still in the file: a view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    position: int

    @property
    def count(self) -> int:
        """The number of its elements."""
        return math.prod(self.size)

    def read(self) -> Tensor:
        """The tensor, which shares its memory with all others of the same storage.

        Raises:
            DamagedFileError: the storage is damaged, or the tensor exceeds it.
            UnsafeFileError: as for `Storage.read`.
        """
        elements = self.storage.read()
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if self.count and (last >= len(elements) or self.count > len(elements)):
            raise DamagedFileError(
                f"a tensor must not exceed its storage of {len(elements)} elements, got shape {self.size}",
                self.position,
            )
        return elements.as_strided(self.size, self.stride, self.offset) if self.count else elements.new_empty(self.size)


@cache
def known_globals() -> Mapping[str, KnownGlobal]:
    """The globals that a published pickle may name, with functions that make their objects.

    They are those of the published files, and `_codecs.encode` and `builtins.set`, by which protocols 2 and 3 represent
    bytes and sets.
    """
    easy_dict = _without_arguments("EasyDict", EasyDict)
    known = [
        KnownGlobal("torch_utils.persistence _reconstruct_persistent_obj", call=_persistent_object),
        KnownGlobal("collections OrderedDict", call=_without_arguments("OrderedDict", dict)),
        KnownGlobal("torch._utils _rebuild_parameter", call=_rebuild_parameter),
        KnownGlobal("torch._utils _rebuild_tensor_v2", call=rebuild_tensor),
        KnownGlobal("torch.storage _load_from_bytes", call=_load_from_bytes),
        KnownGlobal("numpy dtype", call=_number_type),
        KnownGlobal("_codecs encode", call=_encode),
        KnownGlobal("dnnlib.util EasyDict", call=easy_dict, new=easy_dict),
    ]
    known += [KnownGlobal(f"numpy.{core}.multiarray scalar", call=_number) for core in ("_core", "core")]
    known += [KnownGlobal(f"numpy.{core}.multiarray _reconstruct", call=_array) for core in ("_core", "core")]
    known.append(KnownGlobal("numpy ndarray"))
    known += [KnownGlobal(f"{builtins} set", call=_set) for builtins in ("builtins", "__builtin__")]
    for kind in ("ModuleDict", "ModuleList", "ParameterDict", "ParameterList"):
        make = _without_arguments(kind, partial(Record, kind))
        known.append(KnownGlobal(f"torch.nn.modules.container {kind}", new=make))
    return {one.name: one for one in known}


def _without_arguments(name: str, make: Callable[[], Any]) -> Callable[[Machine, tuple[Any, ...]], Any]:
    def call(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        if arguments:
            machine.damaged(f"{name} must be made without arguments")
        return make()

    return call


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


def _set(machine: Machine, arguments: tuple[Any, ...]) -> set[str]:
    if len(arguments) != 1:
        machine.damaged("a set must be made of one list")
    return machine.set_of(arguments[0])


def _encode(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """`_codecs.encode(text, "latin1")`: bytes in protocol 2."""
    if len(arguments) != 2 or any(type(a) is not str for a in arguments) or arguments[1] != "latin1":
        machine.unsafe("_codecs.encode is only allowed for latin1")
    machine.charge(len(arguments[0]))
    try:
        return bytes(arguments[0], "latin1")
    except UnicodeEncodeError:
        return machine.damaged("bytes must be latin1")


def _number_type(machine: Machine, arguments: tuple[Any, ...]) -> NumberType:
    if not arguments or type(arguments[0]) is not str or arguments[0] not in NUMBER_TYPES:
        machine.damaged(f"a number's type must be one of {', '.join(NUMBER_TYPES)}")
    return NumberType(arguments[0])


def _number(machine: Machine, arguments: tuple[Any, ...]) -> int | float | bool:
    if len(arguments) != 2 or type(arguments[0]) is not NumberType or not isinstance(arguments[1], Bytes):
        machine.damaged("a number must be given as type and bytes")
    dtype = np.dtype(f"<{arguments[0].code}")
    if len(arguments[1]) != dtype.itemsize:
        machine.damaged(f"a number of type {arguments[0].code} must have {dtype.itemsize} bytes")
    return np.frombuffer(bytes(arguments[1]), dtype)[0].item()  # type: ignore[no-any-return]


def _array(machine: Machine, arguments: tuple[Any, ...]) -> NumberArray:
    """`numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")`: an array before its state is set."""
    kind = arguments[0] if len(arguments) == 3 else None
    if type(kind) is not KnownGlobal or kind.name != "numpy ndarray":
        machine.unsafe("an array of another class than numpy's is not allowed")
    return NumberArray()


def _load_from_bytes(machine: Machine, arguments: tuple[Any, ...]) -> Storage:
    """`torch.storage._load_from_bytes`: the storage, unread. The same bytes give the same storage."""
    if len(arguments) != 1 or not isinstance(arguments[0], memoryview | bytes):
        machine.damaged("a storage must be given as bytes")
    content = arguments[0]
    key = ("storage", id(content))  # The storage keeps the bytes alive, so that no other bytes get this id.
    return machine.shared.setdefault(key, Storage(content, machine.position))  # type: ignore[no-any-return]


def rebuild_tensor(machine: Machine, arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`, unread."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
        machine.damaged("a tensor must be given as storage, offset, size, stride, requires_grad and hooks")
    storage, offset, size, stride, _, hooks, *metadata = arguments
    if hooks or any(metadata):
        machine.unsafe("a tensor with hooks or metadata is not allowed")
    for numbers in ((offset,), size, stride):
        if type(numbers) is not tuple or any(type(n) is not int or not 0 <= n < MAX_ELEMENTS for n in numbers):
            machine.damaged("offset, size and stride of a tensor must be integers >= 0")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in size) >= MAX_ELEMENTS:
        machine.damaged("a tensor's size and stride must have the same length and describe few elements")
    return StoredTensor(storage, offset, size, stride, machine.position)


def _rebuild_parameter(machine: Machine, arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`: the tensor."""
    if len(arguments) != 3 or not isinstance(arguments[0], StoredTensor):
        machine.damaged("a parameter must be given as tensor, requires_grad and hooks")
    if arguments[2]:
        machine.unsafe("a parameter with hooks is not allowed")
    return arguments[0]


def _read_storage(content: Bytes, position: int) -> Tensor:
    """The elements of the nested file `content`, whose position is `position`."""
    if content[:2] == b"PK":
        raise DamagedFileError("a storage in torch's zip format, which no published file has, is not allowed", position)
    end = 0

    def pickle(persistent: Callable[[Machine, Any], Any] | None = None) -> Any:
        nonlocal end
        machine = Machine(content, KNOWN_IN_STORAGES, start=end, origin=position, persistent=persistent)
        value = machine.read(MAX_STORAGE_OPCODES)
        end = machine.end
        return value

    if pickle() != STORAGE_MAGIC or pickle() != STORAGE_VERSION:
        raise DamagedFileError("a storage must begin with torch's magic number and version", position)
    facts = pickle()
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise DamagedFileError("a storage must be little-endian", position)
    described = pickle(_storage_id)
    if type(described) is not _StorageDescription:
        raise UnsafeFileError(f"a storage is expected, got {describe(described)}", position)
    keys = pickle()
    if type(keys) is not list or len(keys) != 1 or type(keys[0]) is not str or keys[0] != described.key:
        raise DamagedFileError("a storage must have a single key", position)
    dtype, count, size = described.dtype, described.count, len(content) - end - 8
    if size < 0 or struct.unpack("<q", content[end : end + 8])[0] != count:
        raise DamagedFileError("a storage must have the number of elements that it declares", position)
    if size != count * dtype.itemsize:
        raise DamagedFileError(
            f"a storage of {count} elements of {dtype} must have {count * dtype.itemsize} bytes, got {size}", position
        )
    return torch.frombuffer(bytearray(content[end + 8 :]), dtype=dtype) if count else torch.empty(0, dtype=dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _StorageDescription:
    """A persistent id: the type of a storage, the number of its elements and its key."""

    dtype: torch.dtype
    count: int
    key: str


def _storage_id(machine: Machine, given: Any) -> _StorageDescription:
    """The persistent id ("storage", type, key, location, number of elements[, None])."""
    expected = (str, KnownGlobal, str, str, int, type(None))
    if type(given) is not tuple or len(given) not in (5, 6) or tuple(map(type, given)) != expected[: len(given)]:
        machine.unsafe("a persistent id must describe a storage")
    word, kind, key, _, count, *_ = given
    if word != "storage" or kind.name not in DTYPES or not 0 <= count < MAX_ELEMENTS:
        machine.unsafe("a persistent id must describe a storage")
    return _StorageDescription(DTYPES[kind.name], count, key)


KNOWN_IN_STORAGES = {name: KnownGlobal(name) for name in DTYPES} | {
    "collections OrderedDict": known_globals()["collections OrderedDict"]
}


def plain(value: Any, what: str) -> Any:
    """A copy of a value that consists of a limited number of numbers, short strings, None, lists and dicts.

    Args:
        value: a value of a file; tuples become lists.
        what: its name in messages.

    Raises:
        DamagedFileError: it contains other objects, or too many.
    """
    count = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_PLAIN or depth > MAX_PLAIN_DEPTH:
            raise DamagedFileError(f"{what} must not exceed {MAX_PLAIN} values or a depth of {MAX_PLAIN_DEPTH}")
        if value is None or type(value) in (bool, int, float):
            return value
        if type(value) is str and len(value) <= MAX_PLAIN_TEXT:
            return value
        if type(value) in (list, tuple):
            return [copy(item, depth + 1) for item in value]
        if isinstance(value, dict) and all(len(key) <= MAX_PLAIN_TEXT for key in value):
            return {key: copy(item, depth + 1) for key, item in value.items()}
        raise DamagedFileError(f"{what} must be plain values, got {describe(value)}")

    return copy(value, 0)
