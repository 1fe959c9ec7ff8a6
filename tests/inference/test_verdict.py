"""Whether an observation is like the simulations, and what a posterior says of itself."""

import math
import re

import pytest
import torch
from scipy.stats import kstest

from openedm.denoiser import Preconditioned
from openedm.inference import Box, load, predictive_check
from openedm.inference.assessing import Assessment, predicted
from openedm.inference.average import Average
from openedm.inference.composite import Truncated
from openedm.inference.disagreement import members_of, spread_of
from openedm.inference.likeness import Likeness, Reference
from openedm.networks import ConditionalEnsemble
from openedm.preconditioning import EDM

GENERATOR = torch.Generator().manual_seed(0)


def ring(n):
    """Around a hollow, in three columns, of which two are the same, and a constant."""
    angle = 2 * math.pi * torch.rand(n, generator=GENERATOR)
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=GENERATOR)
    return torch.cat([points, points[:, :1], torch.full((n, 1), 3.0)], 1)


def test_p_values_of_data_like_the_simulations_are_uniform_and_none_is_outside():
    reference = Reference.of(ring(1200), ring(200), vectors=True)
    found = reference(ring(300))
    assert kstest([each.p_value for each in found], "uniform").pvalue > 1e-3
    assert not any(each.outside for each in found)


@pytest.mark.parametrize(
    "strange",
    [[0.0, 0.0, 0.0, 3.0], [2.5, 0.0, 2.5, 3.0], [1.0, 0.0, -1.0, 3.0], [1.0, 0.0, 1.0, 4.0]],
    ids=["in the hollow", "far away", "other copies", "another constant"],
)
def test_data_unlike_the_simulations_are_outside(strange):
    (found,) = Reference.of(ring(1200), ring(200), vectors=True)(torch.tensor([strange]))
    assert found.outside
    assert found.p_value < 0.002


def test_images_with_another_pattern_are_outside_and_absent_values_are_not():
    images = torch.randn(150, 4, 1, generator=GENERATOR) * torch.ones(150, 4, 9)
    reference = Reference.of(images[:100], images[100:], vectors=False)
    pattern = images[:1].clone()
    pattern[..., ::2] *= -1
    gap = images[101:102].clone()
    assert [each.outside for each in reference(torch.cat([pattern, gap]))] == [True, False]


def saturated(n: int, limit: float, digits: int = 9) -> torch.Tensor:
    """Fifty numbers that stop at a limit, and a zero or one."""
    x = (3 * torch.randn(n, 50, generator=GENERATOR)).round(decimals=digits).clamp(max=limit)
    return torch.cat([x, (torch.rand(n, 1, generator=GENERATOR) < 0.5).float()], 1)


def test_a_number_between_no_and_yes_and_another_limit_are_said():
    reference = Reference.of(saturated(300, 3.0), saturated(100, 3.0), vectors=True)
    assert [reference.exceptions(x[None]) for x in saturated(50, 3.0)] == 50 * [[]]
    half = torch.cat([saturated(1, 3.0)[:, :50], torch.tensor([[0.5]])], 1)
    assert reference.exceptions(half) == ["x must be 0 or 1 in column 50, as in all simulations, got 0.5"]
    (said,) = reference.exceptions(saturated(1, 1.5))
    assert re.match(r"\d+ of the 51 entries of x are the same number, entry \d+ the first of them, as no simul", said)


def test_few_digits_are_no_limit_and_limits_that_differ_tell_nothing():
    exact = Reference.of(saturated(300, 1e9), saturated(100, 1e9), vectors=True)
    assert [exact.exceptions(x[None]) for x in saturated(50, 1e9, digits=1)] == 50 * [[]]
    assert exact.exceptions(saturated(1, 1.5))
    limits = torch.linspace(0.5, 2, 300)[:, None]
    varying = Reference.of(saturated(300, 1e9).minimum(limits), saturated(100, 1e9), vectors=True)
    assert varying.exceptions(saturated(1, 1.2)) == []


LIKE = Likeness(0.4, 0.5)


