"""The numbers in a published pickle: storages, each a nested file of `torch.save`, and tensors that view them.

A nested file is five pickles (a magic number, a version, facts of the machine, a persistent id that describes the
storage, the list of its keys), the number of elements in eight bytes, and the elements. All of that is compared with
the size of the file first; only then `torch.load(weights_only=True)` reads it. Nothing is read before it is needed.
"""

import io
import math
import struct
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openedm.interop.errors import DamagedFileError, UnsafeFileError
from openedm.interop.pickles import Bytes, Known, Machine, describe

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
VERSION = 1001
MAX_OPCODES = 200
MAX_DIMENSIONS = 8

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
"""The element types of storages by the names that files give them."""

KNOWN = {name: Known(name) for name in DTYPES} | {
    "collections OrderedDict": Known("collections OrderedDict", call=lambda machine, arguments: {})
}


@dataclass(frozen=True, slots=True, eq=False)
class _Described:
    """A persistent id: the type of a storage and the number of its elements."""

    dtype: torch.dtype
    count: int
    key: str


@dataclass(slots=True, eq=False, repr=False)
class Storage:
    """A storage that is still in the file.

    Attributes:
        content: the nested file.
        position: where the file asks for it.
    """

    content: Bytes
    position: int
    _read: Tensor | None = field(default=None)

    def read(self) -> Tensor:
        """Its elements, one-dimensional; read once.

        Raises:
            DamagedFileError: the nested file is damaged, or of torch's zip format.
            UnsafeFileError: it names anything but a storage.
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
            DamagedFileError: the storage is damaged, or the tensor reaches beyond it or has more elements than it.
            UnsafeFileError: as `Storage.read`.
        """
        elements = self.storage.read()
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if self.count and (last >= len(elements) or self.count > len(elements)):
            raise DamagedFileError(
                f"a tensor of shape {self.size} reaches beyond its storage of {len(elements)} elements", self.position
            )
        return elements.as_strided(self.size, self.stride, self.offset) if self.count else elements.new_empty(self.size)


def load_from_bytes(machine: Machine, arguments: tuple[Any, ...]) -> Storage:
    """`torch.storage._load_from_bytes`: the storage, unread. The same bytes are the same storage."""
    if len(arguments) != 1 or not isinstance(arguments[0], memoryview | bytes):
        machine.damaged("a storage must be given as bytes")
    content = arguments[0]
    key = ("storage", id(content))  # The storage keeps the bytes, so that the id stays theirs.
    return machine.shared.setdefault(key, Storage(content, machine.position))  # type: ignore[no-any-return]


def rebuild_tensor(machine: Machine, arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`, unread."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
        machine.damaged("a tensor must be given as storage, offset, size, stride, requires_grad and hooks")
    storage, offset, size, stride, _, hooks, *metadata = arguments
    if hooks or any(metadata):
        machine.unsafe("a tensor with hooks or metadata is refused")
    for numbers in ((offset,), size, stride):
        if type(numbers) is not tuple or any(type(n) is not int or not 0 <= n < 2**40 for n in numbers):
            machine.damaged("offset, size and stride of a tensor must be integers >= 0")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in size) >= 2**40:
        machine.damaged("a tensor's size and stride do not go together")
    return StoredTensor(storage, offset, size, stride, machine.position)


def rebuild_parameter(machine: Machine, arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`: the tensor."""
    if len(arguments) != 3 or not isinstance(arguments[0], StoredTensor):
        machine.damaged("a parameter must be given as tensor, requires_grad and hooks")
    if arguments[2]:
        machine.unsafe("a parameter with hooks is refused")
    return arguments[0]


def _read_storage(content: Bytes, position: int) -> Tensor:
    described, start = _described(content, position)
    size = len(content) - start - 8
    if size < 0 or struct.unpack("<q", content[start : start + 8])[0] != described.count:
        raise DamagedFileError("a storage contradicts itself about its number of elements", position)
    if size != described.count * described.dtype.itemsize:
        raise DamagedFileError(
            f"a storage of {described.count} elements of {described.dtype} must have "
            f"{described.count * described.dtype.itemsize} bytes, has {size}",
            position,
        )
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of a dozen kinds for files that it cannot read.
        raise DamagedFileError(f"torch cannot read a storage: {type(error).__name__}", position) from error
    untyped = getattr(loaded, "_untyped_storage", loaded)
    if not isinstance(untyped, torch.UntypedStorage) or untyped.nbytes() != size:
        raise DamagedFileError("torch reads a storage as something else", position)
    return torch.empty(0, dtype=described.dtype).set_(untyped)


def _described(content: Bytes, position: int) -> tuple[_Described, int]:
    """What a nested file says of its storage, and where the elements' number stands."""
    if content[:2] == b"PK":
        raise DamagedFileError("a storage in torch's zip format, which no published file has, is refused", position)
    at = 0

    def pickle(persistent: Any = None) -> Any:
        nonlocal at
        machine = Machine(content, KNOWN, start=at, origin=position, persistent=persistent)
        value = machine.read(MAX_OPCODES)
        at = machine.end
        return value

    if pickle() != MAGIC_NUMBER or pickle() != VERSION:
        raise DamagedFileError("a storage does not begin with torch's magic number and version", position)
    facts = pickle()
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise DamagedFileError("a storage must be little-endian", position)
    described = pickle(_storage_id)
    if type(described) is not _Described:
        raise UnsafeFileError(f"a storage is expected, {describe(described)} found", position)
    keys = pickle()
    if type(keys) is not list or len(keys) != 1 or type(keys[0]) is not str or keys[0] != described.key:
        raise DamagedFileError("a storage must come with its own key alone", position)
    return described, at


def _storage_id(machine: Machine, given: Any) -> _Described:
    """The persistent id ("storage", type, key, location, number of elements[, None])."""
    expected = (str, Known, str, str, int, type(None))
    if type(given) is not tuple or len(given) not in (5, 6) or tuple(map(type, given)) != expected[: len(given)]:
        machine.unsafe("a persistent id that describes no storage is refused")
    word, kind, key, _, count, *_ = given
    if word != "storage" or kind.name not in DTYPES or not 0 <= count < 2**40:
        machine.unsafe("a persistent id that describes no storage is refused")
    return _Described(DTYPES[kind.name], count, key)
