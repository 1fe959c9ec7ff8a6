"""How fast and how right the closed forms are, beside the forms that their formulas suggest: tables, and a JSON file.

    python -m benchmarks.closed_forms [--images 1437 5000] [--dims 64 256 1024] [--seconds 1] [--out closed_forms.json]

- Exact denoisers of data: D(x; σ) of 64 noisy samples by `ExactDataset`, in float64 and float32, and by distances
  computed as they are defined. Of 1437 images the data are the digits, 8×8; of other numbers seeded images of 3×32×32.
  Errors are the largest of 4 samples against the direct form in extended precision, in units of the largest number.
- The Fréchet distance of seeded covariances, whose eigenvalues fall as 1/i^{3/2}, beside the same by eigenvectors.

Milliseconds are medians of interleaved runs on one thread.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import interleaved, machine, write_json
from torch import Tensor

from openedm.data import Digits
from openedm.exact import ExactDataset
from openedm.metrics import Gaussian, frechet_distance

LEVELS = (0.002, 0.05, 0.5, 5.0, 80.0)
BATCH, JUDGED = 64, 4
CHUNK = 8192


def direct(data: Tensor, x: Tensor, sigma: float) -> Tensor:
    """D(x; σ) by distances as they are defined, chunk by chunk: `ExactDataset` up to version 0.1."""
    peak = torch.full((len(x), 1), -torch.inf, dtype=torch.float64)
    total, weighted = torch.zeros_like(peak), torch.zeros_like(x)
    for part in torch.split(data, CHUNK):
        logits = -torch.cdist(x, part, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * sigma**2)
        higher = torch.maximum(peak, logits.amax(1, keepdim=True))
        kept, weights = (peak - higher).exp(), (logits - higher).exp()
        total, weighted, peak = total * kept + weights.sum(1, keepdim=True), weighted * kept + weights @ part, higher
    return weighted / total


def extended(data: Tensor, x: Tensor, sigma: float) -> np.ndarray:
    """D(x; σ) in extended precision."""
    points = data.numpy()
    found = []
    for row in x.numpy().astype(np.longdouble):
        logits = np.concatenate([((part - row) ** 2).sum(1) for part in np.array_split(points, len(points) // 256 + 1)])
        logits = -logits / (2 * np.longdouble(sigma) ** 2)
        chosen = np.flatnonzero(logits > logits.max() - 60)
        weights = np.exp(logits[chosen] - logits.max())
        found.append(weights @ points[chosen].astype(np.longdouble) / weights.sum())
    return np.array(found)


def images(count: int) -> Tensor:
    """The digits, or seeded smooth images, as rows."""
    if count == 1437:
        return Digits().load().fetch(range(count))[0].flatten(1).double()
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    return 0.5 * torch.nn.functional.interpolate(small, 32, mode="bilinear").flatten(1)


def denoisers(count: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of the first table."""
    data = images(count)
    exact, single = ExactDataset(data), ExactDataset(data, dtype=torch.float32)
    size, rows = float(data.abs().max()), []
    for sigma in LEVELS:
        generator = torch.Generator().manual_seed(1)
        chosen = torch.randint(count, (BATCH,), generator=generator)
        x = data[chosen] + sigma * torch.randn(BATCH, data.shape[1], generator=generator, dtype=torch.float64)
        level = torch.tensor(sigma, dtype=torch.float64)
        runs = {
            "direct": lambda x=x, s=sigma: direct(data, x, s),
            "float64": lambda x=x, s=level: exact.denoise(x, s, None),
            "float32": lambda x=x, s=level: single.denoise(x, s, None),
        }
        expected = extended(data, x[:JUDGED], sigma)
        errors = {name: float(np.abs(run()[:JUDGED].numpy() - expected).max()) / size for name, run in runs.items()}
        times = {name: 1e3 * value.median for name, value in interleaved(runs, seconds).items()}
        rows.append({"images": count, "features": data.shape[1], "sigma": sigma, "ms": times, "error": errors})
    return rows


def covariance(dim: int, seed: int) -> Gaussian:
    """A seeded covariance whose eigenvalues fall as 1/i^{3/2}."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    values = torch.arange(1, dim + 1, dtype=torch.float64) ** -1.5
    return Gaussian(torch.zeros(dim, dtype=torch.float64), (q * values) @ q.T, 10 * dim)


def by_eigenvectors(a: Gaussian, b: Gaussian) -> float:
    """The distance by factors from the eigenvalues of both covariances, as up to version 0.1."""
    factors = []
    for gaussian in (a, b):
        values, vectors = torch.linalg.eigh(gaussian.covariance)
        factors.append(vectors * values.clamp(min=0).sqrt())
    cross = torch.linalg.svdvals(factors[1].T @ factors[0]).sum()
    return float(a.covariance.trace() + b.covariance.trace() - 2 * cross)


def distances(dim: int, seconds: float) -> dict[str, Any]:
    """A row of the second table."""
    a, b = covariance(dim, 0), covariance(dim, 1)
    runs = {"eigenvectors": lambda: by_eigenvectors(a, b), "frechet_distance": lambda: frechet_distance(a, b)}
    values = [run() for run in runs.values()]
    times = {name: 1e3 * value.median for name, value in interleaved(runs, seconds).items()}
    return {"features": dim, "ms": times, "difference": abs(values[1] - values[0]) / values[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[1437, 5000])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time of each case")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(f"{'images':>7}{'features':>9}{'σ':>7}  milliseconds: direct, float64, float32; error of each")
    for count in given.images:
        for row in denoisers(count, given.seconds):
            rows.append(row)
            times, errors = (
                "".join(f"{row[key][name]:>{9}.{digits}}" for name in row[key])
                for key, digits in (("ms", "1f"), ("error", "0e"))
            )
            print(f"{row['images']:>7}{row['features']:>9}{row['sigma']:>7g}  {times}{errors}", flush=True)
    found = []
    print("\nFréchet distance, milliseconds: by eigenvectors, frechet_distance; relative difference")
    for dim in given.dims:
        found.append(row := distances(dim, given.seconds))
        print(
            f"{dim:>7}{''.join(f'{value:>10.1f}' for value in row['ms'].values())}{row['difference']:>10.0e}",
            flush=True,
        )
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "denoisers": rows, "distances": found})


if __name__ == "__main__":
    main()
