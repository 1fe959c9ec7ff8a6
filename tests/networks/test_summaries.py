import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openedm.networks.summaries import ImageSummary, SeriesSummary, SetSummary, VectorSummary

SMALL = {
    "vector": (VectorSummary(width=32), (7,)),
    "image": (ImageSummary(width=8), (2, 8, 11)),
    "series": (SeriesSummary(width=16), (2, 20)),
    "set": (SetSummary(width=32), (9, 3)),
}
each = pytest.mark.parametrize("name", SMALL)


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _awake(network, seed=0):
    """The network with random weights also where it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.abs().max() == 0:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def _built(name, features=16, seed=0):
    summary, shape = SMALL[name]
    return _awake(summary.build(shape, features, seed=seed)), shape


@given(st.permutations(range(9)), st.integers(1, 9), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_set_has_no_order_and_absent_rows_change_nothing(order, present, seed):
    network, _ = _built("set", seed=seed)
    rows = _normal(2, present, 3, seed=seed)
    padded = torch.cat([rows, torch.full((2, 9 - present, 3), torch.nan)], 1)
    torch.testing.assert_close(network(padded[:, list(order)]), network(rows), atol=1e-6, rtol=1e-6)


def test_the_weights_of_a_set_summary_do_not_depend_on_the_largest_count():
    rows = _normal(2, 5, 3)
    padded = torch.cat([rows, torch.full((2, 7, 3), torch.nan)], 1)
    few, many = (SetSummary(width=32).build((count, 3), 8, seed=1) for count in (5, 12))
    torch.testing.assert_close(many(padded), few(rows), atol=1e-6, rtol=1e-6)


def test_the_summary_depends_on_the_count():
    network, _ = _built("set")
    row = _normal(1, 1, 3)
    assert (network(row.expand(1, 2, 3)) - network(row)).abs().max() > 0.01


@given(st.integers(1, 19), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_series_that_ends_in_nan_is_a_shorter_series(length, seed):
    long, short = (_awake(SeriesSummary(width=16).build((2, time), 8, seed=seed), seed).eval() for time in (20, length))
    values = _normal(3, 2, length, seed=seed)
    padded = torch.cat([values, torch.full((3, 2, 20 - length), torch.nan)], 2)
    torch.testing.assert_close(long(padded), short(values), atol=2e-6, rtol=1e-5)


def test_the_summary_of_a_series_depends_on_its_times_and_on_what_was_not_measured():
    network, _ = _built("series")
    values = _normal(1, 2, 20)
    missing = values.clone()
    missing[0, 1, 4] = torch.nan
    assert (network(values.flip(2)) - network(values)).abs().max() > 0.01
    filled = missing.nan_to_num(nan=0.0)
    assert (network(missing) - network(filled)).abs().max() > 1e-3


@each
def test_summaries_have_the_length_asked_for_and_one_sample_does_not_see_another(name):
    network, shape = _built(name, features=5)
    conditions = _normal(6, *shape)
    assert network(conditions).shape == (6, 5)
    torch.testing.assert_close(network(conditions)[2:3], network(conditions[2:3]), atol=1e-5, rtol=1e-5)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


@each
def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(name):
    summary, shape = SMALL[name]
    before = torch.get_rng_state()
    one, again, other = (summary.build(shape, 4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("summary", "shape"),
    [
        (VectorSummary(), (10,)),
        (VectorSummary(num_blocks=8), (4, 5)),
        (ImageSummary(), (1, 8, 8)),
        (ImageSummary(), (3, 33, 64)),
        (SeriesSummary(), (1, 10)),
        (SeriesSummary(), (4, 500)),
        (SetSummary(), (1, 2)),
        (SetSummary(), (200, 2)),
    ],
)
def test_summaries_of_unit_inputs_start_at_about_unit_variance(summary, shape):
    conditions = _normal(64, *shape)
    for seed in range(3):
        with torch.no_grad():
            mean_square = float(summary.build(shape, 64, seed=seed)(conditions).square().mean())
        assert 0.3 < mean_square < 3


@each
def test_every_weight_has_a_part_in_the_summary_and_gradients_are_finite_beside_nan(name):
    network, shape = _built(name)
    conditions = _normal(4, *shape)
    if name == "set":
        conditions[:, 4:] = torch.nan
    if name == "series":
        conditions[:, :, 12:] = torch.nan
        conditions[0, 1, 3] = torch.nan
    conditions.requires_grad_(True)
    network(conditions).square().sum().backward()
    gradients = {key: p.grad for key, p in network.named_parameters()}
    # A softmax does not see a number that is added to all of its scores.
    assert all(g.isfinite().all() and (g.abs().max() > 0 or key == "attention.bias") for key, g in gradients.items())
    assert conditions.grad.isfinite().all()


@pytest.mark.parametrize("name", ["image", "series"])
def test_constant_inputs_have_finite_gradients(name):
    network, shape = _built(name)
    network(torch.zeros(2, *shape)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("side", [8, 9, 15, 28, 40])
def test_images_of_any_size_are_taken(side):
    assert ImageSummary(width=4).build((1, 8, side), 3, seed=0)(_normal(2, 1, 8, side)).shape == (2, 3)


@pytest.mark.parametrize(
    ("summary", "shape", "message"),
    [
        (VectorSummary(), (), r"condition_shape must hold sizes >= 1, got \(\)"),
        (ImageSummary(), (8, 8), r"condition_shape must be \(channels, height, width\), each >= 1, got \(8, 8\)"),
        (ImageSummary(), (1, 7, 8), r"condition_shape must have sides of >= 8 pixels, got \(1, 7, 8\)"),
        (SeriesSummary(), (5,), r"condition_shape must be \(channels, time\), each >= 1, got \(5,\)"),
        (SetSummary(), (0, 2), r"condition_shape must be \(count, features\), each >= 1, got \(0, 2\)"),
    ],
)
def test_shapes_that_a_summary_does_not_take_are_refused_when_it_is_built(summary, shape, message):
    with pytest.raises(ValueError, match=message):
        summary.build(shape, 4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vector", (2, 8), r"condition must have shape \(batch, 7\), got \(2, 8\)"),
        ("image", (2, 2, 8, 8), r"condition must have shape \(batch, 2, 8, 11\), got \(2, 2, 8, 8\)"),
        ("series", (2, 2, 21), r"condition must have shape \(batch, 2, 20\), got \(2, 2, 21\)"),
        ("set", (2, 9, 4), r"condition must have shape \(batch, count, 3\), got \(2, 9, 4\)"),
    ],
)
def test_conditions_of_another_shape_are_refused_by_name(name, shape, message):
    with pytest.raises(ValueError, match=message):
        _built(name)[0](torch.zeros(shape))


def test_empty_sets_and_series_and_half_absent_rows_are_refused():
    sets, series = _normal(3, 9, 3), _normal(3, 2, 20)
    sets[1], series[2] = torch.nan, torch.nan
    with pytest.raises(ValueError, match=r"condition must be a set with an observation .* condition\[1\] is all NaN"):
        _built("set")[0](sets)
    with pytest.raises(ValueError, match=r"condition must be a series with a value .* condition\[2\] is all NaN"):
        _built("series")[0](series)
    sets[1] = 0.0
    sets[0, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"rows whose values are either all NaN \(absent\) or all numbers"):
        _built("set")[0](sets)


@pytest.mark.parametrize("cls", [VectorSummary, ImageSummary, SeriesSummary, SetSummary])
def test_sizes_out_of_range_are_refused_by_name(cls):
    for name in ("width", "num_blocks"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            cls(**{name: 0})
    with pytest.raises(ValueError, match="features must be >= 1, got 0"):
        cls().build((1, 8, 8) if cls is ImageSummary else (2, 3), 0)


def test_the_width_of_a_series_summary_divides_over_its_heads():
    with pytest.raises(ValueError, match="width must be a multiple of 4, got 10"):
        SeriesSummary(width=10)


def test_a_set_summary_learns_a_mean_to_the_accuracy_of_the_mean():
    """Of 30 numbers N(m, 1): the error of the best estimate of m ~ N(0, 1) has variance 1/31."""
    network = SetSummary(width=32).build((30, 1), 1, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        mean = torch.randn(128, 1, 1, generator=generator)
        numbers = mean + torch.randn(128, 30, 1, generator=generator)
        loss = (network(numbers) - mean[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = torch.randn(2000, 1, 1, generator=generator)
    with torch.no_grad():
        error = (network(mean + torch.randn(2000, 30, 1, generator=generator)) - mean[:, 0]).square().mean()
    assert error < 1.4 / 31
