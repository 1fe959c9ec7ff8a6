import math

import pytest
import torch

from openedm.data import InMemory
from openedm.denoiser import FunctionDenoiser
from openedm.exact import ExactDataset, GaussianMixture
from openedm.objective import EDM, VP, InverseVariance, LogNormal
from openedm.training import Validation

CPU = torch.device("cpu")


def measure(denoiser, dataset, **arguments):
    defaults = {"objective": EDM(), "sigma_data": 0.5, "device": CPU}
    return Validation(dataset, **(defaults | arguments)).measure(denoiser)


def test_the_loss_of_a_gaussians_exact_denoiser_is_the_closed_form():
    # D − y is Gaussian with variance λσ²/(λ+σ²) along each eigenvector; the mean over N samples of a sum of two such
    # squares /2 has standard error √(Σ v²/2)/√N.
    eigenvalues = torch.tensor([0.04, 1.0], dtype=torch.float64)
    rotation = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    exact = GaussianMixture([1.0], [[1.0, -2.0]], (rotation @ eigenvalues.diag() @ rotation.T)[None])
    data = InMemory(exact.sample(20_000, torch.Generator().manual_seed(0)))
    found = measure(exact, data, samples=20_000, batch_size=4000)
    for sigma, error in zip(found.sigmas, found.errors, strict=True):
        v = eigenvalues * sigma**2 / (eigenvalues + sigma**2)
        standard_error = math.sqrt(v.square().sum().item() / 2 / 20_000)
        assert error == pytest.approx(v.mean().item(), abs=4 * standard_error)


def test_the_loss_with_edms_weights_is_one_where_the_denoiser_can_do_nothing_and_the_data_are_centred():
    # λ ‖c_skip x − y‖²/n for data of variance σ_d²: unit variance at every level, standard error √(2/N).
    data = InMemory(0.5 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)))
    shrink = FunctionDenoiser(lambda x, sigma, _: x * 0.25 / (sigma.item() ** 2 + 0.25))
    found = measure(shrink, data, samples=20_000, batch_size=20_000)
    assert found.losses == pytest.approx([1] * 8, abs=5 * math.sqrt(2 / 20_000))
    assert found.loss == pytest.approx(sum(found.losses) / 8, rel=1e-12)


@pytest.mark.parametrize("objective", [EDM(), VP(), EDM(noise=LogNormal(0.5, 0.3), weighting=InverseVariance())])
def test_levels_are_equally_likely_under_the_objective_and_weighted_by_it(objective):
    data = InMemory(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)))
    found = measure(FunctionDenoiser(lambda x, sigma, _: 0 * x), data, objective=objective, levels=5, sigma_data=0.7)
    u = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    assert found.sigmas == pytest.approx(objective.for_data(0.7).noise.quantile(u).tolist(), rel=1e-12)
    assert list(found.sigmas) == sorted(found.sigmas)
    squares = data.fetch(range(10))[0].double().square().mean().item()
    assert found.errors == pytest.approx([squares] * 5, rel=1e-6)
    weights = objective.weighting.weight(torch.tensor(found.sigmas, dtype=torch.float64), 0.7)
    assert found.losses == pytest.approx((weights * squares).tolist(), rel=1e-6)


def test_tails_are_levels_that_training_rarely_sees_and_change_nothing_else(vectors):
    denoiser = ExactDataset(vectors.fetch(range(96))[0])
    without, found = (measure(denoiser, vectors, tails=tails) for tails in (False, True))
    assert (without.sigmas, without.errors, without.loss) == (found.sigmas, found.errors, found.loss)
    assert (without.tail_sigmas, without.tail_losses) == ((), ())
    # p(σ) of EDM: ln σ is N(−1.2, 1.2²).
    expected = [math.exp(-1.2 + 1.2 * z) for z in (-3.5, -2.25, 2.25, 3.5)]
    assert found.tail_sigmas == pytest.approx(expected, rel=1e-6)
    levels, losses = zip(*found.curve, strict=True)
    assert list(levels) == sorted(levels)
    assert len(losses) == 12
    # At σ = 20 the denoiser knows the mean alone, and λ = 1/σ_d² + 1/σ² is 4.
    assert found.tail_losses[-1] == pytest.approx(
        4 * vectors.fetch(range(96))[0].double().var(0).mean().item(), rel=0.1
    )


