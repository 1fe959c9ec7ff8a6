import numpy as np
import PIL.Image
import pytest
import torch

from openedm.data import Digits, Pairs
from openedm.data.pictures import captioned, image_grid
from openedm.denoiser import Preconditioned
from openedm.guidance import Interval
from openedm.levels import Karras
from openedm.objective import Objective
from openedm.plots.conditional import conditional_samples
from openedm.plots.runs import RunFigures, grid_evaluations
from openedm.preconditioning import EDM
from openedm.sampling import Sampler
from openedm.training import Options, TrainingProgress, ValidationLoss
from openedm.training.records import RunLog

SAMPLER = Sampler(Karras(3))


def progress(step, loss=1.0, batch=10, speed=100.0, skipped=0):
    return TrainingProgress(step * batch, step, loss, 2 * loss, 1e-3, speed, skipped)


def validation(scale=1.0):
    return ValidationLoss((0.1, 1.0), (0.01 * scale, 0.5 * scale), (0.9 * scale, 0.7 * scale), 0.8 * scale)


class Tenths(Preconditioned):
    """A denoiser whose every sample is a tenth of the class it is asked for, in every entry; 0 without classes."""

    def __init__(self, event_shape, num_classes=0):
        super().__init__(torch.nn.Identity(), EDM(), event_shape=event_shape, num_classes=num_classes)

    def denoise(self, x, sigma, condition, **options):
        value = torch.zeros(len(x)) if condition is None else condition / 10
        return value.to(x).view(-1, *[1] * (x.ndim - 1)).expand_as(x).clone()


def test_a_snapshot_is_a_grid_with_a_column_a_class(tmp_path):
    figures = RunFigures(tmp_path / "figures", RunLog(tmp_path / "log.jsonl", Options()), Objective(), SAMPLER)
    figures.on_snapshot(1280, Tenths((1, 8, 8), num_classes=3))
    picture = np.array(PIL.Image.open(tmp_path / "figures" / "samples-000000001280.png"))
    values = torch.arange(3).repeat(8)[:, None, None, None] / 10 * torch.ones(1, 1, 8, 8)
    expected = captioned(image_grid(values, 3, scale=4), ["0", "1", "2"])
    assert np.array_equal(picture, expected[:, :, 0])


def test_a_snapshot_is_guided_where_that_is_asked_for(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", Options())
    figures = RunFigures(tmp_path, log, Objective(), SAMPLER, guidance=Interval(3.0))
    figures.on_snapshot(1, Tenths((1, 8, 8), num_classes=3))
    picture = np.array(PIL.Image.open(tmp_path / "samples-000000000001.png"))
    guided = 3 * torch.arange(3) / 10 + 2 * 0.1  # w D(class) − (w − 1) D(none), whose class is −1
    values = guided.repeat(8)[:, None, None, None] * torch.ones(1, 1, 8, 8)
    expected = captioned(image_grid(values, 3, scale=4), ["0", "1", "2"])
    assert np.array_equal(picture, expected[:, :, 0])
    assert grid_evaluations(Digits().load(), SAMPLER, Interval(3.0)) == 2 * grid_evaluations(Digits().load(), SAMPLER)


def test_a_snapshot_of_what_is_no_picture_is_an_array(tmp_path):
    figures = RunFigures(tmp_path, RunLog(tmp_path / "log.jsonl", Options()), Objective(), SAMPLER)
    figures.on_snapshot(7, Tenths((2,)))
    assert np.array_equal(np.load(tmp_path / "samples-000000000007.npy"), np.zeros((64, 2), np.float32))


@pytest.mark.parametrize(("value", "shown"), [(7.0, 0.0), (0.5, 0.5)])
def test_conditions_of_one_value_are_shown_as_grey_where_they_are_outside_the_range_of_pictures(value, shown):
    data = Pairs(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), value))
    denoiser = Tenths((1, 4, 4))
    denoiser.condition_shape = (1, 4, 4)
    denoiser.denoise = lambda x, sigma, condition, **options: torch.zeros_like(x)
    tiles, columns = conditional_samples(denoiser, data, SAMPLER, count=2, draws=3)
    assert (tiles.shape, columns) == ((6, 1, 4, 4), 3)
    assert torch.equal(tiles[::3], torch.full((2, 1, 4, 4), shown, dtype=tiles.dtype))


def test_curves_are_drawn_anew_with_every_validation(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", Options(images=100, batch_size=10))
    figures = RunFigures(tmp_path / "figures", log, Objective(), SAMPLER)
    contents = []
    for step in (1, 2):
        log.on_progress(progress(step, loss=1 / step))
        log.on_validation(10 * step, validation(1 / step))
        figures.on_validation(10 * step, validation(1 / step))
        contents.append([(tmp_path / "figures" / f"{name}.png").read_bytes() for name in ("loss", "loss_per_sigma")])
    assert all(picture.startswith(b"\x89PNG") for pictures in contents for picture in pictures)
    assert all(a != b for a, b in zip(*contents, strict=True))
