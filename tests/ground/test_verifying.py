"""Digests: what was changed since it was written is recognised, when it is read and by `verify`."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openedm.data import Form, MemoryImages, Shards, convert, save_image
from openedm.ground.digests import SEAL, check_digest, check_text, seal_text
from openedm.ground.storage import read_json, read_tensors, write_arrays, write_json, write_tensors
from openedm.ground.verifying import accept, verify
from picture_files import encode, pixels

CHANGED = "was changed since it was written"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with each kind of digest and checksum, and a file without."""
    folder = tmp_path / "folder"
    write_tensors(folder / "w.safetensors", {"w": torch.arange(50.0)})
    write_json(folder / "a.json", {"x": 0.1, "name": "é", "none": None}, files=("w.safetensors",))
    write_tensors(folder / "inner" / "s.safetensors", {"w": torch.ones(3)}, digest=True)
    write_arrays(folder / "inner" / "n.npz", {"x": np.arange(99.0)})
    save_image(torch.zeros(3, 8, 8), folder / "inner" / "p.png")
    (folder / "o.yaml").write_text(seal_text("a: 1\n"))
    (folder / "log.txt").write_text("x")
    return folder


def states(folder: Path) -> dict[str, str]:
    return {finding.path.name: finding.state for finding in verify(folder)}


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_files_as_they_were_written_are_found_to_be(folder: Path) -> None:
    found = states(folder)
    assert found.pop("log.txt") == "unknown"
    assert len(found) == 6
    assert set(found.values()) == {"as written"}
    assert read_json(folder / "a.json").keys() == {"x", "name", "none", "files"}
    assert read_tensors(folder / "w.safetensors", folder / "a.json")["w"][7] == 7


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('{"images": 5}\n{"images": 5, "a": 1}\n{"im', ""),
        ("", ""),
        ('{"images": 5}\n{"images": 4}\n', "line 2 must have images of at least 5, got 4"),
        ('{"images": 5}\nx\n', "line 2 cannot be read as JSON"),
        ("[1]\n", "line 1 must have images of at least 0, got None"),
        ('{"images": NaN}\n', "line 1 must have images of at least 0, got nan"),
    ],
)
def test_the_lines_of_a_log_are_checked_without_a_digest(lines: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(lines)
    [finding] = verify(tmp_path)
    assert finding.state == ("damaged" if problem else "unknown")
    assert finding.problem.startswith(problem)


@pytest.mark.parametrize("name", ["w.safetensors", "o.yaml", "inner/s.safetensors", "inner/n.npz", "inner/p.png"])
def test_any_bit_of_a_file_that_is_flipped_is_damage(name: str, folder: Path) -> None:
    [path] = (folder / name).parent.glob(f"{(folder / name).stem}*{(folder / name).suffix}")
    whole = path.read_bytes()
    harmless = 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), 60, replace=False).tolist():
        flip(path, bit)
        harmless += states(folder)[path.name] != "damaged"
        path.write_bytes(whole)
    # Some bits of an archive mean nothing, as the time of a file; those of the word before a digest make it a comment.
    assert harmless <= {".npz": 12, ".yaml": 45}.get(path.suffix, 0)


