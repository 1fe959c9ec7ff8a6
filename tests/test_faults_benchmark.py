"""The fast part of `benchmarks.faults`: kills, two writers and full disks for the one command that needs no network."""

import random

import pytest
import torch
from benchmarks.faults import disks, kills, writers
from benchmarks.faults.commands import CASES

import openedm.cli.data.convert  # here, and not in each process that is forked
import openedm.cli.parsing  # noqa: F401
from openedm.data import save_image

CASE = next(case for case in CASES if case.name == "data convert")


@pytest.fixture
def root(tmp_path):
    """Where the benchmark has its files, with the pictures that are converted."""
    (pictures := tmp_path / "inputs" / "pictures").mkdir(parents=True)
    for number, image in enumerate(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))):
        save_image(2 * image - 1, pictures / f"{number}.png")
    return tmp_path


def test_what_is_killed_and_goes_on_writes_what_a_run_without_kills_does(root):
    row = kills._case(CASE, root / "case", 3, random.Random(0))
    assert row["problems"] == []
    assert row["kills"] >= 3


def test_of_two_writers_one_goes_on_and_the_other_says_why(root):
    row = writers._case(CASE, root / "case", 1, random.Random(0))
    assert row["problems"] == []
    assert row["one went on"] == 1


def test_a_full_disk_is_one_line_and_all_goes_on_with_more_space(root):
    row = disks._case(CASE, root / "case", 2, random.Random(1))
    assert row["problems"] == []
    assert row["failed"] > 0
