"""The reader of pickles: what it reads, and that it runs nothing and ends for every file."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import benchmarks
import numpy as np
import pytest
import torch
from benchmarks.fuzz_checkpoints import DANGEROUS

import hostile_files
from hostile_files import ATTACKS, BOMBS, PROTOCOLS, START, Reduces, named, text
from openedm.interop.modules import named_tensors
from openedm.interop.pickles import DamagedFileError, Machine, UnreadableFileError, UnsafeFileError
from openedm.interop.published import parse_pickle
from openedm.interop.records import Record, Storage, StoredTensor, known_globals, rebuild_tensor


def read(content: bytes) -> object:
    return Machine(content, known_globals()).read()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_those_that_were_pickled(protocol: int) -> None:
    shared = ["twice", 1.5]
    value = {
        "integers": [0, 255, 65535, -1, 2**31 - 1, -(2**31), 2**40, 2**63, -(2**100)],
        "floats": [0.1, -1e300, float("inf")],
        "others": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "text": ["", "σ", "x" * 300, "y" * 70_000],
        "shared": [shared, shared],
        "sets": [set(), {"a", "b"}],
        "ordered": OrderedDict(b=1, a=2),
        "numbers": [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True), np.uint8(200)],
    }
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert isinstance(found, dict)
    assert found["shared"][0] is found["shared"][1]
    assert all(type(number) in (int, float, bool) for number in found["numbers"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_are_those_that_were_pickled_and_share_what_they_shared(protocol: int, dtype: torch.dtype) -> None:
    base = torch.arange(24).to(dtype)
    views = [base, base[3:9].reshape(2, 3), base.reshape(4, 6).T, base[:0], base[5]]
    found = read(pickle.dumps([*views, torch.nn.Parameter(base.double())], protocol))
    assert isinstance(found, list)
    tensors = [stored.read() for stored in found]
    for tensor, view in zip(tensors, views, strict=False):
        assert tensor.dtype == view.dtype
        assert torch.equal(tensor, view)
        assert tensor.stride() == view.stride()
    assert torch.equal(tensors[-1], base.double())


def test_bytes_are_views_of_the_file_and_storages_are_read_once_and_when_needed() -> None:
    tensor = torch.randn(1000)
    content = pickle.dumps([tensor, tensor[5:], b"x" * 100], 4)
    found = read(content)
    assert isinstance(found, list)
    assert found[0].storage.content.obj is content
    assert found[0].storage._read is None
    shared = {id(stored.storage) for stored in read(pickle.dumps([tensor, tensor], 4))}  # type: ignore[attr-defined]
    assert len(shared) == 1


def test_a_container_of_torch_becomes_a_record() -> None:
    made = torch.nn.ModuleDict({"a": torch.nn.ModuleList()})
    found = read(pickle.dumps(made, 4))
    assert isinstance(found, Record)
    assert found.class_name == "ModuleDict"
    assert isinstance(found.state["_modules"]["a"], Record)


@pytest.fixture(scope="module")
def hostile() -> dict[str, dict[str, Any]]:
    """What became of each hostile file, in a process of its own, without the tests' type checker."""
    command = [sys.executable, "-W", "error", "-m", "hostile_files"]
    folders = [str(Path(hostile_files.__file__).parent), str(Path(benchmarks.__path__[0]).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return results


def test_every_attack_is_refused_with_its_position_and_nothing_of_it_runs(hostile: dict[str, dict[str, Any]]) -> None:
    attacks = {name: result for name, result in hostile.items() if name.startswith("attack")}
    assert len(attacks) == len(ATTACKS) * len(PROTOCOLS)
    assert {name: result for name, result in attacks.items() if result["kind"] != "UnsafeFileError"} == {}
    assert {name: result["seen"] for name, result in attacks.items() if result["seen"]} == {}
    assert not any(result["marked"] for result in attacks.values())
    assert all("at byte" in result["message"] for result in attacks.values())


def test_the_watch_and_the_mark_do_notice_a_file_that_is_run(hostile: dict[str, dict[str, Any]]) -> None:
    assert hostile["run"]["marked"]
    assert "pickle.find_class" in str(hostile["run"]["seen"])
    assert "os.system" in str(hostile["run"]["seen"])


def test_bombs_end_soon_and_in_little_memory(hostile: dict[str, dict[str, Any]]) -> None:
    bombs = {name: result for name, result in hostile.items() if name.startswith("bomb")}
    assert len(bombs) == len(BOMBS)
    kinds = ("UnsafeFileError", "DamagedFileError")
    assert {name: result for name, result in bombs.items() if result["kind"] not in kinds} == {}
    assert max(result["seconds"] for result in bombs.values()) < 20
    assert max(result["mib"] for result in bombs.values()) < 256


@pytest.mark.parametrize("on_stack", [False, True])
@pytest.mark.parametrize("name", [*DANGEROUS, "torch Tensor", "torch.storage FloatStorage", "__main__ x", "numpy load"])
def test_any_other_global_is_refused_by_its_name_in_both_spellings(name: str, on_stack: bool) -> None:
    module, attribute = name.split()
    with pytest.raises(UnsafeFileError, match=f"names '{module}.{attribute}'") as caught:
        read(START + named(module, attribute, on_stack=on_stack) + b".")
    assert caught.value.position == 2 + on_stack * (10 + len(module) + len(attribute))


def test_a_name_that_hides_in_the_module_or_in_dots_is_no_known_one() -> None:
    for module, attribute in (("torch._utils _rebuild_parameter", ""), ("collections", "OrderedDict.fromkeys")):
        with pytest.raises(UnsafeFileError):
            read(START + named(module, attribute, on_stack=True) + b".")


KNOWN = named("collections", "OrderedDict")
NEW = named("dnnlib.util", "EasyDict")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (KNOWN + b"\x82\x01", "EXT1 is not allowed"),
        (b"\x83\x01\x00", "EXT2 is not allowed"),
        (b"\x84\x01\x00\x00\x00", "EXT4 is not allowed"),
        (b"Pid\n", "PERSID is not allowed"),
        (b"NQ", "persistent id is not allowed"),
        (b"(ios\nsystem\n", "INST is not allowed"),
        (b"(" + KNOWN + b"o", "OBJ is not allowed"),
        (KNOWN + b")}\x92", "NEWOBJ_EX is not allowed"),
        (b"\x96" + bytes(8), "BYTEARRAY8 is not allowed"),
        (b"\x97", "NEXT_BUFFER is not allowed"),
        (b"}" + b"}b", "setting the state of dict is not allowed"),
        (b"]}b", "setting the state of list is not allowed"),
        (KNOWN + b"}b", "setting the state of 'collections OrderedDict' is not allowed"),
        (text("os") + b")R", "calling str is not allowed"),
        (KNOWN + b")R)R", "calling dict is not allowed"),
        (KNOWN + b")\x81", "calling 'collections OrderedDict' in this way is not allowed"),
        (named("torch.nn.modules.container", "ModuleDict") + b")R", "'.*ModuleDict' in this way is not allowed"),
        (KNOWN + b"Na", "appending to 'collections OrderedDict' is not allowed"),
        (KNOWN + b"NNs", "setting items of 'collections OrderedDict' is not allowed"),
        (KNOWN + b"(N\x90", "adding to 'collections OrderedDict' is not allowed"),
        (b"NN\x93", "a global named by None and None is not allowed"),
        (named("_codecs", "encode") + text("x") + text("rot13") + b"\x86R", "only allowed for latin1"),
    ],
)
def test_opcodes_that_only_code_needs_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(UnsafeFileError, match=message):
        read(START + content + b".")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no pickle of protocol 2 to 5"),
        (b"\x80\x01N.", "protocol must be 2 to 5, is 1"),
        (b"\x80\x06N.", "protocol must be 2 to 5, is 6"),
        (b"(dp0\n.", "no pickle of protocol"),
        (START, "the file ends"),
        (START + b".", "must end with one value, but ends with 0"),
        (START + b"NN.", "must end with one value, but ends with 2"),
        (START + b"N(N.", "must end with one value"),
        (START + b"0.", "a mark is missing"),
        (START + b"R.", "a value is missing"),
        (START + b"h\x00.", "the memo has no entry 0"),
        (START + b"\xff", "0xff is not an opcode"),
        (START + b"\x8a\x11" + bytes(17), "an integer of 17 bytes"),
        (START + b"\x8a\x10" + bytes(15), "the file ends where 16 more bytes"),
        (START + b"X\xff\xff\xff\xff", "the file ends where 4294967295 more"),
        (START + b"\x8d" + b"\xff" * 8, "the file ends where 18446744073709551615 more"),
        (START + b"B\xff\xff\xff\xff", "the file ends"),
        (START + b"\x8e" + b"\xff" * 8, "the file ends"),
        (START + b"\x95" + b"\xff" * 8, "a frame of 18446744073709551615 bytes is longer than the file"),
        (START + b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (START + b"c" + b"x" * 5000, "must be a line of ASCII"),
        (START + b"cos\n\xc3\xa4\n", "must be a line of ASCII"),
        (START + b"}(Nu.", "a key has no value"),
        (START + b"}NNs.", "a key must be a string, is None"),
        (START + b"})Ns.", "a key must be a string, is tuple"),
        (START + b"}K\x01Ns.", "a key must be a string, is int"),
        (START + b"\x8f(K\x01\x90.", "a set must hold strings"),
        (START + KNOWN + b"NR.", "arguments of 'collections OrderedDict' must be a tuple, are None"),
        (START + KNOWN + b"N\x85R.", "OrderedDict must be made without arguments"),
        (START + NEW + b")\x81" + text("x") + b"b.", "an EasyDict must have no state, got str"),
        (START + named("torch_utils.persistence", "_reconstruct_persistent_obj") + b"}\x85R.", "version 6"),
        (START + named("torch.storage", "_load_from_bytes") + b"N\x85R.", "a storage must be given as bytes"),
        (START + named("torch._utils", "_rebuild_tensor_v2") + b")R.", "a tensor must be given as"),
        (START + named("torch._utils", "_rebuild_parameter") + b")R.", "a parameter must be given as"),
        (START + named("numpy", "dtype") + text("O") + b"\x85R.", "a number's type must be one of"),
        (START + named("numpy", "dtype") + text("V8") + b"\x85R.", "a number's type must be one of"),
        (START + named("numpy.core.multiarray", "scalar") + b")R.", "a number must be given as type and bytes"),
    ],
)
def test_damage_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        read(content)


