"""A small set of real colour images: emoji in three styles, packed as shards that `--data Shards` reads.

    python examples/emoji.py OUT [--size 32] [--packages FOLDER]

The pictures come from three npm packages, fetched by `npm pack` (any registry that your npm is set up for), or taken as
the .tgz files in FOLDER: emoji-datasource-twitter 16.0.0 (Twemoji, © Twitter and contributors, CC BY 4.0),
emoji-datasource-google 16.0.0 (Noto, © Google, Apache 2.0) and @lobehub/fluent-emoji-3d 1.1.0 (Fluent, © Microsoft,
MIT). The classes are the ten categories of Unicode. Transparent parts become white, then Lanczos. Of pictures that are
alike to the last pixel the first stays. The result is the same each time, to the byte with the same Pillow.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from openedm.data import Form, MemoryImages, convert
from openedm.data.decoding import as_pixels, decode_upright


class Package(NamedTuple):
    """An npm package with one style of emoji."""

    style: str
    name: str
    version: str
    folder: str
    licence: str
    attribution: str

    @property
    def file(self) -> str:
        """What `npm pack` calls its archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        "twitter",
        "emoji-datasource-twitter",
        "16.0.0",
        "img/twitter/64/",
        "CC-BY-4.0",
        "Twemoji, © Twitter, Inc and other contributors (jdecked/twemoji); resized",
    ),
    Package(
        "google", "emoji-datasource-google", "16.0.0", "img/google/64/", "Apache-2.0", "Noto Emoji, © Google; resized"
    ),
    Package("fluent", "@lobehub/fluent-emoji-3d", "1.1.0", "assets/", "MIT", "Fluent Emoji, © Microsoft; resized"),
)


def fetch(packages: Path) -> None:
    """Have npm put the archives that are missing into the folder."""
    for package in PACKAGES:
        if not (packages / package.file).is_file():
            subprocess.run(
                ["npm", "pack", f"{package.name}@{package.version}", "--silent"], cwd=packages, check=True, text=True
            )


def files(archive: Path) -> dict[str, bytes]:
    """The files of an npm package, by their path below its root, in the order of their names."""
    with tarfile.open(archive, "r:gz") as opened:
        return {
            member.name.partition("/")[2]: content.read()
            for member in sorted(opened, key=lambda member: member.name)
            if member.isreg() and "sheets" not in member.name and (content := opened.extractfile(member))
        }


def code_points(name: str) -> str:
    """A file's name without what packages spell differently: leading zeros and the variation selector."""
    parts = name.rpartition(".")[0].replace("_", "-").lower().split("-")
    return "-".join(part.lstrip("0") for part in parts if part != "fe0f")


def categories(table: bytes) -> dict[str, str]:
    """The category of each emoji and of its skin tones, by code points, from emoji.json."""
    found = {}
    for entry in json.loads(table):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            found[code_points(variant["image"])] = entry["category"]
    return found


def emoji(packages: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, category and file of every picture, style after style; those without a category are left out."""
    category: dict[str, str] = {}
    for package in PACKAGES:
        content = files(packages / package.file)
        if "emoji.json" in content:
            category = categories(content["emoji.json"])
        for name, data in content.items():
            if name.startswith(package.folder) and (kind := category.get(code_points(Path(name).name))) is not None:
                yield f"{package.style}/{Path(name).name}", kind, data


def different(pictures: Iterator[tuple[str, str, bytes]], form: Form) -> tuple[MemoryImages, int]:
    """The pictures whose pixels, in their final form, were not seen before, and how many were left out."""
    kept: dict[str, bytes] = {}
    kinds, seen, left_out = [], set(), 0
    for name, kind, data in pictures:
        picture = form.apply(decode_upright(io.BytesIO(data), name, form.channels))
        digest = hashlib.sha256(as_pixels(picture).numpy().tobytes()).digest()
        if digest in seen:
            left_out += 1
            continue
        seen.add(digest)
        kept[name] = data
        kinds.append(kind)
    names = sorted(set(kinds))
    return MemoryImages(kept, [names.index(kind) for kind in kinds], names), left_out


def main() -> None:
    """Fetch, choose, convert, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for the set; new or empty")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures in pixels")
    parser.add_argument("--packages", type=Path, help="a folder with the .tgz files; what is missing is fetched there")
    arguments = parser.parse_args()
    form = Form(size=arguments.size)
    with tempfile.TemporaryDirectory() as temporary:
        packages = Path(temporary) if arguments.packages is None else arguments.packages
        fetch(packages)
        pictures, left_out = different(emoji(packages), form)
        sources = [
            {**p._asdict(), "sha256": hashlib.sha256((packages / p.file).read_bytes()).hexdigest()} for p in PACKAGES
        ]
        manifest = convert(pictures, arguments.out, form, about={"sources": sources, "duplicates": left_out})
    print(
        f"{manifest['images']} pictures of {arguments.size}×{arguments.size} in {arguments.out}; {left_out} duplicates"
    )
    for name, count in zip(manifest["class_names"], manifest["class_counts"], strict=True):
        print(f"  {name:<20} {count}")


if __name__ == "__main__":
    main()
