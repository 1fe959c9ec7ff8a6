import pytest
import torch

from openedm import MLP, Model, Trainer
from openedm.data import as_dataset
from openedm.training import LogLines, Observer, Options, TrainingBar, ValidationLoss, watching
from openedm.training.monitoring import notify

LOSS = ValidationLoss((1.0,), (1.0,), (1.0,), 0.5)


class Figures(Observer):
    def __init__(self, path):
        self.path, self.seen = path, []

    def on_validation(self, images, loss):
        return [self.path]

    def on_figure(self, images, path):
        self.seen.append((images, path))


def trainer(tmp_path, *observers):
    data = as_dataset(torch.linspace(-1, 1, 128).reshape(64, 2))
    model = Model.for_data(data, MLP(width=4, num_blocks=1))
    options = Options(images=16, batch_size=8, validate_every=8, snapshot_every=0, checkpoint_every=16)
    return Trainer(model, data, options=options, run=tmp_path / "run", observers=observers)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(watching, "is_watched", lambda: True)


@pytest.mark.usefixtures("watched")
def test_a_fit_that_is_watched_shows_a_bar_and_announces_losses_figures_and_checkpoints(tmp_path, capsys):
    figures = Figures(tmp_path / "loss.png")
    made = trainer(tmp_path, figures)
    made.fit()
    out, err = capsys.readouterr()
    assert out == ""
    assert "16.0/16.0" in err
    assert "8 images: loss on training data" in err
    assert "16 images: loss on training data" in err
    assert err.count(f"figure {tmp_path / 'loss.png'}") == 1  # drawn twice
    assert f"16 images: checkpoint {tmp_path / 'run' / 'checkpoints' / f'{16:012d}'}" in err
    assert figures.seen == [(8, figures.path), (16, figures.path)]
    assert made.observers == (figures,)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("wanted", [False, None])
def test_a_fit_shows_nothing_if_told_so_or_if_an_observer_is_a_bar(tmp_path, capsys, wanted):
    class Silent(TrainingBar):
        def on_progress(self, progress):
            pass

    observers = () if wanted is False else (Silent(Options()),)
    trainer(tmp_path, *observers).fit(progress=wanted)
    assert capsys.readouterr() == ("", "")


def test_a_fit_shows_nothing_where_nobody_looks_unless_told_to(tmp_path, capsys):
    trainer(tmp_path / "a").fit()
    assert capsys.readouterr() == ("", "")
    trainer(tmp_path / "b").fit(progress=True)
    assert "loss on training data" in capsys.readouterr().err


def test_log_lines_tell_the_lowest_loss_and_go_where_they_are_sent(tmp_path):
    lines = []
    log = LogLines(lines.append)
    for loss in (0.5, 0.25, 0.3, float("nan")):
        log.on_validation(1000, ValidationLoss((1.0,), (1.0,), (1.0,), loss))
    assert lines == [
        "1,000 images: validation loss 0.5000",
        "1,000 images: validation loss 0.2500, the lowest so far",
        "1,000 images: validation loss 0.3000",
        "1,000 images: validation loss nan",
    ]


def test_figures_that_an_observer_returns_are_told_to_all_others(tmp_path):
    first, second = Figures(tmp_path / "a.png"), Figures(tmp_path / "b.png")
    notify([first, Observer(), second], 7, lambda observer: observer.on_validation(7, LOSS))
    assert first.seen == second.seen == [(7, first.path), (7, second.path)]