@pytest.mark.parametrize(
    ("assessment", "advice"),
    [
        (Assessment(LIKE, 0.01, 2, 1000), "trust"),
        (Assessment(LIKE, 0.3, 2, 1000), "more simulations"),
        (Assessment(LIKE, math.inf, 2, 1000), "more simulations"),
        (Assessment(LIKE, 0.01, 2, 1000, effective=0.001), "more simulations"),
        (Assessment(Likeness(0.001, 2.0), 0.3, 2, 1000), "model does not fit"),
        (Assessment(LIKE, 0.01, 2, 1000, predictive=0.004), "model does not fit"),
        (Assessment(LIKE, 0.3, 2, 1000, effective=0.4, spread=0.05), "trust"),
        (Assessment(LIKE, 0.3, 2, 1000, effective=0.05, spread=0.05), "more simulations"),
        (Assessment(LIKE, 0.01, 2, 1000, effective=0.05, spread=0.05), "trust"),
        (Assessment(LIKE, 0.3, 2, 1000, spread=0.05), "more simulations"),
        (Assessment(LIKE, 0.01, 2, 1000, spread=0.05), "trust"),
        (Assessment(LIKE, 0.01, 2, 1000, spread=0.12), "more simulations"),
        (Assessment(LIKE, math.inf, 2, 1000, spread=0.01), "more simulations"),
        (Assessment(Likeness(0.001, 2.0), 0.01, 2, 1000, spread=0.01), "model does not fit"),
        (Assessment(None, None, 2, None), "trust"),
    ],
)
def test_the_advice_follows_from_the_numbers_and_names_them(assessment, advice):
    lines = str(assessment).splitlines()
    assert assessment.advice == lines[0] == advice
    further = (assessment.effective, assessment.predictive, assessment.spread)
    assert len(lines) == 3 + sum(value is not None for value in further)
    assert ("not compared" in lines[1]) == (assessment.likeness is None)
    assert ("not estimated" in lines[2]) == (assessment.shortfall is None)


def test_twice_and_ten_times_as_many_simulations_gain_what_falls_as_one_over_n():
    text = str(Assessment(LIKE, 0.3, 2, 1000))
    assert "0.3 nats are lost for want of more, 0.1 are bearable; twice as many would gain about 0.15" in text
    assert "ten times as many 0.27; some 3,000 may do" in text


def test_disagreement_falls_as_one_over_the_root_of_n():
    text = str(Assessment(LIKE, 0.3, 2, 1000, spread=0.17))
    assert (
        "one places 17.0% of the probability elsewhere than their mean (above 8.5% is much); some 4,000 simulations"
        in text
    )
    assert text.count("may do") == 1


def test_one_observation_needs_as_many_simulations_as_would_fall_into_its_box():
    few = {"spread": 0.17, "region": 0.1}
    assert "holds 0.1 of the prior, some 400 simulations there are as many near x" in str(
        Assessment(LIKE, 0.3, 2, 1000, **few)
    )
    assert "some 200 simulations there" in str(Assessment(LIKE, 0.3, 2, 1000, **(few | {"region": 0.001})))
    assert "fit_sequentially" not in str(Assessment(LIKE, 0.01, 2, 1000, spread=0.01, region=0.1))
    assert "some 3,000 may do" in str(Assessment(LIKE, 0.3, 2, 1000, spread=0.01))


def test_the_spread_of_gaussians_is_the_distance_to_their_mean():
    mean, shift, n = torch.distributions.Normal(0.0, 1.0), 0.4, 200_000
    members = [torch.distributions.Normal(sign * shift, 1.0) for sign in (-1.0, 1.0)]
    theta = torch.cat([member.sample((n,)) for member in members])
    each = torch.stack([member.log_prob(theta) + 7 for member in members])
    grid = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    densities = torch.stack([member.log_prob(grid).exp() for member in members])
    exact = (densities - densities.mean(0)).abs().sum(1).mean() / 2 * (grid[1] - grid[0])
    assert spread_of(each) == pytest.approx(float(exact), rel=0.01)
    same = mean.log_prob(theta).expand(3, -1)
    assert spread_of(same) == spread_of(same, same[0]) == 0
    with pytest.raises(FloatingPointError, match="densities of 400000 of 400000 samples are not finite"):
        spread_of(each * math.nan)


