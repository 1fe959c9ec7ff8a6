"""Data of a stranger: nothing is waited for or read for ever, nothing but the data is read, and bounds are named."""

import io
import json
import os
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openedm.data import Arrays, ImageFolder, Shards, Source, Table
from openedm.data.archive import MAX_MEMBER, tar_members
from openedm.ground.plain_yaml import parse_yaml
from openedm.ground.storage import read_json, read_tensors
from picture_files import encode, pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "pictures").mkdir()
    (folder / "a.png").write_bytes(encode(pixels(0)))
    return folder


def _pipe(folder: Path) -> Source:
    os.mkfifo(folder / "b.png")
    return ImageFolder(str(folder))


def _device(folder: Path) -> Source:
    (folder / "b.png").symlink_to("/dev/zero")
    return ImageFolder(str(folder))


def _listing(folder: Path) -> Source:
    os.mkfifo(folder / "dataset.json")
    return ImageFolder(str(folder))


def _loop(folder: Path) -> Source:
    (folder / "inner").mkdir()
    (folder / "inner" / "again").symlink_to(folder)
    return ImageFolder(str(folder))


def _path_is_a_pipe(folder: Path) -> Source:
    os.mkfifo(folder / "x.npy")
    return Arrays(str(folder / "x.npy"))


def _archive_is_a_pipe(folder: Path) -> Source:
    os.mkfifo(folder / "x.zip")
    return ImageFolder(str(folder / "x.zip"))


def _claimed(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64


def _claiming_npy(folder: Path) -> Source:
    (folder / "x.npy").write_bytes(_claimed("1000000000000,"))
    return Arrays(str(folder / "x.npy"))


def _claiming_npz(folder: Path) -> Source:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", _claimed("1000000000000, 2"))
    return Arrays(str(folder / "x.npz"))


def _bomb(folder: Path) -> Source:
    """A picture in a zip archive that claims to be 2 GiB large without compression."""
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("a.png", encode(pixels(0)), zipfile.ZIP_DEFLATED)
    content = bytearray((folder / "x.zip").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    (folder / "x.zip").write_bytes(content)
    return ImageFolder(str(folder / "x.zip"))


def _many_entries(folder: Path) -> Source:
    """An archive that says that it has 5 million entries."""
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("a.png", b"")
    content = (folder / "x.zip").read_bytes()
    at = content.rindex(b"PK\x05\x06")
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 5_000_000, 5_000_000, 51, 35)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at, 1)
    (folder / "x.zip").write_bytes(content[:at] + record + locator + content[at:])
    return ImageFolder(str(folder / "x.zip"))


def _hidden_entries(folder: Path) -> Source:
    """A file of arrays that says that it has one entry, and lists more than that."""
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        for i in range(200):
            archive.writestr(zipfile.ZipInfo(f"{i:060d}.npy"), _claimed("16,"))
    content = bytearray((folder / "x.npz").read_bytes())
    content[-12:-10] = struct.pack("<H", 1)
    (folder / "x.npz").write_bytes(content)
    return Arrays(str(folder / "x.npz"))


def _many_arrays(folder: Path) -> Source:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", _claimed("16,"))
        archive.comment = b"a comment"
    content = bytearray((folder / "x.npz").read_bytes())
    content[-len(b"a comment") - 12 : -len(b"a comment") - 10] = struct.pack("<H", 60_000)
    (folder / "x.npz").write_bytes(content)
    return Arrays(str(folder / "x.npz"))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _large_png(bits: int) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        header = struct.pack(">IIBBBBB", 100_000, 100_000, bits, 2, 0, 0, 0)
        body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 99)) + _chunk(b"IEND", b"")
        (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        return ImageFolder(str(folder), resolution=8)

    return make


def _naming(name: str) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        (folder.parent / "secret.png").write_bytes(encode(pixels(1)))
        (folder / "link.png").symlink_to(folder.parent / "secret.png")
        cells = [{"bytes": None, "path": name.format(folder=folder)}]
        parquet.write_table(pyarrow.table({"image": cells}), folder / "t.parquet")
        return Table(str(folder / "t.parquet"))

    return make


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_pipe, "b.png is not a file but a pipe, device or socket"),
        (_device, "b.png is not a file but a pipe, device or socket"),
        (_listing, "dataset.json is not a file but a pipe, device or socket"),
        (_loop, "has a link to a folder that it is in: .*again"),
        (_path_is_a_pipe, "x.npy is not a file but a pipe, device or socket"),
        (_archive_is_a_pipe, "x.zip is not a file but a pipe, device or socket"),
        (_claiming_npy, "x.npy' cannot be read: "),
        (_claiming_npz, "x.npz' cannot be read: "),
        (_bomb, r"x.zip/a.png cannot be read: it must have at most 1,073,741,824 bytes, got 2,147,483,648"),
        (_many_entries, r"x.zip must have at most 4,194,304 entries, got 5,000,000: use several archives"),
        (_hidden_entries, r"x.npz is damaged: its list of 1 entries has [0-9,]+ bytes"),
        (_many_arrays, r"x.npz must have at most 10,000 entries, got 60,000"),
        (_large_png(8), "b.png .*pixels"),
        (_large_png(16), "b.png .*pixels"),
        (_naming("{folder}/../secret.png"), "t.parquet row 0 names the file .*, which is not read: it is not beside"),
        (_naming("/etc/passwd"), "t.parquet row 0 names the file '/etc/passwd', which is not read: it is not beside"),
        (_naming("{folder}/link.png"), "t.parquet row 0 names the file .*link.png', which is not read"),
    ],
)
def test_what_would_take_for_ever_or_read_something_else_is_refused_by_name(
    make: Callable[[Path], Source], problem: str, folder: Path
) -> None:
    source = make(folder)
    started = time.process_time()
    with pytest.raises(ValueError, match=problem):
        source.load()
    assert time.process_time() - started < 2


