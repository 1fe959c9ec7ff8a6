import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gaussian_posteriors import Beta, LinearGaussian, WithoutGradient
from openedm.inference.draws import BLOCK, SampleNoise, numbered_seeds, observation_seeds
from openedm.inference.posterior import SECTION, Posterior
from openedm.inference.priors import Box, Normal

POSTERIOR = LinearGaussian()


def observations(count=5, seed=0):
    return POSTERIOR.joint(count, seed)[1]


class Uniform(Posterior):
    """Whatever x is: uniform noise through the prior's box, of an observation of any shape."""

    def __init__(self, x_shape=(), **settings):
        super().__init__(1, x_shape, prior=Box([-1.0], [3.0]), **settings)
        self.rows = []

    def _draw(self, x, n, seeds):
        self.rows.append(len(x) * n)
        return 4 * torch.special.ndtr(SampleNoise(seeds, n).draw((1,))).reshape(len(x), n, 1) - 1

    def _density(self, theta, x):
        assert bool((theta.abs() <= 3).all()), "points outside the support reach a subclass"
        self.rows.append(theta.shape[0] * theta.shape[1])
        return theta[..., 0] * 0 - math.log(4)


def test_one_observation_and_a_batch_have_the_shapes_stated():
    x = observations()
    assert POSTERIOR.sample(x[0], 7).shape == (7, 2)
    assert POSTERIOR.sample(x[:1], 7).shape == (1, 7, 2)
    assert POSTERIOR.sample(x, 7).shape == (5, 7, 2)
    assert POSTERIOR.sample(x[0]).shape == (1000, 2)
    assert POSTERIOR.sample(x=x, n=3).shape == (5, 3, 2)
    assert POSTERIOR.sample(x[0].double().numpy(), 4).equal(POSTERIOR.sample(x[0].tolist(), 4))


def test_samples_do_not_depend_on_the_batch_its_order_or_how_many_are_drawn():
    x = observations(200)
    together = POSTERIOR.sample(x, 100)
    torch.testing.assert_close(POSTERIOR.sample(x[17], 100), together[17])
    torch.testing.assert_close(POSTERIOR.sample(x[17:18], 100)[0], together[17])
    torch.testing.assert_close(POSTERIOR.sample(x.flip(0), 100), together.flip(0))
    for n in (1, BLOCK - 1, BLOCK, BLOCK + 1):
        torch.testing.assert_close(POSTERIOR.sample(x[17], n), together[17, :n])


def test_samples_beyond_a_section_continue_those_before():
    x = observations(1)[0]
    long = POSTERIOR.sample(x, SECTION + 10)
    assert long.shape == (SECTION + 10, 2)
    torch.testing.assert_close(long[:100], POSTERIOR.sample(x, 100))
    assert len(long.unique(dim=0)) == len(long)


def test_long_work_is_split_into_the_rows_allowed():
    posterior = Uniform((1,))
    posterior.max_rows = 100
    x = torch.rand(30, 1, generator=torch.Generator().manual_seed(0))
    samples = posterior.sample(x, 20)
    assert max(posterior.rows) <= 100
    assert samples.equal(Uniform((1,)).sample(x, 20))
    assert posterior.log_prob(samples, x).shape == (30, 20)
    assert max(posterior.rows) <= 100


def test_equal_seeds_repeat_and_others_do_not():
    x = observations()
    assert POSTERIOR.sample(x, 5, seed=3).equal(POSTERIOR.sample(x, 5, seed=3))
    assert not bool((POSTERIOR.sample(x, 5, seed=3) == POSTERIOR.sample(x, 5, seed=4)).any())
    state = torch.random.get_rng_state()
    POSTERIOR.sample(x, 5)
    assert torch.random.get_rng_state().equal(state)


def test_observations_have_independent_noise():
    # The first samples of 2000 observations, standardised, are 2000 independent normal numbers, not one of them.
    x = observations(2000)
    first = (POSTERIOR.sample(x, 1)[:, 0] - POSTERIOR.mean(x)) @ torch.linalg.inv(POSTERIOR.factor).T
    assert kstest(first.flatten(), "norm").pvalue > 1e-3
    assert abs(float(np.corrcoef(first[1:, 0], first[:-1, 0])[0, 1])) < 4 / math.sqrt(2000)


def test_observations_that_repeat_share_samples_unless_each_has_a_seed():
    x = observations(1).repeat(2, 1)
    shared, own = POSTERIOR.sample(x, 5), POSTERIOR.sample(x, 5, seed=[1, 2])
    torch.testing.assert_close(shared[0], shared[1])
    assert not bool((own[0] == own[1]).any())


def test_samples_have_the_posteriors_moments():
    x = observations(1)[0]
    samples = POSTERIOR.sample(x, 20_000).double()
    covariance = (POSTERIOR.factor @ POSTERIOR.factor.T).double()
    error = (samples.mean(0) - POSTERIOR.mean(x)) / (covariance.diagonal() / 20_000).sqrt()
    assert float(error.abs().max()) < 4
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.04, atol=0.04 * float(covariance.max()))


