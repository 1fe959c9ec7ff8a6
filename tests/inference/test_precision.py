"""Units and offsets of θ and x do not matter to `fit`: numbers that float32 cannot hold are kept in float64."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from fitted import TINY
from openedm.inference import Box, Joint, Normal, Simulations, Store, fit, fit_joint, load, simulate
from openedm.inference.arrays import as_tensor
from openedm.inference.composite import Truncated
from openedm.inference.maps import Coordinates
from openedm.inference.precision import as_precise_as_needed, coarse_columns, varies
from openedm.inference.prepare import constant_columns
from openedm.networks import JointTransformer
from openedm.training import Options

N = 300
GENERATOR = torch.Generator().manual_seed(0)
THETA = torch.rand(N, 2, generator=GENERATOR, dtype=torch.float64) * 2 - 1
X = THETA + 0.1 * torch.randn(N, 2, generator=GENERATOR, dtype=torch.float64)
PLAIN = replace(TINY, emulator=None, refinement=None)


@cache
def in_plain_units() -> tuple[Tensor, torch.dtype]:
    """Samples of parameters and data as they are."""
    return drawn((0, 1), (0, 1))


def drawn(theta: tuple[float, float], x: tuple[float, float], path: str | None = None) -> tuple[Tensor, torch.dtype]:
    """Samples at the first observation in the units of THETA, from parameters and data in others, and x's format."""
    (offset, unit), shifted = theta, x[0] + x[1] * X
    prior = Box([offset - unit] * 2, [offset + unit] * 2)
    posterior = fit(offset + unit * THETA, shifted, prior, settings=PLAIN)
    if path is not None:
        posterior.save(path)
        posterior = load(path)
    return (posterior.sample(shifted[0], 100, seed=[5]).double() - offset) / unit, posterior.x_dtype


