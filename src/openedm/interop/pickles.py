"""Pickles as data: a machine for the opcodes of protocols 2 to 5 that runs no code from the file.

A pickle is a program for a stack machine, and Python's reader calls every function that it names. This machine has a
short list of names, each with a function of this library that makes plain data; any other name is an error, and so are
opcodes that no published file needs (extensions, objects with keyword arguments, byte arrays, the text forms of
protocol 0).

Memory and time are bounded by the limits below for every file: numbers and lengths are compared with the size of the
file before objects are made, bytes are never copied (they are views of the file), keys are strings, and no objects from
the file are hashed, compared or visited recursively.

No library has these bounds. Python's `Unpickler` with `find_class` overridden and torch's weights-only unpickler also
run no code, but copy the bytes and hash, nest and memoise without limit; fickling checks a file and then reads it with
`pickle`. The names of the opcodes are from `pickletools`, whose readers of arguments check no total.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = [
    "Buildable",
    "Bytes",
    "DamagedFileError",
    "KnownGlobal",
    "Machine",
    "UnreadableFileError",
    "UnsafeFileError",
    "describe",
]

Bytes = memoryview | bytes

MAX_OPCODES = 1_000_000
"""The published files have about 10⁵."""
MAX_STACK = 100_000
MAX_MARKS = 1_000
MAX_MEMO = 500_000
MAX_TEXT = 2**26
"""Bytes of all strings of a file. In protocol 2, which no published file has, the weights are also strings."""
MAX_NAME = 256
MAX_INTEGER_BYTES = 16


class UnreadableFileError(ValueError):
    """A file that cannot be read as data.

    Attributes:
        problem: the description of the problem.
        position: the byte at which it was found; None for the whole file.
    """

    def __init__(self, problem: str, position: int | None = None) -> None:
        super().__init__(problem if position is None else f"{problem}, at byte {position}")
        self.problem = problem
        self.position = position


class UnsafeFileError(UnreadableFileError):
    """The file names a function to run, or contains objects that only code needs."""


class DamagedFileError(UnreadableFileError):
    """The file is incomplete or inconsistent, or exceeds a limit."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownGlobal:
    """A global that a file may name.

    Attributes:
        name: its module and name.
        call: makes the result of a call with a tuple of arguments; None if calls are not allowed.
        new: makes a new object of this class from a tuple of arguments; None if that is not allowed.
    """

    name: str
    call: Callable[["Machine", tuple[Any, ...]], Any] | None = None
    new: Callable[["Machine", tuple[Any, ...]], Any] | None = None


class Buildable:
    """Base class of objects that receive a state from a file."""

    __slots__ = ()

    def build(self, machine: "Machine", state: Any) -> None:
        """Set the state, or raise an error through `machine.damaged`."""
        raise NotImplementedError


