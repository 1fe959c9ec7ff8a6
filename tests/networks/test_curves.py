"""Columns that share one function of their place."""

import pytest
import torch

from openedm.inference.mixtures import fit_mixture
from openedm.inference.settings import MixtureOptions
from openedm.networks.structured import build_mixture, mixture_config, mixture_from_config

CURVED = ("constant", "scaled", "banded", "heavy", "counts", "totals", "dispersed_counts")


def curved(structure: str):
    """A mixture of two members whose columns are a curve that depends on the condition."""
    torch.manual_seed(0)
    mixture = build_mixture(structure, 2, 7, members=2, width=8, num_blocks=1, curve=True)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixture


@pytest.mark.parametrize("structure", CURVED)
def test_members_files_and_parts_are_those_of_the_whole(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, u, y = curved(structure), torch.randn(50, 2), torch.poisson(3 * torch.rand(50, 7))
    whole = mixture.each_log_prob(y, u)
    assert whole.requires_grad
    with torch.no_grad():
        monkeypatch.setattr("openedm.networks.curves.PART", 2 * 7 * 16 * 8)  # eight rows at a time
        torch.testing.assert_close(mixture.each_log_prob(y, u), whole.detach())
    torch.testing.assert_close(mixture.member(1).log_prob(y, u), whole[1].detach())
    again = mixture_from_config(mixture_config(mixture))
    assert again is not None
    assert again.curve
    again.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(again.each_log_prob(y, u), whole)


def test_means_of_all_columns_come_before_their_scales() -> None:
    mixture, u = curved("scaled").requires_grad_(False), torch.randn(5, 2)
    columns = mixture.layer_out(torch.nn.functional.silu(mixture.blocks[0](mixture.layer_in(u.expand(2, -1, -1)))))
    _, means, logs, _ = mixture._raw_parameters(mixture._outputs(u.expand(2, -1, -1)))
    linear = mixture.linear(u.expand(2, -1, -1))
    torch.testing.assert_close(means[:, :, 0], columns[..., 0] + linear[..., 1:8])
    torch.testing.assert_close(logs[:, :, 0], columns[..., 1] + linear[..., 8:15] + mixture.log_scale)


def test_a_peak_that_moves_is_learned_from_few_rows() -> None:
    generator, places = torch.Generator().manual_seed(0), torch.linspace(-1, 1, 30)
    u = 2 * torch.rand(1500, 1, generator=generator) - 1
    y = torch.exp(-0.5 * ((places - u) / 0.15).square()) + 0.1 * torch.randn(1500, 30, generator=generator)
    options = MixtureOptions(members=1, width=32, num_blocks=1, steps=500, folds=5)
    left = {}
    for curve in (False, True):
        mixture = fit_mixture(y[:300], u[:300], options, 1, structure="constant", curve=curve).mixture
        mean = mixture.parameters_of(u[None, 300:])[1][0, :, 0]
        left[curve] = float((mean - torch.exp(-0.5 * ((places - u[300:]) / 0.15).square())).square().mean().sqrt())
    assert left[True] < 0.6 * left[False], left


@pytest.mark.parametrize("structure", ["full", "independent", "stationary"])
def test_structures_of_no_columns_are_no_curve(structure: str) -> None:
    with pytest.raises(ValueError, match="curve must be False"):
        build_mixture(structure, 2, 7, curve=True)


def test_a_curve_has_one_component() -> None:
    with pytest.raises(ValueError, match="curve must be False with 2 components"):
        build_mixture("scaled", 2, 7, components=2, curve=True)