def test_members_of_an_ensemble_are_denoisers_whose_mean_it_is():
    network = ConditionalEnsemble(members=3, width=8, num_blocks=1).build((2,), condition_shape=(2,), seed=0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=GENERATOR))
    denoiser = Preconditioned(network.eval(), EDM(), event_shape=(2,), condition_shape=(2,))
    members, x, y = members_of(denoiser), torch.randn(5, 2, generator=GENERATOR), torch.tensor([[0.3, -0.2]])
    each = torch.stack([member(x, 0.7, y) for member in members])
    torch.testing.assert_close(each.mean(0), denoiser(x, 0.7, y))
    assert len(each) == 3
    assert float(each.std(0).max()) > 1e-3
    assert members_of(members[0]) == []
    assert members_of(Average(members)) == members


def test_the_verdict_measures_how_far_members_disagree(two_moons):
    assert 0 < two_moons.plain().verdict([0.1, 0.2]).spread < 1
    refined = two_moons.verdict([0.1, 0.2])
    assert 0 < refined.spread < 1
    assert 0.01 < refined.region <= 1.0001


def test_predictions_unlike_the_observation_have_a_low_p_value():
    draws = torch.randn(400, 3, generator=GENERATOR)
    assert predicted(draws, torch.tensor([0.1, -0.5, 0.3])) > 0.05
    assert predicted(draws, torch.tensor([0.1, -9.0, 0.3])) < 0.01
    days = 2.46e6 + 0.001 * torch.cat([draws, torch.tensor([[0.1, -0.5, 0.3]])]).double()  # all alike in float32
    assert predicted(days[:-1], days[-1]) > 0.05
    with pytest.raises(ValueError, match="at least 200 data that are finite, got 0 of 400"):
        predicted(draws * math.nan, torch.zeros(3))
    with pytest.raises(ValueError, match=r"simulator must give \(400, 2\), got \(400, 3\)"):
        predicted(draws, torch.zeros(2))


def test_a_posterior_says_whether_to_trust_it_also_after_saving(two_moons, tmp_path):
    two_moons.save(tmp_path / "posterior")
    posterior = load(tmp_path / "posterior")
    inside = posterior.verdict([0.1, 0.2])
    assert inside == two_moons.verdict([0.1, 0.2])
    assert inside.advice in ("trust", "more simulations")
    assert 0 <= inside.effective <= 1
    assert [each.outside for each in posterior.likeness([[0.1, 0.2], [40.0, 0.2]])] == [False, True]
    assert posterior.verdict([40.0, 0.2]).advice == "model does not fit"


def test_the_verdict_compares_predictions_where_it_gets_a_simulator(two_moons):
    assert isinstance(two_moons.prior, Box)
    shifted = two_moons.verdict([0.1, 0.2], simulator=lambda theta, seed: theta + 5, num_draws=200)
    assert shifted.predictive < 0.01
    assert shifted.advice == "model does not fit"
    with pytest.raises(ValueError, match="x must be one observation, got 2"):
        two_moons.verdict([[0.1, 0.2], [0.0, 0.0]])


def test_a_simulator_of_single_parameters_says_so(two_moons):
    def single(theta, seed):
        assert theta.shape == (2,)
        return theta.numpy() + 5

    assert two_moons.verdict([0.1, 0.2], simulator=single, num_draws=200, batched=False).predictive < 0.01
    check = predictive_check(two_moons, single, [0.1, 0.2], num_draws=20, batched=False)
    torch.testing.assert_close(torch.from_numpy(check.draws).float(), check.theta + 5)
    with pytest.raises(AssertionError) as raised:
        predictive_check(two_moons, single, [0.1, 0.2], num_draws=20)
    assert "all theta (20, 2) at once; one that takes a single theta needs batched=False" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="simulator failed for 20 of 20: ZeroDivisionError"):
        predictive_check(two_moons, lambda theta: 1 / 0, [0.1, 0.2], num_draws=20, batched=False)


def test_samples_that_are_all_at_an_end_of_the_prior_have_no_box_around_them(two_moons, monkeypatch):
    with pytest.raises(ValueError, match="samples must have room around them, but in column 0 all lie at"):
        Truncated.around(Box([0.0], [1.0]), torch.full((10, 1), 1e-45), 0.1)
    monkeypatch.setattr(two_moons, "prior", Box([0.0, 0.0], [1.0, 1.0]))
    monkeypatch.setattr(type(two_moons), "_samples", lambda self, x, n, seed: torch.full((1, n, 2), 1e-45))
    assert two_moons._region(torch.zeros(1, 2)) is None
