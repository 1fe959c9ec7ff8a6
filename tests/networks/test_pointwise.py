"""Dropout by random bits, and sums and activations that reuse memory."""

import math

import pytest
import torch
from torch.nn import functional

from openedm.networks.pointwise import Dropout, scaled_sum, set_dropout, silu_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_dropout_keeps_a_share_and_the_mean(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(7, 5, 101, 99, dtype=dtype).contiguous(memory_format=torch.channels_last)
    result = Dropout(p).train()(x)
    kept, n = float((result != 0).double().mean()), x.numel()
    assert abs(kept - (1 - p)) < 4 * math.sqrt(p * (1 - p) / n) + 2**-17
    assert result.unique().numel() == 2
    assert float(result.max()) == pytest.approx(1 / (1 - p), rel=1e-2 if dtype == torch.bfloat16 else 1e-3)
    assert result.stride() == x.stride()


def test_entries_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(1)
    dropped = (Dropout(0.3).train()(torch.ones(400_003)) == 0).double() - 0.3
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((dropped[lag:] * dropped[:-lag]).mean())) < 4 * 0.21 / math.sqrt(len(dropped))
    for place in range(4):
        assert abs(float(dropped[place::4].mean())) < 4 * math.sqrt(0.21 / (len(dropped) / 4))


def test_the_gradient_of_dropout_has_the_mask_of_its_result() -> None:
    x = torch.randn(3, 4, 6, 6, requires_grad=True)
    result = Dropout(0.25).train()(x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient * x, result)


def test_dropout_follows_the_seed_and_does_nothing_in_evaluation() -> None:
    x, drop = torch.randn(2, 3, 5), Dropout(0.5)
    torch.manual_seed(3)
    first = drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first)
    assert not torch.equal(drop(x), first)
    assert drop.eval()(x) is x
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert not Dropout(1.0).train()(x).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scaled_sum_has_the_numbers_and_gradients_of_its_formula(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    expected = torch.autograd.grad(((a * 2 + b) * 0.7).square().sum(), (a, b))
    found = scaled_sum(a * 2, b, 0.7)
    torch.testing.assert_close(found, (a * 2 + b) * 0.7)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), (a, b)), expected)


def test_silu_of_a_layer_never_changes_the_input_of_the_layer() -> None:
    x = torch.randn(2, 8, 4, 4)
    for layer in (torch.nn.Identity(), torch.nn.GroupNorm(2, 8)):
        before = x.clone()
        with torch.no_grad():
            torch.testing.assert_close(silu_of(layer, x), functional.silu(layer(before)))
        assert torch.equal(x, before)


def test_the_masks_of_torch_are_drawn_where_they_are_asked_for() -> None:
    x, network = torch.randn(3, 5), torch.nn.Sequential(Dropout(0.5))
    set_dropout(network, by_bits=False)
    torch.manual_seed(2)
    found = network(x)
    torch.manual_seed(2)
    assert torch.equal(found, functional.dropout(x, 0.5))
