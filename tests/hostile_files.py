"""Pickles that would run something or fill the memory, and a process that reads them all and prints the outcomes."""

import copyreg
import functools
import json
import marshal
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.fuzz_checkpoints import watch

from openedm.interop.published import parse_pickle

PROTOCOLS = (2, 3, 4, 5)
START = b"\x80\x04"


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def named(module: str, name: str, *, on_stack: bool = False) -> bytes:
    return text(module) + text(name) + b"\x93" if on_stack else f"c{module}\n{name}\n".encode()


class Reduces:
    """Is pickled as a call."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


class Plain:
    """An object of a class of its own."""


class NewArguments(Plain):
    def __new__(cls, *, word: str = "") -> "NewArguments":
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, str]]:
        return (), {"word": "x"}


CODE = compile("1", "", "eval")
ATTACKS = {
    "os.system": lambda mark: Reduces(os.system, (f"touch {mark}",)),
    "subprocess": lambda mark: Reduces(subprocess.Popen, (["touch", mark],)),
    "eval": lambda mark: Reduces(eval, (f"open({mark!r}, 'w')",)),
    "exec": lambda mark: Reduces(exec, (f"open({mark!r}, 'w')",)),
    "open": lambda mark: Reduces(open, (mark, "w")),
    "import": lambda mark: Reduces(__import__, ("antigravity",)),
    "getattr": lambda mark: Reduces(getattr, (Reduces(__import__, ("os",)), "system")),
    "nested reduce": lambda mark: Reduces(eval, (Reduces(str, (f"open({mark!r}, 'w')",)),)),
    "partial": lambda mark: functools.partial(os.system, f"touch {mark}"),
    "partial called": lambda mark: Reduces(functools.partial(os.system, f"touch {mark}"), ()),
    "copyreg": lambda mark: Reduces(copyreg._reconstructor, (Plain, object, None)),
    "code object": lambda mark: Reduces(marshal.loads, (marshal.dumps(CODE),)),
    "torch.load": lambda mark: Reduces(torch.load, (mark,)),
    "pickle.loads": lambda mark: Reduces(pickle.loads, (pickle.dumps(Reduces(os.system, (f"touch {mark}",))),)),
    "apply": lambda mark: Reduces(map, (os.system, [f"touch {mark}"])),
    "object": lambda mark: Plain(),
    "object with keywords": lambda mark: NewArguments(),
    "list items": lambda mark: Reduces(list, (), None, iter([Reduces(os.system, (f"touch {mark}",))])),
    "bytearray": lambda mark: bytearray(b"x"),
    "frozenset": lambda mark: frozenset("x"),
    "complex": lambda mark: 1j,
    "a class": lambda mark: Plain,
    "a method": lambda mark: "".join,
    "dtype": lambda mark: torch.float32,
    "module": lambda mark: torch.nn.Linear(1, 1),
}

BOMBS = {
    "lists in lists": START + b"]" * 200_000,
    "a deep tuple": START + b")" + b"\x85" * 500_000 + b".",
    "a deep list": START + b"]" + b"q\x000]h\x00a" * 100_000 + b".",
    "marks": START + b"(" * 100_000,
    "memo": START + b"N" + b"\x94" * 600_000 + b".",
    "many opcodes": START + b"N0" * 600_000 + b"N.",
    "billion laughs": START + b"]q\x00" + b"0(" + b"h\x00" * 10 + b"lq\x00",
    "laughing tuples": START + b")q\x00" + b"0(h\x00h\x00h\x00h\x00tq\x00" * 5_000 + b"0h\x00.",
    "a list in itself": START + b"]q\x00h\x00a.",
    "a dict in itself": START + b"}q\x00" + text("ema") + b"h\x00s.",
    "strings": START + (text("x" * 1_000_000) + b"0") * 70 + b"N.",
    "encoded bytes": START
    + text("x" * 1_000_000)
    + b"q\x00"
    + (named("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R") * 1000
    + b".",
    "colliding keys": START
    + b"}("
    + b"".join(b"\x8a\x08" + struct.pack("<q", i << 32) + b"N" for i in range(1000))
    + b"u.",
    "a hash of tuples": START + b")q\x00" + b"0h\x00h\x00\x86q\x00" * 100 + b"0}h\x00Ns.",
}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(read: Callable[[bytes], object], content: bytes, mark: Path) -> dict[str, Any]:
    """How reading ended, what the interpreter was asked to run, and what it cost."""
    kind, message, memory, started = "none", "", _peak(), time.process_time()
    with watch() as seen:
        try:
            read(content)
        except BaseException as error:
            kind, message = type(error).__name__, str(error)
    result = {"kind": kind, "message": message, "seen": list(seen), "marked": mark.exists()}
    return result | {"seconds": time.process_time() - started, "mib": _peak() - memory}


def main() -> None:
    """Read every file and print what happened, as JSON."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        for name, attack in ATTACKS.items():
            for protocol in PROTOCOLS:
                content = pickle.dumps({"ema": attack(str(mark))}, protocol)
                results[f"attack {name} {protocol}"] = outcome(parse_pickle, content, mark)
        for name, content in BOMBS.items():
            results[f"bomb {name}"] = outcome(parse_pickle, content, mark)
        results["run"] = outcome(pickle.loads, pickle.dumps(ATTACKS["os.system"](str(mark))), mark)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
