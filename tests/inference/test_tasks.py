"""The benchmark tasks: likelihoods that fit their simulators, solutions of their equations, published references."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import kstest
from torch import Tensor

from golden import golden_folder, needs_golden
from openedm.inference import tasks
from openedm.inference.tasks.explicit import PERMUTATION, design_matrix, distractor_mixture
from openedm.metrics import c2st

FOLDER = golden_folder().parent / "sbibm"
# Of spec: d, dx.
SHAPES = {
    "two_moons": (2, 2),
    "slcp": (5, 8),
    "slcp_distractors": (5, 100),
    "gaussian_linear": (10, 10),
    "gaussian_linear_uniform": (10, 10),
    "gaussian_mixture": (2, 2),
    "bernoulli_glm": (10, 10),
    "bernoulli_glm_raw": (10, 100),
    "sir": (2, 10),
    "lotka_volterra": (4, 20),
}


def test_there_are_the_ten_tasks() -> None:
    assert tasks.names() == tuple(SHAPES)
    with pytest.raises(ValueError, match=r"name must be one of 'two_moons', .* got 'moons'"):
        tasks.get("moons")


@pytest.mark.parametrize("name", SHAPES)
def test_simulations_have_their_shape_and_repeat_with_their_seed(name: str) -> None:
    task, state = tasks.get(name), torch.get_rng_state()
    theta = task.prior.sample(500, 1)
    x = task.simulate(theta, 2)
    assert (task.dim, *task.x_shape) == SHAPES[name]
    assert theta.shape == (500, task.dim)
    assert x.shape == (500, *task.x_shape)
    assert x.dtype == torch.float32
    assert bool(x.isfinite().all())
    assert torch.equal(x, task.simulate(theta, 2))
    assert not torch.equal(x, task.simulate(theta, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert task.log_likelihood(theta, x).shape == (500,)
    assert bool(task.log_likelihood(theta, x).isfinite().all())
    assert task.log_likelihood(theta[:7], x[:3, None]).shape == (3, 7)


@pytest.mark.parametrize("name", SHAPES)
def test_the_likelihood_is_that_of_the_simulator(name: str) -> None:
    # E[p(x|θ')/p(x|θ)] over x ~ p(x|θ) is 1 for every θ' near θ.
    task, count = tasks.get(name), 20000
    theta = task.prior.sample(1, 5)
    if name.startswith("slcp"):
        theta = torch.tensor([[0.7, -2.9, -1.5, 2.0, 0.6]])
    step = {"two_moons": 0.002, "sir": 2e-4, "lotka_volterra": 2e-4}.get(name, 0.02)
    x = task.simulate(theta.expand(count, -1), 7)
    ratio = (task.log_likelihood(theta + step, x) - task.log_likelihood(theta, x)).exp()
    error = float(ratio.std()) / math.sqrt(count)
    assert 0 < error < 0.02
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * error)


def test_half_the_moon_draws_and_the_mixture_have_the_stated_distributions() -> None:
    moons, theta = tasks.get("two_moons"), torch.tensor([[0.3, -0.7]])
    x = moons.simulate(theta.expand(4000, -1), 1).double()
    p = x - torch.tensor([-0.4, -1.0]).double() / math.sqrt(2) - torch.tensor([0.25, 0.0]).double()
    angle, radius = torch.atan2(p[:, 1], p[:, 0]), p.norm(dim=1)
    assert kstest((angle / math.pi + 0.5).numpy(), "uniform").pvalue > 0.01
    assert kstest(((radius - 0.1) / 0.01).numpy(), "norm").pvalue > 0.01
    mixture = tasks.get("gaussian_mixture")
    residual = mixture.simulate(torch.zeros(8000, 2), 1)
    # One component a draw: both coordinates are narrow or wide together.
    narrow = residual.abs() < 0.3
    assert float((narrow[:, 0] == narrow[:, 1]).float().mean()) > 0.75


def test_distractors_are_permuted_and_tell_nothing() -> None:
    task, plain = tasks.get("slcp_distractors"), tasks.get("slcp")
    theta = plain.prior.sample(50, 0)
    x, few = task.simulate(theta, 4), plain.simulate(theta, 4)
    columns = [PERMUTATION.index(i) for i in range(8)]
    torch.testing.assert_close(x[:, columns], few)
    torch.testing.assert_close(task.log_likelihood(theta, x), plain.log_likelihood(theta, few), rtol=1e-3, atol=1e-3)
    # The medians of a location mixture's projections: Student-t with df 2 has no variance.
    loc, root = distractor_mixture()
    others = [PERMUTATION.index(8 + i) for i in range(92)]
    many = task.simulate(theta[:1].expand(4000, -1), 5)[:, others].double()
    expected = torch.stack([(many[:, 0] < value).double().mean() for value in (-20.0, 0.0, 20.0)])
    scale = root[:, 0].norm(dim=1)
    exact = [np.mean([student_cdf(float((v - loc[k, 0]) / scale[k])) for k in range(20)]) for v in (-20.0, 0.0, 20.0)]
    torch.testing.assert_close(expected, torch.tensor(exact).double(), atol=5 * 0.5 / math.sqrt(4000), rtol=0)


def student_cdf(value: float) -> float:
    """Of two degrees of freedom."""
    return 0.5 + value / (2 * math.sqrt(2 + value**2))


def test_the_design_is_the_delayed_stimulus_and_the_prior_smooth() -> None:
    x = design_matrix()
    assert bool((x[:, 0] == 1).all())
    for j in range(9):
        assert bool((x[:j, 1 + j] == 0).all())
        assert torch.equal(x[j:, 1 + j], x[: 100 - j, 1])
    raw, summed = tasks.get("bernoulli_glm_raw"), tasks.get("bernoulli_glm")
    theta = raw.prior.sample(20, 0)
    y = raw.simulate(theta, 1)
    torch.testing.assert_close(summed.simulate(theta, 1), (y.double() @ x).float())
    torch.testing.assert_close(
        raw.log_likelihood(theta, y), summed.log_likelihood(theta, y.double() @ x), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_dynamics_solve_their_equations(seed: int) -> None:
    sir, lotka = tasks.SIR(), tasks.LotkaVolterra()
    beta, gamma = sir.prior.sample(1, seed)[0].double().tolist()
    exact = solve_ivp(
        lambda t, u: [-beta * u[0] * u[1], beta * u[0] * u[1] - gamma * u[1]],
        (0, 160),
        [1 - 1e-6, 1e-6],
        t_eval=17.0 * np.arange(10),
        method="DOP853",
        rtol=1e-11,
        atol=1e-15,
    ).y[1]
    found = sir.infected(torch.tensor([[beta, gamma]], dtype=torch.float64))[0]
    torch.testing.assert_close(found, torch.from_numpy(exact), rtol=1e-5, atol=1e-9)
    a, b, c, d = lotka.prior.sample(1, seed)[0].double().tolist()
    solved = solve_ivp(
        lambda t, u: [a * u[0] - b * u[0] * u[1], -c * u[1] + d * u[0] * u[1]],
        (0, 20),
        [30.0, 1.0],
        t_eval=2.1 * np.arange(10),
        method="DOP853",
        rtol=1e-11,
        atol=1e-13,
    ).y
    log = lotka.log_populations(torch.tensor([[a, b, c, d]], dtype=torch.float64))[0]
    torch.testing.assert_close(log, torch.from_numpy(np.log(solved.clip(1e-10, 1e4)).ravel()), rtol=0, atol=1e-4)


def test_the_error_of_the_steps_is_far_below_the_noise() -> None:
    sir, lotka = tasks.SIR(), tasks.LotkaVolterra()
    theta = sir.prior.sample(2000, 1).double()
    share = sir.infected(theta)
    noise = (share * (1 - share) / 1000).sqrt() + 1e-3
    assert float(((share - sir.infected(theta, 272)).abs() / noise).max()) < 1e-3
    theta = lotka.prior.sample(2000, 1).double()
    error = (lotka.log_populations(theta) - lotka.log_populations(theta, 672)).abs() / 0.1
    assert float(error.max()) < 0.02


def test_populations_far_outside_the_prior_are_clipped() -> None:
    x = tasks.get("lotka_volterra").simulate(torch.tensor([[100.0, 1e-6, 100.0, 1e-6], [0.5, 50.0, 50.0, 50.0]]), 0)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("name", ["gaussian_linear", "gaussian_linear_uniform"])
def test_exact_posteriors_have_the_density_of_prior_times_likelihood(name: str) -> None:
    task: Any = tasks.get(name)
    theta = task.prior.sample(1, 1)
    x = task.simulate(theta, 1)[0]
    draws = task.reference_posterior(x, 20000, seed=3)
    assert bool(task.prior.log_prob(draws).isfinite().all())
    # E[∂/∂θ ln p(θ|x) · f(θ)] = −E[f′(θ)] for f that vanishes at the box's ends: f = 1 − θ², or f = θ without a box.
    boxed = name.endswith("uniform")
    point = draws.double()
    score = (x.double() - point) / 0.1 - (0 if boxed else point / 0.1)
    f, slope = (1 - point**2, -2 * point) if boxed else (point, torch.ones_like(point))
    residual = score * f + slope
    assert bool((residual.mean(0).abs() < 5 * residual.std(0) / math.sqrt(20000)).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tasks.get("slcp").simulate(torch.zeros(3, 4)),
            r"theta must have the shape \(n, 5\) for slcp, got \(3, 4\)",
        ),
        (lambda: tasks.get("slcp").simulate(torch.full((3, 5), math.nan)), "theta must be finite"),
        (lambda: tasks.get("slcp").simulate(torch.zeros(3, 5), -1), "seed must be >= 0, got -1"),
        (lambda: tasks.get("slcp").log_likelihood(torch.zeros(5), torch.zeros(7)), r"x must have the shape \(…, 8\)"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call: Any, message: str, without_type_checker: None) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_observations_are_read_and_checked(tmp_path: Path) -> None:
    arrays = {"observations": np.ones((2, 2)), "true_parameters": np.zeros((2, 2))}
    with pytest.raises(FileNotFoundError, match=r"folder must hold two_moons.npz"):
        tasks.observations("two_moons", tmp_path)
    np.savez(tmp_path / "two_moons.npz", **arrays)
    with pytest.raises(ValueError, match=r"two_moons.npz must hold reference_samples"):
        tasks.observations("two_moons", tmp_path)
    np.savez(tmp_path / "two_moons.npz", **arrays, reference_samples=np.zeros((2, 9, 3)))
    with pytest.raises(ValueError, match=r"reference_samples \(k, n, 2\), got .*\(2, 9, 3\)"):
        tasks.observations("two_moons", tmp_path)
    np.savez(tmp_path / "two_moons.npz", **arrays, reference_samples=np.zeros((2, 9, 2)))
    found = tasks.observations("two_moons", str(tmp_path))
    assert found.x.shape == found.theta.shape == (2, 2)
    assert found.reference.shape == (2, 9, 2)


@needs_golden
def test_the_constants_are_sbibms() -> None:
    with np.load(FOLDER / "slcp_distractors.npz", allow_pickle=False) as file:
        loc, root = distractor_mixture()
        below = torch.tril_indices(92, 92)
        packed = torch.from_numpy(file["noise_scale_tril_packed"]).double()
        torch.testing.assert_close(root[:, below[0], below[1]], packed, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loc, torch.from_numpy(file["noise_loc"]).double(), rtol=1e-5, atol=1e-5)
        assert tuple(file["permutation_idx"].tolist()) == PERMUTATION
    with np.load(FOLDER / "bernoulli_glm.npz", allow_pickle=False) as file:
        assert torch.equal(design_matrix().float(), torch.from_numpy(file["design_matrix"]))


def weighted(task: tasks.Task, x: Tensor, reference: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mean and spread of the posterior in z by importance sampling from the references' own Gaussian mixture."""
    bijection, generator = task.prior.bijection, torch.Generator().manual_seed(seed)
    z = bijection.forward(reference.double())
    # A kernel density of a few hundred references, wide enough to cover the posterior.
    count, chosen = 30_000, z[:: len(z) // 400]
    factor = (z.shape[1] + 2) * 400 / 4
    width = 1.3 * factor ** (-1 / (z.shape[1] + 4))
    root = torch.linalg.cholesky(torch.cov(z.mT)) * width
    centers = chosen[torch.randint(len(chosen), (count,), generator=generator)]
    proposed = centers + torch.randn(count, z.shape[1], dtype=torch.float64, generator=generator) @ root.mT
    white = (torch.linalg.solve_triangular(root, points.mT, upper=False).mT for points in (proposed, chosen))
    # Up to a constant.
    density = (-(torch.cdist(*white) ** 2) / 2).logsumexp(1)
    theta = bijection.inverse(proposed)
    log = task.log_likelihood(theta, x) + task.prior.log_prob(theta) - bijection.log_det(theta) - density
    weights = log.softmax(0)
    mean = weights @ proposed
    spread = (weights @ (proposed - mean) ** 2).sqrt()
    return z, mean, spread, float(1 / (weights**2).sum())


@needs_golden
@pytest.mark.parametrize("name", SHAPES)
def test_published_references_are_the_posteriors_of_these_tasks(name: str) -> None:
    task = tasks.get(name)
    x, theta, reference = tasks.observations(name, FOLDER)
    assert bool(task.prior.log_prob(theta).isfinite().all())
    assert bool(task.prior.log_prob(reference).isfinite().all())
    if name.startswith("bernoulli_glm_raw"):
        # Too slow to weigh 100 bins of 100,000 points, and the posterior is that of the sums.
        torch.testing.assert_close(
            (x.double() @ design_matrix()).float(), tasks.observations("bernoulli_glm", FOLDER).x, rtol=1e-4, atol=1e-4
        )
        return
    z, mean, spread, effective = weighted(task, x[0], reference[0], seed=1)
    assert effective > 300
    # References of MCMC are correlated draws: their mean is good to about 0.03 of a spread, and slcp's has fewer.
    assert float(((z.mean(0) - mean) / spread).abs().max()) < 5 * math.sqrt(1 / effective + 1 / 3000)
    assert float((z.std(0) / spread - 1).abs().max()) < 0.12


@needs_golden
def test_exact_draws_cannot_be_told_from_the_reference() -> None:
    task = tasks.GaussianLinear()
    x, _, reference = tasks.observations("gaussian_linear", FOLDER)
    draws = task.reference_posterior(x[0], 3000, seed=1)
    assert c2st(draws, reference[0][:3000], max_epochs=30) == pytest.approx(0.5, abs=0.025)
