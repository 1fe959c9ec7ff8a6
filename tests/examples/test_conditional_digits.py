"""What the example measures, on images whose attributes are known."""

import json
import sys

import pytest
import torch


@pytest.fixture
def example(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "examples")
    import conditional_digits

    return conditional_digits


def test_stroke_is_the_mean_ink_and_slant_the_slope_of_a_line(example):
    x = torch.full((2, 1, 8, 8), -1.0)
    x[0, 0, :, 3] = 1.0
    x[1, 0, torch.arange(8), torch.arange(8)] = 1.0
    torch.testing.assert_close(example.attributes(x), torch.tensor([[1 / 8, 0.0], [1 / 8, 1.0]]))


@pytest.mark.parametrize("what", ["attributes", "superresolution"])
def test_it_writes_its_numbers_and_its_figure(example, monkeypatch, tmp_path, what):
    arguments = [what, "--out", str(tmp_path), "--images", "128", "--nfe", "4", "--held", "40"]
    monkeypatch.setattr(sys, "argv", ["conditional_digits.py", *arguments])
    example.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(value == value for value in report.values())
    assert (tmp_path / "samples.png").stat().st_size > 1000
