"""Columns in which values recur, as a part of a conditional mixture."""

import copy
import math

import pytest
import torch
from scipy.stats import norm, truncnorm

from fitted import TINY
from openedm.inference import fit, load
from openedm.networks.atoms import AtomMixture, log_between
from openedm.networks.mixtures import ConditionalMixture
from openedm.networks.recurring import recurring
from openedm.networks.structured import build_mixture

GENERATOR = torch.Generator().manual_seed(0)
U = torch.randn(600, 1, generator=GENERATOR)
NOISE = torch.randn(600, 3, generator=GENERATOR)


def stopped(limit: float = 1.0) -> torch.Tensor:
    """A column that stops at a limit, one that stops at two, and zeros and ones."""
    y = U * torch.tensor([1.0, 0.5, -1.0]) + 0.5 * NOISE
    return torch.stack([y[:, 0].clamp(max=limit), y[:, 1].clamp(-limit, limit), (y[:, 2] > 0).float()], 1)


def disturbed(structure: str, y: torch.Tensor, **sizes: int) -> ConditionalMixture:
    """A mixture of two members that depends on its condition, with numbers that are no fit."""
    torch.manual_seed(0)
    mixture = build_mixture(structure, 1, y.shape[1], members=2, width=8, num_blocks=1, **sizes).requires_grad_(False)
    mixture.fit_linear(y, U)
    for parameter in mixture.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return mixture