def test_a_tail_that_is_not_finite_is_said_and_leaves_the_mean(vectors):
    broken = FunctionDenoiser(lambda x, sigma, _: x * (math.nan if sigma.item() > 4 else 0))
    with pytest.warns(
        RuntimeWarning, match=r"the validation loss is not finite, from sigma = 4.482 on: .*it is 129.7 without"
    ):
        found = measure(broken, vectors, tails=True)
    assert math.isfinite(found.loss)
    assert math.isnan(found.tail_losses[-1])


def test_the_batch_size_changes_memory_only(vectors):
    # ExactDataset computes each row in float64: what differs is the noise, if anything, and sums of 96 terms.
    denoiser = ExactDataset(vectors.fetch(range(96))[0])
    one, seven, all_ = (measure(denoiser, vectors, batch_size=size) for size in (1, 7, 96))
    assert one.errors == pytest.approx(all_.errors, rel=1e-5)
    assert seven.errors == pytest.approx(all_.errors, rel=1e-5)


def test_a_measurement_can_be_repeated_and_depends_on_the_seed_alone(vectors):
    denoiser = ExactDataset(vectors.fetch(range(96))[0])
    torch.manual_seed(1)
    first = measure(denoiser, vectors)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert measure(denoiser, vectors) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert measure(denoiser, vectors, seed=1).losses != first.losses


def test_two_denoisers_see_the_same_noisy_samples(vectors):
    def watched(seen):
        return FunctionDenoiser(lambda x, sigma, _: seen.append(x.clone()) or x)

    one, two = [], []
    measure(watched(one), vectors, samples=50)
    measure(watched(two), vectors, samples=50)
    assert len(one) == 8
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_noise_is_unit_gaussian_and_other_at_every_level_and_for_every_sample():
    seen = []
    zeros = InMemory(torch.zeros(500, 4))
    measure(
        FunctionDenoiser(lambda x, sigma, _: seen.append(x / sigma.item()) or x), zeros, samples=500, batch_size=100
    )
    noise = torch.cat(seen).double()
    assert noise.shape == (500 * 8, 4)
    assert len(noise.unique()) > 0.99 * noise.numel()
    # 16 000 draws: standard errors of the mean 1/√16000 and of the variance √(2/16000).
    assert noise.mean().item() == pytest.approx(0, abs=4 / math.sqrt(16_000))
    assert noise.square().mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / 16_000))


def test_samples_at_even_distances_and_their_labels_are_used():
    seen = []

    class Labelled(FunctionDenoiser):
        num_classes = 20

    data = InMemory(torch.arange(20.0)[:, None], torch.arange(20))
    measure(Labelled(lambda x, sigma, labels: seen.append(labels.tolist()) or x), data, samples=5, levels=2)
    assert seen == [[0, 4, 8, 12, 16]] * 2
    seen.clear()
    measure(FunctionDenoiser(lambda x, sigma, labels: seen.append(labels) or x), data, levels=1)
    assert seen == [None]


def test_no_gradients_are_recorded(trainer, vectors):
    run = trainer()
    grad = []
    run.denoiser.register_forward_hook(lambda _, inputs, output: grad.append(output.requires_grad))
    measure(run.denoiser.eval(), vectors, levels=1)
    assert grad == [False]


@pytest.mark.parametrize("name", ["levels", "samples"])
def test_numbers_below_one_are_errors_that_name_the_argument(name, vectors):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        measure(FunctionDenoiser(lambda x, sigma, _: x), vectors, **{name: 0})
