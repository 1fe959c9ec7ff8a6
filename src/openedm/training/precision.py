"""float32 or mixed precision: both are timed on one pass, and compared at the noise levels of training.

    bf16 if   seconds of float32 > GAIN · seconds of bf16   and   max over σ of ‖D_bf16 − D‖ / ‖D − c_skip x‖ ≤ BOUND

The second is the relative error of what the network adds, c_out F. Networks begin with layers of zeros, behind which no
error can be seen: parameters that are zero are random for as long as the errors are measured. Both times are the
shortest of a few passes in turn, after one of each that is not counted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from openedm.denoiser import per_sample
from openedm.ground.memory import explain_out_of_memory
from openedm.ground.seeding import generator
from openedm.training.model import Model
from openedm.training.options import Options
from openedm.training.resources import ADVICE, Pass, available_on, time_run
from openedm.training.steps import LossModule

__all__ = ["PrecisionChoice", "choose_precision", "measure_precision"]

GAIN = 1.1
"""How many times as fast mixed precision must be to be chosen."""
BOUND = 0.05
"""The largest relative error of the network's part of D in mixed precision, at any noise level."""
LEVELS = 8
"""The number of noise levels at which errors are measured."""
NUMBERS = 1024
"""About the number of values of samples at each of them."""
PASS_SECONDS = 4.0
"""About the longest time of a pass."""
REPEATS = 3
"""The number of passes of each precision whose times are compared; two of long ones."""


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision of training, and what was measured.

    Attributes:
        samples: the samples of a pass: those of a round of one process, or fewer where they take long.
        fp32: seconds of a pass in float32: forward and backward.
        bf16: seconds of a pass in automatic mixed precision.
        error: the largest relative error of the network's part of D in mixed precision; NaN or infinity if it is not
            finite there.

    >>> PrecisionChoice(32, 0.4, 0.3, 0.01).describe()
    'bf16: a pass over 32 samples takes 0.3 s, in fp32 0.4 s (1.33 ×, at least 1.1 needed); error 1 %, at most 5 %'
    """

    samples: int
    fp32: float
    bf16: float
    error: float

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The precision: bf16 where it is faster by `GAIN` and no less accurate than `BOUND`."""
        return "bf16" if self.fp32 > GAIN * self.bf16 and self.error <= BOUND else "fp32"

    def describe(self) -> str:
        """What was chosen and why, in a line."""
        first, second = ("bf16", "fp32") if self.precision == "bf16" else ("fp32", "bf16")
        seconds = {"fp32": f"{self.fp32:.3g} s", "bf16": f"{self.bf16:.3g} s"}
        error = f"error {100 * self.error:.2g} %" if math.isfinite(self.error) else "bf16 is not finite"
        return (
            f"{first}: a pass over {_count(self.samples)} takes {seconds[first]}, in {second} {seconds[second]} "
            f"({self.fp32 / self.bf16:.2f} ×, at least {GAIN} needed); {error}, at most {100 * BOUND:.0f} %"
        )


def _count(samples: int) -> str:
    return f"{samples} sample" if samples == 1 else f"{samples} samples"


def choose_precision(
    module: LossModule, model: Model, options: Options, accelerator: Accelerator
) -> PrecisionChoice | None:
    """The precision of a run; None if the options have one. The main process measures, and the others follow.

    Args:
        module: the loss of the network, on the device of training.
        model: the shapes of its inputs.
        options: the options of training.
        accelerator: the processes, all of which must call.
    """
    if options.precision != "auto":
        return None
    found: list[PrecisionChoice | None] = [None]
    if accelerator.is_main_process:
        share = options.batch_size // accelerator.num_processes // options.rounds
        found = [measure_precision(module, model, options, share)]
    (choice,) = broadcast_object_list(found) if accelerator.num_processes > 1 else found
    assert choice is not None
    return choice


def measure_precision(module: LossModule, model: Model, options: Options, samples: int) -> PrecisionChoice:
    """Time a pass in each precision, and compare what they compute; weights, gradients and random states are as before.

    The network is timed as it is built, without `options.compile`.

    Args:
        module: the loss of the network, on the device of training.
        model: the shapes of its inputs.
        options: the options of training, without effect of `precision`.
        samples: the samples of a pass; fewer are taken if they need more than a few seconds, or half of the memory
            that is free.

    Raises:
        MemoryError: not even two samples fit.
    """
    device = next(module.parameters()).device
    single, mixed = (replace(options, precision="fp32"), replace(options, precision="bf16"))
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), explain_out_of_memory(ADVICE):
        few = Pass.make(module, model, single, 2, device)
        needed = max(few.bytes(), 1)  # the pass also loads kernels, so that the next one can be timed
        seconds = min(time_run(few.run, device) for _ in range(2))
        count = int(min(samples, available_on(device) / needed, 2 * PASS_SECONDS / seconds))
        passes = [Pass.make(module, model, each, max(count, 1), device) for each in (single, mixed)]
        for round_ in range(1 + REPEATS):
            if round_ > 2 and sum(times["fp32"]) > PASS_SECONDS:
                break
            for name, each in zip(times, passes, strict=True):
                times[name].append(time_run(each.run, device))
        error = _error(module, model, device)
    return PrecisionChoice(max(count, 1), min(times["fp32"][1:]), min(times["bf16"][1:]), error)


@torch.no_grad()
def _error(module: LossModule, model: Model, device: torch.device) -> float:
    """The largest relative error of the network's part of D in mixed precision, over levels of p(σ)."""
    denoiser, training = module.denoiser, module.training
    each = max(1, NUMBERS // math.prod(model.event_shape))
    like = Pass.make(module, model, Options(), LEVELS * each, device)
    quantiles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    low, high = model.sigma_range
    levels = module.objective.noise.for_data(model.sigma_data).quantile(quantiles).clamp(low, high)
    sigma = denoiser.round_sigma(levels).repeat_interleave(each)
    noise = torch.randn(like.clean.shape, generator=generator("cpu", 0, 2)).to(device)
    x = model.sigma_data * like.clean + per_sample(sigma, like.clean) * noise
    skipped = per_sample(denoiser.preconditioning.coefficients(sigma, denoiser.sigma_data)[0], x) * x
    denoiser.eval()
    with _zeros_filled(denoiser.network):
        exact = denoiser(x, sigma, like.condition, standard=True)
        with torch.autocast(device.type, torch.bfloat16):
            rounded = denoiser(x, sigma, like.condition, standard=True)
    denoiser.train(training)
    return float((_norms(rounded - exact) / _norms(exact - skipped)).max())


def _norms(x: Tensor) -> Tensor:
    """‖x‖ of the samples of each level."""
    return x.reshape(LEVELS, -1).square().sum(1).sqrt()


@contextmanager
def _zeros_filled(network: nn.Module) -> Iterator[None]:
    """Fill weights that are zero with numbers of variance 1/(inputs), and gains with 1, within the block."""
    zero = [p for name, p in network.named_parameters() if not name.endswith("bias") and not bool(p.any())]
    random = generator("cpu", 0, 3)
    try:
        for p in zero:
            values = torch.randn(p.shape, generator=random) * math.sqrt(len(p) / p.numel()) if p.numel() > 1 else 1.0
            p.copy_(torch.as_tensor(values))
        yield
    finally:
        for p in zero:
            p.zero_()
