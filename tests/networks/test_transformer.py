import math

import pytest
import torch

from openedm.denoiser import Preconditioned
from openedm.networks import JointTransformer, Transformer
from openedm.objective import EDMWeighting, LogNormal, denoising_loss
from openedm.preconditioning import EDM

SIZES = {"width": 16, "num_blocks": 2, "num_heads": 2}


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _awake(network):
    """The network with random weights also where it starts at zero."""
    for i, parameter in enumerate(network.parameters()):
        if parameter.abs().max() == 0:
            parameter.data = _normal(*parameter.shape, seed=i) / math.sqrt(parameter.shape[-1])
    return network


def _conditional(seed=0, **options):
    return _awake(Transformer(**SIZES).build((3,), seed=seed, **{"condition_shape": (2, 2), **options}))


def _joint(seed=0, **options):
    return _awake(JointTransformer(**SIZES).build((4,), condition_shape=(8,), seed=seed, **options))


def _mixed(values, known):
    flags = torch.tensor(known, dtype=torch.float32).expand_as(values)
    return torch.cat([values * flags, flags], 1)


def test_an_untrained_network_returns_zero_and_learns_all_the_same():
    network = Transformer(**SIZES).build((3,), condition_shape=(4,), seed=0)
    out = network(_normal(5, 3), torch.zeros(5), _normal(5, 4))
    assert out.abs().max() == 0
    (out - 1).square().sum().backward()
    assert network.tokens.heads.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["conditional", "joint"])
