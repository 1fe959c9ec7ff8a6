"""Mutated files of every kind: data or one documented error, within 5 s and 500 MiB, and nothing executed.

Digests do not protect here: JSON and YAML are mutated with a digest that fits, and weights without one, as whoever
changes a file on purpose would. An audit hook of the interpreter watches for code that is run, processes, sockets,
files that are removed or written, and files that are opened elsewhere.
"""

import copy
import json
import math
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import yaml
from benchmarks.faults.kinds import EXPECTED, Kind, make

from openedm.ground.digests import FILES, SEAL, content_digest, digest_in_name, seal_text

HEADER = ("file", "cases", "read", "refused", "other", "executed", "slow", "large", "slowest s")
SECONDS, MEBIBYTES = 5.0, 500.0
WATCHED = ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.", "socket.", "pty.", "shutil.")
WATCHED += ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.symlink", "os.link", "pickle.")
NEUTRAL = (sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/null", "/dev/urandom", "/usr/", "/etc/")
"""Where the interpreter, its libraries and the machine's description are."""

HOSTILE: tuple[Any, ...] = (None, True, -1, 0, 1, 7, 10**5, 10**9, 10**12, 10**30, 1e300, 0.5, math.nan, math.inf, "")
HOSTILE += ("x", "inf", "1e999", "../../etc/passwd", "/etc/passwd", "os.system", "subprocess.Popen", [], {}, [[]])
HOSTILE += ([1] * 9, {"class_path": "os.system", "init_args": {"command": "touch pwned"}}, {"class_path": "Path"})
HOSTILE += ("é\0\n", "9" * 400)
TOKENS = (b"\0", b"\xff", b"{", b"[" * 3000, b"../", b"999999999999", b"-1", b"nan", b"!!python/object:os.system")
TOKENS += (b"*", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x7fELF", b"'", b'"', b"\n", b"%s", b"e999", b"\xed\xa0\x80")
TOKENS += (b"&a [*a]",)

_seen: list[str] = []
_inside: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event.startswith(WATCHED):
        if (event == "exec" and "<frozen" not in str(arguments[:1]) and not _of_library(arguments)) or event != "exec":
            _seen.append(f"{event} {str(arguments[:1])[:120]}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode(errors="replace")
        elsewhere = path.startswith("/") and not path.startswith((_inside[0], *NEUTRAL, str(Path(__file__).parents[2])))
        written = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if elsewhere or written or (path.startswith("/etc/") and "passwd" in path):
            _seen.append(f"open {path} {arguments[1]}")


def _of_library(arguments: tuple[Any, ...]) -> bool:
    """Whether code is that of a module of the libraries, which may be imported when it is first needed."""
    file = getattr(arguments[0], "co_filename", "")
    return file.startswith((sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "<string>", "<@beartype"))


Rng = np.random.Generator


def _bytes(content: bytes, rng: Rng) -> bytes:
    """One of the changes that need no form."""
    way = int(rng.integers(7))
    at, changed = int(rng.integers(len(content) + 1)), bytearray(content)
    if way == 0:
        for position in rng.integers(len(content), size=int(rng.integers(1, 9))):
            changed[position] = int(rng.integers(256))
        return bytes(changed)
    if way == 1:
        return content[:at]
    if way == 2:
        return content[:at] + content[at : at + 300] * int(rng.integers(2, 40)) + content[at:]
    if way == 3:
        return content[:at] + content[at + int(rng.integers(1, 200)) :]
    if way == 4:
        size = [1, 2, 4, 8][int(rng.integers(4))]
        return content[:at] + [b"\0", b"\xff", b"\x7f", b"\x80"][int(rng.integers(4))] * size + content[at + size :]
    if way == 5:
        return content[:at] + TOKENS[int(rng.integers(len(TOKENS)))] + content[at:]
    return content[:at] + content[int(rng.integers(len(content))) :]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """The containers and keys of all values inside one."""
    if isinstance(value, dict):
        return [(value, key) for key in value] + [place for inner in value.values() for place in _places(inner)]
    if isinstance(value, list):
        return [(value, i) for i in range(len(value))] + [place for inner in value for place in _places(inner)]
    return []


def _plain(value: Any, rng: Rng) -> Any:
    """Plain data with one to three values replaced, removed, renamed or nested."""
    for _ in range(int(rng.integers(1, 4))):
        places = _places(value)
        if not places:
            break
        inside, key = places[int(rng.integers(len(places)))]
        hostile = copy.deepcopy(HOSTILE[int(rng.integers(len(HOSTILE)))])
        way = int(rng.integers(6))
        if way == 0 and isinstance(inside, dict):
            del inside[key]
        elif way == 1 and isinstance(inside, dict):
            inside[str(hostile)] = inside.pop(key)
        elif way == 2:
            inside[key] = [inside[key]]
        else:
            inside[key] = hostile
    return value


def _json(content: bytes, rng: Rng) -> bytes:
    if rng.random() < 0.3:
        return _bytes(content, rng)
    value = _plain(json.loads(content), rng)
    if isinstance(value, dict) and SEAL in value:
        value.pop(SEAL)
        if rng.random() < 0.5:  # with a digest that fits
            value[SEAL] = content_digest(value)
    return json.dumps(value).encode()


def _yaml(content: bytes, rng: Rng) -> bytes:
    text = content.partition(b"# " + SEAL.encode())[0]
    if rng.random() < 0.5:
        return _bytes(text, rng)
    try:
        return seal_text(yaml.safe_dump(_plain(yaml.safe_load(text), rng))).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        return _bytes(text, rng)


def _safetensors(content: bytes, rng: Rng) -> bytes:
    """The header as JSON, or bytes anywhere."""
    if rng.random() < 0.4:
        return _bytes(content, rng)
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(_plain(json.loads(content[8 : 8 + size]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


MUTATE: dict[str, Callable[[bytes, Rng], bytes]] = {"json": _json, "yaml": _yaml, "safetensors": _safetensors}


def _without_digests(kinds: Sequence[Kind]) -> list[Kind]:
    """Take the digests of files out of JSON files and names, so that mutated files are parsed."""
    for path in {path for kind in kinds for path in kind.file.parent.glob("*.json")}:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and FILES in value:
            del value[FILES], value[SEAL]
            path.write_text(json.dumps(value))
    for kind in kinds:
        for path in kind.file.parent.iterdir():
            if digest_in_name(path) is not None:
                path.rename(path.with_stem(path.stem.rpartition("-")[0]))
    return [
        kind if kind.file.exists() else kind._replace(file=kind.file.with_stem(kind.file.stem.rpartition("-")[0]))
        for kind in kinds
    ]


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("it took 30 seconds")


def mutate(kind: Kind, count: int, seed: int, number: int) -> dict[str, Any]:
    """A row: what `count` mutated files of a kind end in."""
    whole, counts, problems, slowest = kind.file.read_bytes(), Counter[str](), [], 0.0
    change = MUTATE.get(kind.form, _bytes)
    kind.read()  # Whatever is imported when it is first needed is imported now.
    for case in range(count):
        rng = np.random.default_rng((seed, number, case))
        kind.file.write_bytes(change(whole, rng))
        _seen.clear()
        memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        signal.alarm(30)
        _inside.append(str(kind.file.parents[2]))
        try:
            kind.read()
            ended, message = "read", ""
        except EXPECTED as error:
            ended, message = "refused", str(error)
        except Exception as error:
            ended, message = "other", repr(error)
        finally:
            _inside.clear()
            signal.alarm(0)
        seconds = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        slowest = max(slowest, seconds)
        found = {
            "executed": bool(_seen),
            "slow": seconds > SECONDS,
            "large": grown > MEBIBYTES,
            "other": ended == "other",
        }
        counts.update([ended, *(name for name, wrong in found.items() if wrong and name != "other")])
        if any(found.values()):
            problems.append(f"{kind.name}: case {case}: {message[:200]} {_seen[:2]} {seconds:.1f} s {grown:.0f} MiB")
    kind.file.write_bytes(whole)
    row = {"file": kind.name, "cases": count, **{name: counts[name] for name in HEADER[2:8]}}
    return {**row, "slowest s": round(slowest, 2), "problems": problems}


def run(root: Path, count: int, seed: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each kind of file, with `count` cases in all."""
    shutil.rmtree(root / "kinds", ignore_errors=True)
    sys.addaudithook(_audit)
    signal.signal(signal.SIGALRM, _alarm)
    kinds = _without_digests(make(root / "kinds"))
    chosen = [(i, kind) for i, kind in enumerate(kinds) if not only or kind.name in only]
    return [mutate(kind, max(1, count // len(chosen)), seed, i) for i, kind in chosen]
