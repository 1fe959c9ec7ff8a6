"""The problems that solvers are compared on: exact denoisers, fixed starts x = σ_max n, and where the ODE takes them.

The reference solution is dx/d ln σ = x − D(x; σ) (Karras et al. 2022, eq. 3 with σ(t) = t) from σ_max to σ_min, solved
to convergence, and then D at σ_min: what every sampler here does for its last evaluation. For a Gaussian of standard
deviation s this differs from the solution at σ = 0 by σ_min²/(2 s²) of a deviation: 2 % at s = 0.01.

`gmm2d` and `lowrank64` are the two problems of the project's table of solvers; the others show whether what was tuned
on those two holds elsewhere, and `random_mixture` makes new ones from a seed. Only openedm, scipy and scikit-learn are
needed here, none of the peers.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.integrate import solve_ivp
from torch import Tensor

from openedm.data import Digits
from openedm.denoiser import Condition, Denoiser
from openedm.exact import ExactDataset, GaussianMixture

CACHE = Path(__file__).parent.parent / ".cache"
"""Where reference solutions are kept; they are computed again when a problem's numbers change."""

TOLERANCE = 1e-12


class Reference(NamedTuple):
    """The converged solution of a problem.

    Attributes:
        solution: (starts, features), float64.
        floor: the largest `distance` to the solution at a hundred times the tolerance: errors near it mean nothing.
    """

    solution: Tensor
    floor: float


def distance(x: Tensor, y: Tensor) -> Tensor:
    """How far each sample of x is from that of y: the root of the mean square over its coordinates."""
    return (x - y).square().flatten(1).mean(1).sqrt()


@dataclass(frozen=True)
class Problem:
    """What is to be sampled, and from where.

    Attributes:
        name: a short name, ending in the dimension.
        title: one line about it.
        denoiser: D, exact, float64.
        sigma_data: standard deviation of all coordinates of the data about their common mean.
        starts: how many samples are drawn.
        sigma_min: the lowest noise level, at which D gives the sample.
        sigma_max: the noise level of the starts.
        seed: of the starts.
    """

    name: str
    title: str
    denoiser: Denoiser
    sigma_data: float
    starts: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    seed: int = 0

    @property
    def noise(self) -> Tensor:
        """n, the unit noise (starts, features), float64; the starts are σ_max n."""
        assert self.denoiser.event_shape is not None
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.starts, *self.denoiser.event_shape, dtype=torch.float64, generator=generator)

    def errors(self, x: Tensor) -> Tensor:
        """The distance of each sample to the reference solution, (starts,)."""
        return distance(x, self.reference().solution)

    def reference(self, cached: bool = True) -> Reference:
        """The converged solution; kept in `CACHE` unless `cached` is off."""
        file = CACHE / f"{self.name}-{self._fingerprint()}.safetensors"
        if cached and file.exists():
            content = load_file(file)
            return Reference(content["solution"], float(content["floor"]))
        solution, rough = (self._solve(tolerance) for tolerance in (TOLERANCE, 100 * TOLERANCE))
        floor = distance(solution, rough).max()
        if cached:
            CACHE.mkdir(exist_ok=True)
            save_file({"solution": solution, "floor": floor}, file)
        return Reference(solution, float(floor))

    @torch.no_grad()
    def _solve(self, tolerance: float) -> Tensor:
        """The ODE by Dormand and Prince's method of order 8 in ln σ, and D at σ_min."""
        noise = self.noise

        def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(flat).reshape(noise.shape)
            return (x - self.denoiser(x, math.exp(log_sigma))).numpy().ravel()

        span = (math.log(self.sigma_max), math.log(self.sigma_min))
        start = (self.sigma_max * noise).numpy().ravel()
        # The norm of the error is a mean over samples: steps are held short so that no sample is skipped over.
        run = solve_ivp(
            slope, span, start, "DOP853", rtol=tolerance, atol=tolerance / 10, max_step=0.1, t_eval=span[1:]
        )
        assert run.success, run.message
        return self.denoiser(torch.from_numpy(run.y[:, -1].copy()).reshape(noise.shape), self.sigma_min)

    def _fingerprint(self) -> str:
        numbers = [*self.denoiser.state_dict().values(), self.noise]
        digest = hashlib.sha256(repr((TOLERANCE, self.sigma_min, self.sigma_max)).encode())
        for tensor in numbers:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class SmoothedDataset(Denoiser):
    """The denoiser of a data set of which each point is a Gaussian: D = (x s² + σ² D_0(x; √(σ²+s²))) / (σ² + s²).

    D_0 is the denoiser of the points alone. With them D at σ_min would be a point exactly, and the distance of most
    samples to the solution 0 whatever the solver did.

    Args:
        data: the points, (count, features).
        std: s, of each Gaussian.
    """

    std: Tensor

    def __init__(self, data: Tensor, std: float) -> None:
        super().__init__()
        self.points = ExactDataset(data)
        self.event_shape = self.points.event_shape
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64))

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """(x s² + σ² D_0(x; √(σ²+s²))) / (σ² + s²)."""
        variance = sigma.square() + self.std.square()
        kept = (self.std.square() / variance).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return torch.lerp(self.points(x, variance.sqrt(), condition), x, kept)


