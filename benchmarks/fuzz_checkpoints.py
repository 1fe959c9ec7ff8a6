"""Broken and hostile checkpoint files: what the reader of published pickles makes of them, in a table and a JSON file.

    python -m benchmarks.fuzz_checkpoints [--cases 10000] [--seed 0] [--out fuzz.json]

Each case is a file in the published layout (four classes, protocols 2 to 5), mutated by its own seed: bytes flipped,
files cut and spliced, lengths and numbers overwritten, opcodes deleted, repeated, swapped and replaced, code to be run
put between them, names of globals exchanged for dangerous ones, the nested files of storages damaged. It must be read
as data or end in the documented error; nothing may be run. An audit hook of the interpreter watches for that: imports,
compiled or executed code, processes, opened files, pickle's own look-up of names; and the code that is put in would
leave a mark. `--case N` repeats one case and shows what it ends in.
"""

import argparse
import io
import pickletools
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks import published_files
from benchmarks.common import machine, write_json

from openedm.interop import DamagedFileError, UnsafeFileError
from openedm.interop.published import parse_pickle

WATCHED = ("import", "exec", "compile", "open", "code.", "function.", "marshal.", "pickle.", "os.", "subprocess.")
WATCHED += (
    "socket.",
    "ctypes.",
    "shutil.",
    "builtins.input",
    "builtins.breakpoint",
    "urllib.",
    "tempfile.",
    "glob.",
    "sys._",
    "gc.",
    "pty.",
)
OUTCOMES = ("read", "damaged", "unsafe", "not built", "other")
SLOW = 5.0
"""Seconds that no case may take."""

