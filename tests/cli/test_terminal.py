import os
import signal

import pytest

from openedm.cli import terminal
from openedm.cli.terminal import Bars, StopSignal, rows
from openedm.training import Options, TrainingBar, TrainingProgress


def progress(step, loss=1.0, batch=10, speed=100.0, skipped=0):
    return TrainingProgress(step * batch, step, loss, 2 * loss, 1e-3, speed, skipped)


# Being asked to stop.


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_stop_and_handlers_are_put_back_afterwards(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


def test_a_command_that_goes_on_when_its_terminal_is_closed_as_under_nohup_still_does(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_a_second_time_later_interrupts_at_once(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 0.9
        os.kill(os.getpid(), signal.SIGINT)  # the launcher passes on what the terminal has sent already
        assert stop.is_set()
        clock[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# Bars and tables.


def test_the_bar_shows_images_the_smoothed_loss_and_skipped_steps(capsys):
    bar = TrainingBar(Options(images=25, batch_size=10))
    for step, loss in ((1, 1.0), (2, 2.0), (3, 2.0)):
        bar.on_progress(progress(step, loss=loss, skipped=1))
    bar.close()
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "25.0/25.0" in shown
    assert f"loss={1 + 0.02 * 1 + 0.02 * (2 - 1.02):.4f}" in shown
    assert "skipped=1" in shown


def test_a_run_shorter_than_a_batch_never_shows_a_negative_rate(capsys):
    bar = TrainingBar(Options(images=64, batch_size=128))
    bar.on_progress(progress(1, batch=128))
    bar.close()
    assert "64.0/64.0" in (shown := capsys.readouterr().err)
    assert ", -" not in shown


def test_one_loss_that_is_not_finite_does_not_spoil_what_the_bar_shows(capsys):
    bar = TrainingBar(Options(images=30, batch_size=10))
    for step, loss in ((1, float("nan")), (2, 2.0), (3, float("inf"))):
        bar.on_progress(progress(step, loss=loss, skipped=2))
    bar.close()
    assert "loss=2.0000" in capsys.readouterr().err.split("\r")[-1]


def test_the_bar_of_a_resumed_run_starts_where_the_run_does(capsys):
    bar = TrainingBar(Options(images=100, batch_size=10))
    bar.on_progress(progress(9))
    bar.on_progress(progress(10))
    assert bar._bar.initial == 90
    bar.close()
    shown = capsys.readouterr().err
    assert "100/100" in shown


def test_bars_follow_one_another_and_show_counts_that_are_not_zero(capsys):
    with Bars() as bars:
        bars("images", 3, 4, dropped=0)
        bars("images", 4, 4, dropped=2)
        bars("samples", 1, 2)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "dropped=2" in shown
    assert "dropped=0" not in shown
    assert "1/2" in shown.split("\r")[-1]


def test_one_of_one_is_a_count_and_a_share_is_none(capsys):
    with Bars() as bars:
        bars("samples", 1, 1)
        bars("fit", 0.5)
    counted, _, share = capsys.readouterr().err.partition("fit")
    assert "1/1" in counted
    assert "/1" not in share


def test_another_total_under_the_same_name_starts_a_new_bar(capsys):
    with Bars() as bars:
        bars("simulations", 500, 500)
        bars("simulations", 0.25)
        bars("simulations", 700, 1000)
    shown = capsys.readouterr().err
    assert "500/500" in shown
    assert "/500" not in shown.split("500/500")[-1]
    assert "0.25" not in shown
    assert "| 00:00<?" in shown
    assert "700/1000" in shown


def test_bars_that_are_not_shown_write_nothing(capsys):
    with Bars(shown=False) as bars:
        bars("samples", 1, 2)
    assert capsys.readouterr().err == ""


def test_rows_line_up():
    assert rows({"a": "1", "long": "2"}) == "a     1\nlong  2"
