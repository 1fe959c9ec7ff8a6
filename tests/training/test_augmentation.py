"""Transforms as specified, given to the network as labels, and left out where samples are drawn or losses measured."""

import math

import pytest
import torch
from scipy import stats

from openedm.cli.parsing import dump, parse
from openedm.cli.train import train
from openedm.data import Digits
from openedm.ground.choices import from_config, to_config
from openedm.networks import DDPMpp
from openedm.training import Augmentation, Model, Observer, Options, Trainer, load_denoiser, read_model

N = 20_000
SINGLE = dict.fromkeys(("xflip", "yflip", "scale", "rotate", "aniso", "translate"), 0.0)
"""Factors of 0: no transform at all."""
SURE = 1e-4
"""A right law fails a test at this level once in 10,000 seeds; the seed is fixed."""


def drawn(count=N, seed=0, **arguments):
    return Augmentation(**arguments).draw(count, torch.Generator().manual_seed(seed))


def only(name, **arguments):
    """One transform, always applied."""
    return drawn(p=1.0, **(SINGLE | {name: 1.0}), **arguments).label.double()


def images(count=4, size=8, dtype=torch.float32):
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


# The laws of the labels.


@pytest.mark.parametrize("name", ["xflip", "yflip"])
def test_a_flip_that_is_applied_happens_in_half_the_cases(name):
    column = only(name)[:, ("xflip", "yflip").index(name)]
    assert stats.chisquare([(column == 0).sum(), (column == 1).sum()]).pvalue > SURE


@pytest.mark.parametrize(("name", "columns"), [("scale", [2]), ("translate", [7, 8])])
def test_scale_and_translation_are_labelled_by_normal_numbers(name, columns):
    label = only(name)
    for column in columns:
        assert stats.kstest(label[:, column], "norm").pvalue > SURE


