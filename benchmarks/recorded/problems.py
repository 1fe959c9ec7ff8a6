"""Exact denoisers and small fixed functions that the recording samples from. All numbers are written out or seeded."""

import torch
from benchmarks.recorded.library import Denoiser, ExactDataset, FunctionDenoiser, GaussianMixture, Preconditioned, make
from torch import Tensor, nn

SEEDS = (0, 1, 2, 12345)


def uniform(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in float64, a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def plane() -> Denoiser:
    """Five Gaussians in the plane, of unlike weights and covariances."""
    means = [[1.0, 0.2], [-0.6, 0.9], [-0.8, -0.7], [0.5, -1.1], [0.1, 0.1]]
    covariances = [
        [[0.02, 0.01], [0.01, 0.03]],
        [[0.05, 0.0], [0.0, 0.001]],
        [[0.01, -0.005], [-0.005, 0.02]],
        [[0.002, 0.0], [0.0, 0.002]],
        [[0.1, 0.06], [0.06, 0.1]],
    ]
    return GaussianMixture([0.3, 0.25, 0.2, 0.15, 0.1], means, covariances)


def space() -> Denoiser:
    """Four Gaussians in eight dimensions."""
    roots = uniform(4, 8, 8, seed=1, low=-0.3, high=0.3)
    return GaussianMixture([0.4, 0.3, 0.2, 0.1], uniform(4, 8, seed=2), roots @ roots.mT)


def points() -> Denoiser:
    """Twenty-four points in twelve dimensions, in three classes."""
    return ExactDataset(uniform(24, 12, seed=3), torch.arange(24) % 3)


PROBLEMS = {"plane": plane, "space": space}


def counted(denoiser: Denoiser) -> tuple[Denoiser, list[int]]:
    """The same denoiser, and a list to which every evaluation adds its number of rows."""
    rows: list[int] = []

    def function(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        rows.append(len(x))
        return denoiser(x, sigma, condition)

    return FunctionDenoiser(function, denoiser.event_shape, sigma_data=denoiser.sigma_data), rows


class Fixed(nn.Module):
    """A small smooth function in place of a network, in the dtype of x."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.matrix = uniform(features, features, seed=4)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None) -> Tensor:
        """tanh(x A + cos(c_noise / 50)), of c_noise up to 999."""
        return (x @ self.matrix.to(x) + torch.cos(c_noise.to(x) / 50)[:, None]).tanh()


TABLE = tuple(0.01 * 1.35**j for j in range(24))
IDDPM_TABLE = (*reversed(TABLE), 0.0)
ROUNDING = {
    "iddpm": ("preconditioning.IDDPM", {"num_levels": 60}),
    "iddpm-table": ("preconditioning.IDDPM", {"num_levels": len(TABLE), "table": list(IDDPM_TABLE)}),
    "adapter-epsilon": ("preconditioning.Adapter", {"table": list(TABLE)}),
    "adapter-v": ("preconditioning.Adapter", {"predicts": "v", "table": list(TABLE)}),
    "vp": ("preconditioning.VP", {}),
    "ve": ("preconditioning.VE", {}),
    "edm": ("preconditioning.EDM", {}),
}


def preconditioned(name: str, features: int = 2) -> Denoiser:
    """A denoiser of one of `ROUNDING`, most of which know a table of levels only."""
    kind, values = ROUNDING[name]
    return Preconditioned(Fixed(features), make(kind, **values), 0.6, event_shape=(features,))