def test_a_flipped_bit_of_json_is_an_error_or_changes_nothing(folder: Path) -> None:
    path = folder / "a.json"
    whole, content = path.read_bytes(), read_json(path)
    for bit in range(0, 8 * len(whole), 31):
        flip(path, bit)
        try:
            found = read_json(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert {key: found.get(key) for key in content} == content
        path.write_bytes(whole)


def test_a_flipped_bit_of_yaml_is_an_error_or_changes_nothing() -> None:
    whole = seal_text("a: 1\nb: x\n").encode()
    assert check_text(whole, "o.yaml")
    for bit in range(0, 8 * len(whole), 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            check_text(bytes(changed), "o.yaml")
        except ValueError as error:
            assert CHANGED in str(error)  # noqa: PT017
        else:
            assert changed.startswith(b"a: 1\nb: x\n")


def test_the_error_names_the_file_and_what_to_do(folder: Path) -> None:
    write_tensors(folder / "w.safetensors", {"w": torch.zeros(50)})
    problem = rf"{re.escape(str(folder / 'w.safetensors'))} {CHANGED} \(SHA-256 \w+ instead of \w+\): restore it from "
    with pytest.raises(ValueError, match=problem + r"a copy, .* openedm verify on its folder with --accept true"):
        read_tensors(folder / "w.safetensors", folder / "a.json")
    [path] = (folder / "inner").glob("s-*")
    flip(path, 400)
    with pytest.raises(ValueError, match=rf"s-\w+.safetensors {CHANGED}"):
        check_digest(path)


def test_changes_on_purpose_can_be_accepted(folder: Path) -> None:
    (folder / "a.json").write_text((folder / "a.json").read_text().replace("0.1", "0.2"))
    write_tensors(folder / "w.safetensors", {"w": torch.zeros(50)})
    (folder / "o.yaml").write_text((folder / "o.yaml").read_text().replace("1", "2", 1))
    [snapshot] = (folder / "inner").glob("s-*")
    write_tensors(snapshot, {"w": torch.zeros(3)})
    assert sorted(path.name for path in accept(folder)) == ["a.json", "o.yaml", snapshot.name]
    assert "damaged" not in states(folder).values()
    assert read_json(folder / "a.json")["x"] == 0.2
    assert read_tensors(folder / "w.safetensors", folder / "a.json")["w"].sum() == 0
    assert accept(folder) == []


def test_what_cannot_be_accepted_is_named(folder: Path) -> None:
    flip(folder / "inner" / "n.npz", 8 * 60)
    with pytest.raises(ValueError, match=r"n\.npz .*: this cannot be accepted, restore it from a copy"):
        accept(folder)
    (folder / "w.safetensors").unlink()
    with pytest.raises(ValueError, match=r"w\.safetensors is missing"):
        accept(folder)
    with pytest.raises(ValueError, match="path must be a folder for accept"):
        accept(folder / "a.json")


def test_files_of_older_versions_are_read_as_they_are(folder: Path) -> None:
    content = json.loads((folder / "a.json").read_text())
    del content[SEAL]
    (folder / "a.json").write_text(json.dumps({**content, "x": 7}))
    assert read_json(folder / "a.json")["x"] == 7
    assert states(folder)["a.json"] == "unknown"


def _pipe(folder: Path) -> None:
    (folder / "w.safetensors").unlink()
    os.mkfifo(folder / "w.safetensors")


def _names(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_json(folder / "a.json", {"files": {name: "0" * 64}}, files=())

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "w.safetensors").unlink(), "w.safetensors is missing"),
        (_pipe, "w.safetensors is not a file"),
        (_names("../../secret"), "a.json files must hold the digests of files beside it by their names"),
        (_names("/etc/passwd"), "a.json files must hold the digests of files beside it by their names"),
        (lambda folder: (folder / "a.json").write_text("[" * 100_000), "a.json cannot be read as JSON: it is nested"),
        (lambda folder: (folder / "a.json").symlink_to("/dev/zero"), "a.json is not a file"),
    ],
    ids=["missing", "pipe", "above", "absolute", "nested", "device"],
)
def test_hostile_folders_end_in_one_finding(change: Callable[[Path], None], problem: str, folder: Path) -> None:
    if "not a file" in problem and problem.startswith("a.json"):
        (folder / "a.json").unlink()
    change(folder)
    [finding] = [finding for finding in verify(folder) if finding.state == "damaged"]
    assert f"{finding.path.name} {finding.problem}".startswith(problem)


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_a_flipped_bit_of_a_shard_is_found_when_its_image_is_read(encoding: str, tmp_path: Path) -> None:
    content = {f"{i}.png": encode(pixels(i)) for i in range(4)}
    out = tmp_path / "out"
    convert(MemoryImages(content), out, Form(size=8, encoding=encoding), per_shard=2)
    assert set(states(out).values()) == {"as written"}
    flip(out / "shard-000001.tar", 8 * (512 + 60))
    assert states(out) == dict.fromkeys(["index.npz", "manifest.json", "shard-000000.tar"], "as written") | {
        "shard-000001.tar": "damaged"
    }
    with pytest.raises(ValueError, match=rf"shard-000001.tar/00000002.{encoding} {CHANGED} \(CRC-32\): restore"):
        Shards(str(out)).load()


def test_a_finished_shard_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    images = MemoryImages({f"{i}.png": encode(pixels(i)) for i in range(4)})
    convert(images, tmp_path / "whole", Form(size=8), per_shard=2)

    def stop(name: str, done: float, total: float, **counts: int) -> None:
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(images, tmp_path / "out", Form(size=8), per_shard=2, progress=stop)
    flip(tmp_path / "out" / "shard-000000.tar", 8 * 600)
    convert(images, tmp_path / "out", Form(size=8), per_shard=2, resume=True)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_folder_that_may_not_be_read_is_an_error_and_not_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def refusing(path: str) -> Any:
        if os.path.basename(path) == "inner":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="inner"):
        list(verify(folder))
