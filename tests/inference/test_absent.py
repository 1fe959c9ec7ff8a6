"""Sets of varying size and series with gaps: NaN marks what is absent."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fitted import TINY
from openedm.inference import (
    Box,
    DenoiserPosterior,
    Normal,
    Settings,
    calibrate,
    fit,
    local_c2st,
    modes,
    predictive_check,
)
from openedm.inference.absent import Absence, kind_in
from openedm.inference.prepare import prepare
from openedm.networks import ConditionalMLP, ImageSummary, SeriesSummary, SetSummary, VectorSummary

PLAIN = replace(TINY, emulator=None, refinement=None, members=1)
SETS = replace(PLAIN, network=ConditionalMLP(width=8, num_blocks=1, summary=SetSummary(width=8)))
SERIES = replace(PLAIN, network=ConditionalMLP(width=8, num_blocks=1, summary=SeriesSummary(width=8, num_blocks=1)))
NAN = math.nan


def trials(n: int, most: int = 6, features: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """θ ~ N(0, I) and 1 to `most` trials of N(θ, I)."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, features, generator=generator)
    x = theta[:, None] + torch.randn(n, most, features, generator=generator)
    for i in range(n):
        x[i, 1 + i % most :] = NAN
    return theta, x


@pytest.fixture(scope="module")
def sets() -> DenoiserPosterior:
    return fit(*trials(150), Normal([0.0, 0.0], [1.0, 1.0]), settings=SETS)


def test_posteriors_of_sets_have_the_mean_and_width_of_their_number_of_trials(without_type_checker) -> None:
    theta, x = trials(2000, 6, 1)
    network = ConditionalMLP(width=32, num_blocks=2, summary=SetSummary(width=32))
    rule = Settings.of(2000, 1, (6, 1), "members")
    base = replace(rule.base, steps=500, pilot_steps=200)
    settings = replace(rule, network=network, images=200_000, batch_size=256, learning_rate=3e-3, base=base, judged=8)
    posterior = fit(theta, x, Normal([0.0], [1.0]), settings=settings)
    for n in range(1, 7):
        seen = torch.linspace(-0.5, 1.0, n)[:, None]
        samples = posterior.sample(seen, 4000)
        mean, width = float(seen.sum()) / (n + 1), (n + 1) ** -0.5  # exact
        assert float(samples.mean()) == pytest.approx(mean, abs=0.2 * width)
        assert float(samples.std()) == pytest.approx(width, rel=0.2)


def test_sets_with_absent_members_are_fitted_by_default(monkeypatch) -> None:
    chosen = Settings.of(400, 2, (6, 2), "members")
    assert isinstance(chosen.network.summary, SetSummary)
    assert isinstance(Settings.of(400, 2, (6, 2), "values").network.summary, SeriesSummary)
    monkeypatch.setattr(Settings, "of", lambda n, dim, shape, absent, *_: SETS if absent == "members" else PLAIN)
    theta, x = trials(150)
    posterior = fit(theta, x)
    assert posterior.report["data"] == "sets of 1 to 6 members of 2 values"


def test_the_pattern_of_nan_tells_sets_from_series() -> None:
    _, x = trials(20)
    assert kind_in(x) == "members"
    assert kind_in(x.mT) == "values"
    assert kind_in(x.nan_to_num()) is None
    assert kind_in(x.flatten(1)) is None
    failed = torch.full_like(x, NAN)
    failed[3:] = 0.0
    assert kind_in(failed) is None


def test_a_smaller_observation_is_the_same_as_one_with_absent_members(sets, monkeypatch) -> None:
    seen = torch.tensor([[0.5, -0.5], [0.1, 0.2]])
    padded = torch.cat([seen, torch.full((4, 2), NAN)])
    longer = torch.cat([padded, torch.full((3, 2), NAN)])
    expected = sets.sample(padded, 50)
    assert torch.equal(sets.sample(seen, 50), expected)
    assert torch.equal(sets.sample(longer.numpy(), 50), expected)
    assert torch.equal(sets.sample(seen[None], 50)[0], expected)
    assert torch.equal(sets.sample((50,), x=seen), expected)
    torch.testing.assert_close(sets.log_prob(expected[:5], seen), sets.log_prob(expected[:5], padded))
    monkeypatch.setattr(modes, "minimize", lambda *given, **how: minimize(*given, **how | {"options": {"maxiter": 1}}))
    assert sets.map(seen, num_draws=8).shape == (2,)
    assert torch.equal(sets.set_default_x(seen).sample(n=50), expected)


