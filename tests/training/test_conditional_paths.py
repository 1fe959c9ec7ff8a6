"""Every network with every kind of condition, from the data to guided samples, likelihoods and files, at tiny size."""

import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from openedm.conditions import ConditionLayout, pack
from openedm.data import InMemory, Pairs
from openedm.guidance import ClassifierFree, Guided
from openedm.levels import Karras
from openedm.likelihood import Dequantisation, Hutchinson, Likelihood, dataset_log_prob
from openedm.networks import ADM, MLP, ConditionalMLP, DDPMpp, DiT, NCSNpp, Transformer
from openedm.objective import EDM
from openedm.plots.runs import RunFigures
from openedm.sampling import Heun, Sampler
from openedm.training import Model, Options, Trainer, load_denoiser
from openedm.training.augmentation import Augmentation
from openedm.training.options import check_compatibility
from openedm.training.records import RunLog
from openedm.training.steps import StepNoise

SIZES = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
IMAGES = {
    "ddpmpp": DDPMpp(**SIZES),
    "ncsnpp": NCSNpp(**SIZES),
    "adm": ADM(model_channels=64, channel_mult=(1, 1), num_blocks=1),
    "dit": DiT(width=16, num_blocks=1, num_heads=2),
}
PLAIN = {"mlp": MLP(8, 1), "conditional_mlp": ConditionalMLP(8, 1), "transformer": Transformer(8, 1, 2)}
EVERY = [(name, shape) for name in IMAGES for shape in ((5,), (2, 8, 8))] + [(name, (5,)) for name in PLAIN]
CASES = [(*case, True) for case in EVERY] + [("ddpmpp", (5,), False), ("dit", (2, 8, 8), False), ("mlp", (5,), False)]
SAMPLER = Sampler(Karras(num_steps=2))
QUICK = Options(images=8, batch_size=4, validate_every=8, snapshot_every=8, checkpoint_every=8, label_dropout=0.3)


def pairs(name, shape, classes):
    generator = torch.Generator().manual_seed(0)
    if name in IMAGES:
        x = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=generator)
    else:
        x = torch.randn(8, 2, generator=generator)
    given = torch.rand(8, *shape, generator=generator) * 2 - 1
    return Pairs(x, given, torch.arange(8) % 3 if classes else None)


@pytest.mark.parametrize(("name", "shape", "classes"), CASES)
def test_a_condition_goes_from_the_data_to_samples_guidance_likelihoods_and_files(tmp_path, name, shape, classes):
    data = pairs(name, shape, classes)
    model = Model.for_data(data, {**IMAGES, **PLAIN}[name], condition_dropout=True)
    log = RunLog(tmp_path / "log.jsonl", QUICK)
    figures = RunFigures(tmp_path / "figures", log, EDM(), SAMPLER, data)
    denoiser = Trainer(model, data, options=QUICK, run=tmp_path, observers=[log, figures]).fit()
    assert len(list((tmp_path / "figures").iterdir())) >= 2
    condition = data.fetch(range(3))[1]
    samples = SAMPLER.sample(denoiser, range(3), condition=condition)
    assert bool(samples.isfinite().all())
    loaded = load_denoiser(tmp_path)
    assert_close(SAMPLER.sample(loaded, range(3), condition=condition), samples, rtol=0, atol=1e-5)
    assert_close(SAMPLER.sample(loaded, [1], condition=condition[1:2])[0], samples[1], rtol=0, atol=1e-4)
    assert loaded.condition_layout == data.condition_layout == ConditionLayout(3 * classes, shape)

    x = samples.float()
    for weight in (2.0, torch.tensor([1.0, 3.0, 0.5])):
        rows = torch.as_tensor(weight).expand(3).reshape(-1, *[1] * (x.ndim - 1))
        conditional, unconditional = loaded(x, 1.0, condition), loaded(x, 1.0)
        expected = unconditional + rows * (conditional - unconditional)
        assert_close(ClassifierFree(loaded, weight)(x, 1.0, condition), expected, rtol=0, atol=1e-4)
    columns = dataset_log_prob(
        loaded,
        data,
        torch.tensor([0, 5]),
        Likelihood(trace=Hutchinson(1), solver=Heun(), num_steps=2),
        Dequantisation() if name in IMAGES else None,
    )
    assert bool(columns["log_prob"].isfinite().all())


@pytest.mark.parametrize("classes", [False, True], ids=["alone", "with_classes"])
def test_a_denoiser_of_part_of_the_condition_guides_one_of_all_of_it(classes):
    data = pairs("mlp", (5,), classes)
    x, condition = data.fetch(range(4))
    described = Model.for_data(data, MLP(8, 1))
    main, layout = described.build(), data.condition_layout
    parts = [ConditionLayout(), ConditionLayout(0, (5,)), *([ConditionLayout(3)] if classes else [])]
    for part in parts:
        shapes = {"event_shape": (2,), "num_classes": part.num_classes, "condition_shape": part.shape}
        model = Model(MLP(4, 1), units=described.units, **shapes)
        guiding = model.build(seed=1)
        found = Guided(main, guiding, 1.5)(x, 1.0, condition)
        one, other = main(x, 1.0, condition), guiding(x, 1.0, layout.select(condition, part))
        assert_close(found, one + 0.5 * (one - other), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"guiding must have main's condition_shape, \(5,\), or None, got \(4,\)"):
        Guided(main, Model(MLP(4, 1), event_shape=(2,), condition_shape=(4,), units=described.units).build(), 2.0)


