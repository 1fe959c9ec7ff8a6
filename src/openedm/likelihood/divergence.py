"""The trace of a denoiser's Jacobian, tr ∂D/∂x, exactly or by random probes.

- Exact: tr J = Σ_i e_iᵀ J e_i, by one backward pass for each of the n coordinates of a sample, several at a time.
- Hutchinson (1990): E[vᵀ J v] = tr J for any v with E[v vᵀ] = I, one backward pass for each probe v. The variance of
  one probe is Σ_{i≠j} ½ (J_ij + J_ji)² for Rademacher signs, and Σ_ij ½ (J_ij + J_ji)² for Gaussian ones.

The samples of a batch do not depend on each other in a denoiser, so that a backward pass serves the whole batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.sampling import NoiseSource

__all__ = ["ExactTrace", "Hutchinson", "Trace"]

Denoise = Callable[[Tensor], Tensor]


class Trace(Choice, ABC):
    """A method for the trace of the Jacobian."""

    @property
    @abstractmethod
    def estimates(self) -> int:
        """The number of estimates of the trace; 1 for an exact trace."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether it draws probes."""

    @abstractmethod
    def probes(self, source: NoiseSource | None, like: Float[Tensor, "batch *event"]) -> Tensor | None:
        """The probes of a run, (estimates, batch, *event); None for an exact trace."""

    @abstractmethod
    def __call__(
        self,
        denoise: Denoise,
        x: Float[Tensor, "rows *event"],
        probes: Float[Tensor, "estimates rows *event"] | None,
    ) -> tuple[Float[Tensor, "rows *event"], Float[Tensor, "rows estimates"]]:
        """D(x), and the estimates of tr ∂D/∂x."""


