"""What a solver costs beyond the network: time and memory with a denoiser that does nothing.

Microseconds for each evaluation of D, all of a run counted, its planning too. openedm keeps its state in float64 and
pays for the checks of `Denoiser`; the peers get float32, as they have it from their users, and a bare function.
Memory is that of the tensors held at once, D's outputs among them, in states: the size of x in its dtype.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from benchmarks.common import interleaved, peak_memory
from benchmarks.solvers.methods import OURS, SIGMA_MAX, Denoise, Method
from benchmarks.solvers.ours import karras
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground.devices import keep_freed_memory

STEPS = 20
SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32))
Run = Callable[[Denoise, Tensor], Tensor]


class Nothing(Denoiser):
    """Returns the same numbers whatever it is given, in the dtype of x.

    Args:
        shape: of the batch.
        fresh: return a new tensor each time, as a network does; if not, the same one, which costs no time.
    """

    def __init__(self, shape: tuple[int, ...], fresh: bool = False) -> None:
        super().__init__()
        self.fresh = fresh
        self.event_shape = shape[1:]
        self.calls = 0
        self.outputs = {dtype: torch.full(shape, 0.1, dtype=dtype) for dtype in (torch.float32, torch.float64)}

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The numbers."""
        return self.bare(x, sigma)

    def bare(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The same as a function, for the peers."""
        self.calls += 1
        output = self.outputs[x.dtype]
        return output.clone() if self.fresh else output


def by_hand(terms: int) -> Run:
    """The least arithmetic of a multistep method: x ← a x + Σ b_k D_k with coefficients at hand; float32."""
    sigmas = [*karras(STEPS).sigmas().tolist(), 0.0]

    def run(denoise: Denoise, noise: Tensor) -> Tensor:
        x = noise * SIGMA_MAX
        past: list[Tensor] = []
        for sigma, following in pairwise(sigmas):
            past = [denoise(x, sigma), *past[: terms - 1]]
            ratio = following / sigma
            x = torch.add(x * ratio, past[0], alpha=1 - ratio)
            for older in past[1:]:
                x.add_(older, alpha=1e-3 * ratio)
        return x

    return run


class Case(NamedTuple):
    """A run to be timed.

    Attributes:
        library: whose it is.
        solver: what it is called.
        run: samples from unit noise.
        bare: it takes a bare function, and float32; if not, a `Denoiser`, and float64.
    """

    library: str
    solver: str
    run: Run
    bare: bool

    @property
    def slow(self) -> bool:
        """It takes so long that the others should not wait for it."""
        return "tree" in self.solver

    def call(self, shape: tuple[int, ...], fresh: bool = False) -> tuple[Callable[[], Tensor], Nothing]:
        """The run on a batch of this shape, and the denoiser that it uses."""
        dtype = torch.float32 if self.bare else torch.float64
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        denoiser = Nothing(shape, fresh)
        return partial(self.run, denoiser.bare if self.bare else denoiser, noise), denoiser

    def states_at_peak(self) -> float | None:
        """The memory of the tensors that a run holds at its peak, in states of its dtype."""
        call, _ = self.call(SHAPES[-1], fresh=True)
        size = math.prod(SHAPES[-1]) * (4 if self.bare else 8)
        return None if self.slow else peak_memory(call) / size


def cases(methods: Sequence[Method]) -> list[Case]:
    """What is timed: arithmetic by hand, and the methods."""
    found = [Case("by hand", f"{terms} terms", by_hand(terms), True) for terms in (1, 2, 3)]
    for method in methods:
        run = method.prepare(STEPS, Nothing(SHAPES[0]))
        assert run is not None
        found.append(Case(method.library, method.name, run, bare=method.library != OURS))
    return found


@torch.no_grad()
def overhead(methods: Sequence[Method], seconds: float) -> list[dict[str, Any]]:
    """Time of each method at two sizes, all in turn, and the memory that it holds at its peak."""
    keep_freed_memory()  # As the command line does; it serves the peers too.
    found = cases(methods)
    rows = []
    for shape in SHAPES:
        calls = [case.call(shape)[0] for case in found]
        fast = {str(i): call for i, (case, call) in enumerate(zip(found, calls, strict=True)) if not case.slow}
        slow = {str(i): call for i, (case, call) in enumerate(zip(found, calls, strict=True)) if case.slow}
        times = {**interleaved(fast, seconds), **interleaved(slow, 0.0)}
        for i, case in enumerate(found):
            call, denoiser = case.call(shape)
            call()
            rows.append(
                {
                    "library": case.library,
                    "solver": case.solver,
                    "shape": list(shape),
                    "evaluations": denoiser.calls,
                    "minimum_us": 1e6 * times[str(i)].minimum / denoiser.calls,
                    "median_us": 1e6 * times[str(i)].median / denoiser.calls,
                    "runs": times[str(i)].runs,
                }
            )
    memory = [case.states_at_peak() for case in found]
    return [{**row, "peak_states": states} for row, states in zip(rows, memory * len(SHAPES), strict=True)]
