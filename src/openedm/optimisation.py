"""Minimisation by steps of an optimiser, with early stopping: one loop for denoisers, mixtures and classifiers.

`minimise` takes the steps and yields after each; averages of the weights, validation and stopping are the body of the
caller's loop. `BestLoss` records the lowest loss of a validation and the number of measurements since then.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["BestLoss", "OptimiserStep", "full_tensor", "minimise"]


@dataclass(frozen=True)
class OptimiserStep:
    """One step of an optimiser.

    Attributes:
        number: the number of the step, from `steps`.
        loss: the loss before the step.
        gradient_norm: Euclidean norm of all gradients before clipping.
        learning_rate: the learning rate of this step.
        taken: False if the loss or the gradient was not finite; the parameters are then unchanged.
    """

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float
    taken: bool


def minimise(
    gradient: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    steps: Iterable[int],
    learning_rate: Callable[[int], float],
    clip_norm: float | None = None,
) -> Iterator[OptimiserStep]:
    """Take one optimiser step for each number in `steps`, and yield it. Ends with `steps`, or when the caller breaks.

    A step whose loss or gradient norm is not finite is yielded but not taken: the caller decides whether to go on. The
    host waits for the device once a step.

    Args:
        gradient: given the number of a step, computes the loss, calls `backward` (once, or for each part of a batch)
            and returns the loss, a tensor of one number. Gradients are None when it is called.
        optimizer: the optimiser of the parameters; a group's "lr_factor", if it has one, multiplies its learning rate.
        steps: numbers of the steps; `range(1000)`, or an iterator without end whose caller breaks.
        learning_rate: given the number of a step, its learning rate.
        clip_norm: gradients are scaled down to this norm; None leaves them unchanged.

    A fit that validates every 50 steps, keeps the best weights and stops after 3 measurements without improvement:

    >>> line, target = torch.nn.Linear(1, 1), torch.linspace(-1, 1, 64)[:, None]
    >>> _ = torch.nn.init.zeros_(line.weight), torch.nn.init.zeros_(line.bias)
    >>> def gradient(step: int) -> Tensor:
    ...     loss = (line(target) - 2 * target).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> best, weights = BestLoss(), {}
    >>> optimizer = torch.optim.Adam(line.parameters())
    >>> for step in minimise(gradient, optimizer, steps=range(2000), learning_rate=lambda step: 0.05, clip_norm=5.0):
    ...     if step.number % 50 == 49:
    ...         with torch.no_grad():
    ...             validation = (line(target) - 2 * target).abs().mean()
    ...         if best.update(validation):
    ...             weights = {name: w.clone() for name, w in line.state_dict().items()}
    ...         elif best.stalled(3):
    ...             break
    >>> round(float(weights["weight"]), 4)
    2.0
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number in steps:
        for parameter in parameters:
            parameter.grad = None
        loss = gradient(number).detach()
        # As torch.nn.utils.get_total_norm, without its sorting of gradients by device: these are on one device.
        norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
        norm = full_tensor(torch.linalg.vector_norm(torch.stack(norms)))
        if clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        loss_value, norm_value = torch.stack([loss, norm.to(loss.dtype)]).tolist()  # the step's one synchronisation
        rate, taken = learning_rate(number), math.isfinite(loss_value) and math.isfinite(norm_value)
        if taken:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_factor", 1.0)
            optimizer.step()
        yield OptimiserStep(number, loss_value, norm_value, rate, taken)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that is sharded over processes (a DTensor), all of which must call; else `tensor`."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class BestLoss:
    """The lowest loss so far, of one model or of each member of an ensemble, and the number of measurements since.

    Args:
        lowest: the lowest losses so far, of any shape; by default one, infinite.
        stale: the number of consecutive measurements that did not improve each; by default 0.
        tolerance: a loss counts as an improvement if it is lower by more than this.

    >>> best = BestLoss()
    >>> [bool(best.update(torch.tensor(loss))) for loss in (1.0, 0.5, 0.7, 0.5)]
    [True, True, False, False]
    >>> float(best.lowest), int(best.stale), best.stalled(2)
    (0.5, 2, True)
    """

    def __init__(
        self,
        lowest: Float[Tensor, "*members"] | None = None,
        stale: Int64[Tensor, "*members"] | None = None,
        *,
        tolerance: float = 0.0,
    ) -> None:
        self.lowest = torch.tensor(math.inf, dtype=torch.float64) if lowest is None else lowest
        self.stale = torch.zeros_like(self.lowest, dtype=torch.int64) if stale is None else stale
        self.tolerance = tolerance

    def update(self, loss: Float[Tensor, "*members"]) -> Bool[Tensor, "*members"]:
        """Compare new losses with the lowest ones, and return which of them are an improvement; NaN never is."""
        loss = loss.detach().to(self.lowest)
        improved = loss < self.lowest - self.tolerance
        self.stale = torch.where(improved, 0, self.stale + 1)
        self.lowest = torch.where(loss < self.lowest, loss, self.lowest)
        return improved

    def stalled(self, patience: int) -> bool:
        """Whether no loss has improved in the last `patience` measurements."""
        return int(self.stale.min()) >= patience