def test_a_state_is_taken_once() -> None:
    made = named("torch.nn.modules.container", "ModuleDict") + b")\x81"
    assert isinstance(read(START + made + b"}b."), Record)
    with pytest.raises(DamagedFileError, match="must be given once, as a dict, got dict"):
        read(START + made + b"}b}b.")
    with pytest.raises(DamagedFileError, match="must be given once, as a dict, got list"):
        read(START + made + b"]b.")


def storage(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor._typed_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def nested(content: bytes) -> Storage:
    found = read(
        START
        + named("torch.storage", "_load_from_bytes")
        + b"B"
        + struct.pack("<I", len(content))
        + content
        + b"\x85R."
    )
    assert isinstance(found, Storage)
    return found


def legacy(*parts: object) -> bytes:
    return b"".join(part if isinstance(part, bytes) else pickle.dumps(part, 2) for part in parts)


def zipped(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(0))
        archive.writestr("archive/data/0", bytes(2**24))
    return buffer.getvalue()


GOOD = storage(torch.arange(4.0))
HEAD = GOOD[: GOOD.index(b"\x80\x02(X\x07\x00\x00\x00storage")]
MALICIOUS = pickle.dumps(Reduces(os.system, ("touch mark",)), 2)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (MALICIOUS, UnsafeFileError, "names 'posix.system'"),
        (HEAD + MALICIOUS, UnsafeFileError, "names 'posix.system'"),
        (HEAD + pickle.dumps([1], 2), UnsafeFileError, "a storage is expected, got list"),
        (HEAD + START + text("x") + b"Q.", UnsafeFileError, "must describe a storage"),
        (GOOD.replace(b"FloatStorage", b"FloatStoragf"), UnsafeFileError, "names 'torch.FloatStoragf'"),
        (GOOD.replace(b"FloatStorage", b"LongStorage"), DamagedFileError, "must have 32 bytes, got 16"),
        (GOOD + b"\x00", DamagedFileError, "must have 16 bytes, got 17"),
        (GOOD[:-1], DamagedFileError, "must have 16 bytes, got 15"),
        (GOOD[:-20], DamagedFileError, "number of elements that it declares"),
        (GOOD.replace(b"K\x04Nt", b"K\x05Nt"), DamagedFileError, "number of elements that it declares"),
        (
            GOOD.replace(b"K\x04Nt", b"\x8a\x05\x00\x00\x00\x00\x7fNt"),
            DamagedFileError,
            "number of elements that it declares",
        ),
        (GOOD.replace(b"K\x04Nt", b"\x8a\x08" + b"\x7f" * 8 + b"Nt"), UnsafeFileError, "must describe a storage"),
        (legacy(1, 2, {}), DamagedFileError, "magic number"),
        (GOOD.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), DamagedFileError, "little-endian"),
        (zipped(zipfile.ZIP_DEFLATED), DamagedFileError, "zip format"),
        (zipped(zipfile.ZIP_STORED)[:1000], DamagedFileError, "zip format"),
        (b"", DamagedFileError, "no pickle"),
    ],
)
def test_a_nested_file_that_is_no_storage_is_refused(content: bytes, kind: type[Exception], message: str) -> None:
    assert nested(GOOD).read().tolist() == [0, 1, 2, 3]
    found = nested(content)
    with pytest.raises(kind, match=message):
        found.read()
    assert not Path("mark").exists()


