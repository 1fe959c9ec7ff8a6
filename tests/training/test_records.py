"""What is kept of a run: the log, and curves for a tracker."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from openedm.training import Options, TrainingProgress, ValidationLoss, make_accelerator
from openedm.training.records import RunLog, RunTracker, read_log


def progress(step, loss=1.0, batch=10, speed=100.0, skipped=0):
    return TrainingProgress(step * batch, step, loss, 2 * loss, 1e-3, speed, skipped)


def validation(scale=1.0):
    return ValidationLoss((0.1, 1.0), (0.01 * scale, 0.5 * scale), (0.9 * scale, 0.7 * scale), 0.8 * scale)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_of_a_short_run_is_a_line(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", Options(images=100, batch_size=10))
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
    log = RunLog(tmp_path / "log.jsonl", Options(images=4 * 2000 * 10, batch_size=10))
    for step in range(1, 11):
        log.on_progress(progress(step, loss=step, speed=100 if step % 2 else 50))
    first, second = read(tmp_path / "log.jsonl")
    assert (first["images"], second["images"]) == (40, 80)
    assert (first["loss"], second["loss"]) == (2.5, 6.5)
    assert first["gradient_norm"] == 5.0
    assert first["images_per_second"] == pytest.approx(4 / (2 / 100 + 2 / 50))  # images over time
    assert log.progress == [(40, 2.5), (80, 6.5)]


def test_a_loss_that_is_not_finite_is_told_and_not_hidden(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", Options(images=100, batch_size=10))
    log.on_progress(progress(1, loss=float("nan"), skipped=1))
    (row,) = read(tmp_path / "log.jsonl")
    assert np.isnan(row["loss"])
    assert row["skipped"] == 1


@pytest.mark.parametrize(
    "line",
    ["[1]", '{"images": 20}', '{"images": 20, "validation": []}', '{"images": "a", "loss": 1}', "[" * 10**5, "\xff"],
)
def test_damaged_lines_of_a_log_are_left_out_with_a_warning(line, tmp_path):
    path, options = tmp_path / "log.jsonl", Options(images=100, batch_size=10)
    RunLog(path, options).on_progress(progress(1))
    whole = path.read_bytes()
    path.write_bytes(line.encode("latin-1") + b"\n" + whole + b'{"images"')
    log = RunLog(path, options)
    with pytest.warns(UserWarning, match=r"log\.jsonl: 1 damaged lines were left out"):
        log.start(30)
    assert log.progress == [(10, 1.0)]
    assert path.read_bytes() == whole


def test_validations_are_lines_of_their_own(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", Options())
    log.on_validation(70, validation())
    expected = {"sigmas": [0.1, 1.0], "errors": [0.01, 0.5], "losses": [0.9, 0.7], "loss": 0.8}
    expected |= {"tail_sigmas": [], "tail_losses": [], "held_out": True}
    assert read(tmp_path / "log.jsonl") == [{"images": 70, "validation": expected}]


def test_a_log_that_goes_on_keeps_what_lies_before_and_drops_what_will_be_told_again(tmp_path):
    path, options = tmp_path / "log.jsonl", Options(images=100, batch_size=10)
    first = RunLog(path, options)
    for step in range(1, 6):
        first.on_progress(progress(step, loss=step))
        if step in (2, 4):
            first.on_validation(10 * step, validation(step))
    with open(path, "a") as file:
        file.write('{"images": 60, "step": 6, "lo')  # the process was killed here
    log = RunLog(path, options)
    log.start(30)
    log.on_progress(progress(4, loss=40))
    assert [(row["images"], row.get("loss")) for row in read(path)] == [(10, 1), (20, 2), (20, None), (30, 3), (40, 40)]
    assert log.progress == [(10, 1), (20, 2), (30, 3), (40, 40)]
    assert log.validations == [(20, validation(2))]


def test_a_log_that_starts_anew_forgets_what_was_there(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 10, "step": 1, "loss": 1.0}\nnonsense\n')
    log = RunLog(path, Options())
    log.start(0)
    assert path.read_text() == ""
    assert log.progress == []


def test_the_tracker_gets_every_tenth_step_and_every_validation(monkeypatch):
    accelerator, logged = make_accelerator(), []
    monkeypatch.setattr(accelerator, "log", lambda values, step: logged.append((step, values)))
    tracker = RunTracker(accelerator)
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
    tracker.on_validation(300, replace(validation(), held_out=False))
    assert logged[-1][1].keys() == {"training_data/loss", "training_data/sigma_0.1", "training_data/sigma_1"}


def test_the_tracker_gets_options_by_dotted_names_and_the_figures_that_were_drawn(tmp_path, monkeypatch):
    accelerator, sent, started = make_accelerator(), [], []
    taking = SimpleNamespace(name="wandb", log_images=lambda values, step: sent.append((step, values)))
    local = SimpleNamespace(name="tensorboard", log_images=lambda values, step, dataformats: sent.append(dataformats))
    texts: list[dict[str, str]] = []
    named: list[str] = []
    mlflow = SimpleNamespace(name="mlflow", log_artifact=lambda path, folder: sent.append((folder, Path(path).name)))
    log_image = lambda pixels, name, step: sent.append((step, name, pixels.shape))  # noqa: E731
    experiment = SimpleNamespace(log_image=log_image, set_name=named.append)
    comet = SimpleNamespace(name="comet_ml", tracker=experiment, log=lambda values, step: texts.append(values))
    local.log = lambda values, step: texts.append(values)
    monkeypatch.setattr(accelerator, "trackers", [taking, local, mlflow, comet, SimpleNamespace(name="other")])
    monkeypatch.setattr(accelerator, "init_trackers", lambda *project, **options: started.append((*project, options)))
    tracker = RunTracker(accelerator)
    tracker.start(
        "openedm",
        {"network": {"class_path": "a.b.MLP", "init_args": {"width": 3}}, "data": None, "seed": 1},
        tmp_path / "run",
        "line",
    )
    ((project, options),) = started
    assert project == "openedm"
    assert options["config"] == {"network": "MLP", "network.width": 3, "data": "None", "seed": 1}
    assert options["init_kwargs"] == {
        "wandb": {"name": "run", "notes": "line"},
        "mlflow": {"run_name": "run", "description": "line"},
    }
    assert texts == 2 * [{"about": "    line\n"}]
    assert named == ["run"]
    tracker.on_figure(5, tmp_path / "loss.png")  # its curve is there
    tracker.on_figure(5, tmp_path / "samples-000000000005.npy")
    assert sent == []
    PIL.Image.new("L", (6, 4)).save(tmp_path / "samples-000000000005.png")
    tracker.on_figure(5, tmp_path / "samples-000000000005.png")
    ((step, values), form, *others) = sent
    assert others == [("figures", "samples-000000000005.png"), (5, "samples", (4, 6, 3))]
    assert (step, values["samples"].shape, form) == (5, (1, 4, 6, 3), "NHWC")


def test_the_csv_tracker_writes_a_number_a_line_and_appends_after_a_kill(tmp_path):
    for _ in range(2):
        accelerator = make_accelerator(tracker="csv", folder=tmp_path)
        tracker = RunTracker(accelerator)
        tracker.start("openedm", {"seed": 1}, tmp_path, "about")
        tracker.on_validation(200, validation())
        accelerator.end_training()
    header, *rows = (tmp_path / "tracking" / "curves.csv").read_text().splitlines()
    assert header == "images,name,value"
    assert rows == 2 * ["200,validation/loss,0.8", "200,validation/sigma_0.1,0.9", "200,validation/sigma_1,0.7"]


def test_a_log_tells_losses_and_the_time_of_the_steps_up_to_a_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path, Options(images=100, batch_size=10))
    for step, speed in ((1, 10.0), (2, 5.0), (3, 1.0)):
        log.on_progress(progress(step, loss=step, speed=speed))
        log.on_validation(step * 10, validation(step))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"images": 40, "lo')  # of a process that was killed
    losses, validations, seconds = read_log(path, 20)
    assert losses == [(10, 1.0), (20, 2.0)]
    assert validations == [(10, validation(1)), (20, validation(2))]
    assert seconds == 10 / 10 + 10 / 5
    assert read_log(path)[2] == pytest.approx(13.0)
