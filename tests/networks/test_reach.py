"""Noise of which columns depend on no more than a few before them: densities, starts, and what is saved."""

import math

import pytest
import torch

from openedm.networks.structured import REACHING, build_mixture, mixture_config, mixture_from_config

DIM = 6


def perturbed(structure: str, reach: int | None, *, curve: bool = False):
    """A mixture of two members that depends on its condition."""
    torch.manual_seed(0)
    sizes = {"members": 2, "components": 1 if curve else 2, "width": 8, "num_blocks": 1, "curve": curve}
    mixture = build_mixture(structure, 2, DIM, reach=reach, **sizes)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixture.requires_grad_(False)


@pytest.mark.parametrize("reach", [0, 2, DIM - 1])
@pytest.mark.parametrize("structure", [s for s in REACHING if s != "heavy"])
def test_the_density_is_that_of_a_matrix_with_so_many_diagonals(structure: str, reach: int) -> None:
    mixture, y, u = perturbed(structure, reach), torch.randn(7, DIM), torch.randn(7, 2)
    weights, means, factors, logs = mixture.parameters_of(u.expand(2, -1, -1))
    errors = torch.einsum("mrkij,mrkj->mrki", factors, y[None, :, None] - means)
    each = weights + logs - 0.5 * errors.square().sum(-1) - 0.5 * DIM * math.log(2 * math.pi)
    torch.testing.assert_close(mixture.each_log_prob(y, u), each.logsumexp(-1))
    most = max(reach, structure == "banded")
    torch.testing.assert_close(factors, factors.tril() - factors.tril(-most - 1))
    assert float(factors.diagonal(-most, -2, -1).abs().min()) > 0


@pytest.mark.parametrize("curve", [False, True])
@pytest.mark.parametrize("structure", REACHING)
def test_all_columns_as_neighbours_are_the_whole_matrix(structure: str, curve: bool) -> None:
    whole, y, u = perturbed(structure, None, curve=curve), torch.randn(7, DIM), torch.randn(7, 2)
    near = perturbed(structure, DIM - 1, curve=curve)
    state = whole.state_dict()
    lower = state["lower"]
    state["lower"] = torch.stack(
        [torch.nn.functional.pad(lower.diagonal(-k, -2, -1), (k, 0)) for k in range(1, DIM)], -2
    )
    near.load_state_dict(state)
    torch.testing.assert_close(near.each_log_prob(y, u), whole.each_log_prob(y, u))
    drawn = [mixture.sample(u, torch.Generator().manual_seed(0)) for mixture in (near, whole)]
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("structure", REACHING)
def test_reach_is_saved_and_members_have_it(structure: str) -> None:
    mixture, y, u = perturbed(structure, 2), torch.randn(7, DIM), torch.randn(7, 2)
    read = mixture_from_config(mixture_config(mixture))
    assert read is not None
    read.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(read.log_prob(y, u), mixture.log_prob(y, u))
    torch.testing.assert_close(mixture.member(1).log_prob(y, u), mixture.each_log_prob(y, u)[1])
    assert "reach" not in mixture_config(perturbed(structure, None))


def test_a_process_is_exact_from_the_start() -> None:
    torch.manual_seed(0)
    u, noise = torch.randn(4000, 2), [torch.randn(4000)]
    for _ in range(9):
        noise.append(0.8 * noise[-1] + 0.6 * torch.randn(4000))
    e = torch.stack(noise, 1)
    exact = torch.distributions.Normal(0.0, 0.6).log_prob(e[:, 1:] - 0.8 * e[:, :-1]).sum(1)
    exact += torch.distributions.Normal(0.0, 1.0).log_prob(e[:, 0])
    mixture, y = build_mixture("constant", 2, 10, reach=1, width=8), e + u @ torch.randn(2, 10)
    mixture.fit_linear(y, u)
    torch.testing.assert_close(mixture.log_prob(y, u).detach(), exact, atol=0.3, rtol=0.05)


@pytest.mark.parametrize("reach", [-1, DIM])
def test_a_reach_beyond_the_columns_is_refused(reach: int) -> None:
    with pytest.raises(ValueError, match=f"reach must be .*5.*, got {reach}"):
        build_mixture("constant", 2, DIM, reach=reach)
