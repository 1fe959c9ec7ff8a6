"""Priors: densities, draws, supports; bijections onto R^d and back; the form in files."""

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.stats import kstest
from torch import Tensor, distributions

from openedm.ground.choices import from_config, to_config
from openedm.inference.bijections import Bijection
from openedm.inference.composite import Independent, as_prior, prior_from_config, prior_to_config
from openedm.inference.own_priors import OwnPrior
from openedm.inference.priors import Box, LogNormal, Normal, Prior, TorchPrior

INF = math.inf
OWN = [
    Box((-1.0, 0.7), (3.0, 0.9), ("a", "b")),
    Normal((1.0, -2.0), (0.5, 3.0)),
    Normal((1.0, -2.0), covariance=((2.0, 0.9), (0.9, 1.0))),
    LogNormal((-0.1, 2.0), (0.5, 0.2)),
    Independent((Box((0.0,), (2.0,)), LogNormal((0.0,), (1.0,)))),
]
TORCH = [
    distributions.Gamma(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])),
    distributions.Beta(torch.tensor([2.0, 0.5]), torch.tensor([3.0, 0.5])),
    distributions.HalfNormal(torch.tensor([1.0, 2.0, 3.0])),
    distributions.Exponential(torch.tensor([1.0, 4.0])),
    distributions.StudentT(torch.tensor([3.0, 4.0], dtype=torch.float64)),
    distributions.Independent(distributions.Weibull(torch.ones(2), torch.tensor([2.0, 0.7])), 1),
    distributions.VonMises(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 2.0])),
    distributions.TransformedDistribution(distributions.Uniform(-9.0, 9.0), distributions.ExpTransform()),
    distributions.TransformedDistribution(
        distributions.Beta(torch.tensor([2.0, 2.0]), torch.tensor([3.0, 2.0])),
        [distributions.AffineTransform(torch.tensor([10.0, 1.0]), torch.tensor([-5.0, 2.0]))],
    ),
    distributions.TransformedDistribution(
        distributions.Independent(distributions.Exponential(torch.tensor([1.0, 4.0])), 1),
        [distributions.PowerTransform(torch.tensor(0.5)), distributions.TanhTransform()],
    ),
    distributions.Gamma(2.0, 2.0),
]


def every_prior() -> list[Prior]:
    found = [as_prior(given) for given in [*OWN, *TORCH, [TORCH[-1], distributions.Normal(0.0, 1.0), OWN[0]]]]
    return [prior for prior in found if prior is not None]