def test_what_recurs_is_found_and_nothing_else() -> None:
    assert recurring(stopped()[:, 0]) == (1.0,)
    assert recurring(stopped()[:, 1]) == (-1.0, 1.0)
    assert recurring(stopped()[:, 2]) == (0.0, 1.0)
    assert recurring(torch.where(NOISE[:, 0] < 0, 0.0, NOISE[:, 1])) == (0.0,)
    assert recurring(NOISE[:, 0]) == ()
    assert recurring(NOISE[:, 0].mul(5).round()) == (), "all values recur"
    assert recurring(torch.where(NOISE[:, 0] < 0, 0.0, NOISE[:, 1].exp().mul(10).round())) == (0.0,)
    assert recurring(torch.where(torch.arange(600) < 4, 0.0, NOISE[:, 0])) == (), "four of 600"


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (-30.0, 30.0), (4.0, 5.0), (-30.0, -6.0), (12.0, 12.5), (-0.1, 0.1)]
)
def test_shares_of_a_gaussian_are_exact_in_its_tails(low: float, high: float) -> None:
    low, high = (low, high) if low + high < 0 else (-high, -low)
    exact = torch.tensor(norm.cdf(high) - norm.cdf(low))
    for a, b in ((low, high), (-high, -low)):
        found = log_between(torch.tensor(a), torch.tensor(b))
        torch.testing.assert_close(found.double(), exact.log(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", [-1.0, 2.0, 8.0, 13.0])
def test_draws_below_a_limit_are_those_of_what_is_left_of_a_gaussian(mean: float) -> None:
    mixture = build_mixture("atoms", 1, 1, members=1, components=1, width=8, num_blocks=1).requires_grad_(False)
    for sign in (1, -1):
        mixture.linear.bias[..., 1] = sign * mean
        mixture.low.fill_(-1e6 if sign > 0 else -1.0)
        mixture.high.fill_(1e6 if sign < 0 else 1.0)
        drawn = mixture.sample(torch.zeros(20_000, 1), torch.Generator().manual_seed(0)).double()
        exact = truncnorm(-math.inf, 1 - mean, loc=mean)
        assert sign * float(drawn.mean()) == pytest.approx(exact.mean(), abs=5 * exact.std() / 140)
        assert float(drawn.std()) == pytest.approx(exact.std(), rel=0.05)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("structure", ["atoms", "censored"])
def test_densities_and_probabilities_sum_to_one(structure: str, column: int) -> None:
    y = stopped()[:, column : column + 1]
    mixture = disturbed(structure, y, components=2)
    grid = torch.linspace(-6, 1, 40_001)[1:-1, None] if column == 0 else torch.linspace(-1, 1, 40_001)[1:-1, None]
    step = float(grid[1] - grid[0])
    for u in (-1.0, 0.5, 3.0):
        ends = torch.tensor([[-1.0], [1.0]] if column else [[1.0]])
        at = mixture.log_prob(ends, torch.full_like(ends, u)).double().exp().sum()
        between = mixture.log_prob(grid, torch.full_like(grid, u)).double().exp().sum() * step
        assert float(at + between) == pytest.approx(1, abs=2e-3)


def test_draws_have_the_probabilities_and_the_correlation_of_densities() -> None:
    y = stopped()
    mixture = disturbed("atoms", y, components=1).member(1)
    mixture.lower[0, 0, 1, 0] = -0.8
    u = torch.full((40_000, 1), 0.3)
    drawn = mixture.sample(u, torch.Generator().manual_seed(1))
    assert float(drawn[:, :2].max()) == 1.0
    assert float(drawn[:, 1].min()) == -1.0
    assert drawn[:, 2].unique().tolist() == [0.0, 1.0]
    shares = mixture._terms(mixture._outputs(u[None, :1]))[3][0, 0, 0].exp()
    for j in range(3):
        found = [float((drawn[:, j] == a).float().mean()) for a in mixture.atoms[0, 0, 0, j].tolist()]
        torch.testing.assert_close(torch.tensor(found), shares[j, :-1], rtol=0, atol=0.01)
    free = (drawn[:, 0] < 1) & (drawn[:, 1].abs() < 1)
    assert float(torch.corrcoef(drawn[free, :2].T)[0, 1]) > 0.3


@pytest.mark.parametrize("structure", ["atoms", "censored", "independent_atoms"])
def test_draws_have_the_density(structure: str) -> None:
    """The mean of q₂/q₁ over draws from q₁ is 1 where q₁ is the density of the draws."""
    draws = torch.where(NOISE < 0, 0.0, NOISE)
    y = {"atoms": stopped(), "censored": stopped()[:, :2], "independent_atoms": draws}[structure]
    first = disturbed(structure, y, components=1).member(0)
    other = copy.deepcopy(first)
    other.linear.bias += 0.05 * torch.randn(other.linear.bias.shape, generator=torch.Generator().manual_seed(3))
    if structure != "independent_atoms":
        first.lower[0, 0, 1, 0], other.lower[0, 0, 1, 0] = -0.8, -0.7
    u = torch.full((40_000, 1), 0.3)
    for q, p in ((first, other), (other, first)):
        drawn = q.sample(u, torch.Generator().manual_seed(1))
        ratio = (p.log_prob(drawn, u) - q.log_prob(drawn, u)).double().exp()
        assert float(ratio.std()) > 0.03
        assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / 200)


def test_draws_of_one_distribution_have_its_probabilities_and_density() -> None:
    y = torch.where(NOISE < 0.3, 0.0, (NOISE + U).exp())
    mixture = disturbed("independent_atoms", y, components=5)
    one = build_mixture("independent_atoms", 1, 1, members=2, components=5, width=8, num_blocks=1)
    one.load_state_dict(mixture.state_dict())
    one.requires_grad_(False)
    for u in (-1.0, 1.0):
        grid = torch.linspace(-40, 60, 400_001)[:, None] + 1e-4
        at = one.log_prob(torch.zeros(1, 1), torch.full((1, 1), u)).double().exp().sum()
        between = one.log_prob(grid, torch.full_like(grid, u)).double().exp().sum() * 100 / 400_000
        assert float(at + between) == pytest.approx(1, abs=5e-3)
        drawn = mixture.sample(torch.full((20_000, 1), u), torch.Generator().manual_seed(0))
        assert float((drawn == 0).double().mean()) == pytest.approx(float(at), abs=0.01)


def test_a_limit_is_learned_and_what_lies_beyond_has_a_finite_density() -> None:
    y = stopped()
    mixture = build_mixture("atoms", 1, 3, members=1, components=1, width=8, num_blocks=1)
    mixture.fit_linear(y, U)
    assert isinstance(mixture, AtomMixture)
    assert mixture.high.flatten().tolist()[:2] == [1.0, 1.0]
    assert mixture.low.flatten().tolist()[:2] == [-1e6, -1.0]
    found = mixture.log_prob(torch.tensor([[3.0, -9.0, 0.5], [-1e9, 1e9, 7.0], [1.0, 1.0, 1.0]]), U[:3])
    assert found.isfinite().all()
    found.sum().backward()
    assert all(math.isfinite(float(p.grad.sum())) for p in mixture.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "noise"), [("limit", "censored"), ("rain", "atoms"), ("draws", "independent_atoms"), ("mixed", "atoms")]
)
def test_a_posterior_learns_and_keeps_it(name: str, noise: str, tmp_path) -> None:
    theta = 2 * torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    random = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    x = {
        "limit": (theta * torch.linspace(0.5, 2, 6) + 0.3 * random).clamp(max=1),
        "rain": torch.where(random < theta - 1, 0.0, (theta * torch.linspace(-3, 3, 6) + random).exp()),
        "draws": torch.where(random < 0.5, 0.0, (theta + random).exp()),
        "mixed": torch.cat([theta + random[:, :3], (random[:, 3:] < theta - 1).float()], 1),
    }[name]
    posterior = fit(theta, x, ([0.0], [2.0]), settings=TINY)
    assert posterior.report["emulated"]["noise"] == noise
    y = posterior.parts.emulated(x)
    known = posterior.parts.emulator.atoms.nan_to_num(torch.inf)[0, 0, 0]
    at = ((y[..., None] - known).abs() < 1e-5).any(-1)
    assert torch.equal(at, (x == x.max()) if name == "limit" else (x == 0) | ((x == 1) & (name == "mixed")))
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert torch.equal(again.sample(x[0], 5), posterior.sample(x[0], 5))
    assert torch.equal(again.log_prob(theta[:2], x[0]), posterior.log_prob(theta[:2], x[0]))
    if name == "mixed":
        half = torch.cat([x[0, :5], torch.tensor([0.5])])
        with pytest.warns(UserWarning, match="x must be 0 or 1 in column 5, as in all simulations, got 0.5"):
            again.sample(half, 2)
    if name == "limit":
        with pytest.warns(UserWarning, match=r"at which all simulations stop in column 2, got 1.2: what stands"):
            again.parts.emulated(torch.tensor([[0.9, 1.0, 1.2, 0.0, 0.0, 0.0]]))