@dataclass(frozen=True)
class ExactTrace(Trace):
    """All n diagonal elements, by n backward passes, `chunk` of them at a time.

    Args:
        chunk: number of backward passes at a time, ≥ 1, which determines the memory. 1 works for any differentiable
            denoiser; larger numbers are faster, and batch its operations by `torch.func.vmap`. If an operation cannot
            be batched, such as a convolution in channels-last memory, vectors are differentiated one by one.

    Raises:
        ValueError: chunk < 1.
    """

    estimates = 1
    random = False
    chunk: int = 64

    def __post_init__(self) -> None:
        checks.integer("chunk", self.chunk, 1)

    def probes(self, source: NoiseSource | None, like: Float[Tensor, "batch *event"]) -> None:
        """An exact trace has no probes."""
        return

    def __call__(
        self, denoise: Denoise, x: Float[Tensor, "rows *event"], probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Σ_i ∂D_i/∂x_i."""
        # The fused attention kernels have no batched derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = x.detach().requires_grad_(True)
            denoised = _check_differentiable(denoise(x))
            rows, size = len(x), x[0].numel()
            flat = denoised.reshape(rows, size)
            total = torch.zeros(rows, dtype=x.dtype, device=x.device)
            for start in range(0, size, self.chunk):
                which = torch.arange(start, min(start + self.chunk, size), device=x.device)
                columns = _backward(flat, x, _unit_vectors(which, flat)).reshape(len(which), rows, size)
                total = total + columns[torch.arange(len(which)), :, which].sum(0)
        return denoised.detach(), total[:, None]


@dataclass(frozen=True)
class Hutchinson(Trace):
    """The mean of vᵀ J v over random probes v, which are constant along a path and functions of the sample's seed.

    It is for many coordinates: up to twice as many as probes, `Likelihood` uses the exact trace instead. If there are
    fewer probes of ±1 than coordinates, no two of a sample are equal up to sign, because their estimates would be
    equal. Confidence intervals assume that many entries of J contribute to the error: if a single pair of coordinates
    is coupled, k probes of ±1 give the same estimate with probability 2^{1−k}, and the interval then has length 0;
    Gaussian probes never do.

    Args:
        num_probes: k ≥ 1; a standard error requires at least 2.
        distribution: the distribution of the entries of v: "rademacher", ±1, or "gaussian", with a larger variance.

    Raises:
        ValueError: a value is not allowed.
    """

    random = True
    num_probes: int = 8
    distribution: Literal["rademacher", "gaussian"] = "rademacher"

    def __post_init__(self) -> None:
        checks.integer("num_probes", self.num_probes, 1)
        checks.one_of("distribution", self.distribution, ("rademacher", "gaussian"))

    @property
    def estimates(self) -> int:
        """k."""
        return self.num_probes

    def probes(
        self, source: NoiseSource | None, like: Float[Tensor, "batch *event"]
    ) -> Float[Tensor, "k batch *event"]:
        """k draws from the samples' seeds."""
        assert source is not None
        drawn = torch.stack([source.draw(tuple(like.shape[1:])) for _ in range(self.num_probes)]).to(like)
        if self.distribution == "gaussian":
            return drawn
        # The sign of 0 is +1, so that a probe has no zeros.
        signs = torch.where(drawn < 0, -1.0, 1.0).to(like)
        return _make_distinct(signs, drawn) if self.num_probes < like[0].numel() else signs

    def __call__(
        self, denoise: Denoise, x: Float[Tensor, "rows *event"], probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """v_jᵀ J v_j, j = 1 … k."""
        assert probes is not None
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            denoised = _check_differentiable(denoise(x))
            found = [
                (torch.autograd.grad(denoised, x, probe, retain_graph=i + 1 < len(probes))[0] * probe).flatten(1).sum(1)
                for i, probe in enumerate(probes)
            ]
        return denoised.detach(), torch.stack(found, 1)


def _make_distinct(signs: Float[Tensor, "k batch *event"], drawn: Tensor) -> Float[Tensor, "k batch *event"]:
    """The probes; if one repeats an earlier one up to sign, the entry nearest 0 that makes it different changes sign.

    Magnitudes are independent of signs, and the change commutes with changes of sign, so that each probe stays uniform.
    For k < n there is always such an entry, because there are more entries than earlier probes.
    """
    flat, sizes = signs.flatten(2).clone(), drawn.flatten(2).abs()
    n = flat.shape[2]
    for j in range(1, len(flat)):
        # |vᵀ w| = n where v = ±w.
        repeated = (torch.einsum("kbn,bn->kb", flat[:j], flat[j]).abs() > n - 0.5).any(0)
        for row in repeated.nonzero()[:, 0].tolist():
            for entry in sizes[j, row].argsort().tolist():
                flat[j, row, entry] *= -1
                if not bool(((flat[:j, row] @ flat[j, row]).abs() > n - 0.5).any()):
                    break
                flat[j, row, entry] *= -1
    return flat.reshape(signs.shape)


def _unit_vectors(which: Tensor, flat: Tensor) -> Tensor:
    """e_i for every row of the batch and every i in `which`: (chunk, rows, n), a view of (chunk, 1, n)."""
    units = torch.zeros(len(which), 1, flat.shape[1], dtype=flat.dtype, device=flat.device)
    units[torch.arange(len(which)), 0, which] = 1.0
    return units.expand(-1, len(flat), -1)


def _backward(outputs: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """vᵀ ∂outputs/∂x for every v; the graph is retained."""
    if len(vectors) > 1:
        try:
            return torch.autograd.grad(outputs, x, vectors, retain_graph=True, is_grads_batched=True)[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass  # An error with another cause than batching is raised again below.
    return torch.stack([torch.autograd.grad(outputs, x, vector, retain_graph=True)[0] for vector in vectors])


def _check_differentiable(denoised: Tensor) -> Tensor:
    if not denoised.requires_grad:
        raise TypeError(
            "denoiser must be differentiable in x for a likelihood, but its result does not require gradients"
        )
    return denoised
