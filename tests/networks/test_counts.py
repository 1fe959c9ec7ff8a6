"""Distributions of counts, and of zeros and ones, as parts of a conditional mixture."""

import math

import pytest
import torch

from openedm.inference.mixtures import fit_mixture
from openedm.inference.settings import MixtureOptions
from openedm.networks.structured import build_mixture


def counting(dim: int = 3, components: int = 1, curve: bool = False, structure: str = "counts"):
    """A mixture of two members that depends on its condition."""
    torch.manual_seed(0)
    sizes = {"members": 2, "components": components, "width": 8, "num_blocks": 1}
    mixture = build_mixture(structure, 2, dim, curve=curve, **sizes)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixture.requires_grad_(False)


@pytest.mark.parametrize("size", [0.0, 3.0, 9.0])
def test_counts_have_negative_binomial_distributions(size: float) -> None:
    mixture, u = counting(), torch.randn(40, 2)
    mixture.log_size.fill_(size)
    eta = mixture._outputs(u.expand(2, -1, -1))[:, :, 0, 1:].double()
    r = torch.tensor(size).exp().double()
    exact = torch.distributions.NegativeBinomial(r, logits=eta - r.log())
    n = torch.poisson(torch.rand(40, 3) * 8)
    off = torch.rand(40, 3) - 0.5  # densities are those of n + v
    for y in (n, n + 0.99 * off):
        torch.testing.assert_close(
            mixture.each_log_prob(y, u).double(), exact.log_prob(n.double()).sum(-1), rtol=2e-5, atol=2e-5
        )
    for below in (-1.0, -30.0):  # no count: nothing is told, but densities are finite
        outside = mixture.each_log_prob(torch.full((40, 3), below), u)
        torch.testing.assert_close(outside, torch.full((2, 40), 3 * (-14 + below * math.log(2))))


def test_large_counts_do_not_cancel() -> None:
    mixture, u = counting(dim=1), torch.zeros(3, 2)
    mixture.log_size.fill_(12.0)
    mixture.layer_out.bias.add_(13.0)
    eta = mixture._outputs(u.expand(2, -1, -1))[:, :, 0, 1:].double()
    n = (eta[0].exp() * torch.tensor([[0.99], [1.0], [1.02]], dtype=torch.float64)).round()
    r = torch.tensor(12.0, dtype=torch.float64).exp()
    exact = torch.distributions.NegativeBinomial(r, logits=eta - r.log()).log_prob(n)[..., 0]
    torch.testing.assert_close(mixture.each_log_prob(n.float(), u).double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("structure", ["counts", "totals", "dispersed_counts"])
def test_zeros_and_ones_are_learned_as_such(structure: str) -> None:
    mixture, u = counting(dim=2, structure=structure), torch.randn(500, 2)
    y = torch.stack([torch.bernoulli(torch.full((500,), 0.3)), torch.poisson(torch.full((500,), 2.0))], 1)
    mixture.fit_linear(y, u)
    assert mixture.binary[0, 0].tolist() == [True, False]
    eta = mixture._outputs(u.expand(2, -1, -1))[:, :, 0, 1:]
    one, two = (mixture.each_log_prob(torch.stack([torch.full((500,), n), y[:, 1]], 1), u) for n in (0.0, 1.0))
    torch.testing.assert_close(two - one, eta[..., 0], rtol=1e-4, atol=1e-4)
    assert float(eta[..., 0].sigmoid().mean()) == pytest.approx(0.3, abs=0.1)
    never = torch.stack([torch.full((500,), 2.0), y[:, 1]], 1)
    torch.testing.assert_close(
        mixture.each_log_prob(never, u) - one, -14 - 2 * math.log(2) + torch.nn.functional.softplus(eta[..., 0])
    )
    drawn = mixture.sample(u, torch.Generator().manual_seed(0)).round()
    assert set(drawn[:, 0].tolist()) == {0.0, 1.0}


def test_draws_have_mean_and_variance_of_the_distribution() -> None:
    mixture, u = counting(), torch.tensor([[0.4, -1.0]]).expand(40_000, 2)
    mixture.log_size.fill_(1.0)
    drawn = mixture.member(0).sample(u, torch.Generator().manual_seed(0))
    mean = mixture._outputs(u[:1].expand(2, 1, 2))[0, 0, 0, 1:].exp()
    spread = (mean + mean.square() / torch.tensor(1.0).exp() + 1 / 12).sqrt()
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=float(5 * spread.max() / 200))
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.05, atol=0)


