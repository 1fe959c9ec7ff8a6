"""A tracker of accelerate that writes a CSV file, for spreadsheets and data frames."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from openedm.ground.disks import explain_write_errors

__all__ = ["CsvTracker"]

FILE = "tracking/curves.csv"


class CsvTracker(GeneralTracker):  # type: ignore[misc]  # accelerate has no types
    """Writes numbers to tracking/curves.csv in a folder, one a line: images seen, name, value.

    A run that is resumed appends; values after the checkpoint that it goes on from are then there twice, as in
    TensorBoard, and the later line is the one that counts.

    Args:
        folder: the run.
    """

    name = "csv"
    requires_logging_directory = True

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / FILE

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    def start(self) -> None:
        """Begin the file, unless it is there."""
        with explain_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._append([("images", "name", "value")])

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing: the options of a run are in its config.yaml."""

    def log(self, values: Mapping[str, Any], step: int | None = None, **options: Any) -> None:
        """Write the numbers among the values; text is left out."""
        self._append([(step, name, value) for name, value in values.items() if not isinstance(value, str)])

    def _append(self, rows: list[tuple[Any, ...]]) -> None:
        with explain_write_errors(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