@pytest.mark.filterwarnings("ignore:more simulations are needed")
@pytest.mark.parametrize(
    ("theta", "x"),
    [((0, 1e-9), (0, 1e6)), ((2459000, 0.01), (1e6, 0.01)), ((0, 1e44), (0, 1e-42))],
)
def test_units_and_offsets_change_no_sample(theta: tuple[float, float], x: tuple[float, float], tmp_path) -> None:
    expected, dtype = in_plain_units()
    found, precise = drawn(theta, x, str(tmp_path / "posterior"))
    assert dtype == torch.float32
    assert precise == (torch.float32 if x == (0, 1e6) else torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@cache
def joint_of(offset: float, unit: float) -> Joint:
    """All conditionals, after a few steps, of parameters and data that are offset + unit times the plain ones."""
    sizes = Options(images=512, batch_size=64, validate_every=0, snapshot_every=0, rampup=0)
    network = JointTransformer(width=16, num_blocks=1, num_heads=2)
    prior = Box([offset - unit] * 2, [offset + unit] * 2)
    return fit_joint(offset + unit * THETA, offset + unit * X, prior, network=network, options=sizes)


@pytest.mark.parametrize(("offset", "unit"), [(2459000.0, 0.01), (0.0, 1e44)])
def test_units_and_offsets_change_no_sample_of_a_joint_distribution(offset: float, unit: float, tmp_path) -> None:
    joint_of(offset, unit).save(tmp_path / "joint")
    for joint in (joint_of(offset, unit), load(tmp_path / "joint")):
        assert isinstance(joint, Joint)
        for found, expected, known in (
            (joint.posterior(), joint_of(0.0, 1.0).posterior(), X[0]),
            (joint.likelihood(), joint_of(0.0, 1.0).likelihood(), THETA[0]),
        ):
            samples = found.sample(offset + unit * known, 50, seed=[5])
            assert samples.dtype == found.x_dtype == torch.float64
            wanted = expected.sample(known, 50, seed=[5])
            assert wanted.dtype == torch.float32
            torch.testing.assert_close((samples - offset) / unit, wanted.double(), rtol=0, atol=1e-5)


def test_coarse_float32_is_warned_of_by_a_joint_fit_too() -> None:
    with pytest.warns(UserWarning, match="columns of x that are too coarse in float32.*: 0"):
        fit_joint(THETA, (1e6 + X).float(), options=Options(images=1, batch_size=1, validate_every=0))


def test_float32_is_kept_unless_it_loses_what_a_column_tells() -> None:
    offset = torch.cat([X, 1e6 + X], 1)
    assert as_precise_as_needed(X).dtype == as_precise_as_needed(1e-9 * X).dtype == torch.float32
    assert as_precise_as_needed(offset).dtype == as_precise_as_needed(1e200 * X).dtype == torch.float64
    assert as_precise_as_needed(offset.float()).dtype == torch.float32
    rounding = 1 + 2e-16 * torch.randint(0, 2, (N, 1), generator=GENERATOR)  # sums of shares, say
    assert as_precise_as_needed(torch.cat([X, rounding.double()], 1)).dtype == torch.float32
    assert as_precise_as_needed(torch.full((N, 1), 1e6 + 0.01, dtype=torch.float64)).dtype == torch.float32


def test_a_column_is_constant_up_to_rounding() -> None:
    shares = X.abs() / X.abs().sum(1, keepdim=True)
    sums = torch.cat([shares.sum(1, keepdim=True), X[:, :1]], 1)
    assert constant_columns(sums) == constant_columns(sums.float()) == [0]
    gap = torch.tensor([[1.0], [torch.nan]])
    assert varies(gap).tolist() == [True]


def test_coarse_float32_is_warned_of_and_whole_numbers_are_not_coarse() -> None:
    coarse = torch.cat([X, 1e6 + X, 1e8 + (9 * X).round()], 1).float()
    assert coarse_columns(coarse) == [2, 3]  # integers are what they are
    with pytest.warns(UserWarning, match="columns of x that are too coarse in float32.*: 2; subtract a constant"):
        fit(THETA, torch.cat([X, 1e6 + X[:, :1] + X[:, 1:]], 1).float(), settings=PLAIN)


@pytest.mark.parametrize(("offset", "unit"), [(2.46e6, 0.01), (0.0, 1e44), (0.0, 1e-60)])
def test_simulations_and_stores_keep_what_float32_would_lose(offset: float, unit: float, tmp_path) -> None:
    prior = Box([offset - unit] * 2, [offset + unit] * 2)

    def simulator(theta: Tensor, seed: int) -> Tensor:
        assert theta.dtype == torch.float64
        return theta + 0.1 * unit * torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    found = simulate(simulator, prior, 120, seed=3)
    plain = simulate(lambda theta: theta.double() / 3, Box([-1.0] * 2, [1.0] * 2), 120, seed=3)
    assert found.theta.dtype == found.x.dtype == torch.float64
    assert plain.theta.dtype == plain.x.dtype == torch.float32  # nothing is lost
    torch.testing.assert_close((found.theta - offset) / unit, plain.theta.double(), rtol=0, atol=2e-6)
    assert bool(((found.x - found.theta) / unit < 0.1 + 1e-6).all())
    for number in (5, 120):  # of which the first show no spread
        stored = simulate(simulator, prior, number, seed=3, store=tmp_path / "store")
    assert torch.equal(stored.x, found.x)
    assert torch.equal(Store(tmp_path / "store").load().theta, found.theta)
    assert Simulations.of(found.theta, found.x, prior).x.dtype == torch.float64
    assert fit(found, settings=PLAIN).sample(found.x[0], 5).dtype == torch.float64


def test_stores_keep_float32_where_it_is_exact(tmp_path) -> None:
    simulate(lambda theta: theta.double().float().double(), Box([0.0], [1.0]), 20, store=tmp_path / "store")
    (part,) = (tmp_path / "store").glob("part-*.parquet")
    table = parquet.read_table(part)
    assert [str(table[name].type.value_type) for name in ("theta", "x")] == ["float", "float"]


def test_large_integers_keep_all_digits() -> None:
    x = (1e9 + 1e3 * X).round().long()
    assert fit(THETA, x, settings=PLAIN).x_dtype == torch.float64


def test_a_region_of_the_prior_does_not_depend_on_units() -> None:
    samples = 0.1 * X[:100]
    one, small = (Truncated.around(Normal([0.0] * 2, [s] * 2), s * samples, 0.2).mass for s in (1.0, 1e-9))
    assert one == pytest.approx(small, rel=1e-6)


def test_coordinates_of_other_variables_stay_float32() -> None:
    known = Coordinates.fitted(X, Normal([0.0] * 2, [1.0] * 2).bijection, [False, False])
    assert known.inverse(known.forward(X)).dtype == torch.float32


@pytest.mark.parametrize("whole", [2**24 + 1, -(2**24) - 1])
def test_integers_that_float32_would_round_are_kept(whole: int) -> None:
    assert int(as_tensor("x", torch.tensor([whole, 0]))[0]) == whole
    assert as_tensor("x", torch.tensor([5, -5])).dtype == torch.float32
    assert as_tensor("x", torch.tensor([], dtype=torch.int64)).dtype == torch.float32
    assert as_tensor("x", torch.tensor([True, False])).tolist() == [1.0, 0.0]
