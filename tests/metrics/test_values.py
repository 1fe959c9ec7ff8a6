"""Data that no network of photos takes are compared by their numbers."""

import dataclasses

import numpy as np
import pytest
import torch

from openedm.data import Arrays, ImageFolder, InMemory
from openedm.generation import ScoringOptions, open_images, score
from openedm.metrics import EfficientNetLite0, ValueFeatures, Values, evaluate
from openedm.metrics.values import NUM_CELLS


def smooth(count, shape, seed):
    """Samples with large cells of one value."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], *[2] * (len(shape) - 1), generator=generator).double()
    size = shape[1:]
    return torch.nn.functional.interpolate(coarse, size).float() if size else coarse


@pytest.mark.parametrize("shape", [(40,), (2, 8, 8), (2, 50, 50), (1, 20, 20, 20), (3, 1000), (3000,), (2, 3, 6, 7, 9)])
def test_large_samples_have_few_features_that_see_shifts_and_fine_noise(shape):
    real = torch.randn(80, *shape, generator=torch.Generator().manual_seed(0))
    if len(shape) in (2, 3, 4):
        real = smooth(80, shape, 0)
    other = smooth(40, shape, 1) if len(shape) in (2, 3, 4) else torch.randn(40, *shape)
    features = ValueFeatures(InMemory(real, kind="vectors"))
    assert features.dim <= 2 * NUM_CELLS
    assert features(other)[0].shape == (40, features.dim)

    def distance(x):
        report = evaluate(x, None, InMemory(real, kind="vectors"), features, num_splits=2, metrics=[])
        return report.frechet_matched / report.floor

    assert distance(other) < 2
    assert distance(other + 3) > 3
    if features.cells is not None and features.dim < other[0].numel():
        noisy = other + 0.5 * torch.randn(other.shape, generator=torch.Generator().manual_seed(2))
        left = (features(noisy)[0] - features(other)[0])[:, -shape[0] :]
        assert left.mean() > 0.15


IMAGE_SHAPES = [(2, 6, 6), (5, 6, 6), (4, 6, 6), (1, 1, 1)]
"""Integers of other shapes require a range, so that only images are tested as integers."""


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *(("float32", shape) for shape in [(4,), (5, 12), *IMAGE_SHAPES, (1, 4, 4, 4)]),
        *(("uint16", shape) for shape in IMAGE_SHAPES),
    ],
)
def test_an_applicable_metric_is_chosen_for_data_without_classes(tmp_path, dtype, shape):
    x = torch.rand(24, *shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).numpy()
    x = (x * 30000 + 32768).astype("uint16") if dtype == "uint16" else x
    source = Arrays(str(tmp_path / "x.npy"), layout="channels_first", range=None if dtype == "uint16" else (-1, 1))
    np.save(source.path, x)
    np.savez(tmp_path / "samples.npz", samples=source.load().fetch(range(12))[0].numpy())
    options = ScoringOptions(num_splits=1, num_bootstrap=0, cache=None)
    report = score(open_images(tmp_path / "samples.npz"), source, options=options)
    photos = len(shape) == 3 and shape[0] == 1
    assert report.extractor["name"] == ("EfficientNetLite0" if photos else "values")
    assert np.isfinite(report.frechet_matched)
    chosen = dataclasses.replace(options, extractor=Values())
    assert np.isfinite(score(open_images(tmp_path / "samples.npz"), source, options=chosen).frechet)


@pytest.mark.parametrize("shape", [(4,), (5, 12), (2, 6, 6), (5, 6, 6), (1, 4, 4, 4)])
def test_networks_of_photos_refuse_other_data_and_name_what_applies(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((12, *shape), dtype=np.float32) - 0.5)
    np.savez(tmp_path / "y.npz", samples=np.load(tmp_path / "x.npy"))
    source = Arrays(str(tmp_path / "x.npy"), layout="channels_first", range=(-1, 1))
    with pytest.raises(ValueError, match=r"1 or 3 channels .* got the shape .*by the extractor Values"):
        score(open_images(tmp_path / "y.npz"), source, options=ScoringOptions(extractor=EfficientNetLite0()))


def test_samples_of_a_model_whose_data_lack_classes_are_scored_by_the_numbers_of_its_labels(tmp_path):
    labels = np.array([0, 2, 4, 7] * 6)
    x = (np.arange(8)[labels][:, None, None, None] * 30 + np.zeros((24, 1, 8, 8))).astype(np.uint8)
    np.savez(tmp_path / "real.npz", x=x, labels=labels)
    np.savez(tmp_path / "drawn.npz", samples=x / 127.5 - 1, labels=labels, seeds=np.arange(24))
    source, options = Arrays(str(tmp_path / "real.npz")), ScoringOptions(num_splits=1, num_bootstrap=0, cache=None)
    assert source.load().num_classes == 4
    report = score(open_images(tmp_path / "drawn.npz"), source, options=options)
    assert report.accuracy > 0.5


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a.png cannot be decoded: the file is empty"):
        ImageFolder(str(tmp_path)).load()