def test_log_prob_is_normalised_and_takes_every_shape_stated():
    x = observations(3)
    theta = POSTERIOR.sample(x, 4)
    batch = POSTERIOR.log_prob(theta, x)
    assert batch.shape == (3, 4)
    torch.testing.assert_close(POSTERIOR.log_prob(theta[1], x[1]), batch[1])
    torch.testing.assert_close(POSTERIOR.log_prob(theta[1], x[1:2]), batch[1])
    torch.testing.assert_close(POSTERIOR.log_prob(theta[1:2], x[1:2]), batch[1:2])
    torch.testing.assert_close(POSTERIOR.log_prob(theta[1, 0].tolist(), x[1]), batch[1, 0])
    covariance = (POSTERIOR.factor @ POSTERIOR.factor.T).double()
    known = torch.distributions.MultivariateNormal(POSTERIOR.mean(x[1]).double(), covariance)
    torch.testing.assert_close(batch[1], known.log_prob(theta[1].double()).float(), rtol=1e-5, atol=1e-5)
    assert POSTERIOR.log_prob(torch.zeros(0, 2), x[0]).shape == (0,)


def test_log_prob_outside_the_support_is_minus_infinity():
    theta = torch.tensor([[0.0], [3.0], [3.1], [-math.inf]])
    log_prob = Uniform().log_prob(theta, 0.3)
    assert log_prob.tolist() == pytest.approx([-math.log(4)] * 2 + [-math.inf] * 2)