@pytest.mark.parametrize("prior", every_prior(), ids=lambda prior: repr(prior)[:50])
def test_draws_lie_inside_repeat_with_their_seed_and_leave_the_global_generator_alone(prior: Prior) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    theta = prior.sample(2000, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert theta.shape == (2000, prior.dim)
    assert theta.dtype == torch.float32
    assert torch.equal(prior.sample(2000, 3), theta)
    assert not torch.equal(prior.sample(2000, 4), theta)
    assert bool(prior.log_prob(theta).isfinite().all())
    assert bool(prior.bijection.forward(theta).isfinite().all())


@pytest.mark.parametrize("prior", every_prior(), ids=lambda prior: repr(prior)[:50])
def test_densities_are_those_of_the_draws(prior: Prior) -> None:
    # E[q/p] = 1 under p for a density q, here a smaller copy of the draws' own spread in z.
    theta = prior.sample(20000, 0).double()
    z = prior.bijection.forward(theta)
    q = distributions.Independent(distributions.Normal(z.median(0).values, 0.3 * z.std(0)), 1)
    ratio = (q.log_prob(z) + prior.bijection.log_det(theta) - prior.log_prob(theta)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / math.sqrt(20000))


@pytest.mark.parametrize("prior", every_prior(), ids=lambda prior: repr(prior)[:50])
def test_saved_priors_are_the_same_priors(prior: Prior) -> None:
    again = prior_from_config(json.loads(json.dumps(prior_to_config(prior))))
    theta = prior.sample(5, 1)
    assert again.names == prior.names
    assert torch.equal(again.sample(5, 1), theta)
    assert torch.equal(again.log_prob(theta), prior.log_prob(theta))


def test_own_priors_have_the_form_of_choices() -> None:
    for prior in OWN:
        assert from_config(Prior, json.loads(json.dumps(to_config(prior)))) == prior


def test_own_densities_are_those_of_torch() -> None:
    theta = OWN[3].sample(50, 0).double()
    for prior, given in [
        (OWN[1], distributions.Normal(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double())),
        (OWN[3], distributions.LogNormal(torch.tensor([-0.1, 2.0]).double(), torch.tensor([0.5, 0.2]).double())),
    ]:
        torch.testing.assert_close(prior.log_prob(theta), given.log_prob(theta).sum(-1))
    matrix = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double()
    joint = distributions.MultivariateNormal(torch.tensor([1.0, -2.0]).double(), matrix)
    torch.testing.assert_close(OWN[2].log_prob(theta), joint.log_prob(theta))
    torch.testing.assert_close(torch.cov(OWN[2].sample(40000, 1).double().mT), matrix, rtol=0.05, atol=0.02)


def test_a_point_outside_has_no_density_and_the_ends_have() -> None:
    box = Box((0.7, 0.0), (0.9, 1.0))
    points = torch.tensor([[0.8, 0.5], [0.7, 1.0], [0.9, 0.0], [0.95, 0.5], [0.8, -1e-6], [math.nan, 0.5]])
    inside = box.log_prob(points).isfinite()
    assert inside.tolist() == [True, True, True, False, False, False]
    assert bool((box.log_prob(points)[~inside] == -INF).all())
    assert box.log_prob(points.reshape(2, 3, 2)).shape == (2, 3)
    assert float(box.log_prob(points[0])) == pytest.approx(-math.log(0.2))


def test_the_probit_of_a_uniform_parameter_is_standard_normal() -> None:
    box = Box((-3.0,), (5.0,))
    z = box.bijection.forward(box.sample(5000, 0))[:, 0]
    assert kstest(z.numpy(), "norm").pvalue > 0.01
    # ln p(θ) = ln N(z) + ln |dz/dθ|
    theta = box.sample(20, 1)
    density = distributions.Normal(0.0, 1.0).log_prob(box.bijection.forward(theta.double())).sum(-1)
    torch.testing.assert_close(density + box.bijection.log_det(theta.double()), box.log_prob(theta))


BIJECTION = Bijection((-INF, 0.0, -INF, -2.0), (INF, INF, 3.0, 5.0))


def test_bijections_go_back_and_forth_and_know_their_derivative() -> None:
    z = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = BIJECTION.inverse(z)
    torch.testing.assert_close(BIJECTION.forward(theta), z, rtol=1e-9, atol=1e-9)
    for point in theta[:5]:
        jacobian = torch.autograd.functional.jacobian(BIJECTION.forward, point)
        assert torch.count_nonzero(jacobian - torch.diag(jacobian.diagonal())) == 0
        torch.testing.assert_close(jacobian.diagonal().log().sum(), BIJECTION.log_det(point))
        back = torch.autograd.functional.jacobian(BIJECTION.inverse, BIJECTION.forward(point))
        torch.testing.assert_close(back @ jacobian, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_z_is_theta_lies_strictly_inside(dtype: torch.dtype) -> None:
    narrow = Bijection((0.7, 0.0, -INF, 1e6), (0.9, INF, -3.3, 1e6 + 1))
    z = torch.tensor([-INF, -1e30, -50.0, -8.0, 0.0, 8.0, 50.0, 1e30, INF], dtype=dtype)[:, None].expand(-1, 4)
    theta = narrow.inverse(z)
    low, high = (torch.tensor(end, dtype=torch.float64) for end in (narrow.low, narrow.high))
    assert theta.dtype == dtype
    assert bool(((theta.double() > low) & (theta.double() < high)).all())
    assert bool(narrow.forward(theta).isfinite().all())


def test_edges_are_taken_to_lie_inside_and_points_beyond_are_none() -> None:
    z = BIJECTION.forward(torch.tensor([[0.0, 0.0, 3.0, -2.0], [0.0, 1.0, 2.0, 5.0], [0.0, -1.0, 4.0, 6.0]]))
    assert bool(z[:2].isfinite().all())
    assert z[2].isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((torch.zeros(2), torch.ones(2)), Box((0.0, 0.0), (1.0, 1.0))),
        (distributions.Uniform(torch.zeros(2), torch.ones(2)), Box((0.0, 0.0), (1.0, 1.0))),
        (
            distributions.Independent(distributions.Uniform(torch.zeros(2), torch.ones(2)), 1),
            Box((0.0, 0.0), (1.0, 1.0)),
        ),
        (distributions.Normal(torch.zeros(2), torch.ones(2)), Normal((0.0, 0.0), (1.0, 1.0))),
        (distributions.LogNormal(0.0, 2.0), LogNormal((0.0,), (2.0,))),
        (
            distributions.LowRankMultivariateNormal(torch.zeros(2), torch.zeros(2, 1), torch.ones(2)),
            Normal((0.0, 0.0), covariance=((1.0, 0.0), (0.0, 1.0))),
        ),
        (
            distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            Normal((0.0, 0.0), covariance=((1.0, 0.0), (0.0, 1.0))),
        ),
        ([distributions.Normal(0.0, 1.0), OWN[0]], Independent((Normal((0.0,), (1.0,)), OWN[0]))),
        (OWN[0], OWN[0]),
        (None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_users_have_becomes_a_prior(given: Any, expected: Prior | None) -> None:
    assert as_prior(given) == expected


def test_sbi_box_uniform_is_a_box() -> None:
    utils = pytest.importorskip("sbi.utils")
    prior = as_prior(utils.BoxUniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])))
    assert prior == Box((-1.0, 0.0), (1.0, 2.0))


