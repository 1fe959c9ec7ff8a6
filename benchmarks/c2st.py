"""The batched classifier two-sample test against scikit-learn's: scores and seconds, in a table and a JSON file.

    python -m benchmarks.c2st [--n 10000] [--dims 2 5 10] [--pairs identical shifted inflated …] [--out c2st.json]

For n draws against n draws of a mixture of two Gaussians: the same distribution; one shifted by 0.3 in every
coordinate; one whose standard deviation is 6 % larger; and one without the smaller mode. Both implementations have the
same folds, first weights and batches, so that scores differ by rounding alone, which long training amplifies.
scikit-learn takes minutes in ten dimensions.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarks.common import machine, write_json
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from openedm.metrics import c2st

PAIRS = ("identical", "shifted", "inflated", "missing_mode")


def draws(n: int, dim: int, generator: torch.Generator, minor: float = 0.3) -> Tensor:
    """Two unit Gaussians, 6 apart in the first coordinate, the second of weight `minor`."""
    x = torch.randn(n, dim, generator=generator)
    x[:, 0] += 6.0 * (torch.rand(n, generator=generator) < minor)
    return x


def pair(name: str, n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples and their reference."""
    generator = torch.Generator().manual_seed(seed)
    reference = draws(n, dim, generator)
    samples = draws(n, dim, generator, minor=0.0 if name == "missing_mode" else 0.3)
    if name == "shifted":
        samples = samples + 0.3
    if name == "inflated":
        samples = samples.mean(0) + 1.06 * (samples - samples.mean(0))
    return samples, reference


def sklearn_c2st(samples: Tensor, reference: Tensor, seed: int = 1) -> float:
    """The score as sbibm computes it."""
    mean, std = reference.mean(0), reference.std(0)
    x = torch.cat([(reference - mean) / std, (samples - mean) / std]).numpy()
    y = np.repeat([0, 1], len(samples))
    width = 10 * x.shape[1]
    network = MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=1000, solver="adam", random_state=seed
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(network, x, y, cv=folds, scoring="accuracy")))


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """The result and the CPU seconds."""
    started = time.process_time()
    return run(), time.process_time() - started


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="draws of each of the two sets")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    given = parser.parse_args()
    rows = []
    print(f"{'d':>3} {'pair':<14}{'openedm':>9}{'sklearn':>9}{'difference':>12}{'CPU s':>8}{'sklearn':>9}")
    for dim in given.dims:
        for name in given.pairs:
            samples, reference = pair(name, given.n, dim)
            ours, seconds = timed(lambda s=samples, r=reference: c2st(s, r))
            theirs, their_seconds = timed(lambda s=samples, r=reference: sklearn_c2st(s, r))
            print(
                f"{dim:>3} {name:<14}{ours:>9.4f}{theirs:>9.4f}{ours - theirs:>+12.4f}"
                f"{seconds:>8.1f}{their_seconds:>9.1f}",
                flush=True,
            )
            rows.append(
                {"dim": dim, "pair": name, "openedm": ours, "sklearn": theirs}
                | {"seconds": seconds, "sklearn_seconds": their_seconds}
            )
    if given.out is not None:
        write_json(given.out, {"machine": machine(["scikit-learn"]), "n": given.n, "rows": rows})


if __name__ == "__main__":
    main()
