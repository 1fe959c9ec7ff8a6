"""Estimators that sbi trained, sampled by sbi and by this library: their marginals, and how many evaluations they take.

    OMP_NUM_THREADS=1 python -m benchmarks.inference.estimators [--simulations 1000] [--epochs 200] [--out F.json]

NPSE (variance exploding, sbi's default, and preserving) and FMPE are trained by sbi as it does by default, on a ring of
two parameters. Each is then sampled by sbi's SDE (500 steps) and ODE (adaptive) and by `Auto` of 16, 32 and 64
evaluations of `from_sbi`'s denoiser. The error is the mean Wasserstein distance of 64 projections to samples of 512
evaluations with other seeds, in percent of a standard deviation; two such sets differ by the number called floor.
Evaluations are calls of the estimator's network for one sample.
"""

import argparse
import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.churn import error
from benchmarks.common import machine, write_json
from sbi.inference import FMPE, NPSE
from torch import Tensor

from openedm.interop import from_sbi
from openedm.sampling import Auto

TRAINERS = {
    "NPSE, VE": lambda prior: NPSE(prior, sde_type="ve", show_progress_bars=False),
    "NPSE, VP": lambda prior: NPSE(prior, sde_type="vp", show_progress_bars=False),
    "FMPE": lambda prior: FMPE(prior, show_progress_bars=False),
}
NOISE = 0.1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="%(default)s")
    parser.add_argument("--epochs", type=int, default=200, help="at most so many of training (%(default)s)")
    parser.add_argument("--samples", type=int, default=2000, help="%(default)s")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file of all numbers")
    return parser.parse_args()


def measured(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one estimator and draw from it in all ways."""
    torch.manual_seed(0)
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    theta = prior.sample((given.simulations,))
    radius = theta.square().sum(1, keepdim=True).sqrt()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how training ended
        # sbi writes what it logs into the folder where it runs.
        with tempfile.TemporaryDirectory() as logs, contextlib.chdir(logs):
            trainer = TRAINERS[name](prior)
            noisy = radius + NOISE * torch.randn_like(radius)
            trainer.append_simulations(theta, noisy).train(max_num_epochs=given.epochs)
    x, count = torch.tensor([1.2]), given.samples
    by = {way: trainer.build_posterior(sample_with=way) for way in ("sde", "ode")}
    denoiser = from_sbi(by["ode"])

    def theirs(way: str) -> Callable[[], Tensor]:
        return lambda: by[way].sample((count,), x=x, show_progress_bars=False)

    def ours(nfe: int, first: int = 0) -> Callable[[], Tensor]:
        return lambda: Auto(nfe).sample(denoiser, seeds=range(first, first + count), condition=x[None])

    known = ours(512, 10**6)()
    floor = error(ours(512, 2 * 10**6)(), known)[0]
    ways = {"sbi, SDE": theirs("sde"), "sbi, ODE": theirs("ode")} | {f"Auto({n})": ours(n) for n in (16, 32, 64)}
    rows = []
    for way, draw in ways.items():
        estimator = by["sde"].vector_field_estimator if way == "sbi, SDE" else denoiser.estimator  # they are copies
        calls = _Calls(estimator.net)
        started = time.process_time()
        samples = draw()
        seconds = time.process_time() - started
        distance, ratio = error(samples, known)
        rows.append(
            {"estimator": name, "way": way, "evaluations": calls.stop() / count, "seconds": seconds}
            | {"distance": distance, "ratio": ratio, "floor": floor}
        )
    return rows


class _Calls:
    """Counts the rows that a network is asked for."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.rows = 0
        self._hook = network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.rows += len((args or tuple(kwargs.values()))[0])

    def stop(self) -> int:
        """The rows so far, the last that are counted."""
        self._hook.remove()
        return self.rows


def main() -> None:
    """Run it."""
    given = arguments()
    print("estimator  way        evaluations  CPU s  distance %  floor  widths", flush=True)
    rows = []
    for name in TRAINERS:
        for row in measured(name, given):
            rows.append(row)
            print(
                f"{name:10} {row['way']:10} {row['evaluations']:11.0f} {row['seconds']:6.1f} {row['distance']:11.2f} "
                f"{row['floor']:6.2f} {row['ratio']:7.3f}",
                flush=True,
            )
    if given.out is not None:
        write_json(given.out, {"machine": machine(["sbi"]), "rows": rows})


if __name__ == "__main__":
    main()
