"""A fast part of `benchmarks.faults`: flipped bits, mutated files and wrong command lines, each by a seed."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.faults import flips, kinds, lines, mutations

from openedm.cli import main as command_line


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[kinds.Kind]:
    """Files of all kinds but those of posteriors, which take seconds to fit."""
    root = tmp_path_factory.mktemp("kinds")
    return [*kinds.checkpoints(root / "a"), *kinds.converted(root / "c"), *kinds.samples(root / "d")]


@pytest.mark.filterwarnings("ignore")
def test_flipped_bits_of_what_is_written_are_never_read_as_something_else(files: list[kinds.Kind]) -> None:
    rows = [flips.flip(kind, 4, np.random.default_rng((1, i))) for i, kind in enumerate(files)]
    assert [problem for row in rows for problem in row["problems"]] == []
    assert sum(row["error"] for row in rows) > 4 * len(rows) // 2


@pytest.fixture
def watched() -> Iterator[None]:
    """Audit events, and an alarm where reading does not end."""
    sys.addaudithook(mutations._audit)
    before = signal.signal(signal.SIGALRM, mutations._alarm)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("watched")
def test_mutated_files_are_data_or_one_documented_error(files: list[kinds.Kind], tmp_path: Path) -> None:
    chosen = mutations._without_digests([*files, *kinds.given(tmp_path / "e")])
    rows = [mutations.mutate(kind, 8, 2, i) for i, kind in enumerate(chosen)]
    assert [problem for row in rows for problem in row["problems"]] == []
    assert {row["refused"] > 0 for row in rows} == {True}


def test_wrong_command_lines_name_the_argument_on_one_line(tmp_path: Path) -> None:
    chosen = lines.lines(40, 3)
    assert len({line.command for line in chosen}) > 15
    with contextlib.chdir(tmp_path):
        found = [(line, lines.problem(line, *lines._run(line))) for line in chosen]
    assert [(line, wrong) for line, wrong in found if wrong] == []
    assert command_line.COMMANDS
