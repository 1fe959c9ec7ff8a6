import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from openedm.data import Shards
from picture_files import encode, pixels

SCRIPT = Path(__file__).parents[2] / "examples" / "emoji.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def packages(script, tmp_path):
    """Small packages: a cat, a skin tone of it (transparent), a sign, one without a category, and a duplicate."""
    table = [
        {"image": "1f431.png", "category": "Animals", "skin_variations": {"X": {"image": "1f431-1f3fb.png"}}},
        {"image": "0023-fe0f-20e3.png", "category": "Symbols"},
    ]
    half = np.concatenate([pixels(0, (64, 64)), np.zeros((64, 64, 1), dtype=np.uint8)], 2)
    first = {
        "emoji.json": json.dumps(table).encode(),
        "img/twitter/64/1f431.png": encode(pixels(1, (64, 64))),
        "img/twitter/64/1f431-1f3fb.png": encode(half),
        "img/twitter/64/9999.png": encode(pixels(2, (64, 64))),
        "img/twitter/sheets/64.png": encode(pixels(3, (64, 64))),
    }
    second = {"emoji.json": first["emoji.json"], "img/google/64/1f431.png": encode(pixels(1, (64, 64)))}
    third = {"assets/23-20e3.webp": encode(PIL.Image.fromarray(pixels(4, (256, 256))), "WEBP", lossless=True)}
    for package, files in zip(script.PACKAGES, (first, second, third), strict=True):
        pack(tmp_path / package.file, files)
    return tmp_path


def test_emoji_are_packed_by_category_on_white_without_duplicates(script, packages, monkeypatch, capsys):
    for out in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["emoji.py", str(packages / out), "--packages", str(packages)])
        script.main()
    assert "3 pictures of 32×32" in capsys.readouterr().out
    dataset = Shards(str(packages / "one")).load()
    assert dataset.class_names == ("Animals", "Symbols")
    x, labels = dataset.fetch(range(3))
    assert labels.tolist() == [0, 0, 1]
    assert torch.equal(x[0], torch.ones(3, 32, 32))  # fully transparent; sorted before the cat
    for file in (packages / "one").iterdir():
        assert file.read_bytes() == (packages / "two" / file.name).read_bytes()
    manifest = json.loads((packages / "one" / "manifest.json").read_text())
    assert manifest["duplicates"] == 1
    assert [source["licence"] for source in manifest["sources"]] == ["CC-BY-4.0", "Apache-2.0", "MIT"]
