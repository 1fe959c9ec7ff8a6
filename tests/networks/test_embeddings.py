import math

import numpy as np
import pytest
import torch

from openedm.networks.embeddings import (
    ClassVector,
    FourierEmbedding,
    NoiseEmbedding,
    PositionalEmbedding,
    SmoothEmbedding,
)

C_NOISE = torch.tensor([-1.5, 0.0, 0.3, 999.0])


@pytest.mark.parametrize(("endpoint", "last"), [(True, 1e-4), (False, 10000 ** (-7 / 8))])
def test_positional_frequencies_fall_geometrically_from_one(endpoint, last):
    omega = PositionalEmbedding(16, endpoint=endpoint).omega.double()
    torch.testing.assert_close(omega, torch.from_numpy(np.geomspace(1, last, 8)), rtol=1e-6, atol=0)


def test_the_halves_are_cosines_and_sines_in_the_order_asked_for():
    embedding = PositionalEmbedding(8, endpoint=True)
    angle = C_NOISE[:, None].double() * embedding.omega.double()
    # One unit in the last place of an angle of 999 is 6e-5.
    torch.testing.assert_close(embedding(C_NOISE)[:, :4].double(), angle.cos(), rtol=0, atol=1e-4)
    torch.testing.assert_close(embedding(C_NOISE)[:, 4:].double(), angle.sin(), rtol=0, atol=1e-4)
    swapped = PositionalEmbedding(8, endpoint=True, order=("sin", "cos"))(C_NOISE)
    assert torch.equal(swapped, embedding(C_NOISE).roll(4, dims=1))


def test_an_embedding_of_two_channels_has_the_frequency_one():
    assert PositionalEmbedding(2, endpoint=True).omega.tolist() == [1.0]


def test_fourier_frequencies_are_normal_with_sixteen_turns():
    torch.manual_seed(0)
    turns = FourierEmbedding(20_000).omega / (2 * math.pi)
    assert turns.std().item() == pytest.approx(16, rel=5 / math.sqrt(2 * 10_000))
    assert abs(turns.mean().item()) < 5 * 16 / math.sqrt(10_000)


def test_only_frequencies_that_cannot_be_derived_are_kept_in_the_state_dict():
    assert list(FourierEmbedding(8).state_dict()) == ["omega"]
    assert not PositionalEmbedding(8, endpoint=True).state_dict()
    assert not SmoothEmbedding(8).state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: PositionalEmbedding(32, endpoint=True), lambda: FourierEmbedding(32)])
def test_a_network_in_half_precision_still_embeds_in_float32(make, dtype):
    embedding = make()
    expected = embedding(C_NOISE)
    assert torch.equal(embedding.to(dtype)(C_NOISE), expected)


def test_double_precision_embeds_in_float64():
    embedding = PositionalEmbedding(8, endpoint=True).double()
    c_noise = torch.tensor([999.0 + 1e-9], dtype=torch.float64)
    assert embedding(c_noise).dtype == torch.float64
    # What float32 cannot tell apart from 999.
    assert (embedding(c_noise) - embedding(c_noise - 1e-9)).abs().max() > 1e-10


def _resolved(embedding: NoiseEmbedding) -> int:
    """How many independent functions of EDM's c_noise the features give: singular values above 1 % of the largest."""
    c_noise = torch.linspace(math.log(0.002) / 4, math.log(80) / 4, 400)
    features = embedding(c_noise)
    values = torch.linalg.svdvals(features - features.mean(0))
    return int((values > 0.01 * values[0]).sum())


def test_smooth_features_resolve_what_positional_ones_cannot_within_edms_range():
    smooth, positional = SmoothEmbedding(64), PositionalEmbedding(64, endpoint=True)
    assert _resolved(smooth) >= 7
    assert _resolved(positional) <= 4


def test_smooth_features_turn_at_most_once_in_a_unit_so_that_close_levels_look_alike():
    c_noise = torch.linspace(-3, 3, 601, dtype=torch.float64).requires_grad_()
    smooth = SmoothEmbedding(64).double()
    slopes = torch.autograd.functional.jacobian(lambda c: smooth(c).sum(0), c_noise)
    assert slopes.abs().max() <= 2 * math.pi * (1 + 1e-6)


@pytest.mark.parametrize("levels", [torch.linspace(-1.6, 1.1, 200), torch.arange(0.0, 1000.0)])
def test_smooth_features_tell_all_levels_apart_in_edms_range_and_in_vps(levels):
    features = SmoothEmbedding(64)(levels)
    distances = torch.cdist(features, features) + 1e9 * torch.eye(len(levels))
    assert distances.min() > 1e-2


def test_a_class_is_a_one_hot_row_and_no_class_is_zero():
    rows = ClassVector(4)(torch.tensor([3, -1, 0]), like=torch.zeros(3, dtype=torch.float64))
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert ClassVector(4)(None, like=torch.zeros(2)).tolist() == [[0] * 4] * 2


def test_soft_rows_pass_unchanged():
    soft = torch.tensor([[0.25, 0.75], [0.0, 0.0]])
    assert torch.equal(ClassVector(2)(soft, like=torch.zeros(2)), soft)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.tensor([0, 4]), r"condition must be labels from -1 \(none\) to 3, got 0 … 4"),
        (torch.tensor([-2, 0]), r"condition must be labels from -1 \(none\) to 3, got -2 … 0"),
        (torch.tensor([1]), r"condition must be integer labels of shape \(2,\)"),
        (torch.tensor([1, 2, 3]), r"condition must be integer labels of shape \(2,\)"),
        (torch.zeros(2, 3), r"condition must have shape \(2, 4\), got \(2, 3\)"),
        (torch.zeros(1, 4), r"condition must have shape \(2, 4\), got \(1, 4\)"),
    ],
)
def test_a_condition_of_another_shape_or_range_is_refused(condition, message):
    with pytest.raises(ValueError, match=message):
        ClassVector(4)(condition, like=torch.zeros(2))
