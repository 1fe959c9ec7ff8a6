"""Refinement: chains come to their target; each is a function of its own seed."""

import pytest
import torch

from openedm.inference.candidates import is_certain_gain
from openedm.inference.refine import Refinement, Target, evidence


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
    many = Refinement(num_steps=5).run(start[None], pilots[None], log_normal(0.0, 1.0), [3])[0]
    few = Refinement(num_steps=5).run(start[None, :7], pilots[None], log_normal(0.0, 1.0), [3])[0]
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


def test_refinement_is_chosen_only_where_its_gain_is_certain() -> None:
    assert is_certain_gain([0.5, 0.6, 0.4, 0.5])
    assert not is_certain_gain([0.5, -0.6, 0.4, -0.5])
    assert not is_certain_gain([-0.5, -0.6])
    assert not is_certain_gain([float("nan")] * 5)


def test_starts_that_are_effective_need_fewer_steps() -> None:
    assert Refinement(num_steps=60).for_share(0.0).num_steps == 60
    assert Refinement(num_steps=60).for_share(1.0).num_steps == 20


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="num_pilots must be >= 2, got 1"):
        Refinement(num_pilots=1)
