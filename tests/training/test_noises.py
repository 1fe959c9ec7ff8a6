"""Several noise levels for each sample of a batch, and conditions that are embedded once for all of them."""

import math

import pytest
import torch
from torch import nn

from openedm import preconditioning
from openedm.data import Pairs
from openedm.denoiser import Preconditioned
from openedm.networks import ConditionalMLP, ImageSummary, VectorSummary
from openedm.objective import EDM
from openedm.training import Model, Options, Trainer
from openedm.training.steps import LossModule, StepNoise

CPU = torch.device("cpu")
N, NOISES = 12, 3


def model(network: ConditionalMLP, condition_shape: tuple[int, ...] = (5,)) -> Model:
    return Model(
        network=network,
        preconditioning=preconditioning.EDM(),
        sigma_data=1.0,
        event_shape=(2,),
        condition_shape=condition_shape,
        images=False,
    )


def moved(denoiser: Preconditioned) -> Preconditioned:
    """With weights for which nothing is zero."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=random))
    return denoiser


def draw(chosen: Model, noises: int) -> tuple[torch.Tensor, torch.Tensor, StepNoise]:
    random = torch.Generator().manual_seed(0)
    assert chosen.condition_shape is not None
    clean, condition = torch.randn(N, 2, generator=random), torch.randn(N, *chosen.condition_shape, generator=random)
    options = Options(batch_size=N, noises=noises, images=N)
    return clean, condition, StepNoise.draw(chosen, EDM(), options, 0, CPU)


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8)])
def test_the_loss_is_that_of_the_samples_repeated(shape: tuple[int, ...]) -> None:
    summary = ImageSummary(width=4) if len(shape) == 3 else VectorSummary(width=8)
    chosen = model(ConditionalMLP(width=8, summary=summary), shape)
    clean, condition, noise = draw(chosen, NOISES)
    assert noise.noise.shape == (N * NOISES, 2)
    module = LossModule(moved(chosen.build(0)), EDM(), noises=NOISES).train()
    found = module(clean, condition=condition, **noise.of(slice(0, N))).total
    plain = LossModule(moved(chosen.build(0)), EDM()).train()
    repeated = [value.repeat_interleave(NOISES, 0) for value in (clean, condition)]
    expected = plain(repeated[0], condition=repeated[1], **noise.of(slice(0, N))).total
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    for name, one in module.named_parameters():
        torch.testing.assert_close(one.grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_a_condition_is_embedded_once_for_all_its_levels_in_training_alone() -> None:
    chosen = model(ConditionalMLP(width=8))
    denoiser = chosen.build(0)
    seen: list[int] = []
    embedding = denoiser.network.summary
    assert isinstance(embedding, nn.Module)
    embedding.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    clean, condition, noise = draw(chosen, NOISES)
    module = LossModule(denoiser, EDM(), noises=NOISES)
    for training in (True, False):
        module.train(training)(clean, condition=condition, **noise.of(slice(0, N)))
    assert seen == [N, N * NOISES]


def test_noise_on_the_condition_is_of_the_size_asked_for_and_in_training_alone() -> None:
    network = model(ConditionalMLP(width=8, condition_noise=0.5)).build(0).train().network
    seen: list[torch.Tensor] = []
    network.summary.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    condition = torch.zeros(4000, 5)
    for training in (True, False):
        network.train(training)(torch.zeros(4000, 2), torch.zeros(4000), condition)
    assert float(seen[0].std()) == pytest.approx(0.5, rel=0.02)
    assert float(seen[1].abs().max()) == 0
    with pytest.raises(ValueError, match="condition_noise must be >= 0, got -1"):
        ConditionalMLP(condition_noise=-1)
    with pytest.raises(ValueError, match="condition_noise must be a finite number"):
        ConditionalMLP(condition_noise=math.inf)


def test_rounds_of_a_batch_share_its_noise(tmp_path) -> None:
    random = torch.Generator().manual_seed(0)
    data = Pairs(torch.randn(64, 2, generator=random), torch.randn(64, 5, generator=random))
    losses = []
    for accumulate in (1, 2):
        options = Options(
            images=96,
            batch_size=16,
            noises=4,
            accumulate=accumulate,
            rampup=0,
            validate_every=48,
            checkpoint_every=48,
            snapshot_every=0,
        )
        trainer = Trainer(model(ConditionalMLP(width=8)), data, EDM(), options, run=tmp_path / str(accumulate))
        weights = trainer.fit(progress=False).state_dict()
        losses.append(torch.cat([weight.flatten().double() for weight in weights.values()]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("noises", [0, 1025])
def test_the_number_of_levels_is_checked(noises: int) -> None:
    with pytest.raises(ValueError, match=r"noises must be .*, got "):
        Options(noises=noises)
