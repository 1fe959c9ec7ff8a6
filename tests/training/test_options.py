import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import golden_arrays, needs_golden
from openedm.training import Observer, Options


class Rates(Observer):
    def __init__(self):
        self.rates = []

    def on_progress(self, progress):
        self.rates.append((progress.images, progress.learning_rate))


@given(st.floats(1e-8, 10), st.integers(1, 10**8), st.integers(1, 10**9))
def test_the_learning_rate_rises_linearly_and_stays(rate, rampup, images):
    expected = rate if images >= rampup else rate * images / rampup
    assert Options(learning_rate=rate, rampup=rampup).learning_rate_at(images) == pytest.approx(expected, rel=1e-12)


@given(st.floats(1e-8, 10), st.integers(0, 10**8), st.integers(1, 10**9), st.floats(0, 1))
def test_the_cosine_schedule_falls_from_the_ramp_up_to_zero_at_the_end(rate, rampup, rest, share):
    options = Options(learning_rate=rate, rampup=rampup, images=rampup + rest, schedule="cosine")
    seen = max(rampup, 1) + int(share * (rest - 1))
    expected = rate * math.cos(math.pi / 2 * (seen - rampup) / rest) ** 2
    assert options.learning_rate_at(seen) == pytest.approx(expected, rel=1e-6, abs=1e-12 * rate)
    assert options.learning_rate_at(rampup + rest) == options.learning_rate_at(rampup + 2 * rest) == 0
    assert options.learning_rate_at(max(rampup // 2, 1)) <= rate


def test_options_that_need_others_say_so():
    with pytest.raises(ValueError, match="validate_every must be > 0 with keep_best=True, got 0"):
        Options(keep_best=True, validate_every=0)
    with pytest.raises(ValueError, match="validate_every must be > 0 with stop_after=3, got 0"):
        Options(stop_after=3, validate_every=0)
    with pytest.raises(ValueError, match="rampup must be < images, got rampup=100 and images=100"):
        Options(images=100, rampup=100, schedule="cosine")
    with pytest.raises(ValueError, match="compile must be false with sharding='fsdp', got True"):
        Options(sharding="fsdp", compile=True)


def test_a_run_with_a_cosine_schedule_ends_with_a_step_of_length_zero(trainer):
    rates = Rates()
    trainer(learning_rate=0.01, rampup=32, schedule="cosine", observers=[rates]).fit()
    expected = [0.005, *(0.005 * (1 + math.cos(math.pi * i / 6)) for i in range(7))]
    assert [rate for _, rate in rates.rates] == pytest.approx(expected, abs=1e-15)


def test_without_a_ramp_the_learning_rate_is_whole_from_the_first_step():
    assert Options(learning_rate=0.25, rampup=0).learning_rate_at(1) == 0.25


def test_a_run_takes_its_steps_at_these_rates(trainer):
    rates = Rates()
    run = trainer(learning_rate=0.01, rampup=64, observers=[rates])
    before = run.denoiser.network.layer_out.bias.detach().clone()
    moved = []

    class Moves(Observer):
        def on_progress(self, progress):
            moved.append((run.denoiser.network.layer_out.bias.detach() - before).abs().max().item())

    run.observers += (Moves(),)
    run.fit()
    expected = [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01, 0.01]
    assert rates.rates == [(16 * (i + 1), pytest.approx(rate)) for i, rate in enumerate(expected)]
    # Adam's first step is lr g/(|g| + ε), that is lr wherever |g| is much larger than ε = 1e-8.
    assert moved[0] == pytest.approx(0.0025, rel=1e-4)


@needs_golden
def test_the_rate_of_edm2_is_that_of_the_reference():
    reference = {name[3:]: a for name, a in golden_arrays("edm2/edm2.npz").items() if name[:3] == "lr/"}
    for rate, batches, name in ((0.01, 70_000, "lr"), (0.012, 35_000, "lr_xs64")):
        options = Options(learning_rate=rate, rampup=10**7, schedule="inverse_sqrt", decay_after=batches * 2048)
        found = [options.learning_rate_at(int(images)) for images in reference["nimg"]]
        assert found == pytest.approx(reference[name].tolist(), rel=1e-6)


def test_an_inverse_root_starts_at_decay_after_and_halves_at_four_times_as_many_images():
    options = Options(learning_rate=0.01, rampup=0, schedule="inverse_sqrt", decay_after=1000)
    rates = [options.learning_rate_at(images) for images in (1, 1000, 4000, 100_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.001])


def test_the_start_of_the_decay_belongs_to_its_schedule():
    with pytest.raises(ValueError, match="decay_after must be a number of images with schedule='inverse_sqrt', got"):
        Options(schedule="inverse_sqrt")
    with pytest.raises(ValueError, match="decay_after must be None with schedule='constant', got 5"):
        Options(decay_after=5)
    with pytest.raises(ValueError, match="decay_after must be >= 1, got 0"):
        Options(schedule="inverse_sqrt", decay_after=0)


def test_a_ramp_up_far_longer_than_the_run_is_a_warning(trainer):
    with pytest.warns(
        UserWarning, match=r"rampup is 1,000,000 images, .*: the learning rate ends at 1.28e-07 and never"
    ):
        trainer(rampup=1_000_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("images", "batch_size", "accumulate", "checkpoint_every", "patience")),
        *((name, 0) for name in ("validate_samples", "validate_levels")),
        ("stop_after", -1),
        *(("weight_decay", value) for value in (-0.1, math.inf, math.nan)),
        *((name, -1) for name in ("rampup", "seed", "validate_every", "snapshot_every", "keep", "workers")),
        *(("learning_rate", value) for value in (0.0, -1e-3, math.inf, math.nan)),
        *((name, value) for name in ("beta_1", "beta_2") for value in (-0.1, 1.0, math.nan)),
        *(("epsilon", value) for value in (0.0, math.inf)),
        *(("label_dropout", value) for value in (-0.1, 1.1, math.nan)),
        *(("clip_norm", value) for value in (0.0, -1.0, math.nan)),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {value}"):
        Options(**{name: value})