def of_totals(*totals: float, components: int = 1):
    """A mixture of two members whose totals are these."""
    mixture = counting(len(totals), components, structure="totals")
    mixture.largest.copy_(torch.tensor(totals) - 1)
    mixture.start.fill_(1)
    mixture.log_size.zero_()
    return mixture


@pytest.mark.parametrize("totals", [(1.0, 7.0, 60.0), (1e3, 1e5, 3e6)])
def test_counts_of_a_total_have_binomial_distributions(totals: tuple[float, ...]) -> None:
    mixture, u, total = of_totals(*totals), torch.randn(40, 2), torch.tensor(totals, dtype=torch.float64)
    with torch.no_grad():
        mixture.linear.bias[..., 1:] += (total / 2).log().float()
    odds = mixture._outputs(u.expand(2, -1, -1))[:, :, 0, 1:].double() - total.log()
    exact = torch.distributions.Binomial(total, logits=odds)
    drawn = torch.binomial(total.expand(40, 3), odds[0].sigmoid())
    for n in (drawn, torch.zeros(40, 3), total.expand(40, 3)):
        found = mixture.each_log_prob(n.float(), u).double()
        torch.testing.assert_close(found, exact.log_prob(n.double()).sum(-1), rtol=1e-4, atol=1e-3)
    highest = mixture.each_log_prob(total.float().expand(40, 3), u)
    above = mixture.each_log_prob((total + torch.tensor([5.0, 0.0, 0.0])).float().expand(40, 3), u)
    torch.testing.assert_close(
        highest - above, torch.full((2, 40), 14 + 2 * math.log(6)), rtol=1e-4, atol=1e-3 + 4e-7 * totals[-1]
    )


def test_draws_of_totals_have_mean_and_variance_of_the_distribution() -> None:
    mixture, u = of_totals(9.0, 1.0, 400.0), torch.tensor([[0.4, -1.0]]).expand(40_000, 2)
    drawn = mixture.member(1).sample(u, torch.Generator().manual_seed(0))
    total = torch.tensor([9.0, 1.0, 400.0])
    p = (mixture._outputs(u[:1].expand(2, 1, 2))[1, 0, 0, 1:] - total.log()).sigmoid()
    spread = (total * p * (1 - p) + 1 / 12).sqrt()
    torch.testing.assert_close(drawn.mean(0), total * p, rtol=0, atol=float(5 * spread.max() / 200))
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.05, atol=0)
    assert bool((drawn.round() <= total).all())


def test_totals_that_differ_between_columns_are_learned() -> None:
    total, generator = torch.tensor([20.0, 100.0, 1000.0]), torch.Generator().manual_seed(0)
    u = 3.4 * torch.rand(1000, 1, generator=generator) - 1.7
    y = torch.binomial(total.expand(1000, 3), (u + torch.tensor([0.5, 0.0, -1.0])).sigmoid(), generator=generator)
    options = MixtureOptions(members=1, width=8, num_blocks=1, steps=800, learning_rate=4e-3)
    fitted = {s: fit_mixture(y, u, options, 1, structure=s) for s in ("counts", "totals")}
    size = fitted["totals"].mixture.size.flatten()
    torch.testing.assert_close(size, total, rtol=0.15, atol=0)
    assert torch.equal(size, size.round())
    assert fitted["totals"].log_prob > fitted["counts"].log_prob + 0.3


@pytest.mark.parametrize("structure", ["counts", "totals", "dispersed_counts"])
def test_rows_of_several_observations_in_any_order_have_their_own_density(structure: str) -> None:
    mixture, u = counting(components=2, structure=structure), torch.randn(60, 2)
    kinds = torch.poisson(torch.rand(3, 3) * 5)
    y = kinds[torch.randint(3, (60,))]
    each = torch.cat([mixture.each_log_prob(y[i : i + 1], u[i : i + 1]) for i in range(60)], 1)
    torch.testing.assert_close(mixture.each_log_prob(y, u), each)