def test_a_tar_archive_has_a_limit_of_entries_and_npy_files_have_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openedm.data.archive.MAX_ENTRIES", 2)
    with tarfile.open(folder / "x.tar", "w") as archive:
        for i in range(3):
            archive.addfile(tarfile.TarInfo(f"{i}.png"))
    with pytest.raises(ValueError, match=r"x.tar cannot be read as a tar.*: it must have at most 2 entries, got more"):
        ImageFolder(str(folder / "x.tar")).load()
    np.save(folder / "x.npy", np.frombuffer(b"PK\x05\x06" * 16, dtype=np.float32).reshape(8, 2))
    assert len(Arrays(str(folder / "x.npy")).load()) == 8


def test_a_member_of_a_tar_archive_that_is_a_link_or_lies_elsewhere_reads_nothing_else(folder: Path) -> None:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name in ("/etc/a.png", "../../b.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content := encode(pixels(2)))
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert list(tar_members(str(folder / "x.tar"))) == ["/etc/a.png", "../../b.png"]
    before = sorted(folder.parent.rglob("*"))
    x, _ = Shards(str(folder / "x.tar")).load().fetch([0, 1])
    assert bool((x[0] == x[1]).all())
    assert sorted(folder.parent.rglob("*")) == before


def test_an_archive_of_many_entries_is_listed_in_little_memory(folder: Path) -> None:
    block = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    names = [tarfile.TarInfo(f"{i}.png").tobuf(tarfile.USTAR_FORMAT) for i in range(300)]
    (folder / "x.tar").write_bytes(b"".join(names) + block * 2000 + bytes(1024))
    with tarfile.open(folder / "x.tar") as archive:
        assert len(archive.getmembers()) == 2300
    assert len(tar_members(str(folder / "x.tar"))) == 301
    assert MAX_MEMBER == 2**30


def test_files_of_checkpoints_that_are_pipes_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "config.json")
    for read in (read_json, read_tensors):
        with pytest.raises(ValueError, match=r"config.json is not a file but a pipe"):
            read(folder / "config.json")


def _laughs(depth: int) -> str:
    return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, depth))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 5_000, "o.yaml is nested too deeply"),
        (_laughs(9), "o.yaml must have at most 1,000,000 values"),
        ("a: &a [*a]", "o.yaml is nested too deeply, or refers to itself"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("? [a]\n: 1", "unhashable|unacceptable"),
        ("a: [", "while parsing"),
    ],
)
def test_yaml_that_would_fill_the_memory_or_run_something_is_refused(text: str, problem: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=problem):
        parse_yaml(text, "o.yaml")
    assert time.process_time() - started < 2
    assert parse_yaml(_laughs(4), "o.yaml")["a0"] == ["x"]


def test_a_class_of_a_million_millions_is_an_error_or_a_name(folder: Path) -> None:
    np.savez(folder / "x.npz", x=np.zeros((4, 3), np.float32) + np.arange(4)[:, None], labels=[10**12, 0, 5, 5])
    assert Arrays(str(folder / "x.npz")).load().class_names == ("0", "5", "1000000000000")
    (folder / "dataset.json").write_text(json.dumps({"labels": [["a.png", 10**12]], "class_names": ["a", "b"]}))
    with pytest.raises(ValueError, match="1000000000000"):
        ImageFolder(str(folder)).load()


def test_an_archive_whose_directory_skips_an_entry_is_damaged(folder: Path) -> None:
    np.savez(folder / "x.npz", x=np.zeros((4, 3), np.float32), labels=np.arange(4))
    content = bytearray((folder / "x.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 32] ^= 64  # the length of a comment, in which the next entry then lies
    (folder / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.npz is damaged: it has 2 entries, of which 1 were found"):
        Arrays(str(folder / "x.npz")).load()
