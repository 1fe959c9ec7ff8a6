"""The draws of the published sampling script: the same samples come out for the same seeds, with churn and classes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from openedm.denoiser import FunctionDenoiser
from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import Churn, PublishedNoise, Sampler, SeededNoise

MIXTURE = GaussianMixture([0.4, 0.6], [[-0.5, 0.2], [0.5, 0.1]], [[[0.05, 0], [0, 0.02]], [[0.02, 0], [0, 0.05]]])


def denoise(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
    shift = 0.0 if condition is None else condition[:, None].double() / 10
    return MIXTURE(x - shift, sigma) + shift


def algorithm_2(
    seeds: list[int], num_classes: int, num_steps: int, churn: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor | None]:
    """Algorithm 2 for one sample after the other, with a draw at every step, written from the paper."""
    s_churn, s_min, s_max, s_noise = churn
    levels = [*Karras(num_steps, 0.002, 80.0).sigmas().tolist(), 0.0]
    samples, classes = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed % 2**32)
        start = torch.randn(2, generator=generator)
        label = torch.randint(num_classes, (), generator=generator)[None] if num_classes else None
        x = start.double()[None] * levels[0]
        for sigma, sigma_next in pairwise(levels):
            gamma = min(s_churn / num_steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
            raised = sigma + gamma * sigma
            noise = torch.randn(2, generator=generator, dtype=torch.float64)
            x = x + math.sqrt(raised**2 - sigma**2) * s_noise * noise
            slope = (x - denoise(x, torch.tensor(raised, dtype=torch.float64), label)) / raised
            end = x + (sigma_next - raised) * slope
            if sigma_next > 0:
                slope_next = (end - denoise(end, torch.tensor(sigma_next, dtype=torch.float64), label)) / sigma_next
                end = x + (sigma_next - raised) * (slope + slope_next) / 2
            x = end
        samples.append(x[0])
        classes.append(label)
    return torch.stack(samples), None if num_classes == 0 else torch.cat([c for c in classes if c is not None])


@pytest.mark.parametrize("num_classes", [0, 10])
@pytest.mark.parametrize("churn", [(40.0, 0.05, 50.0, 1.003), (12.0, 0.0, math.inf, 1.0)])
def test_samples_of_algorithm_2_with_churn_and_classes_come_out_again(
    num_classes: int, churn: tuple[float, float, float, float]
) -> None:
    seeds, num_steps = [0, 7, 2**32 + 3], 18
    expected, classes = algorithm_2(seeds, num_classes, num_steps, churn)
    source = PublishedNoise(seeds, (2,), num_classes)
    sampler = Sampler(levels=Karras(num_steps, 0.002, 80.0), churn=Churn(*churn))
    denoiser = FunctionDenoiser(denoise, (2,), mean=0.0)  # the script starts from noise around 0
    samples = sampler.sample(denoiser, noise=source.draw((2,)), seeds=source, condition=source.classes)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-12)
    assert (source.classes is None) == (classes is None)
    if classes is not None:
        assert source.classes is not None
        assert source.classes.tolist() == classes.tolist()


def test_only_the_first_draw_of_seeded_noise_is_the_published_one() -> None:
    published, seeded = PublishedNoise([5], (3, 4, 4)), SeededNoise([5])
    assert torch.equal(published.draw((3, 4, 4)), seeded.draw((3, 4, 4)))
    assert not torch.equal(published.draw((3, 4, 4)).float(), seeded.draw((3, 4, 4)))


@pytest.mark.parametrize(
    ("seeds", "num_classes", "error", "message"),
    [([], 0, ValueError, "at least one"), ([True], 0, TypeError, "integers"), ([1], -1, ValueError, "num_classes")],
)
def test_published_noise_names_a_wrong_argument(
    seeds: list[int], num_classes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PublishedNoise(seeds, (2,), num_classes)
