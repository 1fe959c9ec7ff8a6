"""What the commands sample and evaluate do, called as a library."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from marks import FAR_APART
from openedm.data import Arrays, InMemory, Pairs, Toy
from openedm.data.partners import resize_images
from openedm.data.stored import FULL_RANGES
from openedm.generation import (
    CheckpointSampler,
    SampleFiles,
    SamplingOptions,
    conditions_of_data,
    open_images,
    read_conditions,
)
from openedm.levels import Karras
from openedm.networks import MLP, DDPMpp
from openedm.sampling import Auto, Churn, Euler, PublishedNoise, Sampler
from openedm.training import Model, load_denoiser, save_checkpoint

UNET = DDPMpp(model_channels=4, channel_mult=(1,), num_blocks=1, attn_resolutions=())
SAMPLER = Sampler(Karras(4), solver=Euler())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained MLP for two moons in two classes."""
    model = Model.for_data(Toy(num_samples=64).load(), MLP(width=8, num_blocks=1))
    return untrained(tmp_path_factory.mktemp("generation") / "checkpoint", model)


def untrained(path, model):
    """A checkpoint with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(path, model, model.build().network.state_dict())
    return path


def test_samples_are_those_of_the_sampler_with_the_classes_in_turn(checkpoint):
    source = CheckpointSampler(checkpoint, SamplingOptions(nfe=None, sampler=SAMPLER), classes=[1])
    prepared = source.prepare()
    assert (prepared.sampler, prepared.origin) == (SAMPLER, "")
    drawn = [(list(seeds), x) for seeds, x in source.draw(prepared, range(5), batch_size=3)]
    assert [seeds for seeds, _ in drawn] == [[0, 1, 2], [3, 4]]
    expected = SAMPLER.sample(load_denoiser(checkpoint), range(5), condition=torch.ones(5, dtype=torch.int64))
    torch.testing.assert_close(torch.cat([x for _, x in drawn]), expected, rtol=0, atol=1e-6)


def test_seeds_that_are_repeated_are_refused_where_each_names_a_file(checkpoint, tmp_path):
    source = CheckpointSampler(checkpoint, SamplingOptions(nfe=None, sampler=SAMPLER))
    with pytest.raises(ValueError, match="seeds must be different numbers, got 1 2 times, 2 2 times"):
        SampleFiles(source, tmp_path / "a.npz").write(source.prepare(), [1, 2, 3, 2, 1])


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (Karras(4, 3.0, 80.0), "the lowest noise level, 3, is above sigma_data, 0.5: .* lower sigma_min"),
        (Karras(4, 0.002, 1.0), "the highest noise level, 1, is not far above sigma_data, 0.5: .* raise sigma_max"),
    ],
)
def test_noise_levels_that_do_not_reach_from_noise_to_data_are_a_warning(levels, message, checkpoint):
    source = CheckpointSampler(checkpoint, SamplingOptions(nfe=None, sampler=Sampler(levels)))
    with pytest.warns(UserWarning, match=message):
        source.prepare()


def test_without_options_the_automatic_sampler_takes_32_evaluations(checkpoint):
    prepared = CheckpointSampler(checkpoint).prepare()
    assert prepared.origin == "sampler"
    assert prepared.sampler == Auto(32).choose(load_denoiser(checkpoint))


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.randint(0, 65536, (8, 13, 8, 8)).to(torch.uint16), {}),
        (torch.rand(8, 1, 8, 8) > 0.5, {}),
        (torch.rand(8, 3, 8, 8), {"range": (0, 1)}),
        (torch.randint(0, 4096, (8, 8, 8, 5)), {"range": (0, 4095), "layout": "channels_last"}),
    ],
    ids=["uint16", "bool", "range", "integers, channels last"],
)
def test_npz_files_hold_the_numbers_and_axes_of_the_data(tmp_path, x, options):
    data = InMemory(x, **options)
    path = untrained(tmp_path / "checkpoint", Model.for_data(data, UNET))
    source = CheckpointSampler(path, SamplingOptions(nfe=5))
    prepared = source.prepare()
    SampleFiles(source, tmp_path / "a.npz", "npz").write(prepared, range(6))
    with np.load(tmp_path / "a.npz") as file:
        samples = file["samples"]
    assert samples.shape[1:] == x.shape[1:]
    assert str(samples.dtype) == str(x.dtype).removeprefix("torch.")
    [(_, drawn)] = source.draw(prepared, range(6))
    expected = data.stored.restore(drawn)  # rounding to integers may differ by the last bit of a sample
    np.testing.assert_allclose(samples.astype("f8"), expected.astype("f8"), atol=1e-5 if x.is_floating_point() else 1)
    assert (samples == expected).mean() > (0 if x.is_floating_point() else 0.9)
    images = open_images(tmp_path / "a.npz")
    assert images.event_shape == data.event_shape
    [(batch, _)] = images.batches(range(6))
    if x.is_floating_point():
        torch.testing.assert_close(batch, drawn.float(), rtol=0, atol=1e-6)
    else:
        limits = data.stored.range or FULL_RANGES[data.stored.dtype]
        assert (batch - drawn.clamp(-1, 1)).abs().max() <= 1.1 / (limits[1] - limits[0])


def test_a_png_of_five_channels_is_refused_with_the_formats_to_use(tmp_path):
    data = InMemory(torch.randint(0, 256, (8, 5, 8, 8), dtype=torch.uint8))
    path = untrained(tmp_path / "checkpoint", Model.for_data(data, UNET))
    source = CheckpointSampler(path, SamplingOptions(nfe=5))
    with pytest.raises(ValueError, match=r"format must be 'npz' or 'grid', got 'png': .* 1, 3 or 4 .* have 5"):
        SampleFiles(source, tmp_path / "a")
    SampleFiles(source, tmp_path / "a.png", "grid").write(source.prepare(), range(4))


def test_files_hold_samples_and_are_images_to_score(checkpoint, tmp_path, capsys):
    source = CheckpointSampler(checkpoint, SamplingOptions(nfe=5))
    progress = []
    written = SampleFiles(source, tmp_path / "a.npz", "npz").write(
        source.prepare(), range(4), batch_size=3, progress=lambda *state: progress.append(state)
    )
    assert written == 4
    assert progress == [("samples", 3, 4), ("samples", 4, 4)]
    with np.load(tmp_path / "a.npz") as file:
        assert file["labels"].tolist() == [0, 1, 0, 1]
    images = open_images(tmp_path / "a.npz")
    assert (images.count, images.num_classes, images.drawn) == (4, 2, {})
    (batch,) = images.batches(range(4))
    assert torch.equal(batch[0], Arrays(str(tmp_path / "a.npz"), key="samples").load().fetch(range(4))[0])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.1, "nfe": 32}, "tolerance and nfe are mutually exclusive"),
        ({"sampler": SAMPLER, "nfe": 32}, "nfe and sampler options are mutually exclusive"),
        ({"nfe": None, "sigma_min": 0.1}, "sigma_min and sigma_max require nfe or tolerance"),
        ({"nfe": None, "tolerance": 0.1, "levels": "fitted"}, "levels='fitted' requires nfe"),
        ({"guiding": "other"}, "guidance.weight must be other than 1"),
    ],
)
def test_options_without_effect_are_refused_when_they_are_made(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)


def test_numbers_are_compared_in_full_float32_where_steps_adapt_or_levels_are_fitted():
    assert not SamplingOptions().full_float32
    assert SamplingOptions(levels="fitted").full_float32
    assert SamplingOptions(nfe=None, tolerance=0.1).full_float32


@FAR_APART
def test_published_noise_draws_classes_and_noise_as_the_published_script(checkpoint):
    sampler = Sampler(Karras(4), churn=Churn(2.0))
    source = CheckpointSampler(checkpoint, SamplingOptions(nfe=None, sampler=sampler), noise="published")
    drawn = torch.cat([x for _, x in source.draw(source.prepare(), range(6), batch_size=4)])
    noise = PublishedNoise(range(6), (2,), 2)
    expected = sampler.sample(load_denoiser(checkpoint), noise, condition=noise.classes)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)
    assert source.labels(range(6)).tolist() == noise.classes.tolist()
    assert source.settings(sampler)["noise"] == "published"


def test_published_noise_without_effect_is_refused(checkpoint):
    with pytest.raises(ValueError, match="noise='published' has no effect"):
        CheckpointSampler(checkpoint, classes=[0], noise="published")


def test_a_tolerance_or_a_sampler_alone_replaces_the_default_number_of_evaluations():
    assert SamplingOptions().method == Auto(32)
    assert SamplingOptions(tolerance=0.1).method == SamplingOptions(nfe=None, tolerance=0.1).method == Auto(None, 0.1)
    assert SamplingOptions(sampler=SAMPLER).method == SAMPLER
    assert SamplingOptions(nfe=None).method == Sampler()


def test_arrays_are_conditions_that_seeds_take_in_turn(tmp_path):
    data = Pairs(torch.randn(12, 2), torch.randn(12, 3), torch.arange(12) % 3, class_names=["cat", "dog", "eel"])
    folder = untrained(tmp_path / "checkpoint", Model.for_data(data, MLP(width=8, num_blocks=1)))
    values, options = np.arange(6.0).reshape(2, 3) / 4, SamplingOptions(nfe=None, sampler=SAMPLER)
    source = CheckpointSampler(folder, options, ["eel"], conditions=values)
    assert source.condition([0, 1, 2]).tolist() == [[2, 0, 0.25, 0.5], [2, 0.75, 1, 1.25], [2, 0, 0.25, 0.5]]
    prepared = source.prepare()
    [(_, whole)] = source.draw(prepared, range(5))
    parts = torch.cat([x for _, x in source.draw(prepared, range(5), batch_size=2)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    other = CheckpointSampler(folder, options, ["eel"], conditions=values + 0.5)
    assert source.settings(SAMPLER) != other.settings(SAMPLER)
    with pytest.raises(ValueError, match=r"conditions must have shape \(rows, 3\)"):
        CheckpointSampler(folder, options, conditions=values[:, :2])


def test_labels_beside_conditions_are_those_of_training_where_they_were_renumbered(tmp_path):
    x, labels = torch.randn(12, 2), np.arange(12) % 3 * 2 + 1
    np.savez(tmp_path / "data.npz", x=x, conditions=torch.rand(12, 3), labels=labels)
    data = Arrays(str(tmp_path / "data.npz"), key="x", condition="conditions").load()
    model = Model.for_data(data, MLP(width=8, num_blocks=1))
    assert model.class_names == ("1", "3", "5")
    _, found = read_conditions(str(tmp_path / "data.npz"), model, "conditions").of_seeds(range(12))
    assert found is not None
    assert found.tolist() == [0, 1, 2] * 4
    np.savez(tmp_path / "one.npz", conditions=torch.rand(2, 3), labels=[1, 2])
    with pytest.raises(ValueError, match="classes must be among the labels 1, 3, 5, or ranges of them, got '2'"):
        read_conditions(str(tmp_path / "one.npz"), model)
    np.savez(tmp_path / "named.npz", conditions=torch.rand(2, 3), labels=[2, 0], class_names=["1", "3", "5"])
    _, found = read_conditions(str(tmp_path / "named.npz"), model).of_seeds(range(2))
    assert found is not None
    assert found.tolist() == [2, 0]


def test_of_conditions_of_other_proportions_the_central_parts_are_taken_with_a_word(tmp_path):
    x = torch.rand(4, 1, 4, 4) * 2 - 1
    model = Model.for_data(Pairs(x, x.clone()), UNET)
    wide = np.zeros((2, 1, 4, 8), np.uint8)
    wide[..., 2:6] = 255
    np.save(tmp_path / "wide.npy", wide)
    (tmp_path / "wide").mkdir()
    for i in range(2):
        Image.fromarray(wide[i, 0]).save(tmp_path / "wide" / f"{i}.png")
    for name in ("wide.npy", "wide"):
        with pytest.warns(UserWarning, match="2 of 2 conditions have other proportions than the model's images, 4x4"):
            found = read_conditions(str(tmp_path / name), model)
        assert torch.equal(found.of_seeds([0, 1])[0], torch.ones(2, 1, 4, 4))


IMAGES, FIELDS = torch.linspace(-1, 1, 64).reshape(4, 1, 4, 4), torch.linspace(0, 255, 64).reshape(4, 1, 4, 4)


@pytest.mark.parametrize(
    ("trained", "given", "ranges"),
    [
        (IMAGES, IMAGES / 2 + 0.5, "from 0 to 1, but those of training were from -1 to 1: .* x \\* 2 / 1 - 1"),
        (IMAGES, FIELDS, "from 0 to 255, but those of training were from -1 to 1: .* x \\* 2 / 255 - 1 for pictures"),
        (FIELDS, IMAGES, "from -1 to 1, but those of training were from 0 to 255"),
        (FIELDS, FIELDS + 300, "from 300 to 555, but those of training were from 0 to 255"),
        (IMAGES, -IMAGES.abs(), None),
        (IMAGES, torch.ones(2, 1, 4, 4), None),
        (FIELDS, FIELDS[:1], None),
        (FIELDS.flatten(1), FIELDS.flatten(1) + 400 * (torch.arange(16) == 6), "from 424.* in channel 6, but .* 24.28"),
        (FIELDS.flatten(1), FIELDS.flatten(1)[:1], None),
    ],
)
def test_conditions_that_cannot_be_in_the_units_of_training_are_a_warning_with_both_ranges(
    trained, given, ranges, tmp_path, recwarn
):
    data = Pairs(IMAGES, trained)
    model = Model.for_data(data, UNET, condition_dropout=True)
    folder = untrained(tmp_path / "checkpoint", model)
    CheckpointSampler(folder, conditions=given)
    found = [str(w.message) for w in recwarn.list if "those of training" in str(w.message)]
    assert len(found) == (ranges is not None)
    if ranges is not None:
        assert re.search(ranges, found[0])
    recwarn.clear()
    conditions_of_data(Pairs(torch.zeros(len(given), 1, 4, 4), given), model, 3)
    assert len(recwarn.list) == (ranges is not None)
    recwarn.clear()
    old = replace(model, condition_range=None)  # a checkpoint that did not keep it: known for images alone
    conditions_of_data(Pairs(torch.zeros(len(given), 1, 4, 4), given), old, 3)
    assert len(recwarn.list) == (ranges is not None and trained is IMAGES)


def test_images_are_resized_one_by_one_and_cut_only_where_they_are_in_the_range_of_pictures(tmp_path):
    model = Model.for_data(Pairs(IMAGES, IMAGES), UNET)
    dark, bright, kelvin = torch.full((3, 1, 8, 8), -1.0).unbind()
    bright[:, 2:5], dark[:, :3], kelvin[:] = 1.0, -0.2, 280.0
    kelvin[:, :3] = 290.0
    np.save(tmp_path / "all.npy", torch.stack([dark, bright]).numpy())
    np.save(tmp_path / "dark.npy", dark[None].numpy())
    together, alone = (
        read_conditions(str(tmp_path / name), model).of_seeds([0])[0] for name in ("all.npy", "dark.npy")
    )
    assert torch.equal(together, alone)
    assert float(alone.max()) > -0.2  # beside the edge
    larger = resize_images(torch.stack([bright, kelvin]), (12, 12), "bicubic")
    assert float(larger[0].abs().max()) == 1
    assert 279 < float(larger[1].min()) < 280 < 290 < float(larger[1].max()) < 291


def test_the_published_classes_of_many_seeds_do_not_need_the_noise_of_all_in_memory(tmp_path, monkeypatch):
    model = Model.for_data(Toy(num_samples=64).load(), MLP(width=8, num_blocks=1))
    source = CheckpointSampler(untrained(tmp_path / "c", model), SamplingOptions(nfe=4), noise="published")
    expected, most = PublishedNoise(range(600), (2,), model.num_classes).classes, []
    monkeypatch.setattr(
        "openedm.generation.options.PublishedNoise",
        lambda seeds, *rest: most.append(len(seeds)) or PublishedNoise(seeds, *rest),
    )
    assert torch.equal(source.labels(range(600)), expected)
    assert max(most) <= 256


@pytest.mark.parametrize("name", ["a.jpg", "a.npy", "a.ZIP"])
def test_a_name_of_another_kind_of_file_is_no_folder(name, tmp_path):
    x = torch.rand(4, 1, 4, 4) * 2 - 1
    source = CheckpointSampler(untrained(tmp_path / "c", Model.for_data(InMemory(x), UNET)), SamplingOptions(nfe=4))
    with pytest.raises(ValueError, match=r"out must be a folder, or end in \.npz or \.png, got '.*a\."):
        SampleFiles(source, tmp_path / name)
    with pytest.raises(ValueError, match=r"out must be a folder for format 'png', got '.*a\.npz'"):
        SampleFiles(source, tmp_path / "a.npz", "png")
