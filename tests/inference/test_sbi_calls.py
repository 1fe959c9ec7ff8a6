"""What sbi's diagnostics and analyses ask of a posterior."""

import pytest
import torch

from gaussian_posteriors import LinearGaussian
from openedm.inference.refine import Refinement

POSTERIOR = LinearGaussian()


def test_densities_of_a_batch_are_those_of_each_observation_in_the_axes_of_sbi():
    _, x = POSTERIOR.joint(3)
    theta = POSTERIOR.sample_batched((2, 4), x, max_sampling_batch_size=5)
    batched = POSTERIOR.log_prob_batched(theta, x, norm_posterior=True, leakage_correction_params={})
    assert batched.shape == (2, 4, 3)
    torch.testing.assert_close(batched[:, 1, 2], POSTERIOR.log_prob(theta[:, 1, 2], x[2]))
    with pytest.raises(ValueError, match=r"theta must be \(…, 3, 2\), got \(3, 4, 2\)"):
        POSTERIOR.log_prob_batched(theta[0].transpose(0, 1), x)


def test_densities_have_the_dtype_of_theta_and_gradients_where_asked():
    _, x = POSTERIOR.joint(1)
    theta = POSTERIOR.sample(x[0], 4, max_sampling_batch_size=2)
    assert POSTERIOR.log_prob(theta, x[0]).dtype == torch.float32
    assert POSTERIOR.log_prob(theta.double(), x[0]).dtype == torch.float64
    assert POSTERIOR.log_prob([0.0, 0.0], x[0]).dtype == torch.float32
    leaf = theta.requires_grad_()
    assert POSTERIOR.potential(leaf, x[0], track_gradients=True).requires_grad
    assert not POSTERIOR.log_prob(leaf, x[0], track_gradients=False).requires_grad


def test_a_potential_is_the_density_up_to_a_constant_of_each_observation(two_moons):
    x = torch.tensor([[0.1, 0.2], [-0.3, 0.1]])
    posterior = two_moons.with_refinement(Refinement(2, 8))
    theta = posterior.sample(x, 5)
    density = posterior.log_prob(theta, x)
    difference = posterior.potential(theta, x) - density
    assert float((difference - difference[:, :1]).abs().max()) < 1e-4
    alone = two_moons.with_refinement(Refinement(2, 8)).log_prob(theta[1], x[1])
    torch.testing.assert_close(alone, density[1], rtol=1e-4, atol=1e-3)


def test_densities_of_many_observations_are_normalised_together_as_one_by_one(two_moons):
    chains = Refinement(2, 8, max_steps=6)
    x = torch.tensor([[0.1, 0.2], [-0.3, 0.1], [0.1, 0.2], [0.4, -0.2]])
    posterior = two_moons.with_refinement(chains)
    together = posterior.refined_flow.log_evidences(x)
    alone = torch.cat([two_moons.with_refinement(chains).refined_flow.log_evidences(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)
    assert together[0] == together[2]
    assert len(set(together.tolist())) == 3
    again = posterior.refined_flow.log_evidences(x[1:2])
    assert again[0] == together[1]


@pytest.mark.filterwarnings("ignore")
def test_analyses_of_sbi_take_a_posterior_as_it_is(monkeypatch):
    analysis = pytest.importorskip("sbi.analysis")
    _, x = POSTERIOR.joint(1)
    posterior = LinearGaussian().set_default_x(x[0])
    width = posterior.factor.norm(dim=1)
    mean = posterior.mean(x[0])
    limits = torch.stack([mean - 6 * width, mean + 6 * width], 1)
    found = analysis.conditional_corrcoeff(posterior, limits, posterior.sample((1,)), resolution=40)
    covariance = posterior.factor @ posterior.factor.T
    assert float(found[0, 1]) == pytest.approx(float(covariance[0, 1] / covariance.diagonal().prod().sqrt()), abs=0.02)
    space = analysis.ActiveSubspace(posterior)
    values, vectors = space.find_directions(posterior_log_prob_as_property=True, num_monte_carlo_samples=50)
    assert values.shape == (2,)
    assert vectors.shape == (2, 2)
    assert posterior.prior.sample((3, 4)).shape == (3, 4, 2)
