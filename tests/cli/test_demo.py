"""The demo, on a few images: what it runs, what it leaves, and what it says when it is run again."""

import json

import PIL.Image
import pytest

from openedm.cli import demo as command


@pytest.mark.slow
def test_the_demo_trains_samples_and_scores_through_the_other_commands_and_goes_on_when_run_again(
    openedm, tmp_path, monkeypatch
):
    small = [option.replace("model_channels=32", "model_channels=8") for option in command.TRAINING]
    assert small != command.TRAINING
    monkeypatch.setattr(command, "TRAINING", small)
    out = tmp_path / "demo"
    first = openedm("demo", "--out", out, "--images", 256)
    assert first.status == 0, first.err
    commands = [line.split()[2] for line in first.out.splitlines() if line.startswith("$ openedm")]
    assert commands == ["train", "sample", "sample", "evaluate"]
    report = json.loads((out / "report.json").read_text())
    assert report["num_samples"] == 1000
    assert report["frechet_matched"] > 10 * report["floor"]  # two steps draw no digits
    with PIL.Image.open(out / "grid.png") as grid:
        assert grid.width == 10 * 33 - 1
        assert 10 * 33 - 1 + 8 < grid.height < 10 * 33 - 1 + 24  # names of classes above
    assert f"{report['accuracy']:.1%}" in first.out

    again = openedm("demo", "--out", out, "--images", 256)
    assert again.status == 0
    assert "drew 0 samples" in again.out
    assert f"{report['accuracy']:.1%}" in again.out
    more = openedm("demo", "--out", out, "--images", 512)
    assert more.status == 1
    assert "has a demo with fewer images (256)" in more.err
