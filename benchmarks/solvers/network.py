"""A trained network as a problem: what solvers are for, where no closed form tells where the ODE leads."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from benchmarks.solvers.problems import Problem, Reference, distance
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.levels import Logistic
from openedm.preconditioning import VelocityPrediction
from openedm.sampling import Multistep, Sampler
from openedm.schedules import FlowTime
from openedm.training import find_checkpoint, load_denoiser

STARTS = 64
STEPS = (400, 300)


class InTurn(Denoiser):
    """A class-conditional denoiser asked for the classes in turn: row i is of class i modulo their number."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.event_shape, self.sigma_data = denoiser.event_shape, denoiser.sigma_data
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """D of the classes in turn."""
        classes = self.denoiser.num_classes
        labels = torch.arange(len(x), device=x.device) % classes if classes else None
        return self.denoiser(x, sigma, labels)


@dataclass(frozen=True)
class NetworkProblem(Problem):
    """The ODE of a network, solved by many steps of a high order; the floor is what fewer of them change."""

    def reference(self, cached: bool = True) -> Reference:
        """The solution, computed once."""
        return self._solved

    @cached_property
    def _solved(self) -> Reference:
        width = self.sigma_data
        solver = Multistep(VelocityPrediction(width), FlowTime(width), 4, 5)
        levels = (Logistic(n, self.sigma_min, self.sigma_max, 0.4 * width, 2.0) for n in STEPS)
        fine, coarse = (Sampler(each, solver=solver).sample(self.denoiser, noise=self.noise) for each in levels)
        return Reference(fine, float(distance(fine, coarse).max()))


def network(checkpoint: str) -> NetworkProblem:
    """The problem of a checkpoint, or of a run's newest."""
    denoiser = load_denoiser(checkpoint)
    trained = Path(find_checkpoint(checkpoint)).name
    title = f"a network trained on {int(trained):,} images" if trained.isdecimal() else "a trained network"
    return NetworkProblem("network", title, InTurn(denoiser), denoiser.sigma_data, STARTS)