def test_a_zip_archive_is_named_and_not_unpacked() -> None:
    with pytest.raises(DamagedFileError, match="a zip archive"):
        parse_pickle(zipped(zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (1, 3)),
        (0, (1000, 1000), (0, 0)),
        (2**39, (1,), (1,)),
        (0, (2**20, 0), (1, 1)),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    stored = StoredTensor(nested(GOOD), offset, size, stride, 7)
    if 0 in size:
        assert stored.read().shape == size
        return
    with pytest.raises(DamagedFileError, match=r"must not exceed its storage of 4 elements, got .*, at byte 7"):
        stored.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, (1,), (1,), False, OrderedDict()), "integers >= 0"),
        ((0, (-1,), (1,), False, OrderedDict()), "integers >= 0"),
        ((0, (1.0,), (1,), False, OrderedDict()), "integers >= 0"),
        ((0, (True,), (1,), False, OrderedDict()), "integers >= 0"),
        ((0, (2**50,), (1,), False, OrderedDict()), "integers >= 0"),
        ((0, (1, 1), (1,), False, OrderedDict()), "must have the same length"),
        ((0, (2**30, 2**30), (1, 1), False, OrderedDict()), "must have the same length"),
        ((0, (1,) * 9, (1,) * 9, False, OrderedDict()), "must have the same length"),
        ((0, (1,), (1,), False, OrderedDict(x=1)), "hooks or metadata is not allowed"),
    ],
)
def test_a_tensor_is_described_by_numbers(arguments: tuple[object, ...], message: str) -> None:
    given = torch.arange(4.0)._typed_storage()
    content = pickle.dumps(Reduces(torch._utils._rebuild_tensor_v2, (given, *arguments)), 4)
    with pytest.raises(UnreadableFileError, match=message):
        read(content)