def test_members_may_come_in_any_order(sets) -> None:
    seen = torch.tensor([[0.5, -0.5], [NAN, NAN], [0.1, 0.2], [NAN, NAN], [NAN, NAN], [1.0, 0.0]])
    seeds = [3]
    one, other = (sets.sample(x[None], 20, seed=seeds) for x in (seen, seen.flip(0)))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_more_trials_than_were_simulated_are_refused_by_their_largest_number(sets) -> None:
    with pytest.raises(ValueError, match="at most 6 members, as the largest simulation, got 7"):
        sets.sample(torch.zeros(7, 2), 10)
    theta, x = trials(150, 4)
    padded = torch.cat([x, torch.full((150, 3, 2), NAN)], 1)
    posterior = fit(theta, padded, settings=SETS)
    with pytest.raises(ValueError, match="at most 4 members, as the largest simulation, got 5"):
        posterior.sample(torch.zeros(5, 2), 10)


def test_fewer_trials_than_were_simulated_give_a_warning() -> None:
    theta, x = trials(150)
    x[:, :3] = theta[:, None] + torch.randn(150, 3, 2, generator=torch.Generator().manual_seed(2))
    posterior = fit(theta, x, settings=SETS)
    with pytest.warns(UserWarning, match="x has 2 members, the smallest simulation 3"):
        posterior.sample(torch.zeros(2, 2), 10)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((6, 2), NAN), "at least one member"),
        (torch.tensor([[0.0, NAN], [1.0, 1.0]]), "no member that is partly NaN"),
        (torch.tensor([[0.0, math.inf]]), "without infinities"),
        (torch.zeros(6, 3), "x must be one observation"),
        (torch.zeros(2), "x must be one observation"),
    ],
)
def test_other_observations_are_refused(sets, x, message) -> None:
    with pytest.raises(ValueError, match=message):
        sets.sample(x, 10)


def test_sets_of_one_size_have_no_smaller_observations() -> None:
    theta, x = trials(150)
    posterior = fit(theta, x.nan_to_num(), settings=SETS)
    with pytest.raises(ValueError, match="x must be one observation"):
        posterior.sample(torch.zeros(3, 2), 10)
    with pytest.raises(ValueError, match="x must be finite"):
        posterior.sample(torch.full((6, 2), NAN), 10)


def test_a_saved_posterior_takes_sets_of_every_size(sets, tmp_path) -> None:
    sets.save(tmp_path / "sets")
    seen = torch.ones(3, 2)
    assert torch.equal(DenoiserPosterior.load(tmp_path / "sets").sample(seen, 20), sets.sample(seen, 20))


def test_sets_of_varying_size_are_calibrated(sets) -> None:
    theta, x = trials(40, seed=1)
    found = calibrate(sets, theta, x, num_samples=20, num_density_samples=3)
    assert found.ranks.shape == (40, 2)
    with pytest.raises(ValueError, match="supports no data with absent members"):
        local_c2st(sets, theta, x, torch.ones(3, 2))


