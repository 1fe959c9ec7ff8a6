import math

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from openedm.networks.blocks import UNetStyle
from openedm.networks.layers import (
    MODES,
    Conv2d,
    Downsample,
    Init,
    Linear,
    Upsample,
    attention,
    filter_kernel,
    group_norm,
    pad_to_even,
)
from openedm.networks.unet import ResidualPath

TAPS = [(1, 1), (1, 3, 3, 1), (1, -2, 4, 4, -2, 1)]
VARIANCE = {
    "xavier_uniform": 2 / (18 * 9 + 27 * 9),
    "xavier_normal": 2 / (18 * 9 + 27 * 9),
    "kaiming_uniform": 1 / (18 * 9),
    "kaiming_normal": 1 / (18 * 9),
}


def _image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _filter_by_hand(image, taps):
    """Σ_ab F_ab image[2i + a − p, 2j + b − p], zero outside; p = (len(taps) − 1)//2."""
    kernel = filter_kernel(taps).double()
    pad = (len(taps) - 1) // 2
    height, width = image.shape[-2] // 2, image.shape[-1] // 2
    out = torch.zeros(height, width, dtype=image.dtype)
    for i in range(height):
        for j in range(width):
            for a in range(len(taps)):
                for b in range(len(taps)):
                    y, x = 2 * i + a - pad, 2 * j + b - pad
                    if 0 <= y < image.shape[-2] and 0 <= x < image.shape[-1]:
                        out[i, j] += kernel[a, b] * image[y, x]
    return out


@pytest.mark.parametrize("mode", MODES)
def test_initial_weights_have_the_variance_and_the_shape_of_their_mode(mode):
    torch.manual_seed(0)
    layer = Conv2d(18, 27, 3, init=Init(mode, weight_gain=0.5, bias_gain=2))
    standard = math.sqrt(VARIANCE[mode])
    count = layer.weight.numel()
    # The sample variance of `count` values of kurtosis ≤ 3 scatters by √(2/count): five of these.
    assert layer.weight.var().item() == pytest.approx((0.5 * standard) ** 2, rel=5 * math.sqrt(2 / count))
    bound = math.sqrt(3) * 0.5 * standard
    assert (layer.weight.abs().max() <= bound).item() == mode.endswith("uniform")
    assert 0.5 * 2 * standard < layer.bias.std() < 1.5 * 2 * standard


def test_biases_are_zero_unless_asked_for():
    assert Linear(3, 4, init=Init("kaiming_normal")).bias.abs().max() == 0


def test_a_gain_of_zero_leaves_the_random_numbers_to_others():
    torch.manual_seed(3)
    Linear(3, 4, init=Init("kaiming_normal", weight_gain=0))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn == torch.rand(1)


def test_an_unknown_mode_is_refused_by_name():
    with pytest.raises(ValueError, match=r"mode must be one of .*'kaiming_normal'.* got 'he'"):
        Init("he")


