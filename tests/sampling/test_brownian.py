"""One Brownian path a seed: increments add up, have a Brownian motion's law, and solutions converge along it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import (
    Ancestral,
    BrownianNoise,
    Churn,
    DPMSolverPP2M,
    Heun,
    NoiseSource,
    PathNoise,
    PredictorCorrector,
    Restart,
    Sampler,
    SeededNoise,
)
from openedm.sampling.brownian import (
    NUM_BRIDGES,
    NUM_LEAVES,
    NUM_PIECES,
    WEYL,
    _bridges,
    _hash_copy,
    _library,
    _normals,
    clock,
)

TIMES = st.floats(0, 1)
SEEDS = st.lists(st.integers(0, 2**70), min_size=1, max_size=6)
CPU = torch.device("cpu")


def path(seeds: range, times: list[float], shape: tuple[int, ...] = (1,)) -> Tensor:
    """W at the times, (times, seeds, *shape), float64."""
    noise = BrownianNoise(seeds)
    return torch.stack([noise.increment(0, time, shape) for time in times]).double()


def increments(seeds: range, times: list[float]) -> list[Tensor]:
    """W(t_{i+1}) − W(t_i), (seeds,), float64."""
    noise = BrownianNoise(seeds)
    return [noise.increment(a, b, (1,), dtype=torch.float64)[:, 0] for a, b in pairwise(times)]


def slope(errors: dict[int, float]) -> float:
    """The order of convergence: − d ln error / d ln steps."""
    return -float(np.polyfit(np.log(list(errors)), np.log(list(errors.values())), 1)[0])


def irregular(steps: int) -> list[float]:
    """A grid from 0 to 1 that nests in no other: its steps differ by up to a factor of 3."""
    widths = np.random.default_rng(steps).uniform(1, 3, steps)
    return [0.0, *(np.cumsum(widths) / widths.sum())[:-1].tolist(), 1.0]


@settings(max_examples=30)
@given(TIMES, TIMES, TIMES, SEEDS)
def test_increments_add_up(a: float, b: float, c: float, seeds: list[int]) -> None:
    noise = BrownianNoise(seeds)
    whole = noise.increment(a, c, (3,))
    parts = BrownianNoise(seeds)
    # Increments are differences of float32 numbers below 8, whose spacing is 5e-7.
    assert torch.allclose(parts.increment(a, b, (3,)) + parts.increment(b, c, (3,)), whole, rtol=0, atol=1e-6)
    assert torch.equal(noise.increment(c, a, (3,)), -whole)


@settings(max_examples=30)
@given(st.lists(TIMES, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_the_path_does_not_depend_on_what_was_asked_before(times: list[float], random: object) -> None:
    asked = list(pairwise(times))
    fresh = {(a, b): BrownianNoise([1, 2]).increment(a, b, (2, 5)) for a, b in asked}
    random.shuffle(asked)  # type: ignore[attr-defined]
    noise = BrownianNoise([1, 2])
    for a, b in asked:
        assert torch.equal(noise.increment(a, b, (2, 5)), fresh[a, b])


@settings(max_examples=30)
@given(SEEDS, st.sampled_from([(), (1,), (3,), (2, 4), (3, 5, 5)]), TIMES)
def test_a_seed_has_the_same_path_alone_and_in_any_batch(seeds: list[int], shape: tuple[int, ...], time: float) -> None:
    together = BrownianNoise(seeds).increment(0.3, time, shape)
    assert together.shape == (len(seeds), *shape)
    for i, seed in enumerate(seeds):
        assert torch.equal(BrownianNoise([seed]).increment(0.3, time, shape)[0], together[i])


def test_a_path_does_not_depend_on_the_shape_that_its_entries_are_arranged_in() -> None:
    noise = BrownianNoise([4, 5])
    flat = noise.increment(0.1, 0.7, (12,))
    assert torch.equal(noise.increment(0.1, 0.7, (3, 2, 2)).flatten(1), flat)
    assert torch.equal(noise.increment(0.1, 0.7, (5,)), flat[:, :5])


def test_seeds_follow_the_rules_of_seeded_noise() -> None:
    def noise(seed: int) -> Tensor:
        return BrownianNoise([seed]).increment(0, 1, (8,))

    assert torch.equal(noise(2**63 + 5), noise(5))
    assert torch.equal(noise(2**64 - 1), noise(2**32 - 1))
    with pytest.raises(ValueError, match="seeds must be >= 0, got -1"):
        BrownianNoise([3, -1])
    with pytest.raises(ValueError, match="seeds must hold at least one seed, got none"):
        BrownianNoise([])


def test_draws_are_those_of_seeded_noise_whatever_the_path_was_asked() -> None:
    noise, plain = BrownianNoise([7, 9]), SeededNoise([7, 9])
    assert torch.equal(noise.draw((2, 3)), plain.draw((2, 3)))
    noise.step_noise(80.0, 1.0, (2, 3))
    assert torch.equal(noise.draw((2, 3)), plain.draw((2, 3)))
    assert isinstance(noise, NoiseSource)
    assert isinstance(noise, PathNoise)


def test_covariances_at_irregular_times_are_those_of_a_brownian_motion() -> None:
    times = [0.0123, 0.0777, 0.125, 0.2001, 0.2002, 0.3333, 0.4141, 0.5, 0.618, 0.7071, 0.9, 1.0]
    n = 20_000
    w = path(range(n), times)[:, :, 0]
    expected = torch.minimum(*torch.meshgrid(torch.tensor(times), torch.tensor(times), indexing="ij")).double()
    # The product of two normals with covariance c has variance c_ii c_jj + c².
    std = ((expected.diag()[:, None] * expected.diag() + expected**2) / n).sqrt()
    assert ((w @ w.T / n - expected).abs() < 4.5 * std).all()
    assert (w.mean(1).abs() < 4.5 * (expected.diag() / n).sqrt()).all()


@pytest.mark.parametrize("steps", [2, 18, 150, 1000])
def test_step_noise_is_normal_and_independent(steps: int) -> None:
    sigmas = Karras(steps).sigmas().tolist()
    middle = steps // 2
    noise = BrownianNoise(range(100, 110))
    first, second = (
        noise.step_noise(sigmas[i], ([*sigmas, 0.0])[i + 1], (20, 101), dtype=torch.float64)
        for i in (middle - 1, middle)
    )
    n = first.numel()
    for values in (first, second):
        assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
        assert abs(float(values.square().mean()) - 1) < 4.5 * math.sqrt(2 / n)
    for one, other in (
        (first, second),  # steps
        (first[1:], first[:-1]),  # seeds
        (first[:, 1:], first[:, :-1]),  # rows
        (first[:, :, 1:], first[:, :, :-1]),  # neighbours, some of one hash
        (first[:, :, 4:], first[:, :, :-4]),  # neighbours of different hashes
    ):
        m = one.numel()
        assert abs(float((one * other).mean())) < 4.5 / math.sqrt(m)
        assert abs(float(((one**2 - 1) * (other**2 - 1)).mean())) < 4.5 * 2 / math.sqrt(m)


def test_step_noise_is_the_normalised_increment_and_finer_steps_combine_to_it() -> None:
    noise = BrownianNoise([0, 1])
    sigmas = [80.0, 9.0, 1.0, 0.3, 0.0]
    whole = noise.step_noise(sigmas[0], sigmas[-1], (50,), dtype=torch.float64)
    parts = [noise.step_noise(a, b, (50,), dtype=torch.float64) for a, b in pairwise(sigmas)]
    lengths = [clock(a) - clock(b) for a, b in pairwise(sigmas)]
    combined = sum(part * math.sqrt(length) for part, length in zip(parts, lengths, strict=True))
    assert torch.allclose(combined, whole * math.sqrt(sum(lengths)), rtol=0, atol=2e-6)
    assert torch.allclose(whole, noise.increment(clock(80.0), 0, (50,)).double() / math.sqrt(clock(80.0)), atol=1e-6)


def test_the_clock_runs_from_0_to_1_and_is_in_the_middle_at_sigma_1() -> None:
    assert clock(0) == 0
    assert clock(1) == 0.5
    assert clock(8) == pytest.approx(2 / 3)
    assert clock(80) + clock(1 / 80) == pytest.approx(1)
    assert clock(1e30) == pytest.approx(1)


def test_the_quadratic_variation_is_the_time() -> None:
    n, steps = 400, 2000
    total = sum(step.square() for step in increments(range(n), irregular(steps)))
    widths = np.diff(irregular(steps))
    # Var Σ ΔW² = 2 Σ Δ²; the variances of short increments err by up to 2 %, in either direction.
    error = 4.5 * math.sqrt(2 * float((widths**2).sum()) / n) + 0.002
    assert abs(float(total.mean()) - 1) < error


@pytest.mark.parametrize(("scheme", "order"), [("euler", 0.5), ("milstein", 1.0)])
def test_geometric_brownian_motion_converges_at_the_strong_order_of_the_scheme(scheme: str, order: float) -> None:
    # dX = μ X dt + s X dW has X(1) = exp(μ − ½ s² + s W(1)).
    mu, s, seeds = 0.5, 0.8, range(2000)
    exact = torch.exp(mu - s**2 / 2 + s * path(seeds, [1.0])[0, :, 0])
    errors = {}
    for steps in (16, 32, 64, 128, 256):
        x = torch.ones(len(seeds), dtype=torch.float64)
        for dw in increments(seeds, [i / steps for i in range(steps + 1)]):
            x = x * (1 + mu / steps + s * dw + (scheme == "milstein") * s**2 / 2 * (dw**2 - 1 / steps))
        errors[steps] = float((x - exact).square().mean().sqrt())
    assert slope(errors) == pytest.approx(order, abs=0.1)


def test_an_ornstein_uhlenbeck_process_converges_on_grids_that_do_not_nest() -> None:
    # dX = −4 X dt + 2 dW: noise that does not depend on X gives Euler's method the strong order 1.
    def solve(times: list[float]) -> Tensor:
        x = torch.zeros(1000, dtype=torch.float64)
        for (a, b), dw in zip(pairwise(times), increments(range(1000), times), strict=True):
            x = x * (1 - 4 * (b - a)) + 2 * dw
        return x

    reference = solve(irregular(1500))
    errors = {n: float((solve(irregular(n)) - reference).square().mean().sqrt()) for n in (23, 51, 101, 211)}
    assert slope(errors) == pytest.approx(1, abs=0.15)


def test_the_noise_of_steps_converges_to_a_stochastic_integral_at_order_1() -> None:
    # ∫ g dW with g² du = −dσ²: a step's variance is σ_i² − σ_{i+1}², whatever the clock.
    def solve(steps: int) -> Tensor:
        noise, sigmas = BrownianNoise(range(1000)), [*Karras(steps).sigmas().tolist(), 0.0]
        return sum(
            noise.step_noise(a, b, (1,), dtype=torch.float64) * math.sqrt(a**2 - b**2) for a, b in pairwise(sigmas)
        )

    reference = solve(1000)
    assert float(reference.square().mean().sqrt()) == pytest.approx(80, rel=4.5 / math.sqrt(2 * 1000))
    errors = {n: float((solve(n) - reference).square().mean().sqrt()) for n in (12, 25, 50, 99)}
    assert slope(errors) == pytest.approx(1, abs=0.15)


def test_more_steps_of_a_stochastic_sampler_refine_the_same_samples() -> None:
    denoiser = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.1]], [[0.2]]])

    def solve(steps: int) -> Tensor:
        return Sampler(Karras(steps), solver=DPMSolverPP2M(eta=1.0)).sample(denoiser, BrownianNoise(range(300)))

    # Its noise does not depend on the state: strong order 1. Samples between the modes are the last to settle.
    reference = solve(400)
    assert slope({n: float((solve(n) - reference).abs().median()) for n in (18, 36, 72)}) > 0.9


@pytest.mark.parametrize(
    ("sampler", "follows"),
    [
        (Sampler(Karras(6)), False),
        (Sampler(Karras(6), churn=Churn(4.0)), True),
        (Sampler(Karras(6), solver=Ancestral()), True),
        (Sampler(Karras(6), solver=Restart()), False),
        (Sampler(Karras(6), solver=PredictorCorrector()), True),
        (Sampler(Karras(6), solver=PredictorCorrector(Heun())), False),
    ],
    ids=["ODE", "churn", "ancestral", "restart", "predictor-corrector", "corrector alone"],
)
def test_a_sampler_says_whether_a_path_makes_a_difference(sampler: Sampler, follows: bool) -> None:
    denoiser = GaussianMixture([1.0], [[3.0]], [[[1.0]]])
    along, independent = (sampler.sample(denoiser, noise([5])) for noise in (BrownianNoise, SeededNoise))
    assert sampler.uses_path_noise == follows
    assert torch.equal(along, independent) != follows


def test_a_bit_of_the_hash_depends_on_every_bit() -> None:
    n = 4096
    x = _hash_copy(torch.arange(n))
    flipped = _hash_copy(x[:, None] ^ (torch.ones(64, dtype=torch.int64) << torch.arange(64)))
    changed = flipped ^ _hash_copy(x)[:, None]
    for bit in range(64):
        share = ((changed >> bit) & 1).double().mean(0)
        assert ((share - 0.5).abs() < 5 * 0.5 / math.sqrt(n)).all()


def test_the_hash_is_splitmix64() -> None:
    # The first three numbers of the published generator from the state 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [x % 2**64 for x in _hash_copy(torch.arange(1, 4) * WEYL).tolist()] == expected


def test_the_tables_have_the_moments_of_their_laws() -> None:
    normals = _normals(CPU).double()
    assert torch.equal(normals, -normals.flip(0))
    assert float(normals.square().mean()) == pytest.approx(1, abs=1e-7)
    assert float(normals.pow(4).mean()) == pytest.approx(3, abs=3e-3)
    library, t = _library(CPU).double(), torch.arange(NUM_PIECES + 1, dtype=torch.float64) / NUM_PIECES
    covariance = torch.minimum(t[:, None], t) - t[:, None] * t
    assert torch.allclose(library @ library.T / NUM_BRIDGES, covariance, rtol=0, atol=1e-7)


@settings(max_examples=30)
@given(TIMES, TIMES)
def test_the_fixed_bridges_have_the_variances_of_a_brownian_bridge(s: float, t: float) -> None:
    width = abs(s - t)
    if width < NUM_PIECES**-2 or width > 1 - NUM_PIECES**-2:
        return
    difference = (_bridges(t, 1.0, CPU) - _bridges(s, 1.0, CPU)).double()
    assert float(difference.mean()) == pytest.approx(0, abs=1e-6)
    assert float(difference.square().mean()) == pytest.approx(width * (1 - width), rel=0.02)


def test_the_type_and_the_device_are_those_asked_for() -> None:
    noise = BrownianNoise([1])
    single = noise.step_noise(2.0, 1.0, (4,), torch.device("cpu"))
    double = noise.step_noise(2.0, 1.0, (4,), "cpu", torch.float64)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(single.double(), double)


def test_the_default_type_and_the_global_generator_do_not_matter() -> None:
    expected, before = BrownianNoise([1]).increment(0, 0.7, (4,)), torch.get_rng_state()
    _library.cache_clear()
    _normals.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(BrownianNoise([1]).increment(0, 0.7, (4,)), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_first_asked_for_in_inference_mode_goes_on_outside() -> None:
    noise = BrownianNoise([1])
    with torch.inference_mode():
        first = noise.increment(0, 0.5, (4,))
    whole = first + noise.increment(0.5, 0.9, (4,))
    assert torch.allclose(whole, BrownianNoise([1]).increment(0, 0.9, (4,)), atol=1e-6)


def test_memory_does_not_grow_with_the_steps() -> None:
    noise = BrownianNoise([1])
    for a, b in pairwise(irregular(200)):
        noise.increment(b, a, (4,))
    assert noise._path is not None
    assert len(noise._path._tree_values) <= NUM_LEAVES.bit_length() + 1


@pytest.mark.parametrize(
    ("sigma", "sigma_next", "message"),
    [
        (-1.0, 1.0, "sigma must be >= 0, got -1.0"),
        (1.0, math.inf, "sigma must be a finite number, got inf"),
        (2.0, 2.0, "sigma and sigma_next must differ, got 2.0 and 2.0"),
    ],
)
def test_levels_that_make_no_step_are_named(sigma: float, sigma_next: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrownianNoise([1]).step_noise(sigma, sigma_next, (1,))


@pytest.mark.parametrize(("start", "end", "name"), [(-0.1, 0.5, "start"), (0.5, 1.1, "end"), (math.nan, 0.5, "start")])
def test_times_outside_the_clock_are_named(start: float, end: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got"):
        BrownianNoise([1]).increment(start, end, (1,))