def test_every_weight_has_a_part_in_the_output(kind):
    network = _conditional(augment_dim=2) if kind == "conditional" else _joint(augment_dim=2)
    known = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
    x = _normal(3, network.signature.in_channels)
    condition = _normal(3, 2, 2) if kind == "conditional" else torch.cat([_normal(3, 4, seed=1) * known, known], 1)
    network(x, torch.linspace(-1, 1, 3), condition, torch.ones(3, 2)).square().sum().backward()
    unused = [key for key, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not unused


def test_the_output_depends_on_the_noise_level_within_edms_range():
    network = _conditional()
    c_noise = torch.tensor([0.002, 0.02, 0.2, 2.0, 20.0]).log() / 4
    out = network(_normal(1, 3).expand(5, 3), c_noise, _normal(1, 2, 2).expand(5, 2, 2))
    assert torch.cdist(out, out).add(1e9 * torch.eye(5)).min() > 0.01


def test_every_number_of_the_data_tells_on_every_parameter():
    network = _conditional()
    x, condition = _normal(1, 3), _normal(1, 2, 2).requires_grad_(True)
    for i in range(3):
        (gradient,) = torch.autograd.grad(network(x, torch.zeros(1), condition)[0, i], condition)
        assert gradient.abs().min() > 0


def test_of_a_known_variable_only_its_value_counts_and_of_a_latent_one_only_the_noisy_number():
    network, c_noise = _joint(), torch.zeros(2)
    noisy, values = _normal(2, 4), _normal(2, 4, seed=1)
    condition = _mixed(values, [1, 0, 1, 0])
    out = network(noisy, c_noise, condition)
    known_changed = noisy + torch.tensor([1.0, 0, 1, 0])
    assert torch.equal(network(known_changed, c_noise, condition), out)
    latent_changed = condition + torch.tensor([0, 1.0, 0, 1, 0, 0, 0, 0])
    assert torch.equal(network(noisy, c_noise, latent_changed), out)
    assert (network(noisy, c_noise, _mixed(values + 1, [1, 0, 1, 0])) - out).abs().max() > 1e-3
    assert (network(noisy + 1, c_noise, condition) - out).abs().max() > 1e-3
    as_noisy = _mixed(torch.where(torch.tensor([True, False, True, False]), values, noisy), [0, 0, 0, 0])
    assert (network(as_noisy[:, :4] + condition[:, :4], c_noise, as_noisy * 0) - out).abs().max() > 1e-3


def test_one_sample_does_not_see_another():
    network, x, c_noise, condition = _conditional(), _normal(4, 3), torch.linspace(-1, 1, 4), _normal(4, 2, 2)
    together = network(x, c_noise, condition)
    torch.testing.assert_close(together[1:2], network(x[1:2], c_noise[1:2], condition[1:2]), atol=1e-5, rtol=1e-5)


def test_a_single_condition_is_that_of_all_samples():
    network, x, c_noise, condition = _conditional(), _normal(4, 3), torch.linspace(-1, 1, 4), _normal(1, 2, 2)
    assert torch.equal(network(x, c_noise, condition), network(x, c_noise, condition.expand(4, 2, 2)))


@pytest.mark.parametrize("build", [_conditional, _joint])
def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(build):
    before = torch.get_rng_state()
    one, again, other = (build(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["tokens.scales"], other["tokens.scales"])


def test_it_may_have_no_data_or_classes_instead():
    plain = Transformer(**SIZES).build((3,), seed=0)
    assert plain(_normal(2, 3), torch.zeros(2)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"condition must be None: .*condition_shape=None"):
        plain(_normal(2, 3), torch.zeros(2), torch.zeros(2, 1))
    classes = _awake(Transformer(**SIZES).build((3,), num_classes=2, seed=0))
    x = _normal(1, 3).expand(2, 3)
    out = classes(x, torch.zeros(2), torch.tensor([0, 1]))
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_further_outputs_come_after_the_first_of_every_number():
    network = _conditional(out_channels=6)
    x, c_noise, condition = _normal(2, 3), torch.zeros(2), _normal(2, 2, 2)
    both = network(x, c_noise, condition)
    assert both.shape == (2, 6)
    network.tokens.heads.data[:, 1] = 0
    assert torch.equal(network(x, c_noise, condition)[:, :3], both[:, :3])
    assert network(x, c_noise, condition)[:, 3:].abs().max() == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(2, 4)}, r"x must have shape \(batch, 3\), got \(2, 4\)"),
        ({"c_noise": torch.zeros(3)}, r"c_noise must have shape \(2,\), got \(3,\)"),
        ({"condition": None}, r"condition must have shape \(batch, 2, 2\), got None"),
        ({"condition": torch.zeros(2, 4)}, r"condition must have shape \(2, 2, 2\), got \(2, 4\)"),
        ({"condition": torch.zeros(3, 2, 2)}, r"condition must have shape \(2, 2, 2\), got \(3, 2, 2\)"),
        ({"augment": torch.zeros(2, 9)}, r"augment must be None: .*augment_dim=0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs, message):
    with pytest.raises(ValueError, match=message):
        _conditional()(
            **{"x": torch.zeros(2, 3), "c_noise": torch.zeros(2), "condition": torch.zeros(2, 2, 2), **inputs}
        )


@pytest.mark.parametrize(
    ("network", "shapes", "message"),
    [
        (Transformer(), {"event_shape": (3, 8, 8)}, r"event_shape must be \(features,\), each >= 1, got \(3, 8, 8\)"),
        (Transformer(), {"condition_shape": (0,)}, r"condition_shape must hold sizes >= 1, got \(0,\)"),
        (Transformer(), {"condition_dropout": True}, r"condition_dropout must be false without a condition_shape"),
        (Transformer(), {"out_channels": 4}, r"out_channels must be a multiple of the number of features, 3, got 4"),
        (JointTransformer(), {"condition_shape": (3,)}, r"condition_shape must be \(6,\), values and flags"),
        (JointTransformer(), {}, r"condition_shape must be \(6,\), values and flags, .* got None"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_when_it_is_built(network, shapes, message):
    with pytest.raises(ValueError, match=message):
        network.build(**{"event_shape": (3,), **shapes})


@pytest.mark.parametrize("cls", [Transformer, JointTransformer])
def test_sizes_out_of_range_are_refused_by_name(cls):
    for name in ("width", "num_blocks", "num_heads"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            cls(**{name: 0})
    with pytest.raises(ValueError, match=r"width must be a multiple of num_heads=4, got 10"):
        cls(width=10)


def test_it_learns_the_exact_denoiser_of_a_gaussian_posterior():
    """θ ~ N(0, 1), x = θ + N(0, ½²): θ | x ~ N(0.8 x, 0.2). An untrained network has a loss of 1."""
    network = Transformer(width=32, num_blocks=2, num_heads=2).build((1,), condition_shape=(1,), seed=0)
    denoiser = Preconditioned(network, EDM(), sigma_data=1.0)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        theta = torch.randn(128, 1, generator=generator)
        x = theta + 0.5 * torch.randn(128, 1, generator=generator)
        sigma = LogNormal(-0.6, 1.6).sample(128, generator, stratified=True)
        noise = torch.randn(128, 1, generator=generator)
        denoised = denoiser(theta + sigma.float()[:, None] * noise, sigma, x)
        loss = denoising_loss(denoised, theta, EDMWeighting().weight(sigma, 1.0)).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(500, 1, generator=generator) * math.sqrt(1.25)
    for sigma in (0.1, 0.5, 5.0):
        noisy = 0.8 * x + math.sqrt(0.2 + sigma**2) * torch.randn(500, 1, generator=generator)
        exact = (0.8 * x * sigma**2 + noisy * 0.2) / (sigma**2 + 0.2)
        weight = EDMWeighting().weight(torch.tensor(sigma, dtype=torch.float64), 1.0).expand(500)
        with torch.no_grad():
            error = denoising_loss(denoiser(noisy, sigma, x), exact, weight).total
        assert error.mean() < 0.05
