import math

import pytest
import torch

from openedm.denoiser import Preconditioned
from openedm.exact import ExactDataset
from openedm.networks import MLP
from openedm.objective import EDMWeighting, LogNormal, denoising_loss
from openedm.preconditioning import EDM


def _mlp(seed=0, awake=True, **options):
    """A small network; `awake`: with random weights also where it starts at zero."""
    torch.manual_seed(seed)
    mlp = MLP(width=16, num_blocks=2).build((3,), **options)
    if awake:
        for parameter in mlp.parameters():
            if parameter.ndim == 2 and parameter.abs().max() == 0:
                parameter.data = torch.randn_like(parameter) / math.sqrt(parameter.shape[1])
    return mlp


def _inputs(batch=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, generator=generator), torch.linspace(-1.5, 1, batch)


def test_an_untrained_network_returns_zero_whatever_the_noise_level_and_learns_all_the_same():
    mlp = _mlp(awake=False)
    x, c_noise = _inputs()
    assert mlp(x, c_noise).abs().max() == 0
    (mlp(x, c_noise) - 1).square().sum().backward()
    assert mlp.layer_out.weight.grad.abs().max() > 0


def test_untrained_blocks_pass_their_input_on():
    mlp = _mlp(awake=False)
    h, e = torch.randn(2, 16), torch.randn(2, 16)
    for block in mlp.blocks:
        assert torch.equal(block(h, e), h)


def test_every_weight_has_a_part_in_the_output():
    mlp = _mlp(num_classes=2, augment_dim=2)
    x, c_noise = _inputs()
    mlp(x, c_noise, torch.tensor([0, 1, 0, 1]), torch.ones(4, 2)).square().sum().backward()
    assert not [name for name, p in mlp.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_the_output_depends_on_the_noise_level_within_edms_range():
    mlp = _mlp()
    x = _inputs()[0][:1].expand(50, 3)
    c_noise = torch.tensor([0.002, 0.02, 0.2, 2.0, 20.0]).log() / 4
    out = mlp(x[:5], c_noise)
    assert torch.cdist(out, out).add(1e9 * torch.eye(5)).min() > 0.01


def test_labels_one_hot_rows_and_their_absence_mean_the_same():
    mlp = _mlp(num_classes=3)
    x, c_noise = _inputs(3)
    labels, rows = torch.tensor([2, -1, 0]), torch.tensor([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert torch.equal(mlp(x, c_noise, labels), mlp(x, c_noise, rows))
    assert torch.equal(mlp(x, c_noise, torch.full((3,), -1)), mlp(x, c_noise))
    differs = (mlp(x, c_noise, labels) - mlp(x, c_noise)).abs().amax(1)
    assert differs[1] == 0
    assert differs[[0, 2]].min() > 1e-3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(2, 4)}, r"x must have shape \(batch, 3\), got \(2, 4\)"),
        ({"x": torch.zeros(2, 3, 1)}, r"x must have shape \(batch, 3\), got \(2, 3, 1\)"),
        ({"condition": torch.tensor([0, 1])}, r"condition must be None: .*num_classes=0"),
        ({"augment": torch.zeros(2, 9)}, r"augment must be None: .*augment_dim=0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs, message):
    with pytest.raises(ValueError, match=message):
        _mlp()(**{"x": torch.zeros(2, 3), "c_noise": torch.zeros(2), **inputs})


@pytest.mark.parametrize("name", ["width", "num_blocks"])
def test_sizes_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be >= "):
        MLP(**{name: -1})


@pytest.mark.parametrize("name", ["num_classes", "augment_dim", "out_channels"])
def test_shapes_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be >= "):
        MLP().build((3,), **{name: -1})


def test_it_learns_the_exact_denoiser_of_two_classes_of_points():
    """In units of the loss an untrained network is off by 1.0, 0.7 and 0.4 at the three noise levels."""
    data, labels = torch.tensor([[-0.5, 0.2], [0.5, 0.1], [0.0, -0.6]]), torch.tensor([0, 0, 1])
    exact = ExactDataset(data, labels)
    torch.manual_seed(0)
    denoiser = Preconditioned(MLP(width=64, num_blocks=2).build((2,), num_classes=2), EDM())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        picked = torch.randint(3, (128,), generator=generator)
        sigma = LogNormal().sample(128, generator, stratified=True)
        noise = torch.randn(128, 2, generator=generator)
        denoised = denoiser(data[picked] + sigma.float()[:, None] * noise, sigma, labels[picked])
        loss = denoising_loss(denoised, data[picked], EDMWeighting().weight(sigma, 0.5)).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for sigma in (0.1, 0.3, 1.0):
        picked = torch.arange(999) % 3
        x = data[picked] + sigma * torch.randn(999, 2, generator=generator)
        weight = EDMWeighting().weight(torch.tensor(sigma, dtype=torch.float64), 0.5).expand(999)
        with torch.no_grad():
            error = denoising_loss(denoiser(x, sigma, labels[picked]), exact(x, sigma, labels[picked]), weight).total
        assert error.mean() < 0.05
