"""Training on floats as conditions, and what takes a conditional denoiser."""

import math
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from torch import nn

from openedm.data import InMemory, Pairs
from openedm.likelihood import Likelihood
from openedm.networks import MLP, ConditionalMLP, Network
from openedm.networks.layers import seeded
from openedm.objective import EDM, LogNormal
from openedm.sampling import Auto, DormandPrince, Sampler, sample_batches
from openedm.training import HalfLife, Model, Options, Trainer, load_denoiser, read_model


class Perceptron(nn.Module):
    def __init__(self, size, features, width):
        super().__init__()
        self.features, self.width = features, width
        self.x, self.condition = nn.Linear(size + 1, width), nn.Linear(features, width)
        self.middle, self.out = nn.Linear(width, width), nn.Linear(width, size)

    def forward(self, x, c_noise, condition):
        hidden = self.x(torch.cat([x, c_noise[:, None]], 1)) + self.condition(condition.flatten(1))
        return self.out(nn.functional.silu(self.middle(nn.functional.silu(hidden))))


@dataclass(frozen=True)
class Told(Network):
    width: int = 32

    takes_conditions = True

    def module(self, signature, seed):
        with seeded(seed):
            return Perceptron(signature.in_channels, math.prod(signature.condition_shape), self.width)


def linear_gaussian(count, seed=0):
    """theta ~ N(0, 1), x = theta + ½ n: theta | x ~ N(0.8 x, 0.2)."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, 1, generator=generator)
    return Pairs(theta, theta + 0.5 * torch.randn(count, 1, generator=generator))


@pytest.fixture(scope="module")
def fitted():
    pairs = linear_gaussian(4096)
    options = Options(
        images=200_000, batch_size=256, learning_rate=5e-3, rampup=5_000, average=HalfLife(10_000), schedule="cosine"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which takes longer than the arithmetic
        return Trainer(Model.for_data(pairs, Told()), pairs, EDM(noise=LogNormal(-0.5, 1.5)), options).fit()


def test_the_mean_given_the_data_is_learned(fitted):
    x = torch.tensor([[-1.5], [0.0], [1.0]])
    for one in x:
        # From data of variance 0.2 about 0.8 x: D(z; σ) = (0.2 z + σ² 0.8 x)/(0.2 + σ²), far above the width.
        sigma, z = 2.0, torch.linspace(-2, 2, 9)[:, None]
        exact = (0.2 * z + sigma**2 * 0.8 * one) / (0.2 + sigma**2)
        found = fitted(z, sigma / float(fitted.scale), one[None])
        torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    drawn = Sampler().sample(fitted, range(2000), condition=x[:1])
    # Standard errors: √(0.2/2000) = 0.01 of the mean, 1.6 % of the deviation; the rest is what the network leaves.
    assert drawn.mean().item() == pytest.approx(-1.2, abs=0.1)
    assert drawn.std().item() == pytest.approx(math.sqrt(0.2), rel=0.15)


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(solver=DormandPrince(1e-3)), Auto()], ids=["heun", "adaptive", "auto"]
)
def test_one_row_of_a_condition_is_that_row_for_every_sample(fitted, sampler):
    row = torch.tensor([[0.7]])
    one = sampler.sample(fitted, range(6), condition=row)
    # float32 products of matrices of other shapes.
    torch.testing.assert_close(one, sampler.sample(fitted, range(6), condition=row.expand(6, 1)), rtol=0, atol=1e-5)


def test_one_row_is_enough_for_densities_batches_and_inversions(fitted):
    row, x = torch.tensor([[0.7]]), torch.tensor([[0.1], [0.5], [1.0]])
    rows = row.expand(3, 1)
    likelihood = Likelihood()
    torch.testing.assert_close(
        likelihood.log_prob(fitted, x, row).log_prob, likelihood.log_prob(fitted, x, rows).log_prob, rtol=0, atol=1e-4
    )
    exact = -0.5 * ((x[:, 0] - 0.56) ** 2 / 0.2 + math.log(2 * math.pi * 0.2))
    torch.testing.assert_close(likelihood.log_prob(fitted, x, row).log_prob.float(), exact, rtol=0, atol=0.3)
    adaptive = Sampler(solver=DormandPrince(1e-3))
    torch.testing.assert_close(
        adaptive.invert(fitted, x, condition=row), adaptive.invert(fitted, x, condition=rows), rtol=0, atol=1e-4
    )
    batches = torch.cat(
        [drawn for _, drawn in sample_batches(Sampler(), fitted, range(3), condition=row, batch_size=2)]
    )
    torch.testing.assert_close(batches, Sampler().sample(fitted, range(3), condition=rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("condition", [None, torch.zeros(2, 1), torch.zeros(3, 2), torch.zeros(3)])
def test_a_condition_that_does_not_fit_is_refused_everywhere(fitted, condition):
    x = torch.zeros(3, 1)
    for call in (
        lambda: fitted(x, 1.0, condition),
        lambda: Sampler().sample(fitted, range(3), condition=condition),
        lambda: Sampler(solver=DormandPrince()).invert(fitted, x, condition=condition),
        lambda: list(sample_batches(Sampler(), fitted, range(3), condition=condition)),
        lambda: Likelihood().log_prob(fitted, x, condition),
    ):
        with pytest.raises(ValueError, match=r"condition must (be given, \(batch|have shape \(3) or 1, 1\).*got "):
            call()


def test_the_network_is_given_conditions_in_its_own_dtype(fitted):
    given = torch.tensor([[0.3]], dtype=torch.float64)
    found, single = (fitted(torch.zeros(2, 1), 1.0, condition) for condition in (given, given.float()))
    assert found.dtype == torch.float32
    # Conditions are standardised in their own precision, and rounded then.
    torch.testing.assert_close(found, single, rtol=1e-6, atol=1e-6)


def test_shapes_are_taken_from_the_data_and_survive_a_checkpoint(tmp_path):
    pairs = linear_gaussian(64)
    model = Model.for_data(pairs, Told(8))
    assert (model.condition_shape, model.num_classes) == ((1,), 0)
    options = Options(images=64, batch_size=32, validate_every=32)
    Trainer(model, pairs, options=options, run=tmp_path).fit()
    assert load_denoiser(tmp_path).condition_shape == (1,)
    assert read_model(sorted((tmp_path / "checkpoints").iterdir())[-1]) == model


def test_a_model_may_leave_the_conditions_of_its_data_aside():
    pairs = linear_gaussian(64)
    model = Model.for_data(pairs, MLP(8, 1), conditional=False)
    assert model.condition_shape is None
    Trainer(model, pairs, options=Options(images=64, batch_size=32)).fit()


def test_what_does_not_go_with_conditions_is_refused():
    pairs = linear_gaussian(64)
    with pytest.raises(ValueError, match=r"condition_shape must be \(features,\), a vector for MLP, got \(2, 3\)"):
        Model(MLP(8, 1), event_shape=(1,), condition_shape=(2, 3)).build()
    model = Model.for_data(pairs, Told())
    with pytest.raises(ValueError, match=r"dataset must have conditions of shape \(1,\), got None"):
        Trainer(model, InMemory(torch.randn(8, 1)))
    with pytest.raises(ValueError, match=r"validation must have conditions of shape \(1,\), got \(2,\)"):
        Trainer(model, pairs, validation=Pairs(torch.zeros(4, 1), torch.zeros(4, 2)))
    with pytest.raises(ValueError, match=r"condition_dropout=True with label_dropout=0.1, got False: Model\.for_data"):
        Trainer(model, pairs, options=Options(label_dropout=0.1))
    with pytest.raises(ValueError, match="label_dropout must be 0 without classes or conditions"):
        Trainer(Model.for_data(pairs, MLP(8, 1), conditional=False), pairs, options=Options(label_dropout=0.1))
    with pytest.raises(ValueError, match=r"condition_shape must hold sizes >= 1, got \(0,\)"):
        Model(Told(), condition_shape=(0,))
    with pytest.raises(ValueError, match="condition_dropout must be false without a condition_shape, got True"):
        Model(Told(), condition_dropout=True)


@pytest.mark.parametrize("device", ["cpu", "other"])
def test_conditions_that_the_network_does_not_take_are_refused_before_the_first_step(device, monkeypatch):
    if device == "other":  # where networks check nothing, which would synchronise the device, and return NaN
        monkeypatch.setattr("openedm.networks.conditions._check_missing", lambda *_, **__: None)
    x, condition = torch.zeros(6, 2).normal_(), torch.zeros(6, 3).normal_()
    absent, partly = condition.clone(), condition.clone()
    absent[4], partly[5, 1] = math.nan, math.nan
    options = Options(images=8, batch_size=4, validate_every=0)
    for given, name, found in ((absent, "dataset", "4 has no number"), (partly, "validation", "5 has NaN in part")):
        data, other = Pairs(x, given, allow_nan=True), Pairs(x, condition)
        training, validation = (data, None) if name == "dataset" else (other, data)
        model = Model.for_data(training, ConditionalMLP(width=16, num_blocks=1))
        with pytest.raises(ValueError, match=f"{name} must have conditions that .* that of sample {found}"):
            Trainer(model, training, options=options, validation=validation)
    both = Pairs(x, absent, torch.arange(6) % 2, allow_nan=True)
    with pytest.raises(ValueError, match="of sample 4 has no number"):
        Trainer(Model.for_data(both, ConditionalMLP(width=16, num_blocks=1)), both, options=options)


def test_conditions_without_numbers_are_no_condition_in_training_with_dropout():
    x, condition = torch.zeros(6, 2).normal_(), torch.zeros(6, 3).normal_()
    condition[4] = math.nan
    data = Pairs(x, condition, allow_nan=True)
    model = Model.for_data(data, ConditionalMLP(width=16, num_blocks=1), condition_dropout=True)
    Trainer(model, data, options=Options(images=8, batch_size=4, validate_every=0, label_dropout=0.5)).fit()
