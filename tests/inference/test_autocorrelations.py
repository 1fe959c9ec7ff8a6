"""Autocorrelations as the form of series of noise: what they are, when they are tried, and a whole fit."""

import math
from dataclasses import replace

import pytest
import torch

from fitted import TINY
from openedm.inference import fit, load
from openedm.inference.autocorrelations import LAGS, autocorrelations, num_features
from openedm.inference.judging import tell_more, with_autocorrelations
from openedm.inference.maps import DataMap
from openedm.inference.prepare import Prepared, prepare

PRIOR = ((-0.5, -1.0), (0.95, 1.0))


def autoregression(count: int, steps: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """θ = (φ, ln s) and x_t = φ x_{t−1} + s n_t from x_0 = 0."""
    generator = torch.Generator().manual_seed(4)
    low, high = torch.tensor(PRIOR)
    theta = low + (high - low) * torch.rand(count, 2, generator=generator)
    x = [torch.zeros(count)]
    for _ in range(steps):
        x.append(theta[:, 0] * x[-1] + theta[:, 1].exp() * torch.randn(count, generator=generator))
    return theta, torch.stack(x[1:], 1)


def prepared(theta: torch.Tensor, x: torch.Tensor) -> Prepared:
    return prepare(theta, x, PRIOR, settings=TINY, embedding=None, names=None, drop_nonfinite=False, seed=0)


def test_features_of_a_series_are_its_moments_autocorrelations_and_ends():
    x = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0, 0.0, 3.0, 1.0])
    rest, count = x - x.mean(), len(x)
    variance = float(rest.square().mean())
    lag = [float((rest[k:] * rest[: count - k]).mean()) / variance for k in range(1, LAGS + 1)]
    size = math.sqrt(variance)
    ends = [float(rest[0]) / size, float(rest[-1]) / size]
    expected = [float(x.mean()), math.log(variance), float(x.mean()) / size, *lag, *ends]
    assert autocorrelations(x).tolist() == pytest.approx(expected, rel=1e-6)
    assert len(expected) == num_features(LAGS)


def test_only_mean_and_size_of_a_series_depend_on_its_units():
    _, x = autoregression(5)
    here, there = autocorrelations(x.double()), autocorrelations(280 + 10 * x.double())
    torch.testing.assert_close(there[:, 0], 280 + 10 * here[:, 0])
    torch.testing.assert_close(there[:, 1], here[:, 1] + 2 * math.log(10))
    torch.testing.assert_close(there[:, 3:], here[:, 3:], rtol=1e-8, atol=1e-8)


def test_a_series_without_any_noise_has_finite_features():
    assert bool(autocorrelations(torch.full((2, 9), 7.0)).isfinite().all())


def test_series_that_lie_at_a_limit_all_along_do_not_end_a_fit():
    theta, x = autoregression(300)
    censored = (x + 5 * theta[:, :1]).clamp(max=1.0)
    assert bool((censored == 1.0).all(1).any())
    features = DataMap.of(censored, tuple(range(20))).correlated(censored)
    assert bool(features.forward(censored).isfinite().all())
    tell_more(prepared(theta, censored))


def test_they_are_tried_for_autoregression_and_not_for_a_curve_in_noise_or_for_noise_alone():
    theta, x = autoregression(600)
    assert tell_more(prepared(theta, x))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    curve = theta[:, :1] + torch.linspace(0, 2, x.shape[1]) * theta[:, 1:]
    assert not tell_more(prepared(theta, curve + 0.3 * noise))
    assert not tell_more(prepared(theta, noise))
    assert not tell_more(prepared(theta, x[:, :5]))


def test_the_form_is_kept_in_the_description_of_the_data_and_older_ones_have_none():
    theta, x = autoregression(200)
    data = with_autocorrelations(prepared(theta, x))
    maps, config = data.data, data.data.to_config()
    again = DataMap.from_config(config, None)
    assert maps.shape == again.shape == (num_features(LAGS),)
    torch.testing.assert_close(again.forward(x), maps.forward(x), rtol=0, atol=0)
    older = {name: value for name, value in config.items() if name != "lags"}
    assert DataMap.from_config(older, None).lags == 0


def test_a_fit_tries_them_and_what_it_chooses_is_refined_and_read_again(tmp_path):
    theta, x = autoregression(400)
    posterior = fit(theta, x, PRIOR, settings=TINY)
    tried = posterior.report["held_out_log_prob"]
    assert tried["simulations, autocorrelations"] > tried["simulations"]
    assert posterior.parts.data.lags == LAGS
    refined = posterior.with_refinement(TINY.refinement)
    refined.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior")
    torch.testing.assert_close(again.sample(x[0], 3), refined.sample(x[0], 3), rtol=0, atol=0)
    assert bool(again.log_prob(theta[:3], x[0]).isfinite().all())


def test_a_likelihood_of_summaries_is_not_kept_beside_a_denoiser_that_has_other_numbers():
    theta, x = autoregression(400)
    posterior = fit(theta, x, PRIOR, settings=replace(TINY, reduce_above=8, bases=("linear",)))
    reduced = posterior.parts.data.reduction is not None
    assert (posterior.parts.emulator is not None) == reduced
    assert bool(posterior.repeated(2).sample(x[:2], 3).isfinite().all())