def test_dropout_hides_classes_and_floats_together_and_half_the_rows_at_one_half():
    data = pairs("mlp", (5,), True)
    model = Model.for_data(data, MLP(8, 1), condition_dropout=True)
    options = Options(batch_size=512, label_dropout=0.5)
    noise = StepNoise.draw(model, EDM(), options, 0, torch.device("cpu"))
    condition = data.fetch([3] * 512)[1]
    classes, values = model.condition_layout.unpack(noise.condition(condition, slice(None), model))
    absent = values.isnan().all(1)
    assert torch.equal(absent, classes == -1)
    assert torch.equal(values[~absent], condition[~absent, 1:])
    assert 200 < int(absent.sum()) < 312


def test_image_conditions_are_augmented_as_their_samples_are():
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    data = Pairs(x, x.repeat(1, 2, 1, 1), torch.arange(16) % 3)
    options = Options(batch_size=16, augmentation=Augmentation(p=1.0))
    model = Model.for_data(data, IMAGES["ddpmpp"], augment_dim=options.augment_dim)
    noise = StepNoise.draw(model, EDM(), options, 0, torch.device("cpu"))
    clean, given = data.fetch(range(16))
    transformed, _ = noise.augment(clean, slice(None), options.augment_dim)
    classes, values = model.condition_layout.unpack(noise.condition(given, slice(None), model))
    assert not torch.equal(transformed, clean)
    assert_close(values, transformed.repeat(1, 2, 1, 1))
    assert torch.equal(classes, torch.arange(16) % 3)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_snapshot_shows_the_condition_the_sample_of_the_data_and_samples(tmp_path, channels):
    """A condition of two channels cannot be shown beside samples of one or three."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 32, 32, generator=generator) * 2 - 1
    data = Pairs(x, x[:, :channels], kind="images")
    denoiser = Model.for_data(data, IMAGES["ddpmpp"]).build().eval()
    figures = RunFigures(tmp_path, RunLog(tmp_path / "log.jsonl", Options()), EDM(), SAMPLER, data)
    figures.on_snapshot(7, denoiser)
    picture = np.array(PIL.Image.open(tmp_path / "samples-000000000007.png"))
    assert picture.shape == (8 * 33 - 1, 8 * 33 - 1, 3)
    tile = torch.from_numpy(picture[:32, :32]).permute(2, 0, 1) / 127.5 - 1
    beside = torch.from_numpy(picture[:32, 33:65]).permute(2, 0, 1) / 127.5 - 1
    if channels != 2:
        assert_close(tile, x[0, :channels].expand(3, 32, 32), rtol=0, atol=0.01)
        assert_close(beside, x[0], rtol=0, atol=0.01)
    else:
        assert float((tile - x[0]).abs().max()) > 0.1


def test_a_snapshot_of_vectors_has_samples_of_the_conditions_of_the_data(tmp_path):
    data = pairs("mlp", (5,), True)
    denoiser = Model.for_data(data, MLP(8, 1)).build()
    figures = RunFigures(tmp_path, RunLog(tmp_path / "log.jsonl", Options()), EDM(), SAMPLER, data)
    figures.on_snapshot(7, denoiser)
    samples = np.load(tmp_path / "samples-000000000007.npy")
    expected = SAMPLER.sample(denoiser, range(8), condition=data.fetch(range(8))[1])
    assert samples.shape == (64, 2)
    assert_close(torch.from_numpy(samples[:8]), expected.float(), rtol=0, atol=1e-5)


def test_a_snapshot_without_data_is_left_out_or_has_no_condition(tmp_path):
    figures = RunFigures(tmp_path, RunLog(tmp_path / "log.jsonl", Options()), EDM(), SAMPLER)
    data = pairs("mlp", (5,), False)
    figures.on_snapshot(1, Model.for_data(data, MLP(8, 1)).build())
    figures.on_snapshot(2, Model.for_data(data, MLP(8, 1), condition_dropout=True).build())
    assert [path.name for path in tmp_path.glob("samples*")] == ["samples-000000000002.npy"]


def test_a_model_of_part_of_the_conditions_of_its_data_is_trained_on_that_part():
    data = pairs("mlp", (5,), True)
    options = Options(images=8, batch_size=4, validate_every=4, snapshot_every=0)
    for layout in (ConditionLayout(), ConditionLayout(3), ConditionLayout(0, (5,))):
        model = Model(MLP(8, 1), event_shape=(2,), num_classes=layout.num_classes, condition_shape=layout.shape)
        Trainer(model, data, options=options).fit()


def test_conditions_that_do_not_fit_the_model_are_refused_before_training():
    data = pairs("mlp", (5,), True)
    model = Model.for_data(data, MLP(8, 1))
    for other, message in (
        (InMemory(torch.randn(8, 2), torch.arange(8) % 3), r"dataset must have conditions of shape \(5,\), got None"),
        (Pairs(torch.randn(8, 2), torch.randn(8, 5)), "dataset must have 3 classes, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_compatibility(model, other, None, EDM(), Options())


def test_a_condition_of_another_shape_or_class_is_refused_by_every_caller():
    denoiser = Model.for_data(pairs("mlp", (5,), True), MLP(8, 1)).build()
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"condition must have shape \(2 or 1, 6\), made by openedm.conditions.pack"):
        denoiser(x, 1.0, torch.zeros(2, 5))
    wrong = pack(torch.tensor([0, 3]), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"one class from -1 \(none\) to 2 in its first channel, got 3 … 3 in"):
        SAMPLER.sample(denoiser, range(2), condition=wrong)