def test_log_prob_is_differentiable_in_theta():
    x = observations(1)[0]
    theta = POSTERIOR.mean(x)[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(POSTERIOR.log_prob(theta, x).sum(), theta)
    torch.testing.assert_close(slope, torch.zeros(1, 2), atol=1e-4, rtol=0)
    assert not POSTERIOR.log_prob(theta.detach(), x).requires_grad


@pytest.mark.parametrize("posterior", [POSTERIOR, WithoutGradient()], ids=["gradient", "simplex"])
def test_the_mode_of_a_gaussian_is_its_mean(posterior):
    x = observations(3)
    modes = posterior.map(x)
    standard_deviation = float(posterior.factor.norm(dim=1).min())
    torch.testing.assert_close(modes, posterior.mean(x), rtol=0, atol=2e-3 * standard_deviation)
    torch.testing.assert_close(posterior.map(x[0]), modes[0], rtol=0, atol=1e-5)


def test_the_mode_is_that_of_theta_not_of_unbounded_coordinates():
    x = torch.tensor([[0.3, 0.8], [0.5, 0.1]])
    torch.testing.assert_close(Beta().map(x), x, rtol=0, atol=1e-3)


def test_a_mode_on_the_edge_is_found_just_inside():
    mode = Beta(1).map(torch.tensor([0.0]))
    assert 0 < float(mode) < 1e-2


def test_the_mode_is_never_lower_than_the_samples_it_starts_from():
    class Rough(LinearGaussian):
        def _density(self, theta, x):
            return super()._density(theta, x) + torch.sin(1e4 * theta).sum(-1)

    x = observations(1)[0]
    rough = Rough()
    assert rough.log_prob(rough.map(x), x) >= rough.log_prob(rough.sample(x, 256), x).max()


def test_names_are_given_or_the_priors_or_numbered():
    assert POSTERIOR.names == ("theta_1", "theta_2")
    assert LinearGaussian(names=["a", "b"]).names == ("a", "b")
    assert Named(1, (1,), prior=Normal([0.0], [1.0], names=["rate"])).names == ("rate",)


class Named(Posterior):
    def _draw(self, x, n, seeds):
        raise NotImplementedError

    def _density(self, theta, x):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((0, (1,)), {}, "dim must be >= 1"),
        ((2, (1,)), {"prior": Normal([0.0], [1.0])}, "prior must have 2 parameters, got 1"),
        ((2, (1,)), {"names": ["a"]}, r"names must be 2 different names, got \['a'\]"),
        ((2, (1,)), {"names": ["a", "a"]}, "names must be 2 different names"),
    ],
)
def test_what_does_not_fit_is_refused_when_made(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        Named(*arguments, **settings)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, x: p.sample(x[:, :2]), ValueError, r"one observation \(3,\) or a batch \(b, 3\), got \(5, 2\)"),
        (lambda p, x: p.sample(x[:0]), ValueError, "x must be one observation"),
        (lambda p, x: p.sample(x / 0), ValueError, r"x must be finite, got -?inf at \[0, 0\]"),
        (lambda p, x: p.sample([1.0, math.nan, 2.0]), ValueError, r"x must be finite, got nan at \[1\]"),
        (lambda p, x: p.sample("data"), TypeError, "x must be a tensor, an array, a table or numbers, got str"),
        (lambda p, x: p.sample(x + 0j), TypeError, "x must be real"),
        (lambda p, x: p.sample(), ValueError, "x must be given: an observation of shape"),
        (lambda p, x: p.sample((3, 1, 2)), ValueError, "a tuple of integers is the shape of the samples"),
        (lambda p, x: p.sample(x, x=x), ValueError, "x must be given once"),
        (lambda p, x: p.sample((4,), x=x), ValueError, "x must be one observation here, got 5"),
        (lambda p, x: p.sample(x, 0), ValueError, "n must be >= 1, got 0"),
        (lambda p, x: p.sample(x, 10.0), TypeError, "n must be an integer, got 10.0"),
        (lambda p, x: p.sample(x, seed=-1), ValueError, "seed must be >= 0, got -1"),
        (lambda p, x: p.sample(x, seed=1.5), TypeError, "seed must be an integer"),
        (lambda p, x: p.sample(x, seed=[1, 2]), ValueError, "seed must be one integer, or 5, .* got 2"),
        (lambda p, x: p.sample(x, seed=[0, 1, -2, 3, 4]), ValueError, r"seed\[2\] must be >= 0"),
        (lambda p, x: p.log_prob(torch.zeros(4, 3), x[0]), ValueError, r"theta must be \(n, 2\) for 1 observation"),
        (lambda p, x: p.log_prob(torch.zeros(5, 2), x), ValueError, r"theta must be \(5, n, 2\) for 5 observation"),
        (lambda p, x: p.log_prob([[0.0, math.nan]], x[0]), ValueError, "theta must hold no NaN"),
        (lambda p, x: p.map(x, num_draws=0), ValueError, "num_draws must be >= 1"),
        (lambda p, x: p.set_default_x(x), ValueError, "x must be one observation, got 5"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_type_checker")
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(LinearGaussian(), observations())


def test_the_form_of_sbi_is_understood():
    x = observations()
    expected = POSTERIOR.sample(x[1], 6)
    torch.testing.assert_close(POSTERIOR.sample((6,), x=x[1], show_progress_bars=False), expected)
    torch.testing.assert_close(POSTERIOR.sample(torch.Size([2, 3]), x=x[1:2]), expected.reshape(2, 3, 2))
    assert POSTERIOR.sample((), x=x[1]).shape == (2,)
    assert POSTERIOR.sample_batched((2, 3), x).shape == (2, 3, 5, 2)
    default = LinearGaussian().set_default_x(x[1:2])
    assert default.default_x is not None
    torch.testing.assert_close(default.sample((6,)), expected)
    torch.testing.assert_close(default.log_prob(expected), POSTERIOR.log_prob(expected, x[1]))
    assert default.map().shape == (2,)
    assert POSTERIOR.default_x is None


def test_a_tuple_of_integers_with_a_number_of_samples_is_refused_because_it_is_a_shape():
    message = r"n must not be given with a tuple .* got n=2 and \(3, 4, 5\); .* call sample\(x=\(3, 4, 5\), n=2\)"
    for call in (lambda p: p.sample((3, 4, 5), n=2), lambda p: p.sample((3, 4, 5), 2)):
        with pytest.raises(ValueError, match=message):
            call(LinearGaussian().set_default_x(observations(1)))
    assert POSTERIOR.sample(x=(3, 4, 5), n=2).equal(POSTERIOR.sample([3, 4, 5], 2))
    with pytest.raises(ValueError, match=r"x must be given: .* is the shape of the samples"):
        POSTERIOR.sample((3, 4, 5))


def test_batched_samples_of_sbi_differ_where_observations_repeat():
    samples = POSTERIOR.sample_batched((4,), observations(1).repeat(2, 1), seed=1)
    assert not bool((samples[:, 0] == samples[:, 1]).any())


def test_seeds_of_observations_tell_values_apart_but_not_signs_of_zero():
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    one, same, other = observation_seeds(x, 5)
    assert one == same != other
    assert set(observation_seeds(x, 6)).isdisjoint((one, other))
    assert len(set(numbered_seeds(0, 100) + numbered_seeds(1, 100))) == 200


def test_noise_is_standard_normal_and_new_in_every_draw():
    noise = SampleNoise([1, 2], 1500)
    first, second = noise.draw((3,)), noise.draw((3,))
    assert first.shape == (3000, 3) == (len(noise), 3)
    both = torch.cat([first, second]).flatten()
    assert kstest(both, "norm").pvalue > 1e-3
    assert len(both.unique()) > 17_000
    again = SampleNoise([2], 10)
    again.draw((3,))
    assert again.draw((3,)).equal(second[1500:1510])


@pytest.mark.parametrize(("seeds", "n"), [([], 1), ([-1], 1), ([1], 0)])
def test_noise_of_nothing_is_refused(seeds, n):
    with pytest.raises(ValueError, match="must be >="):
        SampleNoise(seeds, n)