class Machine:
    """Reads one pickle from `content`, starting at byte `start`.

    Args:
        content: the file, or the part of it with the pickle.
        known: the globals that it may name, by "module name".
        start: the first byte of the pickle.
        origin: the position of `content` in the file, for messages.
        persistent: maps a persistent id to an object; None if such ids are not allowed.

    Attributes:
        end: the first byte after the pickle, once it is read.
        shared: objects that the globals' functions share between their calls.
    """

    def __init__(
        self,
        content: Bytes,
        known: Mapping[str, KnownGlobal],
        *,
        start: int = 0,
        origin: int = 0,
        persistent: Callable[["Machine", Any], Any] | None = None,
    ) -> None:
        self.content = memoryview(content)
        self.known = known
        self.origin = origin
        self.persistent = persistent
        self.shared: dict[Any, Any] = {}
        self.end = start
        self._opcode_at = start
        self._text = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def damaged(self, problem: str) -> NoReturn:
        """Raise DamagedFileError at the current opcode."""
        raise DamagedFileError(problem, self.position)

    def unsafe(self, problem: str) -> NoReturn:
        """Raise UnsafeFileError at the current opcode."""
        raise UnsafeFileError(problem, self.position)

    @property
    def position(self) -> int:
        """The position of the current opcode in the file."""
        return self.origin + self._opcode_at

    def charge(self, size: int) -> None:
        """Count `size` more bytes of strings.

        Raises:
            DamagedFileError: the strings of the file exceed the limit.
        """
        self._text += size
        if self._text > MAX_TEXT:
            self.damaged(f"strings must have at most {MAX_TEXT} bytes in total")

    def set_of(self, items: Any) -> set[str]:
        """The set of the strings of a list, which are counted again: one opcode copies them all.

        Raises:
            DamagedFileError: `items` is not a list of strings, or the strings of the file exceed the limit.
        """
        if type(items) is not list or any(type(item) is not str for item in items):
            self.damaged("a set must hold strings")
        self.charge(64 * len(items))
        return set(items)

    def read(self, opcodes: int = MAX_OPCODES) -> Any:
        """The object of the pickle.

        Raises:
            UnsafeFileError: it names a global that is not known, or has an opcode that no such file needs.
            DamagedFileError: it is not a complete pickle, or exceeds a limit.
        """
        if bytes(self.content[self.end : self.end + 1]) != b"\x80":
            self.damaged("no pickle of protocol 2 to 5 begins here")
        for _ in range(opcodes):
            self._opcode_at = self.end
            opcode = self._take(1)[0]
            if opcode == STOP:
                if len(self._stack) != 1 or self._marked:
                    self.damaged(f"the pickle must end with one value, but ends with {len(self._stack)}")
                return self._stack.pop()
            name = OPCODE_NAMES.get(opcode)
            if name is None:
                self.damaged(f"0x{opcode:02x} is not an opcode of a pickle")
            if name not in OPCODE_FUNCTIONS:
                self.unsafe(f"opcode {name} is not allowed")
            OPCODE_FUNCTIONS[name](self)
            if len(self._stack) > MAX_STACK or len(self._marked) > MAX_MARKS or len(self._memo) > MAX_MEMO:
                self.damaged("the stack or the memo is larger than any such file needs")
        raise DamagedFileError(f"more than {opcodes} opcodes", self.position)

    def _take(self, size: int) -> memoryview:
        if size > len(self.content) - self.end:
            self.damaged(f"the file ends where {size} more bytes are expected: it is incomplete or damaged")
        self.end += size
        return self.content[self.end - size : self.end]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        ahead = bytes(self.content[self.end : self.end + MAX_NAME])
        line, newline, _ = ahead.partition(b"\n")
        if not newline or not line.isascii():
            self.damaged("a name must be a line of ASCII")
        self.end += len(line) + 1
        return line.decode("ascii")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            self.damaged("a value is missing on the stack")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _top(self) -> Any:
        if not self._stack:
            self.damaged("a value is missing on the stack")
        return self._stack[-1]

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_marked(self) -> list[Any]:
        if not self._marked:
            self.damaged("a mark is missing on the stack")
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _integer(self) -> None:
        size = self._number("<B")
        if size > MAX_INTEGER_BYTES:
            self.damaged(f"an integer of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _string(self, form: str) -> None:
        size = self._number(form)
        content = self._take(size)
        self.charge(size)
        try:
            self._push(str(content, "utf-8"))
        except UnicodeDecodeError:
            self.damaged("a string is not UTF-8")

    def _protocol(self) -> None:
        version = self._number("<B")
        if not 2 <= version <= 5:
            self.damaged(f"the pickle's protocol must be 2 to 5, is {version}")

    def _frame(self) -> None:
        size = self._number("<Q")
        if size > len(self.content) - self.end:
            self.damaged(f"a frame of {size} bytes is longer than the file, which is incomplete or damaged")

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            self.unsafe(f"appending to {describe(target)} is not allowed")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict):
            self.unsafe(f"setting items of {describe(target)} is not allowed")
        if len(items) % 2:
            self.damaged("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.damaged(f"a key must be a string, is {describe(key)}")
            target[key] = value

    def _add_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not set:
            self.unsafe(f"adding to {describe(target)} is not allowed")
        target |= self.set_of(items)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            self.damaged(f"the memo has no entry {index}")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _global(self, module: Any, name: Any) -> None:
        if type(name) is not str or type(module) is not str:
            self.unsafe(f"a global named by {describe(module)} and {describe(name)} is not allowed")
        found = self.known.get(f"{module} {name}")
        if found is None:
            self.unsafe(f"the file names {f'{module}.{name}'[:MAX_NAME]!r}, which is not part of a published network")
        self._push(found)

    def _call(self, way: str) -> None:
        function, arguments = self._pop(2)
        if type(function) is not KnownGlobal:
            self.unsafe(f"calling {describe(function)} is not allowed")
        make = function.call if way == "call" else function.new
        if make is None:
            self.unsafe(f"calling {function.name!r} in this way is not allowed")
        if type(arguments) is not tuple:
            self.damaged(f"the arguments of {function.name!r} must be a tuple, are {describe(arguments)}")
        self._push(make(self, arguments))

    def _build(self) -> None:
        (state,) = self._pop(1)
        target = self._top()
        if not isinstance(target, Buildable):
            self.unsafe(f"setting the state of {describe(target)} is not allowed")
        target.build(self, state)

    def _persistent_id(self) -> None:
        if self.persistent is None:
            self.unsafe("a persistent id is not allowed")
        self._push(self.persistent(self, *self._pop(1)))


def describe(value: Any) -> str:
    """The type of a value from a file, without its content, whose representation could be endless."""
    if isinstance(value, KnownGlobal):
        return repr(value.name)
    return {memoryview: "bytes", type(None): "None"}.get(type(value), type(value).__name__)


OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
STOP = ord(".")
OPCODE_FUNCTIONS: dict[str, Callable[[Machine], object]] = {
    "PROTO": Machine._protocol,
    "FRAME": Machine._frame,
    "MARK": Machine._mark,
    "POP": lambda m: m._pop(1) if m._stack else m._pop_marked(),
    "POP_MARK": Machine._pop_marked,
    "NONE": lambda m: m._push(None),
    "NEWTRUE": lambda m: m._push(True),
    "NEWFALSE": lambda m: m._push(False),
    "BININT1": lambda m: m._push(m._number("<B")),
    "BININT2": lambda m: m._push(m._number("<H")),
    "BININT": lambda m: m._push(m._number("<i")),
    "LONG1": Machine._integer,
    "BINFLOAT": lambda m: m._push(m._number(">d")),
    "SHORT_BINUNICODE": lambda m: m._string("<B"),
    "BINUNICODE": lambda m: m._string("<I"),
    "BINUNICODE8": lambda m: m._string("<Q"),
    "SHORT_BINBYTES": lambda m: m._push(m._take(m._number("<B"))),
    "BINBYTES": lambda m: m._push(m._take(m._number("<I"))),
    "BINBYTES8": lambda m: m._push(m._take(m._number("<Q"))),
    "EMPTY_TUPLE": lambda m: m._push(()),
    "TUPLE1": lambda m: m._push(tuple(m._pop(1))),
    "TUPLE2": lambda m: m._push(tuple(m._pop(2))),
    "TUPLE3": lambda m: m._push(tuple(m._pop(3))),
    "TUPLE": lambda m: m._push(tuple(m._pop_marked())),
    "EMPTY_LIST": lambda m: m._push([]),
    "APPEND": lambda m: m._append(m._pop(1)),
    "APPENDS": lambda m: m._append(m._pop_marked()),
    "EMPTY_DICT": lambda m: m._push({}),
    "SETITEM": lambda m: m._set_items(m._pop(2)),
    "SETITEMS": lambda m: m._set_items(m._pop_marked()),
    "EMPTY_SET": lambda m: m._push(set()),
    "ADDITEMS": lambda m: m._add_items(m._pop_marked()),
    "BINGET": lambda m: m._get(m._number("<B")),
    "LONG_BINGET": lambda m: m._get(m._number("<I")),
    "BINPUT": lambda m: m._put(m._number("<B")),
    "LONG_BINPUT": lambda m: m._put(m._number("<I")),
    "MEMOIZE": lambda m: m._put(len(m._memo)),
    "GLOBAL": lambda m: m._global(m._line(), m._line()),
    "STACK_GLOBAL": lambda m: m._global(*m._pop(2)),
    "REDUCE": lambda m: m._call("call"),
    "NEWOBJ": lambda m: m._call("new"),
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
"""The functions of the opcodes that pickles of networks need."""
