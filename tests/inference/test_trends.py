"""Kernel regression of what is smooth in simulations, and when it is taken."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openedm.inference import Box, Settings, fit, forms, load
from openedm.inference.forms import Form, choose_trend
from openedm.inference.settings import MixtureOptions
from openedm.inference.trends import features_of, fit_trend, regressed
from openedm.networks.trends import gaussian_kernel

OPTIONS = MixtureOptions(width=8, num_blocks=1, steps=60, validate_every=20, trend=True)
FORM = Form(0, "constant", 1)


def curve(rows: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five noisy columns that are smooth functions of two numbers, and these numbers."""
    generator = torch.Generator().manual_seed(seed)
    u = 3.4 * torch.rand(rows, 2, generator=generator, dtype=torch.float64) - 1.7
    frequencies = torch.linspace(0.5, 2.5, 5, dtype=torch.float64)
    mean = (frequencies * u[:, :1]).sin() * (0.5 * u[:, 1:]).exp() + u[:, 1:]
    return mean + noise * torch.randn(mean.shape, generator=generator, dtype=torch.float64), u


def test_a_smooth_mean_is_found_to_a_fraction_of_its_noise() -> None:
    noise = 0.02
    (y, u), (new, at) = curve(400, noise, 0), curve(500, noise, 1)
    found = fit_trend(y, u)
    inputs = torch.cat([u, torch.ones(400, 1)], 1)  # of the least-squares fit that is no part of it
    line = torch.linalg.lstsq(inputs, y - found.trend(u).mean(0)).solution
    left = new - found.trend(at).mean(0) - torch.cat([at, torch.ones(500, 1)], 1) @ line
    assert 0.9 * noise < float(left.std()) < 1.25 * noise
    kept = y - found.left_out  # of the rows themselves, each by the others: no smaller
    kept = kept - inputs @ torch.linalg.lstsq(inputs, kept).solution
    assert float(kept.std()) == pytest.approx(float(left.std()), rel=0.1)


def test_errors_are_those_of_predictions_from_all_other_rows() -> None:
    y, u = curve(60, 0.1, 0)
    features, root = features_of(u, u[:20], torch.tensor([0.8, 1.5]).double())
    noise = torch.tensor(0.03).double()
    _, errors, factor = regressed(features, y[:, 0], noise)
    for row in (0, 31):
        others = [i for i in range(60) if i != row]
        coefficients, *_ = regressed(features[others], y[others, 0], noise)
        torch.testing.assert_close(errors[row], y[row, 0] - features[row] @ coefficients, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(factor @ factor.T, features.T @ features + 0.03 * torch.eye(features.shape[1]))
    at = torch.randn(5, 2, dtype=torch.float64)
    kernels = gaussian_kernel(at, u[:20], torch.tensor([0.8, 1.5]).double())
    torch.testing.assert_close(kernels @ root, features_of(at, u[:20], torch.tensor([0.8, 1.5]).double())[0])


def test_members_lie_around_the_regression_on_all_rows_and_disagree_where_rows_are_few() -> None:
    y, u = curve(300, 0.1, 0)
    near = u[:, 0] < 0.5  # nothing is known of the rest
    found = fit_trend(y[near], u[near], members=6)
    each = found.trend(u)
    apart = each.std(0).mean(1)
    assert float(apart[~near].mean()) > 2 * float(apart[near].mean())
    alike = fit_trend(y[near], u[near], members=2).trend(u)
    torch.testing.assert_close(each.mean(0), alike.mean(0))


def test_noise_has_no_trend_that_is_taken_and_a_smooth_mean_has_one() -> None:
    y, u = curve(400, 0.02, 0)
    assert choose_trend(y.float(), u.float(), OPTIONS, FORM, OPTIONS, trials={}) is not None
    noise = torch.randn(400, 5, generator=torch.Generator().manual_seed(2))
    assert choose_trend(noise, u.float(), OPTIONS, FORM, OPTIONS, trials={}) is None


@pytest.mark.parametrize("form", [FORM._replace(structure="heavy"), FORM._replace(components=8)])
def test_other_noise_has_none(form: Form) -> None:
    y, u = curve(100, 0.02, 0)
    assert choose_trend(y.float(), u.float(), OPTIONS, form, OPTIONS, trials={}) is None


def test_a_regression_that_fails_is_said_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("not positive-definite")

    monkeypatch.setattr(forms, "fit_trend", failing)
    y, u = curve(100, 0.02, 0)
    with pytest.warns(UserWarning, match="without kernel regression, which failed: not positive-definite"):
        assert choose_trend(y.float(), u.float(), OPTIONS, FORM, OPTIONS, trials={}) is None


def test_a_posterior_with_a_trend_is_kept(tmp_path: Path) -> None:
    x, u = curve(400, 0.05, 0)
    settings = Settings.of(400, 2, (5,))
    assert settings.emulator.trend
    assert not Settings.of(3000, 2, (5,)).emulator.trend
    prior = Box([-1.7, -1.7], [1.7, 1.7])
    posterior = fit(u.clamp(-1.699, 1.699), x, prior, settings=tiny(settings), progress=False)
    assert posterior.report["emulated"]["trend"] == "kernel regression"
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    observed = curve(1, 0.05, 7)[0][0]
    assert torch.equal(posterior.sample(observed, 20, seed=1), again.sample(observed, 20, seed=1))
    theta = u[:3]
    torch.testing.assert_close(posterior.log_prob(theta, observed), again.log_prob(theta, observed))
    assert posterior.repeated(2).sample(torch.stack([observed, observed]), 5, seed=0).isfinite().all()


def tiny(settings: Settings) -> Settings:
    """The rule, with hardly any training; refinement is kept."""
    chosen = replace(OPTIONS, structures=("constant",), components=(1,), members=2)
    refinement = replace(settings.refinement, num_steps=5, max_steps=10, num_pilots=32)
    return replace(settings, emulator=chosen, passes=2, judged=8, refinement=refinement)
