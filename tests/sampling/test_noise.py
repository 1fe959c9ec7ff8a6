"""The noise of a seed is its own: alone or in any batch, in any order, draw after draw."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marks import FAR_APART
from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import EulerMaruyama, Heun, NoiseSource, Sampler, SeededNoise, initial_noise

SEEDS = st.lists(st.integers(0, 2**40), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def draws(seeds: list[int], shape: tuple[int, ...], count: int = 3) -> Tensor:
    """(seeds, count, *shape)."""
    source = SeededNoise(seeds)
    return torch.stack([source.draw(shape) for _ in range(count)], dim=1)


@given(SEEDS, SHAPES)
def test_a_seed_gives_the_same_bits_alone_and_in_any_batch(seeds: list[int], shape: tuple[int, ...]) -> None:
    together = draws(seeds, shape)
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i], draws([seed], shape)[0])


@given(SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(seeds: list[int], random: object) -> None:
    order = list(range(len(seeds)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = draws([seeds[i] for i in order], (2, 3))
    assert torch.equal(shuffled, draws(seeds, (2, 3))[order])


@given(st.integers(0, 2**32 - 1), SHAPES)
def test_the_stream_is_torchs_generator_of_that_seed(seed: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = torch.stack([torch.randn(shape, generator=generator) for _ in range(3)])
    assert torch.equal(draws([seed], shape)[0], expected)
    assert torch.equal(draws([seed + 2**32], shape)[0], expected)


def test_successive_draws_and_different_seeds_are_independent_unit_gaussians() -> None:
    noise = draws(list(range(50)), (200,), count=4).double()
    n = noise.numel()
    # The mean of n numbers errs by 1/√n, the variance by √(2/n), a correlation of m pairs by 1/√m.
    assert abs(float(noise.mean())) < 5 / n**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / n) ** 0.5
    pairs = n / 4 * 3
    assert abs(float((noise[:, 1:] * noise[:, :-1]).mean())) < 5 / pairs**0.5
    assert abs(float((noise[1:] * noise[:-1]).mean())) < 5 / (n * 49 / 50) ** 0.5


def test_the_stream_does_not_depend_on_the_default_dtype() -> None:
    expected = draws([3], (5,))
    torch.set_default_dtype(torch.float64)
    try:
        drawn = draws([3], (5,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, expected)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    initial_noise([1, 2], (3,))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_initial_noise_is_the_first_draw() -> None:
    assert torch.equal(initial_noise([5, 6], (2, 2)), SeededNoise([5, 6]).draw((2, 2)))


def test_seeds_may_be_a_range() -> None:
    assert torch.equal(initial_noise(range(3, 5), (2,)), initial_noise([3, 4], (2,)))


def test_seeded_noise_is_a_source_of_noise_and_a_list_is_none() -> None:
    assert isinstance(SeededNoise([0]), NoiseSource)
    assert not isinstance([0], NoiseSource)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [([], "seeds must hold at least one seed, got none"), ([3, -1], "seeds must be >= 0, got -1")],
)
def test_seeds_that_are_none_are_named(seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeededNoise(seeds)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("seed", [1.5, "1", True, None])
def test_a_seed_that_is_not_an_integer_is_refused(seed: object) -> None:
    with pytest.raises(TypeError, match=f"seeds must be integers, got {seed!r}"):
        SeededNoise([0, seed])  # type: ignore[list-item]


@pytest.mark.usefixtures("without_type_checker")
def test_numpys_integers_are_seeds() -> None:
    expected = draws([0, 3], (2,))
    assert torch.equal(draws(list(np.array([0, 3])), (2,)), expected)


@FAR_APART
def test_given_noise_replaces_the_first_draw_of_the_seeds_and_is_not_that_of_a_step_as_well() -> None:
    gaussian = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    sampler = Sampler(Karras(4), solver=EulerMaruyama())
    drawn = sampler.sample(gaussian, range(3))
    assert torch.equal(sampler.sample(gaussian, range(3), noise=initial_noise(range(3), (1,))), drawn)
    for solver in (EulerMaruyama(), Heun()):
        with pytest.raises(ValueError, match=r"seeds must be one a sample of the noise \(2\), got 3"):
            Sampler(Karras(4), solver=solver).sample(gaussian, range(3), noise=torch.zeros(2, 1))
