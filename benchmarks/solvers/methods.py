"""What a solver is to the benchmark, whichever library it is from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openedm.denoiser import Condition, Denoiser

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""The range of noise levels of all problems."""

OURS = "openedm"

Denoise = Callable[..., Tensor]
"""D(x, σ), σ a number or a tensor of shape () or (batch,): all that a peer is given."""

Run = Callable[[Denoise, Tensor], Tensor]
"""Samples from unit noise: `run(denoise, noise)`."""


@dataclass(frozen=True)
class Method:
    """A solver with all its settings.

    Attributes:
        library: whose it is.
        name: what it is called there.
        prepare: `prepare(budget, denoiser)` makes the run for at most that many evaluations, or at that tolerance for
            adaptive solvers; None where the solver can do nothing with so little. The denoiser is there to fit levels
            with: what is evaluated here is not counted.
    """

    library: str
    name: str
    prepare: Callable[[float, Denoiser], Run | None]

    @property
    def title(self) -> str:
        """Library and name."""
        return f"{self.library}: {self.name}"


class Counted(Denoiser):
    """A denoiser that counts.

    Attributes:
        calls: evaluations of a batch, whole or part: what a run costs where the network's time hardly depends on it.
        samples: evaluations of one sample.
        sigma_data: of the data, for solvers that ask the denoiser.
    """

    def __init__(self, denoiser: Denoiser, sigma_data: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.event_shape = denoiser.event_shape
        self.sigma_data = sigma_data
        self.calls = 0
        self.samples = 0

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """D, counted."""
        self.calls += 1
        self.samples += len(x)
        return self.denoiser(x, sigma, condition)
