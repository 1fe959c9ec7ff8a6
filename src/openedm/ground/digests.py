"""Digests (SHA-256) by which a file that was changed after it was written is recognised.

| where | of what |
|---|---|
| entry "openedm_sha256" of a JSON file | its own content without this entry, as sorted JSON without spaces |
| entry "files" of such a JSON file | files in the same folder, by name |
| the last line of a YAML file, `# openedm_sha256: …` | the text before it |
| the end of a name, `-<16 hexadecimal digits>.suffix` | the file itself: the beginning of its digest |

Files without them, which others or older versions wrote, are read as they are. Digests find damage, not fraud: whoever
changes a file on purpose can change its digest, too.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from openedm.ground.regular import check_regular

__all__ = [
    "FILES",
    "SEAL",
    "check_digest",
    "check_listed",
    "check_text",
    "digest_in_name",
    "file_digest",
    "listed_files",
    "named",
    "seal",
    "seal_text",
    "unseal",
]

SEAL, FILES = "openedm_sha256", "files"
LENGTH = 16
"""The number of digits of a digest in names and messages."""

_LAST_LINE = re.compile(rf"# {SEAL}: ([0-9a-f]{{64}})\n?\Z".encode())
_NAMED = re.compile(r".+-([0-9a-f]{16})\.\w+")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(content: Mapping[str, Any]) -> str:
    """The SHA-256 of the content of a JSON file without its own digest."""
    others = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(content: Mapping[str, Any], folder: Path, files: Collection[str] = ()) -> dict[str, Any]:
    """The content of a JSON file with its digest, and with those of files that are already in its folder."""
    plain: dict[str, Any] = json.loads(json.dumps(content))  # what is read later
    if files:
        plain[FILES] = {name: file_digest(folder / name) for name in files}
    return {**plain, SEAL: content_digest(plain)}


def unseal(content: dict[str, Any], origin: object) -> dict[str, Any]:
    """The content of a JSON file without its digest; as it is where it has none.

    Raises:
        ValueError: it was changed; `origin` is its file.
    """
    if SEAL not in content:
        if any(_differ_once(str(key), SEAL) for key in content):
            raise ValueError(
                f"{origin} was changed since it was written, in the name of {SEAL}: restore it from a copy"
            )
        return content
    if (found := content_digest(content)) != content[SEAL]:
        raise ValueError(changed(origin, found, content[SEAL]))
    return {key: value for key, value in content.items() if key != SEAL}


def seal_text(text: str) -> str:
    """A text with a last line, a comment, that holds its digest."""
    return f"{text}# {SEAL}: {hashlib.sha256(text.encode()).hexdigest()}\n"


def check_text(text: bytes, origin: object) -> bool:
    """Check a text by the digest in its last line; whether it has one.

    Raises:
        ValueError: it was changed; `origin` is its file.
    """
    found = _LAST_LINE.search(text)
    if found is None:
        if SEAL.encode() in text[-100:]:
            raise ValueError(f"{origin} was changed since it was written, in its last line: restore it from a copy")
        return False
    digest = hashlib.sha256(text[: found.start()]).hexdigest()
    if digest != found[1].decode():
        raise ValueError(changed(origin, digest, found[1].decode()))
    return True


def _differ_once(one: str, other: str) -> bool:
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1


def listed_files(content: Mapping[str, Any], origin: object) -> dict[str, str]:
    """The digests of files that the content of a JSON file lists, by name.

    Raises:
        ValueError: they are not names in the same folder; `origin` is the JSON file.
    """
    listed = content.get(FILES, {})
    if not isinstance(listed, dict) or not all(isinstance(d, str) and Path(n).name == n for n, d in listed.items()):
        raise ValueError(f"{origin}: {FILES} must hold the digests of files beside it by their names")
    return listed


def check_listed(path: Path, content: Mapping[str, Any], origin: object) -> None:
    """Check a file by its digest in the content of a JSON file, if that has one.

    Raises:
        ValueError: it was changed, or cannot be read.
    """
    digest = listed_files(content, origin).get(path.name)
    if digest is not None:
        check_digest(path, digest)


def named(path: Path, content: Path) -> Path:
    """The path with the digest of the file `content` at the end of its name."""
    return path.with_name(f"{path.stem}-{file_digest(content)[:LENGTH]}{path.suffix}")


def digest_in_name(path: Path) -> str | None:
    """The beginning of the digest of a file in its name, if it has one."""
    found = _NAMED.fullmatch(path.name)
    return None if found is None else found[1]


def check_digest(path: Path, digest: str | None = None) -> None:
    """Check a file by its digest, or by that in its name, if it has one.

    Raises:
        ValueError: it was changed, or cannot be read.
    """
    wanted = digest_in_name(path) if digest is None else digest
    if wanted is None:
        return
    try:
        check_regular(path)
        found = file_digest(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if found != wanted and (digest is not None or found[:LENGTH] != wanted):
        raise ValueError(changed(path, found, wanted))


def changed(path: object, found: str, wanted: object) -> str:
    """The message for a file that was changed."""
    return (
        f"{path} was changed since it was written (SHA-256 {found[:LENGTH]} instead of {str(wanted)[:LENGTH]}): "
        "restore it from a copy, or, if the change is meant, run openedm verify on its folder with --accept true"
    )