def test_sets_that_copy_one_list_again_and_again_end_in_an_error() -> None:
    items = b"".join(b"X" + struct.pack("<I", 6) + b"%06d" % i for i in range(2000))
    copies = b"cbuiltins\nset\nh\x00\x85R0" * 1000
    with pytest.raises(DamagedFileError, match="strings must have at most"):
        read(b"\x80\x02]q\x00(" + items + b"e" + copies + b".")


def test_a_tensor_without_elements_may_not_be_huge_either() -> None:
    arguments = (Storage(b"", 0), 0, (2**39, 2**39, 0), (1, 1, 1), False, {})
    with pytest.raises(DamagedFileError, match="size and stride must have the same length"):
        rebuild_tensor(Machine(b"", {}), arguments)


def test_modules_that_hold_themselves_or_are_shared_too_often_end_in_an_error() -> None:
    own = Record("ModuleDict")
    own.state["_modules"] = {f"m{i}": own for i in range(30_000)}
    shared = Record("ModuleDict", {"_parameters": {f"p{i}": None for i in range(3000)}})
    many = Record("ModuleDict", {"_modules": {f"m{i}": shared for i in range(3000)}})
    for record in (own, many):
        with pytest.raises(DamagedFileError, match="at most 200000 entries"):
            named_tensors(record)
