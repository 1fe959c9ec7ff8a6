"""Pictures as they come, encoded and of any size: what `convert` reads."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from openedm.data.archive import Archive
from openedm.data.decoding import SUFFIXES
from openedm.data.folder import class_labels
from openedm.data.rows import Reader
from openedm.data.webdataset import places, tar_files


class Pictures(ABC):
    """Encoded pictures in a fixed order, with a name and perhaps a class each.

    Attributes:
        names: what each is called, in messages and beside the result; no two alike.
        labels: class of each, or None.
        class_names: one name per class, or None.
    """

    names: Sequence[str]
    labels: Sequence[int] | None
    class_names: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded picture.

        Raises:
            ValueError: it cannot be read; names it.
        """

    def describe(self, index: int) -> str:
        """What to call a picture in a message."""
        return self.names[index]

    def fingerprint(self) -> str:
        """A digest of names and classes: an interrupted conversion goes on with the same pictures only."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            digest.update(f"{name}\0{self.labels[index] if self.labels is not None else ''}\n".encode())
        return digest.hexdigest()


class Files(Pictures):
    """The pictures in a folder or archive, with the classes that `ImageFolder` would find.

    Args:
        path: a folder with its sub-folders, or a .zip or .tar file.
        labels: as for `ImageFolder`.

    Raises:
        ValueError: the path holds no pictures, or the labels are not there.
    """

    def __init__(self, path: str, labels: str = "auto") -> None:
        self._archive = Archive(path)
        sizes = self._archive.sizes()
        self.names = [name for name in sizes if name.lower().endswith(SUFFIXES)]
        if not self.names:
            raise ValueError(f"source holds no pictures ({', '.join(SUFFIXES)}): {path!r}")
        found, self.class_names = class_labels(self._archive, self.names, sizes, labels)
        self.labels = None if found is None else found.tolist()

    def read(self, index: int) -> bytes:
        with self._archive.open(self.names[index]) as file:
            return file.read()

    def describe(self, index: int) -> str:
        return self._archive.describe(self.names[index])


class Tars(Pictures):
    """The pictures in tar archives of WebDataset, with the classes beside them.

    Args:
        path: a folder of .tar files, or one of them.

    Raises:
        ValueError: as of `webdataset.places`.
    """

    def __init__(self, path: str) -> None:
        self._files = tar_files(Path(path))
        self._places = places(self._files)
        self.names = [f"{self._files[place.shard].name}/{place.name}" for place in self._places]
        self.labels = None if self._places[0].label is None else [place.label or 0 for place in self._places]
        self.class_names = _class_names(Path(path)) if self.labels is not None else None

    def read(self, index: int) -> bytes:
        place = self._places[index]
        with open(self._files[place.shard], "rb") as file:
            file.seek(place.offset)
            return file.read(place.size)


def _class_names(folder: Path) -> list[str] | None:
    """Those that `convert` noted beside the shards it wrote."""
    try:
        names = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("class_names")
    except (OSError, ValueError, AttributeError):
        return None
    return names if isinstance(names, list) else None


class Rows(Pictures):
    """The pictures in a table.

    Args:
        reader: of the table.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        labels = reader.labels()
        self.names = [reader.name(index) for index in range(len(reader))]
        self.labels = None if labels is None else labels.tolist()
        self.class_names = reader.class_names

    def read(self, index: int) -> bytes:
        return self._reader.read([index])[0][0]


class Held(Pictures):
    """Pictures in memory.

    Args:
        content: encoded pictures by name.
        labels: class of each, in the same order.
        class_names: one name per class.
    """

    def __init__(
        self,
        content: Mapping[str, bytes],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.names, self._content = list(content), list(content.values())
        if labels is not None and len(labels) != len(content):
            raise ValueError(f"labels must have {len(content)} entries, one per picture, got {len(labels)}")
        self.labels, self.class_names = labels, class_names

    def read(self, index: int) -> bytes:
        return self._content[index]