def test_a_rotation_is_by_a_uniform_angle_and_labelled_by_its_cosine_less_one_and_its_sine():
    label = only("rotate")
    theta = torch.atan2(label[:, 4], label[:, 3] + 1)
    assert stats.kstest(theta, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > SURE
    torch.testing.assert_close((label[:, 3] + 1).square() + label[:, 4].square(), torch.ones(N).double())


@pytest.mark.parametrize("convention", ["axis", "angle"])
def test_a_stretch_is_labelled_by_a_normal_number_times_a_direction_that_is_zero_in_half_the_cases(convention):
    label = only("aniso", aniso_label=convention)
    straight = label[:, 6] == 0
    assert stats.binomtest(int(straight.sum()), N).pvalue > SURE
    assert stats.kstest(label[straight, 5], "norm").pvalue > SURE
    # Elsewhere a times a direction uniform on the circle: a's sign is lost, its size and the direction are independent.
    size, angle = label[~straight, 5:7].norm(dim=1), torch.atan2(label[~straight, 6], label[~straight, 5])
    assert stats.kstest(size, stats.halfnorm.cdf).pvalue > SURE
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > SURE


def test_every_transform_is_applied_independently_with_probability_p_and_the_horizontal_flip_always():
    label = drawn(p=0.12).label
    applied = torch.stack([label[:, 1], label[:, 2], label[:, 4], label[:, 5], label[:, 7]], 1) != 0
    for column, chance in zip(applied.T, [0.06, 0.12, 0.12, 0.12, 0.12], strict=True):
        assert stats.binomtest(int(column.sum()), N, chance).pvalue > SURE
    assert stats.binomtest(int((label[:, 0] != 0).sum()), N).pvalue > SURE
    together = int((applied[:, 1] & applied[:, 2]).sum())
    assert stats.binomtest(together, N, 0.12**2).pvalue > SURE


def test_factors_multiply_the_probability():
    label = drawn(p=0.1, **(SINGLE | {"rotate": 3.0})).label
    assert stats.binomtest(int((label[:, 4] != 0).sum()), N, 0.3).pvalue > SURE
    assert (label[:, [0, 1, 2, 5, 6, 7, 8]] == 0).all()


def test_the_axis_label_tells_apart_what_the_angle_label_confuses():
    one, other = drawn(64, p=1.0, aniso_label="axis"), drawn(64, p=1.0, aniso_label="angle")
    assert torch.equal(one.linear, other.linear)
    stretch = only("aniso", aniso_std=0.5)[:500]
    linear = drawn(p=1.0, **(SINGLE | {"aniso": 1.0}), aniso_std=0.5).linear[:500]
    # log₂ of the forward map is aniso_std × the label as a traceless symmetric matrix: one label, one transform.
    k = 0.5 * math.log(2) * stretch
    logarithm = torch.stack([torch.stack([-k[:, 5], k[:, 6]], -1), torch.stack([k[:, 6], k[:, 5]], -1)], -2)
    torch.testing.assert_close(torch.linalg.matrix_exp(logarithm), linear, rtol=1e-6, atol=1e-6)


# What they do to images.


def test_label_zero_is_the_identity_bit_for_bit():
    x = images(64)
    transforms = drawn(64, p=0.12)
    still = (transforms.label == 0).all(1)
    assert 5 < still.sum() < 60
    assert torch.equal(transforms.apply(x)[still], x[still])
    assert all(not torch.equal(a, b) for a, b in zip(transforms.apply(x)[~still], x[~still], strict=True))
    nothing = drawn(4, p=0.0)
    assert torch.equal(nothing.label, torch.zeros(4, 9))
    assert torch.equal(nothing.apply(x[:4]), x[:4])


def test_flips_move_pixels_bit_for_bit():
    x = images(64)
    transforms = drawn(64, p=1.0, **(SINGLE | {"xflip": 1.0, "yflip": 1.0}))
    for before, after, label in zip(x, transforms.apply(x), transforms.label, strict=True):
        sides = [side for side, flipped in ((-1, label[0]), (-2, label[1])) if flipped]
        assert torch.equal(after, before.flip(sides) if sides else before)


def blob(right, down, size=33):
    """A Gaussian blob at offsets from the centre, round and smooth."""
    line = torch.arange(size).double() - (size - 1) / 2
    return (-((line - right).square()[None] + (line - down).square()[:, None]) / 8).exp()[None, None]


def centre_of(image):
    line = torch.arange(image.shape[-1]).double() - (image.shape[-1] - 1) / 2
    mass = image[0, 0] / image[0, 0].sum()
    return float((mass.sum(0) * line).sum()), float((mass.sum(1) * line).sum())


def of_one(name, **arguments):
    """The first transform of a kind that is neither tiny nor large, with its label."""
    for seed in range(100):
        one = drawn(1, seed, p=1.0, **(SINGLE | {name: 1.0}), **arguments)
        if 0.3 < one.label[0, 1:].norm() < 1.2:
            return one, one.label[0].tolist()
    raise AssertionError


def test_positive_labels_scale_up_rotate_counter_clockwise_and_move_right_and_down():
    one, label = of_one("scale")
    right, down = centre_of(one.apply(blob(6.0, 0.0)))
    assert (right, down) == pytest.approx((6 * 2 ** (0.2 * label[2]), 0), abs=1e-2)
    one, label = of_one("rotate")
    right, down = centre_of(one.apply(blob(6.0, 0.0)))
    assert (right, down) == pytest.approx((6 * (label[3] + 1), -6 * label[4]), abs=1e-2)
    one, label = of_one("translate")
    right, down = centre_of(one.apply(blob(0.0, 0.0)))
    assert (right, down) == pytest.approx((33 * 0.125 * label[7], 33 * 0.125 * label[8]), abs=1e-2)
    one, label = of_one("aniso")
    factor, phi = 2 ** (0.2 * math.hypot(*label[5:7])), math.atan2(label[6], label[5]) / 2
    for right, down, scaled in (
        (math.cos(phi), -math.sin(phi), 6 * factor),
        (math.sin(phi), math.cos(phi), 6 / factor),
    ):
        assert centre_of(one.apply(blob(6 * right, 6 * down))) == pytest.approx(
            (scaled * right, scaled * down), abs=1e-2
        )


def test_images_of_other_shapes_and_types_keep_them():
    transforms = drawn(3, p=1.0)
    x = torch.rand(3, 1, 6, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert transforms.apply(x).shape == x.shape
    assert transforms.apply(x).dtype == torch.bfloat16


def test_transforms_depend_on_the_generator_alone_and_can_be_shared_out():
    x, whole = images(16), drawn(16, p=0.5)
    torch.manual_seed(7)
    parts = [drawn(16, p=0.5)[rows].apply(x[rows]) for rows in (slice(0, 5), slice(5, 16))]
    torch.testing.assert_close(torch.cat(parts), whole.apply(x), rtol=0, atol=1e-6)
    assert not torch.equal(drawn(16, seed=1, p=0.5).label, whole.label)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.2}, r"p must be between 0 and 1, got 1.2"),
        ({"rotate": -1.0}, r"rotate must be >= 0, got -1.0"),
        ({"aniso_std": math.inf}, r"aniso_std must be a finite number, got inf"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)


