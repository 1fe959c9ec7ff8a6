"""The targets of a consistency function: f⁻(x_r; r), and the lower point x_r of each pair.

See `openedm.objective.ConsistencyTuning` for the formulas.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, per_sample
from openedm.guidance import ClassifierFree
from openedm.objective import ConsistencyTuning

__all__ = ["LowerPoints", "evaluate_target", "same_dropout"]


class LowerPoints:
    """How the lower point of each pair is made.

    Args:
        objective: how pairs are made.
        teacher: the denoiser of pairs="teacher".
    """

    def __init__(self, objective: ConsistencyTuning, teacher: Denoiser | None = None) -> None:
        self.teacher = teacher
        if teacher is not None and objective.guidance != 1:
            self.teacher = ClassifierFree(teacher, objective.guidance)

    @torch.no_grad()
    def lower(
        self,
        clean: Float[Tensor, "batch *event"],
        noise: Float[Tensor, "batch *event"],
        noisy: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, " batch"],
        target_sigma: Float64[Tensor, " batch"],
        condition: Condition,
        **network_kwargs: Any,
    ) -> Float[Tensor, "batch *event"]:
        """x_r, in standard units: y + r n, or an Euler step of the teacher from x_t.

        Args:
            clean: y, in standard units.
            noise: n.
            noisy: x_t, in standard units.
            sigma: t.
            target_sigma: r.
            condition: classes or conditions of the samples.
            network_kwargs: passed on to the network of the teacher.
        """
        if self.teacher is None:
            return clean + per_sample(target_sigma, clean) * noise
        with _own_autocast(noisy.device):
            denoised = self.teacher(noisy, sigma, condition, standard=True, **network_kwargs)
        return torch.lerp(denoised, noisy, per_sample(target_sigma / sigma, noisy))


@torch.no_grad()
def evaluate_target(
    function: Denoiser,
    x: Float[Tensor, "batch *event"],
    sigma: Float64[Tensor, " batch"],
    condition: Condition,
    **network_kwargs: Any,
) -> Float[Tensor, "batch *event"]:
    """f⁻(x; r), in standard units; x itself where r is below the levels of the network, as f(x; 0) = x.

    Args:
        function: f.
        x: x_r, in standard units.
        sigma: r.
        condition: classes or conditions of the samples.
        network_kwargs: passed on to the network.
    """
    inside = sigma > function.sigma_min
    # Every process evaluates at every step, as sharded weights are gathered by all together.
    with _own_autocast(x.device):
        evaluated = function(x, torch.where(inside, sigma, 1.0), condition, standard=True, **network_kwargs)
    return torch.where(inside.to(x.device).reshape(-1, *[1] * (x.ndim - 1)), evaluated, x)


def _own_autocast(device: torch.device) -> torch.autocast:
    """Autocast as it is, without its cache, from which weights cast without gradient would be used with one."""
    name = device.type
    return torch.autocast(
        name, torch.get_autocast_dtype(name), enabled=torch.is_autocast_enabled(name), cache_enabled=False
    )


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """Afterwards, torch's random state is the one before: the next evaluation has the dropout mask of this one.

    Args:
        device: where the masks are drawn.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
