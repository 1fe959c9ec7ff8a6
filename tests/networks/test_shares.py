"""Counts of one known sum, as a part of a conditional mixture."""

import math

import pytest
import torch
from torch.distributions import Multinomial

from fitted import TINY
from openedm.inference import fit, load
from openedm.inference.forms import Form, choose_form
from openedm.inference.mixtures import fit_mixture
from openedm.inference.settings import MixtureOptions
from openedm.networks.shares import ShareMixture
from openedm.networks.structured import build_mixture


def sharing(dim: int = 4, total: int = 9) -> tuple[ShareMixture, torch.Tensor, torch.Tensor]:
    """A mixture of two members that depends on its condition; counts, and conditions."""
    torch.manual_seed(0)
    mixture = build_mixture("shares", 2, dim, members=2, components=1, width=8, num_blocks=1).requires_grad_(False)
    y, u = Multinomial(total, torch.arange(1.0, dim + 1)).sample((300,)), torch.randn(300, 2)
    mixture.fit_linear(y, u)
    for parameter in mixture.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return mixture, y, u


def probabilities(mixture: ShareMixture, u: torch.Tensor) -> torch.Tensor:
    """Of each kind, by all members."""
    taken = mixture._outputs(u.expand(2, -1, -1))[:, :, 0, 1:].double().sigmoid()
    taken[..., -1] = 1
    left = (1 - taken).cumprod(-1)
    return taken * torch.cat([torch.ones_like(left[..., :1]), left[..., :-1]], -1)


@pytest.mark.parametrize(("dim", "total"), [(2, 1), (2, 50), (4, 9), (6, 100_000)])
def test_counts_of_one_sum_have_a_multinomial_distribution(dim: int, total: int) -> None:
    mixture, y, u = sharing(dim, total)
    exact = Multinomial(total, probabilities(mixture, u)).log_prob(y.double())
    off = torch.rand(y.shape) - 0.5  # densities are those of n + v
    for values in (y, y + 0.99 * off):
        torch.testing.assert_close(mixture.each_log_prob(values, u).double(), exact, rtol=1e-4, atol=1e-4)


def test_draws_have_the_sum_and_the_mean() -> None:
    mixture, _, u = sharing()
    drawn = mixture.member(1).sample(u[:1].expand(20_000, 2), torch.Generator().manual_seed(0)).round()
    assert drawn.sum(1).unique().tolist() == [9.0]
    torch.testing.assert_close(drawn.double().mean(0), 9 * probabilities(mixture, u)[1, 0], rtol=0, atol=0.05)


def test_what_has_another_sum_or_is_no_count_has_a_finite_density() -> None:
    mixture, y, u = sharing()
    for wrong in (y + 1, y - torch.tensor([0.0, 0.0, 0.0, 1.0]), y - 20, torch.full_like(y, 30)):
        found = mixture.each_log_prob(wrong, u)
        assert found.isfinite().all()
        assert float(found.max()) < -10
    with pytest.raises(ValueError, match="y must have one sum in all rows, got 9 to 10"):
        mixture.fit_linear(y + torch.eye(300)[:, :4], u)


def test_gradients_are_finite_where_nothing_is_left() -> None:
    mixture = build_mixture("shares", 1, 3, members=1, components=1, width=8, num_blocks=1)
    y, u = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [2.0, 3.0, 0.0]]), torch.zeros(3, 1)
    mixture.fit_linear(y, u)
    mixture.log_prob(y, u).sum().backward()
    assert all(math.isfinite(float(p.grad.sum())) for p in mixture.parameters() if p.grad is not None)


def test_they_are_found_and_learned_better_than_as_independent_counts() -> None:
    u = torch.linspace(-1.5, 1.5, 600)[:, None]
    shares = torch.softmax(u * torch.tensor([-1.0, 0.0, 1.0]), -1)
    y = Multinomial(20, shares, validate_args=False).sample().clone()
    options = MixtureOptions(components=(1,), width=8, num_blocks=1, steps=200, pilot_steps=50, members=1)
    jittered = y + torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    assert choose_form([(jittered, 0.0), (y, 0.0)], u, options, counts=True) == Form(1, "shares", 1)
    fitted = {s: fit_mixture(y, u, options, 1, structure=s).log_prob for s in ("shares", "totals", "counts")}
    assert fitted["shares"] > max(fitted["totals"], fitted["counts"]) + 1
    y[0, 0] += 1
    assert choose_form([(jittered, 0.0), (y, 0.0)], u, options, counts=True).structure != "shares"


def test_a_posterior_warns_of_another_sum_and_keeps_its_total(tmp_path) -> None:
    theta = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    first = torch.binomial(torch.full_like(theta, 30), theta, torch.Generator().manual_seed(1))
    posterior = fit(theta, torch.cat([first, 30 - first], 1), ([0.1], [0.9]), settings=TINY)
    assert posterior.report["emulated"]["noise"] == "shares"
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    x = torch.tensor([12.0, 18.0])
    assert torch.equal(again.sample(x, 5), posterior.sample(x, 5))
    with pytest.warns(UserWarning, match="x must hold counts whose sum is 30, as in all simulations, got 32"):
        again.parts.emulated(torch.tensor([[12.0, 20.0]]))