def _generator(seed: int) -> Callable[..., Tensor]:
    """Standard normal numbers of a seed, float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def _mixture(name: str, title: str, starts: int, weights: Tensor, means: Tensor, covariances: Tensor) -> Problem:
    """A mixture, with the standard deviation of all its coordinates about their common mean."""
    weights = weights.to(torch.float64) / weights.sum()
    second = means.square() + covariances.diagonal(dim1=1, dim2=2)
    variance = (weights @ second).mean() - (weights @ means).mean().square()
    return Problem(name, title, GaussianMixture(weights, means, covariances), math.sqrt(variance), starts)


def _isotropic(name: str, title: str, starts: int, means: Tensor, std: float) -> Problem:
    """Equal components of one standard deviation."""
    count, features = means.shape
    covariance = std**2 * torch.eye(features, dtype=torch.float64)
    return _mixture(name, title, starts, torch.ones(count), means, covariance.expand(count, -1, -1))


def _low_rank(name: str, title: str, starts: int, count: int, features: int, seed: int) -> Problem:
    """Means 0.4 N(0, I) and covariances U diag(4, 1, ¼, 1/16) Uᵀ + 0.01² I, U random and orthonormal."""
    normal = _generator(seed)
    means = 0.4 * normal(count, features)
    u = torch.linalg.qr(normal(count, features, 4)).Q
    spread = torch.tensor([4.0, 1.0, 0.25, 0.0625], dtype=torch.float64)
    covariances = (u * spread) @ u.mT + 0.01**2 * torch.eye(features, dtype=torch.float64)
    return _mixture(name, title, starts, torch.ones(count), means, covariances)


def gmm2d() -> Problem:
    """8 isotropic components on a circle of radius 0.7, std 0.05."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = 0.7 * torch.stack([angle.cos(), angle.sin()], 1)
    return _isotropic("gmm2d", "8 Gaussians on a circle", 512, means, 0.05)


def lowrank64() -> Problem:
    """8 components near subspaces of 4 dimensions in 64."""
    return _low_rank("lowrank64", "8 low-rank Gaussians in 64-D", 256, 8, 64, seed=0)


def bimodal1d() -> Problem:
    """Two narrow modes of unequal weight at ±1, std 0.01."""
    weights = torch.tensor([0.7, 0.3])
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    covariances = torch.full((2, 1, 1), 0.01**2, dtype=torch.float64)
    return _mixture("bimodal1d", "2 narrow modes in 1-D", 512, weights, means, covariances)


def grid2d() -> Problem:
    """25 modes on a square grid of spacing 0.5, std 0.02."""
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    return _isotropic("grid2d", "a grid of 25 narrow modes", 512, torch.cartesian_prod(axis, axis), 0.02)


def moons2d() -> Problem:
    """Two interleaved half circles, each of 32 components; std 0.05."""
    angle = math.pi * (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return _isotropic("moons2d", "two moons", 512, torch.cat([upper, -upper]), 0.05)


def spike2d() -> Problem:
    """A spike of std 0.02 beside a broad Gaussian of std 1: two scales at once."""
    means = torch.tensor([[0.0, 0.0], [0.8, 0.3]], dtype=torch.float64)
    covariances = torch.eye(2, dtype=torch.float64) * torch.tensor([1.0, 0.02**2], dtype=torch.float64)[:, None, None]
    return _mixture("spike2d", "a spike beside a broad Gaussian", 512, torch.tensor([0.6, 0.4]), means, covariances)


def tenth3d() -> Problem:
    """5 anisotropic components in 3-D whose standard deviation is 0.1: data that nobody has standardised."""
    normal = _generator(3)
    means, factors = 0.1 * normal(5, 3), 0.04 * normal(5, 3, 3)
    covariances = factors @ factors.mT + 0.004**2 * torch.eye(3, dtype=torch.float64)
    scale = 0.1 / _mixture("", "", 0, torch.ones(5), means, covariances).sigma_data
    means, covariances = scale * means, scale**2 * covariances
    return _mixture("tenth3d", "5 Gaussians of overall std 0.1", 512, torch.ones(5), means, covariances)


def posterior5d() -> Problem:
    """6 strongly correlated components in 5-D, standardised to mean 0 and marginal variance 1, as posteriors are."""
    normal = _generator(5)
    weights = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.1, 0.05], dtype=torch.float64)
    means, factors = normal(6, 5), 0.5 * normal(6, 5, 2)
    covariances = factors @ factors.mT + 0.05**2 * torch.eye(5, dtype=torch.float64)
    means = means - weights @ means
    marginal = (weights[:, None] * (means.square() + covariances.diagonal(dim1=1, dim2=2))).sum(0).sqrt()
    covariances = covariances / (marginal[:, None] * marginal)
    return _mixture("posterior5d", "a correlated posterior in 5-D", 256, weights, means / marginal, covariances)


