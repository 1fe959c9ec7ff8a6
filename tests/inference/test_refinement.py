"""Refinement: chains come to their target; each is a function of its own seed."""

import math

import pytest
import torch

from openedm.inference.judging import is_gain
from openedm.inference.refine import Refinement, Target, evidence, evidence_near


class Normals(Target):
    """One Gaussian a member, all of one std; π is their mixture."""

    def __init__(self, means: tuple[float, ...], std: float) -> None:
        self.means, self.std, self.asked = means, std, 0

    @property
    def members(self) -> int:
        return len(self.means)

    def __call__(self, u, chains, member=None):
        means = self.means if member is None else self.means[member : member + 1]
        self.asked += len(means) * len(u)
        return torch.stack([-0.5 * ((u - mean) / self.std).square().sum(-1) for mean in means]).double()


def log_normal(mean: float, std: float) -> Normals:
    return Normals((mean,), std)


def test_chains_come_to_their_target_from_a_wrong_start(without_type_checker) -> None:
    generator = torch.Generator().manual_seed(0)
    start = 0.7 + 1.5 * torch.randn(4000, 2, generator=generator)
    pilots = 0.7 + 1.5 * torch.randn(512, 2, generator=generator)
    moved = Refinement(num_steps=60).run(start[None], pilots[None], log_normal(0.0, 1.0), [3])[0]
    assert (moved.mean(0).abs() < 0.08).all()
    torch.testing.assert_close(moved.std(0), torch.ones(2), atol=0.08, rtol=0)


def test_a_right_start_stays_right(without_type_checker) -> None:
    generator = torch.Generator().manual_seed(0)
    start, pilots = torch.randn(4000, 2, generator=generator), torch.randn(512, 2, generator=generator)
    moved = Refinement(num_steps=20).run(start[None], pilots[None], log_normal(0.0, 1.0), [3])[0]
    torch.testing.assert_close(moved.std(0), torch.ones(2), atol=0.06, rtol=0)
    assert not torch.equal(moved, start)


def test_an_ensemble_s_mean_is_the_target_though_members_are_asked_first(without_type_checker) -> None:
    generator = torch.Generator().manual_seed(0)
    start, pilots = 2 * torch.randn(4000, 1, generator=generator), 2 * torch.randn(512, 1, generator=generator)
    target = Normals((-1.5, 0.0, 1.5), 0.5)
    moved = Refinement(num_steps=100).run(start[None], pilots[None], target, [3])[0, :, 0]
    spread = (0.5**2 + (1.5**2) * 2 / 3) ** 0.5
    assert float(moved.mean()) == pytest.approx(0, abs=0.1)
    assert float(moved.std()) == pytest.approx(spread, abs=0.05)
    near = ((moved[:, None] - torch.tensor([-1.5, 0.0, 1.5])).abs().argmin(1).bincount() / 4000).tolist()
    assert near == pytest.approx([1 / 3] * 3, abs=0.04)
    assert target.asked < 0.8 * 3 * 4000 * 101


class TwoModes(Target):
    """Narrow Gaussians around −1 and 1, the second with three quarters of the mass."""

    members = 1

    def __call__(self, u, chains, member=None):
        each = [
            -0.5 * ((u - mean) / 0.02).square().sum(-1) + math.log(share) for mean, share in ((-1, 0.25), (1, 0.75))
        ]
        return torch.stack(each).double().logsumexp(0, keepdim=True)