@pytest.mark.parametrize("taps", TAPS)
def test_downsampling_applies_the_filter_at_every_second_pixel(taps):
    image = _image(2, 3, 8, 6)
    down = Downsample(3, taps).double()(image)
    for sample in range(2):
        for channel in range(3):
            expected = _filter_by_hand(image[sample, channel], taps)
            torch.testing.assert_close(down[sample, channel], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("taps", TAPS)
def test_upsampling_is_four_times_the_transpose_of_downsampling(taps):
    fine, coarse = _image(1, 2, 8, 10), _image(1, 2, 4, 5, seed=1)
    up, down = Upsample(2, taps).double()(coarse), Downsample(2, taps).double()(fine)
    assert up.shape == fine.shape
    torch.testing.assert_close((up * fine).sum(), 4 * (coarse * down).sum())


@pytest.mark.parametrize("taps", TAPS)
def test_resampling_keeps_constants_away_from_the_border(taps):
    flat = torch.full((1, 1, 16, 16), 3.0)
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(Downsample(1, taps)(flat)[inner], flat[..., :2, :2])
    torch.testing.assert_close(Upsample(1, taps)(flat)[inner], torch.full((1, 1, 26, 26), 3.0))


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (5, 9), (1, 1)])
def test_odd_sizes_are_downsampled_as_if_the_last_row_and_column_stood_twice(taps, height, width):
    image = _image(1, 2, height, width)
    doubled = image[..., [*range(height), height - 1][: height + height % 2], :]
    doubled = doubled[..., [*range(width), width - 1][: width + width % 2]]
    down = Downsample(2, taps).double()
    assert down(image).shape == (1, 2, -(-height // 2), -(-width // 2))
    torch.testing.assert_close(down(image), down(doubled), rtol=0, atol=0)


@pytest.mark.parametrize("taps", [(1, 2, 1), (1,), (1, 4, 6, 4, 1)])
@pytest.mark.parametrize("size", [5, 8, 9])
def test_an_odd_filter_takes_every_second_pixel_of_the_filtered_image_and_returns_to_its_place(taps, size):
    position = torch.arange(size, dtype=torch.float64).expand(1, 1, size, size).contiguous()
    down = Downsample(1, taps).double()(position)
    up = Upsample(1, taps).double()(down)
    inner = (..., slice(2, -2), slice(2, -2))
    assert down.shape[2:] == (-(-size // 2),) * 2
    assert up.shape[2:] == (2 * down.shape[2] - 1,) * 2
    torch.testing.assert_close(down[..., 1:-1, 1:-1], position[..., ::2, ::2][..., 1:-1, 1:-1])
    if len(taps) > 1 and size > 5:
        cut = up[..., :size, :size][inner][..., 2:-2, 2:-2]
        torch.testing.assert_close(cut, position[inner][..., 2:-2, 2:-2])


def test_an_even_image_is_not_padded():
    image = _image(1, 1, 4, 6)
    assert pad_to_even(image) is image


@pytest.mark.parametrize("taps", [(), (1, -1)])
def test_a_filter_without_taps_or_sum_is_refused(taps):
    with pytest.raises(ValueError, match="resample_filter must be taps with a sum other than 0"):
        Downsample(1, taps)


def test_filters_are_no_part_of_the_state_dict():
    assert not Downsample(2, (1, 3, 3, 1)).state_dict()


@pytest.mark.parametrize("taps", TAPS)
def test_the_fused_order_convolves_the_padded_image_and_then_filters_without_padding(taps):
    image = _image(1, 3, 8, 8)
    style = UNetStyle(init=Init("xavier_uniform", bias_gain=1), resample_filter=taps, skip_scale=1.0)
    path = ResidualPath(3, 2, style).double()
    margin = (len(taps) - 1) // 2
    convolved = functional.conv2d(image, path.conv.weight, path.conv.bias, padding=1 + margin)
    kernel = filter_kernel(taps).double().expand(2, 1, -1, -1)
    expected = functional.conv2d(convolved, kernel, stride=2, groups=2)
    torch.testing.assert_close(path(torch.zeros_like(expected), image)[0], expected, rtol=1e-6, atol=1e-6)


def test_group_norm_takes_as_many_groups_as_divide_the_channels():
    groups = {c: group_norm(c, eps=1e-6).num_groups for c in (1, 2, 3, 8, 20, 128, 256, 144, 7)}
    assert groups == {1: 1, 2: 1, 3: 1, 8: 2, 20: 5, 128: 32, 256: 32, 144: 24, 7: 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_group_norm_of_images_with_channels_last_keeps_their_format_and_is_the_same(dtype):
    image = _image(2, 12, 5, 4).to(dtype)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        norm = group_norm(12, eps=1e-6)
        x = image.clone(memory_format=memory_format).requires_grad_()
        y = norm(x)
        assert y.is_contiguous(memory_format=memory_format)
        assert y.dtype == dtype
        y.square().mul(image).sum().backward()
        results.append((y.detach(), x.grad, norm.weight.grad))
    rounding = 8 * torch.finfo(dtype).eps
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding * float(one.abs().max()))


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_is_a_softmax_over_keys_with_q_k_v_innermost(num_heads, memory_format):
    batch, channels, height, width = 2, 8, 3, 5
    qkv = _image(batch, 3 * channels, height, width).contiguous(memory_format=memory_format)
    out = attention(qkv, num_heads)
    per_head = channels // num_heads
    for sample in range(batch):
        for head in range(num_heads):
            rows = [3 * (head * per_head + c) for c in range(per_head)]
            q, k, v = (qkv[sample, [r + role for r in rows]].flatten(1) for role in range(3))
            weights = torch.softmax(q.T @ k / math.sqrt(per_head), dim=1)
            expected = (v @ weights.T).reshape(per_head, height, width)
            torch.testing.assert_close(out[sample, head * per_head : (head + 1) * per_head], expected)
    assert out.is_contiguous(memory_format=memory_format)


def test_attention_has_the_gradient_that_finite_differences_give():
    qkv = _image(1, 6, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: attention(t, 1), (qkv,))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # torch itself, when it first differentiates forward.
def test_attention_has_forward_and_second_derivatives_under_the_plain_kernel():
    qkv = _image(1, 6, 2, 2).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda t: attention(t, 1), (qkv,))
        assert torch.autograd.gradcheck(lambda t: attention(t, 1), (qkv,), check_forward_ad=True)
