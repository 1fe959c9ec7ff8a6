"""Where the reference numbers lie, and the marks of the tests that need them.

The folder is `golden` inside the one that the environment variable OPENEDM_GOLDEN names (default: `shared` beside the
repository; relative paths start at the repository's root). It is no part of the repository; where it is missing, the
tests that carry `needs_golden` are skipped.

    @needs_golden
    def test_it_matches_the_reference(): ...

    pytestmark = golden_marks  # a whole module
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def golden_folder() -> Path:
    """The folder of reference numbers, whether or not it exists."""
    return (ROOT / os.environ.get("OPENEDM_GOLDEN", "../shared")).resolve() / "golden"


golden_marks = [
    pytest.mark.golden,
    pytest.mark.skipif(
        not golden_folder().is_dir(), reason=f"no reference numbers at {golden_folder()}: set OPENEDM_GOLDEN"
    ),
]


def needs_golden(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark one test as a comparison with the reference numbers."""
    for mark in golden_marks:
        test = mark(test)
    return test


def golden_json(name: str) -> Any:
    """The content of a JSON file in the folder; an empty dict where the folder is missing."""
    path = golden_folder() / name
    return json.loads(path.read_text(encoding="utf-8")) if golden_folder().is_dir() else {}


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file in the folder."""
    with np.load(golden_folder() / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
