import json
import os
import signal

import numpy as np
import PIL.Image
import pytest
import torch

from openedm.cli import reporting
from openedm.cli.reporting import Bar, Figures, Log, StopSignal, Tracker
from openedm.data.pictures import image_grid
from openedm.denoiser import Preconditioned
from openedm.levels import Karras
from openedm.objective import Objective
from openedm.preconditioning import EDM
from openedm.sampling import Sampler
from openedm.training import Options, TrainingProgress, ValidationLoss, make_accelerator

SAMPLER = Sampler(Karras(3))


def progress(step, loss=1.0, batch=10, speed=100.0, skipped=0):
    return TrainingProgress(step * batch, step, loss, 2 * loss, 1e-3, speed, skipped)


def validation(scale=1.0):
    return ValidationLoss((0.1, 1.0), (0.01 * scale, 0.5 * scale), (0.9 * scale, 0.7 * scale), 0.8 * scale)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Being asked to stop.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_handlers_are_put_back_afterwards(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


def test_a_signal_that_comes_a_second_time_later_interrupts_at_once(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 0.9
        os.kill(os.getpid(), signal.SIGINT)  # the launcher passes on what the terminal has sent already
        assert stop.is_set()
        clock[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# The log.


def test_every_step_of_a_short_run_is_a_line(tmp_path):
    log = Log(tmp_path / "log.jsonl", Options(images=100, batch_size=10))
    for step in range(1, 4):
        log.on_progress(progress(step, loss=step, skipped=step - 1))
    assert read(tmp_path / "log.jsonl") == [
        {
            "images": 10 * step,
            "step": step,
            "loss": step,
            "gradient_norm": 2 * step,
            "learning_rate": 1e-3,
            "images_per_second": 100.0,
            "skipped": step - 1,
        }
        for step in range(1, 4)
    ]


def test_lines_of_a_long_run_are_averages_over_windows(tmp_path):
    log = Log(tmp_path / "log.jsonl", Options(images=4 * 2000 * 10, batch_size=10))
    for step in range(1, 11):
        log.on_progress(progress(step, loss=step, speed=100 if step % 2 else 50))
    first, second = read(tmp_path / "log.jsonl")
    assert (first["images"], second["images"]) == (40, 80)
    assert (first["loss"], second["loss"]) == (2.5, 6.5)
    assert first["gradient_norm"] == 5.0
    assert first["images_per_second"] == pytest.approx(4 / (2 / 100 + 2 / 50))  # images over time
    assert log.progress == [(40, 2.5), (80, 6.5)]


def test_a_loss_that_is_not_finite_is_told_and_not_hidden(tmp_path):
    log = Log(tmp_path / "log.jsonl", Options(images=100, batch_size=10))
    log.on_progress(progress(1, loss=float("nan"), skipped=1))
    (row,) = read(tmp_path / "log.jsonl")
    assert np.isnan(row["loss"])
    assert row["skipped"] == 1


def test_validations_are_lines_of_their_own(tmp_path):
    log = Log(tmp_path / "log.jsonl", Options())
    log.on_validation(70, validation())
    expected = {"sigmas": [0.1, 1.0], "errors": [0.01, 0.5], "losses": [0.9, 0.7], "loss": 0.8}
    assert read(tmp_path / "log.jsonl") == [{"images": 70, "validation": expected}]


def test_a_log_that_goes_on_keeps_what_lies_before_and_drops_what_will_be_told_again(tmp_path):
    path, options = tmp_path / "log.jsonl", Options(images=100, batch_size=10)
    first = Log(path, options)
    for step in range(1, 6):
        first.on_progress(progress(step, loss=step))
        if step in (2, 4):
            first.on_validation(10 * step, validation(step))
    with open(path, "a") as file:
        file.write('{"images": 60, "step": 6, "lo')  # the process was killed here
    log = Log(path, options)
    log.start(30)
    log.on_progress(progress(4, loss=40))
    assert [(row["images"], row.get("loss")) for row in read(path)] == [(10, 1), (20, 2), (20, None), (30, 3), (40, 40)]
    assert log.progress == [(10, 1), (20, 2), (30, 3), (40, 40)]
    assert log.validations == [(20, validation(2))]


def test_a_log_that_starts_anew_forgets_what_was_there(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 10, "step": 1, "loss": 1.0}\nnonsense\n')
    log = Log(path, Options())
    log.start(0)
    assert path.read_text() == ""
    assert log.progress == []


# Figures.


class Tenths(Preconditioned):
    """A denoiser whose every sample is a tenth of the class it is asked for, in every entry; 0 without classes."""

    def __init__(self, event_shape, num_classes=0):
        super().__init__(torch.nn.Identity(), EDM(), event_shape=event_shape, num_classes=num_classes)

    def denoise(self, x, sigma, condition, **options):
        value = torch.zeros(len(x)) if condition is None else condition / 10
        return value.to(x).view(-1, *[1] * (x.ndim - 1)).expand_as(x).clone()


def test_a_snapshot_is_a_grid_with_a_column_a_class(tmp_path):
    figures = Figures(tmp_path / "figures", Log(tmp_path / "log.jsonl", Options()), Objective(), SAMPLER)
    figures.on_snapshot(1280, Tenths((1, 8, 8), num_classes=3))
    picture = np.array(PIL.Image.open(tmp_path / "figures" / "samples-000000001280.png"))
    values = torch.arange(3).repeat(8)[:, None, None, None] / 10 * torch.ones(1, 1, 8, 8)
    assert np.array_equal(picture, image_grid(values, 3, scale=4)[:, :, 0])


def test_a_snapshot_of_what_is_no_picture_is_an_array(tmp_path):
    figures = Figures(tmp_path, Log(tmp_path / "log.jsonl", Options()), Objective(), SAMPLER)
    figures.on_snapshot(7, Tenths((2,)))
    assert np.array_equal(np.load(tmp_path / "samples-000000000007.npy"), np.zeros((64, 2), np.float32))


def test_curves_are_drawn_anew_with_every_validation(tmp_path):
    log = Log(tmp_path / "log.jsonl", Options(images=100, batch_size=10))
    figures = Figures(tmp_path / "figures", log, Objective(), SAMPLER)
    contents = []
    for step in (1, 2):
        log.on_progress(progress(step, loss=1 / step))
        log.on_validation(10 * step, validation(1 / step))
        figures.on_validation(10 * step, validation(1 / step))
        contents.append([(tmp_path / "figures" / f"{name}.png").read_bytes() for name in ("loss", "loss_per_sigma")])
    assert all(picture.startswith(b"\x89PNG") for pictures in contents for picture in pictures)
    assert all(a != b for a, b in zip(*contents, strict=True))


# The bar and the tracker.


def test_the_bar_shows_images_the_smoothed_loss_and_skipped_steps(capsys):
    bar = Bar(Options(images=25, batch_size=10))
    for step, loss in ((1, 1.0), (2, 2.0), (3, 2.0)):
        bar.on_progress(progress(step, loss=loss, skipped=1))
    bar.close()
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "25.0/25.0" in shown
    assert f"loss={1 + 0.02 * 1 + 0.02 * (2 - 1.02):.4f}" in shown
    assert "skipped=1" in shown


def test_one_loss_that_is_not_finite_does_not_spoil_what_the_bar_shows(capsys):
    bar = Bar(Options(images=30, batch_size=10))
    for step, loss in ((1, float("nan")), (2, 2.0), (3, float("inf"))):
        bar.on_progress(progress(step, loss=loss, skipped=2))
    bar.close()
    assert "loss=2.0000" in capsys.readouterr().err.split("\r")[-1]


def test_the_bar_of_a_resumed_run_starts_where_the_run_does(capsys):
    bar = Bar(Options(images=100, batch_size=10))
    bar.on_progress(progress(9))
    bar.on_progress(progress(10))
    bar.close()
    shown = capsys.readouterr().err
    assert "100/100" in shown
    assert bar._bar.initial == 90


def test_the_tracker_gets_every_tenth_step_and_every_validation(monkeypatch):
    accelerator, logged = make_accelerator(), []
    monkeypatch.setattr(accelerator, "log", lambda values, step: logged.append((step, values)))
    tracker = Tracker(accelerator)
    for step in range(1, 21):
        tracker.on_progress(progress(step, loss=step))
    tracker.on_validation(200, validation())
    (first, values), (second, _), (third, measured) = logged
    assert (first, second, third) == (100, 200, 200)
    assert values == {
        "train/loss": 10,
        "train/gradient_norm": 20,
        "train/learning_rate": 1e-3,
        "train/images_per_second": 100.0,
        "train/skipped": 0,
    }
    assert measured == {"validation/loss": 0.8, "validation/sigma_0.1": 0.9, "validation/sigma_1": 0.7}