def test_the_weights_of_separate_modes_come_right_though_starts_and_pilots_have_others(without_type_checker) -> None:
    def half_and_half(n: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        side = (torch.rand(n, 2, generator=generator)[:, :1] < 0.5).float() * 2 - 1
        return side + 0.02 * torch.randn(n, 2, generator=generator)

    start, pilots = half_and_half(4000, 0), half_and_half(256, 1)
    moved = Refinement(num_steps=25, density_steps=True).run(start[None], pilots[None], TwoModes(), [3])[0]
    assert float((moved[:, 0] > 0).float().mean()) == pytest.approx(0.75, abs=0.03)


class Half(Normals):
    """Of density 0 below 0."""

    def __call__(self, u, chains, member=None):
        each = super().__call__(u, chains, member)
        return torch.where(u[:, 0] > 0, each, -torch.inf)


def test_a_chain_that_starts_where_there_is_no_density_comes_away(without_type_checker) -> None:
    pilots = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    moved = Refinement(num_steps=60).run(torch.full((1, 50, 1), -0.5), pilots[None], Half((0.0, 0.3), 1.0), [3])
    assert (moved > 0).all()


def test_a_chain_does_not_depend_on_the_others() -> None:
    start, pilots = torch.randn(100, 2), torch.randn(16, 2)
    many = Refinement(num_steps=5, density_steps=True).run(start[None], pilots[None], log_normal(0.0, 1.0), [3])[0]
    few = Refinement(num_steps=5, density_steps=True).run(start[None, :7], pilots[None], log_normal(0.0, 1.0), [3])[0]
    torch.testing.assert_close(many[:7], few)


def test_observations_do_not_mix() -> None:
    start, pilots = torch.randn(2, 30, 2), torch.randn(2, 16, 2)
    both = Refinement(num_steps=5).run(start, pilots, log_normal(0.0, 1.0), [3, 4])
    second = Refinement(num_steps=5).run(start[1:], pilots[1:], log_normal(0.0, 1.0), [4])
    torch.testing.assert_close(both[1:], second)


def test_the_evidence_of_a_gaussian_is_its_integral() -> None:
    u = 1.3 * torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    proposal = torch.distributions.Normal(0.0, 1.3).log_prob(u)[:, 0]
    total, share = evidence(-0.5 * u.square().sum(-1), proposal)
    assert total == pytest.approx(0.5 * torch.log(torch.tensor(2 * torch.pi)).item(), abs=0.01)
    assert 0.5 < share < 1


def test_refinement_is_chosen_unless_its_mean_gain_is_clearly_negative() -> None:
    assert is_gain([0.5, 0.6, 0.4, 0.5])
    assert is_gain([0.5, -0.6, 0.4, -0.2])
    assert is_gain([0.5, -0.6, 0.4, -0.5])  # mean −.05, standard error .25
    assert is_gain([0.2] * 63 + [-15.0])  # mean −.04, standard error .24
    assert not is_gain([0.5, 0.6, float("nan"), 0.1])
    assert not is_gain([-0.5, -0.6])
    assert not is_gain([-0.1, 0.1] * 32 + [-15.0] * 3)  # mean −.67, standard error .38
    assert not is_gain([float("nan")] * 5)
    assert not is_gain([])


def test_pilots_that_are_far_too_wide_settle(without_type_checker) -> None:
    pilots = 1 + 10 * torch.randn(2, 128, 2, generator=torch.Generator().manual_seed(0))
    refinement = Refinement(num_steps=25, num_pilots=128, max_steps=400)
    settled, steps = refinement.settle(pilots, log_normal(0.0, 1.0), [3, 4])
    assert ((settled.std(1) - 1).abs() < 0.25).all()
    assert ((steps > 25) & (steps < 400)).all()
    alone, count = refinement.settle(pilots[1:], log_normal(0.0, 1.0), [4])
    torch.testing.assert_close(alone, settled[1:])
    assert count[0] == steps[1]


def test_pilots_that_are_right_settle_at_once_and_without_blocks_stay() -> None:
    pilots = torch.randn(1, 256, 2, generator=torch.Generator().manual_seed(0))
    _, steps = Refinement(num_steps=10, max_steps=400).settle(pilots, log_normal(0.0, 1.0), [3])
    assert steps[0] <= 40
    same, steps = Refinement(num_steps=10).settle(pilots, log_normal(0.0, 1.0), [3])
    assert same is pilots
    assert steps[0] == 10


def test_the_evidence_near_samples_is_the_integral_also_of_two_modes() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(256, 2, generator=generator) * 0.1 + torch.tensor([2.0, 0.0])
    points[::2] -= torch.tensor([4.0, 0.0])

    def log_target(u):
        squares = [((u - torch.tensor([mean, 0.0])) / 0.1).square().sum(1) for mean in (-2.0, 2.0)]
        return (-0.5 * torch.stack(squares)).logsumexp(0)

    total, share = evidence_near(points, log_target, seed=0, draws=4000)
    assert total == pytest.approx(float(torch.tensor(2 * 2 * torch.pi * 0.01).log()), abs=0.15)
    assert share > 0.02


def test_a_sample_that_pilots_missed_makes_the_evidence_large() -> None:
    points = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))

    def log_target(u):
        return torch.logaddexp(-0.5 * u.square(), -0.5 * ((u - 30) / 0.01).square() + 5)[:, 0]

    without, _ = evidence_near(points, log_target, seed=0, draws=256)
    known, _ = evidence_near(points, log_target, seed=0, draws=256, known=torch.tensor([30.0]))
    assert known > without + 1


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="num_pilots must be >= 2, got 1"):
        Refinement(num_pilots=1)
    with pytest.raises(ValueError, match="max_steps must be >= 50, got 10"):
        Refinement(num_steps=50, max_steps=10)
