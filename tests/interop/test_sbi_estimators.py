"""Estimators of sbi as denoisers: closed forms that its own classes have, and its own trained networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openedm.exact import GaussianMixture
from openedm.interop import from_sbi
from openedm.sampling import Auto

sbi_estimators = pytest.importorskip("sbi.neural_nets.estimators.score_estimator")
flows = pytest.importorskip("sbi.neural_nets.estimators.flowmatching_estimator")

MEAN, STD = torch.tensor([0.4, -1.0]), torch.tensor([0.5, 0.2])


class Zero(nn.Module):
    """A network whose output is 0: an estimator then is its Gaussian baseline."""

    def forward(self, theta: Tensor, x: Tensor, time: Tensor) -> Tensor:
        assert theta.dtype == x.dtype == time.dtype == torch.float32
        assert len(theta) == len(x) == len(time)
        return torch.zeros_like(theta)


def baseline(kind: str, **options: Any) -> Any:
    kinds = {
        "ve": sbi_estimators.VEScoreEstimator,
        "vp": sbi_estimators.VPScoreEstimator,
        "subvp": sbi_estimators.SubVPScoreEstimator,
        "flow": flows.FlowMatchingEstimator,
    }
    more = {"gaussian_baseline": True, "noise_scale": 1e-3} if kind == "flow" else {}
    shapes = torch.Size([2]), torch.Size([3])
    return kinds[kind](Zero(), *shapes, **({"mean_0": MEAN, "std_0": STD} | more | options))


KINDS = ["ve", "vp", "subvp", "flow"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gaussian_estimator_is_the_denoiser_of_that_gaussian(kind: str) -> None:
    denoiser, condition = from_sbi(baseline(kind)), torch.zeros(1, 3)
    exact = GaussianMixture([1.0], MEAN[None].tolist(), torch.diag(STD**2)[None].tolist())
    torch.manual_seed(0)
    for sigma in (denoiser.sigma_min * 1.5, 0.05, 0.3, 2.0, 9.0):
        x = MEAN + STD * torch.randn(50, 2) + sigma * torch.randn(50, 2)
        difference = denoiser(x.double(), sigma, condition) - exact(x.double(), sigma)
        assert difference.abs().max() < (3e-3 if kind == "flow" else 2e-5) * (1 + sigma), sigma
    each = torch.tensor([0.1, 1.0])
    together = denoiser(x[:2], each, condition)
    assert torch.allclose(together[1], denoiser(x[1:2], 1.0, condition)[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_its_samples_have_the_mean_and_the_widths(kind: str) -> None:
    samples = Auto(32).sample(from_sbi(baseline(kind)), seeds=range(4000), condition=torch.zeros(1, 3))
    assert torch.allclose(samples.mean(0), MEAN.double(), atol=0.03)
    assert torch.allclose(samples.std(0) / STD, torch.ones(2).double(), atol=0.04)


@pytest.mark.parametrize("kind", ["ve", "flow"])
def test_a_standardisation_of_its_own_becomes_location_and_scale(kind: str) -> None:
    estimator = baseline(kind, mean_0=torch.zeros(2), std_0=torch.ones(2))
    estimator._theta_shift.copy_(1000 * MEAN)
    estimator._theta_scale.copy_(1000 * STD)
    estimator._compose_standardization.fill_(True)
    samples = Auto(32).sample(from_sbi(estimator), seeds=range(4000), condition=torch.zeros(1, 3))
    assert torch.allclose(samples.mean(0) / 1000, MEAN.double(), atol=0.03)
    assert torch.allclose(samples.std(0) / (1000 * STD), torch.ones(2).double(), atol=0.04)


@pytest.mark.parametrize("trainer", ["NPSE", "FMPE"])
def test_a_network_of_its_own_is_followed_as_it_follows_it_itself(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where sbi writes what it logs
    inference = pytest.importorskip("sbi.inference")
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((200,))
    x = theta + 0.3 * torch.randn(200, 2)
    method = getattr(inference, trainer)(prior, show_progress_bars=False)
    with pytest.warns(UserWarning, match="not yet fully converged"):
        method.append_simulations(theta, x).train(max_num_epochs=2)
    posterior, observed = method.build_posterior(sample_with="ode"), torch.tensor([0.5, -0.2])
    torch.manual_seed(1)
    theirs = posterior.sample((1000,), x=observed, show_progress_bars=False)
    ours = Auto(32).sample(from_sbi(posterior), seeds=range(1000), condition=observed[None])
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.15 * theirs.std(0).max()
    assert torch.allclose(ours.std(0).float() / theirs.std(0), torch.ones(2), atol=0.1)


def test_other_estimators_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"score or flow estimator of sbi .*got Linear"):
        from_sbi(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="condition must be given"):
        from_sbi(baseline("ve"))(torch.zeros(1, 2), 1.0)
