"""Whether paths that much time is spent in are as fast as they were: ratios to the same work written by hand.

    python -m benchmarks.guard        # about three seconds

Prints, for each path, the median of the ratios of interleaved repetitions, and its limit, a fifth above what was
measured when the limit was set. The exit status is 1 if a ratio is above its limit. `tests/test_speed.py` runs it.
"""

import copy
import sys
from collections.abc import Callable

import torch
from benchmarks.by_hand import Half, multistep_by_hand
from benchmarks.pairs import paired, ratio
from benchmarks.roofline import plain
from torch.nn import functional

from openedm.ground.devices import keep_freed_memory
from openedm.networks import DDPMpp
from openedm.networks.pointwise import Dropout
from openedm.sampling import Auto

LIMITS = {
    "dropout / torch's": 0.5,
    "U-Net, forward and backward / plain": 1.02,
    "Auto(12) of a large state / by hand": 1.55,
    "evaluation of a denoiser / of its function": 5.7,
}
SECONDS = 0.4


def ratios() -> dict[str, float]:
    """The ratio of each path, by the names of `LIMITS`."""
    found = [_ratio(ours, by_hand) for ours, by_hand in (_dropout(), _network(), _sampler(), _call())]
    return dict(zip(LIMITS, found, strict=True))


Runs = tuple[Callable[[], object], Callable[[], object]]


def _ratio(ours: Callable[[], object], by_hand: Callable[[], object]) -> float:
    times = paired({"ours": ours, "by hand": by_hand}, SECONDS)
    return ratio(times["ours"], times["by hand"])


def _dropout() -> Runs:
    x = torch.randn(16, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    layer = Dropout(0.1).train()
    return lambda: layer(x), lambda: functional.dropout(x, 0.1)


def _network() -> Runs:
    ours = DDPMpp(16, (1, 2), num_blocks=1).build((3, 16, 16), seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = plain(copy.deepcopy(ours))
    x, c_noise = torch.randn(8, 3, 16, 16), torch.zeros(8)

    def run(network: torch.nn.Module) -> None:
        network(x, c_noise).square().sum().backward()

    return lambda: run(ours), lambda: run(other)


def _sampler() -> Runs:
    denoiser, noise = Half(), torch.randn(64, 3, 32, 32, dtype=torch.float64)
    sampler = Auto(12).choose(denoiser)
    plan = sampler.plan(denoiser)
    top = plan.steps[0].sigma
    return lambda: sampler.sample(denoiser, noise=noise), lambda: multistep_by_hand(plan, noise * top)


def _call() -> Runs:
    denoiser, x, sigma = Half(), torch.randn(1, 8, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    calls = range(200)
    return lambda: [denoiser(x, sigma) for _ in calls], lambda: [denoiser.denoise(x, sigma, None) for _ in calls]


def main() -> None:
    """Measure and print."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    slow = False
    for name, value in ratios().items():
        slow |= value > LIMITS[name]
        print(f"{name:<45} {value:5.2f}  limit {LIMITS[name]:.2f}{'  SLOW' if value > LIMITS[name] else ''}")
    sys.exit(int(slow))


if __name__ == "__main__":
    main()