def test_a_predictive_check_compares_the_members_that_are_present(sets) -> None:
    def simulator(theta: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = theta[:, None] + torch.randn(len(theta), 6, 2, generator=generator)
        x[:, 4:] = NAN
        return x

    found = predictive_check(sets, simulator, torch.zeros(3, 2), num_draws=30)
    assert found.draws.shape == (30, 6)
    assert np.isfinite(found.p_values).all()


def test_each_feature_of_a_set_and_channel_of_a_series_is_standardised_alone() -> None:
    theta, x = trials(150)
    large = x * torch.tensor([1e6, 1e-6]) + torch.tensor([0.0, 5e-6])
    for settings, values in ((SETS, large), (SERIES, large.mT)):
        y = fit(theta, values, settings=settings).parts.data.forward(values)
        y = y if settings is SETS else y.mT
        present = y[~y.isnan().any(2)]
        torch.testing.assert_close(present.std(0), torch.ones(2), atol=0.1, rtol=0.0)
        torch.testing.assert_close(present.mean(0), torch.zeros(2), atol=0.1, rtol=0.0)


def test_series_with_gaps_are_fitted_and_shorter_ones_filled_up() -> None:
    theta = torch.randn(150, 1, generator=torch.Generator().manual_seed(0))
    x = theta[:, None] + torch.randn(150, 1, 12, generator=torch.Generator().manual_seed(1))
    x[::3, :, 9:] = NAN
    x[1::3, :, 4] = NAN
    posterior = fit(theta, x, settings=SERIES)
    assert posterior.report["data"] == "arrays [1, 12] with 9 to 12 of 12 values measured"
    seen = torch.zeros(1, 10)
    expected = posterior.sample(torch.cat([seen, torch.full((1, 2), NAN)], 1), 20)
    assert torch.equal(posterior.sample(seen, 20), expected)
    with pytest.warns(UserWarning, match="x has 5 values, the smallest simulation 9"):
        posterior.sample(seen[:, :5], 10)


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (lambda x: x.flatten(1), None, r"in series with gaps, x \(n, channels, time\): these vectors as x\[:, None\]"),
        (lambda x: x, replace(PLAIN, network=ConditionalMLP(summary=VectorSummary())), r"summary=SetSummary\(\)\)"),
        (lambda x: x.mT, replace(PLAIN, network=ConditionalMLP(summary=VectorSummary())), r"summary=SeriesSummary\(\)"),
        (lambda x: x[:, None], replace(PLAIN, network=ConditionalMLP(summary=ImageSummary())), "series .* alone"),
    ],
)
def test_nan_that_nothing_takes_is_refused_with_what_is_supported(x, settings, message) -> None:
    theta, given = trials(150)
    with pytest.raises(ValueError, match=message):
        fit(theta, x(given), settings=settings)


def test_failed_simulations_among_sets_are_named_or_dropped() -> None:
    theta, x = trials(150)
    x[3], x[5, 0, 0], x[7, 0] = NAN, math.inf, torch.tensor([1.0, NAN])
    with pytest.raises(ValueError, match=r"3 of 150 simulations are not: 3, 5, 7; NaN may only mark absent members"):
        fit(theta, x, settings=SETS)
    with pytest.warns(UserWarning, match="3 of 150 simulations are left out"):
        assert fit(theta, x, settings=SETS, on_nonfinite="drop").report["simulations"] == 147


def test_rows_of_different_quantities_give_a_warning() -> None:
    theta, x = trials(150)
    x[:, 1] += 10.0
    with pytest.warns(UserWarning, match="row 1 has another distribution than row 0"):
        fit(theta, x, settings=SETS)
    theta, x = trials(150)
    with pytest.warns(UserWarning, match=r"takes it as series .*summary=SetSummary"):
        fit(theta, x, settings=SERIES)


def test_an_absence_counts_and_describes(without_type_checker) -> None:
    _, x = trials(12)
    found = Absence.of("members", x)
    assert (found.fewest, found.most) == (1, 6)
    assert found.counts(x).tolist() == [1, 2, 3, 4, 5, 6] * 2
    with pytest.raises(ValueError, match="kind must be"):
        Absence("rows", 1, 2)
    with pytest.raises(ValueError, match="most must be >= 2"):
        Absence("values", 2, 1)


def test_bounds_hold_for_sets(sets) -> None:
    theta, x = trials(150)
    inside = theta.sigmoid()
    posterior = fit(inside, x, Box([0.0, 0.0], [1.0, 1.0]), settings=SETS)
    assert bool(((samples := posterior.sample(torch.ones(2, 2), 50)) > 0).all() and (samples < 1).all())


@pytest.mark.parametrize("shape", [(2, 9, 13), (2, 30), (1, 4, 5, 6)])
def test_numbers_over_land_are_named_before_all_others_are_lost_beside_them(shape: tuple[int, ...]) -> None:
    theta = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x = 280 + theta[:, :1] + torch.randn(200, math.prod(shape), generator=torch.Generator().manual_seed(1))
    x[:, :10] = -9999
    with pytest.warns(UserWarning, match=r"x has the number -9999 in 0\.\d+ of the entries of channel 0, and"):
        prepare(theta, x.reshape(-1, *shape))
    x[:, :10] = 280
    prepare(theta, x.reshape(-1, *shape))


def test_entries_that_are_absent_in_all_simulations_are_not_left_out_by_leaving_out_simulations() -> None:
    theta, x = torch.randn(200, 2), torch.randn(200, 1, 4, 5)
    x[:, :, 1] = NAN
    with pytest.raises(ValueError, match=r"0\.25 of the entries of x are NaN in all simulations: leave them"):
        prepare(theta, x)