def test_large_counts_of_small_sizes_have_finite_densities_and_gradients() -> None:
    mixture, u = counting(dim=1).requires_grad_(True), torch.randn(30, 2)
    with torch.no_grad():
        mixture.log_size.fill_(-12.0)
        mixture.linear.bias[..., 1] = torch.tensor([[-30.0], [30.0]])
    for n, relative in ((0.0, 1e-4), (1.0, 1e-4), (1e3, 1e-4), (1e6, 1e-2)):
        log_probs = mixture.each_log_prob(torch.full((30, 1), n), u)
        eta = mixture._outputs(u.expand(2, -1, -1))[:, :, 0, 1:].double()
        r = torch.tensor(-12.0, dtype=torch.float64).exp()
        exact = torch.distributions.NegativeBinomial(r, logits=eta - r.log()).log_prob(torch.tensor(n).double())
        torch.testing.assert_close(log_probs.double(), exact[..., 0], rtol=relative, atol=1e-3)
        log_probs.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in mixture.parameters() if p.grad is not None)


def test_sizes_that_depend_on_u() -> None:
    mixture, u = counting(structure="dispersed_counts"), torch.randn(40, 2)
    outputs = mixture._outputs(u.expand(2, -1, -1))[:, :, 0].double()
    eta, sizes = outputs[..., 1:4], mixture.log_size.double() + outputs[..., 4:]
    exact = torch.distributions.NegativeBinomial(sizes.exp(), logits=eta - sizes)
    n = torch.poisson(torch.rand(40, 3) * 8)
    torch.testing.assert_close(
        mixture.each_log_prob(n, u).double(), exact.log_prob(n.double()).sum(-1), rtol=2e-5, atol=2e-5
    )
    drawn = mixture.member(0).sample(u[:1].expand(40_000, 2), torch.Generator().manual_seed(0))
    spread = (exact.variance[0, 0] + 1 / 12).sqrt().float()
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.05, atol=0)


def test_draws_of_counts_have_one_mixture_whose_size_depends_on_u() -> None:
    mixture, u = counting(dim=4, components=2, structure="independent_counts"), torch.randn(50, 2)
    logits, eta, sizes = mixture._outputs(u.expand(2, -1, -1)).double().unbind(-1)
    exact = torch.distributions.NegativeBinomial(sizes.exp()[:, :, None], logits=(eta - sizes)[:, :, None])
    for n in (torch.poisson(torch.full((50, 4), 3.0)), torch.full((50, 4), 900.0)):
        each = logits.log_softmax(-1)[:, :, None] + exact.log_prob(n.double()[..., None])
        expected = each.logsumexp(-1).sum(-1)
        torch.testing.assert_close(mixture.each_log_prob(n, u).double(), expected, rtol=1e-4, atol=1e-3)
    drawn = mixture.member(1).sample(u[:1].expand(40_000, 2), torch.Generator().manual_seed(0))
    probs = logits[1, 0].softmax(-1)
    mean = float((probs * eta[1, 0].exp()).sum())
    assert float(drawn.mean()) == pytest.approx(mean, rel=0.03)
    assert float((drawn.round() == 0).double().mean()) == pytest.approx(
        float((probs * exact.log_prob(torch.zeros(1).double()).exp()[1, 0, 0]).sum()), abs=0.01
    )


def test_draws_of_zeros_and_ones_are_learned_as_such() -> None:
    mixture, u = counting(dim=6, structure="independent_counts"), torch.randn(500, 2)
    mixture.fit_linear(torch.bernoulli(torch.full((500, 6), 0.3)), u)
    eta = mixture._outputs(u.expand(2, -1, -1))[..., 0, 1]
    assert float(eta.sigmoid().mean()) == pytest.approx(0.3, abs=0.1)
    one, none = (mixture.each_log_prob(torch.full((500, 6), n), u) for n in (1.0, 0.0))
    torch.testing.assert_close(one - none, 6 * eta, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        mixture.each_log_prob(torch.full((500, 6), 2.0), u), torch.full((2, 500), 6 * (-14 - 2 * math.log(2)))
    )
    assert set(mixture.sample(u, torch.Generator().manual_seed(0)).round().unique().tolist()) == {0.0, 1.0}


def test_counts_are_no_mixture_of_gaussians() -> None:
    with pytest.raises(NotImplementedError, match="no parameters of Gaussians"):
        counting().parameters_of(torch.zeros(2, 1, 2))