def test_a_distribution_that_cannot_be_saved_is_a_prior_all_the_same() -> None:
    parts = distributions.Normal(torch.tensor([-1.0, 1.0]), torch.ones(2))
    mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(2)), parts)
    prior = as_prior(mixture)
    assert isinstance(prior, TorchPrior)
    assert prior.sample(3).shape == (3, 1)
    with pytest.raises(ValueError, match="prior MixtureSameFamily cannot be saved"):
        prior_to_config(prior)


@pytest.mark.parametrize("name", ["Distribution", "kl", "os", "biject_to", 3])
def test_a_file_cannot_name_anything_but_a_distribution(name: Any) -> None:
    config = {
        "class_path": "openedm.inference.TorchPrior",
        "init_args": {"distribution": {"name": name, "parameters": {}}},
    }
    with pytest.raises(ValueError, match="distribution name must be one of torch"):
        prior_from_config(config)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Box((0.0, 0, 0, 2), (1.0, 1, 1, 1)),
            ValueError,
            "low must be < high in column 3, got low 2.0 and high 1",
        ),
        (lambda: Box((2.0,), (1.0,), ("rate",)), ValueError, r"low must be < high in column 0 \(rate\)"),
        (lambda: Box((0.0,), (1.0, 2.0)), ValueError, "high must have as many entries as low, 1, got 2"),
        (lambda: Box((0.0,), (INF,)), ValueError, r"high\[0\] must be a finite number, got inf"),
        (lambda: Box((0.0,), (1.0,), ("a", "b")), ValueError, "names must be 1 different strings"),
        (lambda: Normal((0.0,)), ValueError, "exactly one of std and covariance"),
        (lambda: Normal((0.0,), (-1.0,)), ValueError, "std must be > 0 in column 0, got -1.0"),
        (
            lambda: Normal((0.0, 0.0), covariance=((1.0, 2.0), (2.0, 1.0))),
            ValueError,
            "covariance must be positive def",
        ),
        (lambda: Normal((0.0, 0.0), covariance=((1.0, 0.5), (0.0, 1.0))), ValueError, "covariance must be symmetric"),
        (lambda: Normal((0.0, 0.0), covariance=((1.0,),)), ValueError, r"covariance must have the shape \(2, 2\)"),
        (lambda: LogNormal((0.0,), (0.0,)), ValueError, "scale must be > 0 in column 0, got 0.0"),
        (lambda: Independent(()), ValueError, "parts must hold at least one prior"),
        (lambda: OWN[0].sample(0), ValueError, "n must be >= 1, got 0"),
        (lambda: OWN[0].log_prob(torch.zeros(3)), ValueError, r"theta must have 2 columns, got the shape \(3,\)"),
        (lambda: as_prior(3), TypeError, "prior must be a Prior, a distribution of torch or scipy, .* got int"),
        (lambda: as_prior(distributions.Dirichlet(torch.ones(3))), ValueError, "support Simplex.* of Dirichlet.* Beta"),
        (
            lambda: as_prior(
                distributions.MixtureSameFamily(
                    distributions.Categorical(torch.ones(2)),
                    distributions.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])),
                )
            ),
            ValueError,
            r"a mixture of components with different supports, low \[0.0, 2.0\]",
        ),
        (
            lambda: as_prior([OWN[0], (0, 1)]),
            TypeError,
            r"prior\[1\] must be a Prior, .* got tuple: .* Box\(low, high\)",
        ),
        (lambda: as_prior(scipy.stats.vonmises(1.0, scale=2.0)), ValueError, "scale must be 1 for vonmises"),
        (
            lambda: as_prior(distributions.Poisson(torch.ones(3))),
            ValueError,
            "prior must be continuous, .* got Poisson",
        ),
        (lambda: as_prior(distributions.Gamma(torch.ones(3, 2), 1.0)), ValueError, r"batch shape \(3, 2\)"),
        (lambda: Bijection((1.0,), (0.0,)), ValueError, r"low\[0\] must be < high\[0\]"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(
    make: Any, error: type[Exception], message: str, without_type_checker: None
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_bijection_acts_on_the_last_dimension_of_any_shape() -> None:
    theta: Tensor = BIJECTION.inverse(torch.zeros(2, 3, 4))
    assert BIJECTION.forward(theta).shape == (2, 3, 4)
    assert BIJECTION.log_det(theta).shape == (2, 3)
    torch.testing.assert_close(BIJECTION.log_det_at(BIJECTION.forward(theta)), BIJECTION.log_det(theta))


class Triangle:
    """Of a user: θ_1 + θ_2 with a normal and a uniform part, drawn by numpy, (d,) ends as attributes."""

    low, high = (-math.inf, 0.0), (math.inf, 2.0)

    def sample(self, n):
        if isinstance(n, tuple):
            raise TypeError("n must be an integer")
        return np.stack([np.random.normal(size=n), np.random.uniform(0, 2, size=n)], 1)  # noqa: NPY002

    def log_prob(self, theta):
        return torch.distributions.Normal(0.0, 1.0).log_prob(theta[:, :1]) - math.log(2)


def test_an_object_with_sample_and_log_prob_is_a_prior():
    prior = as_prior(Triangle(), ["a", "b"])
    assert (prior.dim, prior.names, prior.bijection.high) == (2, ("a", "b"), (math.inf, 2.0))
    draws = prior.sample(500, seed=3)
    assert draws.equal(prior.sample(500, seed=3))
    assert not draws.equal(prior.sample(500, seed=4))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(0.5)).double() - math.log(2)
    torch.testing.assert_close(prior.log_prob(torch.tensor([[0.5, 1.0]]))[0], expected)
    assert prior.log_prob(torch.tensor([0.5, 3.0])) == -math.inf
    with pytest.raises(ValueError, match="prior Triangle cannot be saved: it is an object of your own"):
        prior_to_config(prior)


def test_an_object_whose_support_is_not_known_is_refused():
    class Hidden(Triangle):
        low = high = None

        def log_prob(self, theta):
            outside = (theta[:, 1] < 0) | (theta[:, 1] > 2)
            return torch.where(outside, -math.inf, super().log_prob(theta)[:, 0])

    with pytest.raises(ValueError, match=r"prior Hidden has no density at -?\d.* in column 1, and no attribute low"):
        as_prior(Hidden())
    assert OwnPrior(Hidden(), low=[-math.inf, 0.0], high=[math.inf, 2.0]).dim == 2


@pytest.mark.parametrize(
    ("prior", "low", "high"),
    [
        (TORCH[-5], (-math.pi, -math.pi), (math.pi, math.pi)),  # the order of TORCH
        (TORCH[-4], (math.exp(-9),), (math.exp(9),)),
        (TORCH[-3], (5.0, 1.0), (10.0, 3.0)),
        (TORCH[-2], (0.0, 0.0), (1.0, 1.0)),
        (
            distributions.TransformedDistribution(
                distributions.Normal(torch.zeros(2), torch.ones(2)), distributions.SigmoidTransform()
            ),
            (0.0, 0.0),
            (1.0, 1.0),
        ),
        (distributions.Gumbel(0.0, 1.0), (-INF,), (INF,)),
        (scipy.stats.vonmises(1.0, loc=3.0), (-math.pi,), (math.pi,)),
    ],
)
def test_a_transformed_distribution_ends_where_its_draws_do(prior: Any, low: Any, high: Any) -> None:
    found = as_prior(prior)
    assert found is not None
    assert found.bijection.low == pytest.approx(low, rel=1e-6)
    assert found.bijection.high == pytest.approx(high, rel=1e-6)
    outside = torch.tensor([end + 1e-3 * max(1, abs(end)) for end in high])
    assert float(found.log_prob(outside)) == -INF or INF in high
    ends = torch.nextafter(torch.tensor(found.bijection.low), torch.tensor(INF))
    assert not bool(found.log_prob(ends).isnan())


def test_the_density_of_a_transformed_distribution_is_torch_s() -> None:
    for given in TORCH[-4:-1]:
        prior = as_prior(given)
        assert prior is not None
        theta = prior.sample(50, 1)
        expected = given.log_prob(theta[:, 0] if prior.dim == 1 else theta).double()
        expected = expected.sum(-1) if expected.ndim == 2 else expected
        torch.testing.assert_close(prior.log_prob(theta), expected, rtol=1e-3, atol=1e-3)


def test_an_own_prior_is_asked_in_the_number_format_of_its_draws() -> None:
    class Days:
        low, high = 2.46e6, 2.46e6 + 0.01

        def sample(self, n):
            return self.low + 0.01 * torch.rand(n, dtype=torch.float64)

        def log_prob(self, theta):
            return torch.log(2e4 * (theta[:, 0].double() - self.low).clamp_min(1e-9))

    theta = torch.tensor([[2.46e6 + 0.002], [2.46e6 + 0.004]], dtype=torch.float64)
    found = as_prior(Days()).log_prob(theta)
    assert float(found[1] - found[0]) == pytest.approx(math.log(2), rel=1e-4)


def test_an_own_prior_of_shares_or_of_ordered_parameters_is_refused() -> None:
    class Ordered:
        def __init__(self, **ends):
            self.__dict__.update(ends)

        def sample(self, n):
            return torch.rand(*n, 2).sort(-1).values

        def log_prob(self, theta):
            return torch.where(theta[:, 0] < theta[:, 1], math.log(2), -math.inf)

    with pytest.raises(ValueError, match="prior Ordered must have a support that is an interval in every coordinate"):
        as_prior(Ordered(low=[0.0, 0.0], high=[1.0, 1.0]))


@pytest.mark.parametrize(
    ("frozen", "dim"),
    [
        (scipy.stats.gamma(2.0, scale=3.0), 1),
        (scipy.stats.norm([0.0, 1.0], 2.0), 2),
        (scipy.stats.beta(a=[2.0, 3.0, 4.0], b=1.5, loc=-1.0), 3),
        (scipy.stats.multivariate_normal([1.0, 2.0], [[1.0, 0.5], [0.5, 2.0]]), 2),
    ],
)
def test_frozen_distributions_of_scipy_are_priors_that_can_be_saved(frozen, dim):
    prior = as_prior(frozen)
    draws = prior.sample(200, seed=1)
    assert draws.shape == (200, dim)
    values = np.asarray(frozen.logpdf(draws.double().numpy()[:, 0] if dim == 1 else draws.double().numpy()))
    expected = torch.from_numpy(values if values.ndim == 1 else values.sum(1))
    torch.testing.assert_close(prior.log_prob(draws), expected)
    assert prior_from_config(json.loads(json.dumps(prior_to_config(prior)))).sample(9).equal(prior.sample(9))


def test_several_independent_distributions_of_sbi_are_one_prior():
    class MultipleIndependent:
        dists = (torch.distributions.Gamma(torch.ones(1), torch.ones(1)), scipy.stats.uniform(-1, 2))

    prior = as_prior(MultipleIndependent())
    assert (prior.dim, prior.bijection.low, prior.bijection.high) == (2, (0.0, -1.0), (math.inf, 1.0))


@pytest.mark.parametrize(
    "discrete",
    [torch.distributions.Poisson(3.0), scipy.stats.poisson(3.0), torch.distributions.Categorical(torch.ones(3))],
)
def test_discrete_priors_are_refused_with_what_to_do(discrete):
    with pytest.raises(ValueError, match=r"prior must be continuous, since discrete .*fit one posterior for each"):
        as_prior(discrete)