SMALL = {"img_resolution": 4, "img_channels": 1, "model_channels": 4, "channel_mult": [1], "num_blocks": 1}
KINDS = {
    "EDMPrecond": {**SMALL, "model_type": "SongUNet", "attn_resolutions": []},
    "VPPrecond": {**SMALL, "model_type": "SongUNet", "label_dim": 2, "M": 10},
    "VEPrecond": {**SMALL, "model_type": "SongUNet", "embedding_type": "fourier", "channel_mult_noise": 2},
    "iDDPMPrecond": {**SMALL, "model_type": "SongUNet", "augment_dim": 9, "M": 4},
}
DANGEROUS = ("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "functools partial")
DANGEROUS += ("copyreg _reconstructor", "types CodeType", "subprocess Popen", "torch load", "importlib import_module")
DANGEROUS += ("builtins __import__", "pickle loads", "numpy load", "torch.serialization load", "torch._utils x.y")

_seen: list[str] = []
_watching = False
_installed = False


def mark() -> None:
    """What the code in mutated files would call."""
    _seen.append("mark")


@contextmanager
def watch() -> Iterator[list[str]]:
    """A list of what the interpreter is asked to run while the block runs, by its audit events."""
    global _watching, _installed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.startswith(WATCHED):
        _seen.append(f"{event} {str(arguments[:1])[:80]}")


@lru_cache
def originals() -> tuple[bytes, ...]:
    """The files that are mutated."""
    files = []
    for class_name, kwargs in KINDS.items():
        outputs = 2 if class_name == "iDDPMPrecond" else 1
        state = published_files.weights(kwargs, outputs)
        if class_name == "iDDPMPrecond":
            state["u"] = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
        for protocol in (2, 3, 4, 5):
            attributes = {"sigma_data": np.float64(0.5), "use_fp16": False}
            files.append(published_files.published_file(class_name, kwargs, state, protocol=protocol, **attributes))
    return tuple(files)


class Opcode(NamedTuple):
    """An opcode of a pickle, and where it stands."""

    name: str
    start: int
    end: int


@lru_cache
def opcodes(content: bytes) -> tuple[Opcode, ...]:
    """The opcodes of a file."""
    found = [(opcode.name, position) for opcode, _, position in pickletools.genops(content)]
    ends = [position for _, position in found[1:]] + [len(content)]
    return tuple(Opcode(name, start, end) for (name, start), end in zip(found, ends, strict=True))


Mutation = Callable[[bytes, np.random.Generator], bytes]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for position in rng.integers(len(content), size=int(rng.integers(1, 9))):
        changed[position] = int(rng.integers(256))
    return bytes(changed)


def _bit(content: bytes, rng: np.random.Generator) -> bytes:
    position = _somewhere(content, rng).start
    changed = bytearray(content)
    changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def _splice(content: bytes, rng: np.random.Generator) -> bytes:
    other = originals()[int(rng.integers(len(originals())))]
    return content[: _somewhere(content, rng).start] + other[_somewhere(other, rng).start :]


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    first, second = sorted(int(i) for i in rng.integers(len(content), size=2))
    part = content[first : min(second, first + 2000)]
    return content[:first] + part * int(rng.integers(2, 50)) + content[first:]


def _remove(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + content[start + int(rng.integers(1, 200)) :]


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite a length or a number with an extreme one."""
    opcode = _somewhere(content, rng)
    value = [b"\x00", b"\xff", b"\x7f", b"\x80"][int(rng.integers(4))]
    size = [1, 2, 4, 8][int(rng.integers(4))]
    return content[: opcode.start + 1] + value * size + content[opcode.start + 1 + size :]


def _drop_opcode(content: bytes, rng: np.random.Generator) -> bytes:
    opcode = _somewhere(content, rng)
    return content[: opcode.start] + content[opcode.end :]


def _repeat_opcode(content: bytes, rng: np.random.Generator) -> bytes:
    opcode = _somewhere(content, rng)
    part = content[opcode.start : opcode.end][:1000]
    return content[: opcode.end] + part * int(rng.integers(1, 2000)) + content[opcode.end :]


def _swap_opcodes(content: bytes, rng: np.random.Generator) -> bytes:
    first, second = sorted((_somewhere(content, rng), _somewhere(content, rng)), key=lambda opcode: opcode.start)
    if first.start == second.start:
        return content
    moved = content[second.start : second.end] + content[first.end : second.start] + content[first.start : first.end]
    return content[: first.start] + moved + content[second.end :]


def _other_opcode(content: bytes, rng: np.random.Generator) -> bytes:
    codes = [ord(opcode.code) for opcode in pickletools.opcodes]
    opcode = _somewhere(content, rng)
    return content[: opcode.start] + bytes([codes[int(rng.integers(len(codes)))]]) + content[opcode.start + 1 :]


def _global(name: str, *, on_stack: bool) -> bytes:
    module, _, attribute = name.partition(" ")
    if not on_stack:
        return f"c{module}\n{attribute}\n".encode()
    return b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute)) + b"\x93"


def _code(content: bytes, rng: np.random.Generator) -> bytes:
    """Put a call between two opcodes: of `mark`, or of something that could do worse."""
    names = ("benchmarks.fuzz_checkpoints mark", *DANGEROUS)
    called = _global(names[int(rng.integers(len(names)))], on_stack=bool(rng.integers(2)))
    argument = b"X\x04\x00\x00\x00true\x85" if rng.integers(2) else b")"
    way = [b"R", b"\x81", b"}\x92", b"b"][int(rng.integers(4))]
    opcode = _somewhere(content, rng)
    return content[: opcode.start] + called + argument + way + b"0" * int(rng.integers(2)) + content[opcode.start :]


def _rename(content: bytes, rng: np.random.Generator) -> bytes:
    """Exchange a global of the file for another."""
    found = [opcode for opcode in opcodes(content) if opcode.name in ("GLOBAL", "STACK_GLOBAL")]
    opcode = found[int(rng.integers(len(found)))]
    known = ("collections OrderedDict", "numpy dtype", "torch._utils _rebuild_tensor_v2", "builtins set")
    names = ("benchmarks.fuzz_checkpoints mark", *DANGEROUS, *known, "torch.storage _load_from_bytes")
    put = _global(names[int(rng.integers(len(names)))], on_stack=bool(rng.integers(2)))
    drop = b"00" if opcode.name == "STACK_GLOBAL" else b""
    return content[: opcode.start] + drop + put + content[opcode.end :]


def _nested(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage the nested file of a storage, at its beginning most often, where it says what it is."""
    names = ("BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "BINBYTES8")
    found = [o for o in opcodes(content) if o.name in names and b"\xf9 j\xa8P\x19" in content[o.start : o.end][:40]]
    if not found:
        return _flip(content, rng)
    opcode = found[int(rng.integers(len(found)))]
    changed = bytearray(content)
    for position in rng.integers(opcode.start, min(opcode.start + 400, opcode.end), size=int(rng.integers(1, 4))):
        changed[position] = int(rng.integers(256))
    return bytes(changed)


def _several(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped beside one of the others: positions of opcodes are those before."""
    return _flip(MUTATIONS[list(MUTATIONS)[int(rng.integers(len(MUTATIONS) - 1))]](content, rng), rng)


MUTATIONS: dict[str, Mutation] = {
    "bytes flipped": _flip,
    "bits of opcodes": _bit,
    "cut off": _truncate,
    "two files spliced": _splice,
    "a part repeated": _repeat,
    "a part removed": _remove,
    "extreme numbers": _number,
    "opcode dropped": _drop_opcode,
    "opcode repeated": _repeat_opcode,
    "opcodes swapped": _swap_opcodes,
    "another opcode": _other_opcode,
    "code put in": _code,
    "another global": _rename,
    "storages damaged": _nested,
    "two of these": _several,
}


def _somewhere(content: bytes, rng: np.random.Generator) -> Opcode:
    found = opcodes(content)
    return found[int(rng.integers(len(found)))]


def case(index: int, seed: int) -> tuple[str, bytes]:
    """The mutation and the file of a case; a function of the two numbers alone."""
    rng = np.random.default_rng((seed, index))
    name = list(MUTATIONS)[index % len(MUTATIONS)]
    return name, MUTATIONS[name](originals()[int(rng.integers(len(originals())))], rng)


def outcome(content: bytes) -> tuple[str, str]:
    """One of `OUTCOMES`, and the error. What could be read is also built."""
    try:
        published = parse_pickle(content)
    except UnsafeFileError as error:
        return "unsafe", str(error)
    except DamagedFileError as error:
        return "damaged", str(error)
    except BaseException as error:
        return "other", repr(error)
    try:
        published.denoiser()
    except ValueError as error:
        return "not built", str(error)
    except BaseException as error:
        return "other", repr(error)
    return "read", ""


def fuzz(cases: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each mutation: how its cases ended, what was run, the slowest."""
    for original in originals():  # Whatever is imported when it is first needed is imported now.
        assert outcome(original) == ("read", "")
    outcome(originals()[0][:-1])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    failures: dict[str, list[str]] = defaultdict(list)
    for index in cases:
        name, content = case(index, seed)
        with watch() as seen:
            started = time.perf_counter()
            ended, error = outcome(content)
            seconds = time.perf_counter() - started
        counts[name][ended] += 1
        counts[name]["executed"] += bool(seen)
        slowest[name] = max(slowest[name], seconds)
        if ended == "other" or seen or seconds > SLOW:
            failures[name].append(f"case {index}: {error} {seen[:3]} {seconds:.1f} s")
    return [
        {"mutation": name, "cases": sum(counts[name][ended] for ended in OUTCOMES)}
        | {ended: counts[name][ended] for ended in (*OUTCOMES, "executed")}
        | {"slowest_ms": 1e3 * slowest[name], "failures": failures[name]}
        for name in MUTATIONS
    ]


def main() -> int:
    """Mutate, read, print, write; the exit status is 1 where anything was run or ended in another error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="one case alone, with its opcodes")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    given = parser.parse_args()
    if given.case is not None:
        name, content = case(given.case, given.seed)
        text = io.StringIO()
        try:
            pickletools.dis(content, text)
        except Exception as error:
            text.write(f"{error}\n")
        print(text.getvalue()[-3000:], name, *outcome(content))
        return 0
    started, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = fuzz(range(given.cases), given.seed)
    columns = ("cases", *OUTCOMES, "executed")
    total = {column: sum(row[column] for row in rows) for column in columns}
    print(f"{'mutation':<20}" + "".join(f"{column:>10}" for column in columns) + f"{'slowest':>12}")
    for row in (*rows, {"mutation": "all", **total, "slowest_ms": max(row["slowest_ms"] for row in rows)}):
        numbers = "".join(f"{row[column]:>10,}" for column in columns)
        print(f"{row['mutation']:<20}{numbers}{row['slowest_ms']:>9.0f} ms")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s, {grown:.0f} MiB more memory than before")
    failures = [failure for row in rows for failure in row["failures"]]
    print("\n".join(failures[:50]))
    if given.out is not None:
        content = {"machine": machine(), "seed": given.seed, "seconds": seconds, "memory_mib": grown, "total": total}
        write_json(given.out, {**content, "rows": rows})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