def overlap8d() -> Problem:
    """4 broad components in 8-D that overlap heavily; standard deviation about 1."""
    normal = _generator(8)
    means, factors = 0.5 * normal(4, 8), normal(4, 8, 8) / 4
    covariances = factors @ factors.mT + 0.5 * torch.eye(8, dtype=torch.float64)
    return _mixture("overlap8d", "4 overlapping Gaussians in 8-D", 256, torch.ones(4), means, covariances)


def gaussian16d() -> Problem:
    """One Gaussian in 16-D, standard deviations from 1 down to 0.01, in random directions."""
    normal = _generator(16)
    basis = torch.linalg.qr(normal(16, 16)).Q
    deviations = torch.logspace(0, -2, 16, dtype=torch.float64)
    covariance = (basis * deviations.square()) @ basis.mT
    mean = 0.3 * normal(1, 16)
    return _mixture("gaussian16d", "one anisotropic Gaussian in 16-D", 256, torch.ones(1), mean, covariance[None])


def digits64d() -> Problem:
    """500 handwritten digits of 8×8 pixels in [−1, 1], each a Gaussian of std 0.05: as rugged as images are."""
    data = Digits("all").load().fetch(torch.arange(500))[0].flatten(1).to(torch.float64)
    sigma_data = math.hypot(data.std(correction=0), 0.05)
    return Problem("digits64d", "500 digits of 8×8 pixels", SmoothedDataset(data, 0.05), sigma_data, 128)


def lowrank256() -> Problem:
    """5 components near subspaces of 4 dimensions in 256."""
    return _low_rank("lowrank256", "5 low-rank Gaussians in 256-D", 64, 5, 256, seed=256)


FACTORIES: dict[str, Callable[[], Problem]] = {
    make.__name__: make
    for make in (
        gmm2d,
        lowrank64,
        bimodal1d,
        grid2d,
        moons2d,
        spike2d,
        tenth3d,
        posterior5d,
        overlap8d,
        gaussian16d,
        digits64d,
        lowrank256,
    )
}
"""All problems, by name; the first two are those of the project's table."""


def random_mixture(seed: int) -> Problem:
    """A mixture of which everything is drawn from the seed: a problem that nobody has tuned a solver on.

    1 to 64 dimensions; 1 to 20 components of unequal weight, 1 to 30 times as far apart as they are wide, each with
    standard deviations that span up to two decades; 0.2 to 2 the standard deviation of all.
    """
    normal = _generator(seed)
    uniform = torch.special.ndtr(normal(4)).tolist()
    features, count = round(64 ** uniform[0]), round(20 ** uniform[1])
    apart, scale = 30 ** uniform[2], 0.2 * 10 ** uniform[3]
    basis = torch.linalg.qr(normal(count, features, features)).Q
    deviations = 10 ** (-2 * torch.special.ndtr(normal(count, 1, features)))
    covariances = (basis * deviations.square()) @ basis.mT
    width = deviations.square().mean().sqrt()
    means = apart * width * normal(count, features)
    weights = torch.special.ndtr(normal(count)) + 0.1
    title = f"{count} Gaussians in {features}-D, drawn at random"
    rough = _mixture("", "", 0, weights, means, covariances)
    factor = scale / rough.sigma_data
    return _mixture(f"random{seed}", title, 256, weights, factor * means, factor**2 * covariances)


@cache
def problem(name: str) -> Problem:
    """The problem of that name, made once: one of `FACTORIES`, or `random` and a seed.

    Raises:
        ValueError: there is none.
    """
    if name.removeprefix("random").isdecimal():
        return random_mixture(int(name.removeprefix("random")))
    if name not in FACTORIES:
        raise ValueError(f"name must be one of {', '.join(FACTORIES)}, or random and a seed, got {name!r}")
    return FACTORIES[name]()