def test_other_numbers_of_images_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"images must be 3, one for each transform, got 4"):
        drawn(3).apply(images(4))


# In training.


@pytest.fixture
def augmented(everything_on):
    def make(**arguments):
        return everything_on(**({"augmentation": Augmentation(p=0.5), "checkpoint_every": 64} | arguments))

    return make


def test_a_run_stopped_and_resumed_equals_one_that_was_not(augmented, state_of, differences, tmp_path):
    whole = augmented()
    whole.fit()
    augmented(run=tmp_path, images=64).fit()
    resumed = augmented(run=tmp_path)
    resumed.resume()
    assert resumed.state.step == 4
    resumed.fit()
    assert differences(state_of(resumed), state_of(whole)) == []
    assert differences(state_of(whole), state_of(_fitted(augmented(augmentation=Augmentation(p=0.4))))) != []


def _fitted(trainer):
    trainer.fit()
    return trainer


def test_the_network_sees_transformed_images_with_their_labels_in_training_and_neither_in_validation(augmented):
    trainer, seen = augmented(accumulate=1, images=16, validate_every=16), []
    for denoiser in (trainer.denoiser, trainer.average):
        denoiser.network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    trainer.fit()
    first, *others = seen
    label = first["augment"]
    assert label.shape == (16, 9)
    assert 0 < (label[:, 2] != 0).sum() < 16
    assert others
    assert all(kwargs.get("augment") is None for kwargs in others)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_transformed_as_a_whole_one_is(parts, augmented):
    losses = {}
    for accumulate in (1, parts):
        heard = Heard()
        network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, dropout=0.0)
        augmented(accumulate=accumulate, images=32, network=network, observers=[heard]).fit()
        losses[accumulate] = heard.losses
    assert losses[1] == pytest.approx(losses[parts], rel=1e-4)


class Heard(Observer):
    def __init__(self):
        self.losses = []

    def on_progress(self, progress):
        self.losses.append(progress.loss)


def test_a_checkpoint_tells_that_its_network_takes_labels_and_resuming_without_is_refused(augmented, tmp_path):
    augmented(run=tmp_path, images=16).fit()
    assert read_model(tmp_path / "checkpoints" / f"{16:012d}").augment_dim == 9
    denoiser = load_denoiser(tmp_path)
    x = images(2)[:, :1]
    labelled = denoiser(x, 1.0, augment=torch.zeros(2, 9))
    assert torch.equal(denoiser(x, 1.0), labelled)
    assert not torch.equal(denoiser(x, 1.0, augment=torch.ones(2, 9)), labelled)
    with pytest.raises(ValueError, match=r"options.augmentation.p was 0.5, is 0.25"):
        augmented(run=tmp_path, augmentation=Augmentation(p=0.25)).resume()


def test_a_network_with_labels_may_be_trained_without_augmentation(augmented):
    dataset = Digits("test").load()
    network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1)
    options = Options(images=32, batch_size=16, rampup=0)
    Trainer(Model.for_data(dataset, network, augment_dim=9), dataset, options=options).fit()


def test_augmentation_of_vectors_or_of_a_network_without_labels_is_an_error_before_any_step(trainer, vectors):
    with pytest.raises(ValueError, match=r"augmentation must be None for samples of shape \(2,\)"):
        trainer(augmentation=Augmentation())
    digits = Digits("test").load()
    model = Model.for_data(digits, DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1))
    with pytest.raises(ValueError, match=r"model must have augment_dim=9 with augmentation, got 0: Model.for_data"):
        Trainer(model, digits, options=Options(augmentation=Augmentation()))


def test_options_with_augmentation_survive_files():
    options = Options(augmentation=Augmentation(p=0.15, yflip=0.0, aniso_label="angle"))
    assert from_config(Options, to_config(options)) == options
    assert from_config(Options, to_config(Options())) == Options()


def test_the_command_line_reads_augmentation_and_the_file_that_it_writes(tmp_path):
    typed = ["run", "--options.augmentation.p=0.2", "--options.augmentation.yflip=0"]
    values = parse("openedm train", train, typed)
    assert values["options"].augmentation == Augmentation(p=0.2, yflip=0.0)
    (tmp_path / "config.yaml").write_text(dump(values))
    assert parse("openedm train", train, [f"--config={tmp_path / 'config.yaml'}"]) == values
    given = ["run", f"--config={tmp_path / 'config.yaml'}", "--options.augmentation.p=0.3"]
    assert parse("openedm train", train, given)["options"].augmentation == Augmentation(p=0.3, yflip=0.0)
