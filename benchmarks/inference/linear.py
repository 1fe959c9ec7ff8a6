"""Posteriors of `fit` for linear Gaussian simulators of many parameters beside the closed form.

    python -m benchmarks.inference.linear --parameters 20 --simulations 5000 --out linear.json
    python -m benchmarks.inference.linear --parameters 2 --together 1 10 100

θ ~ N(0, I) of d parameters, x = A θ + ε with a random A of d columns and ε ~ N(0, C) correlated noise,
C = ½ (I + 0.6^|i−j|) / 4: the posterior is N(Σ Aᵀ C⁻¹ x, Σ), Σ = (I + Aᵀ C⁻¹ A)⁻¹, at every x. Prints, over three
observations, the largest error of a mean in standard deviations, the ratio of standard deviations furthest from 1, the
error of the covariance ‖S − Σ‖/‖Σ‖ (Frobenius), that of as many exact samples, and seconds and memory of the fit. With
`--together n`, a posterior is that of n observations of one θ, by the learned likelihood and by the denoiser alone.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from benchmarks.inference.exchange import peak_mib

from openedm.inference import Normal, fit


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, nargs="+", default=[20], help="how many (%(default)s)")
    parser.add_argument("--simulations", type=int, nargs="+", default=[5000], help="how many (%(default)s)")
    parser.add_argument("--together", type=int, nargs="+", default=[1], help="observations of one θ (%(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="of each posterior (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of A, simulations and fit (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="%(default)s")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file of all numbers")
    return parser.parse_args()


def measured(d: int, simulations: int, together: list[int], samples: int, seed: int) -> list[dict[str, Any]]:
    """Fit, and compare at three θ, each with so many observations."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.eye(d) + torch.randn(d, d, generator=generator) / d**0.5
    near = 0.6 ** (torch.arange(d)[:, None] - torch.arange(d)).abs()
    noise = torch.linalg.cholesky((torch.eye(d) + near) / 8)

    def simulate(theta: torch.Tensor) -> torch.Tensor:
        return theta @ a.T + torch.randn(len(theta), d, generator=generator) @ noise.T

    theta = torch.randn(simulations, d, generator=generator)
    x = simulate(theta)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = fit(theta, x, Normal([0.0] * d, [1.0] * d), seed=seed)
    common: dict[str, Any] = {"parameters": d, "simulations": simulations, "peak_mib": peak_mib()}
    common |= {"cpu_seconds": time.process_time() - started, "warnings": [str(w.message) for w in caught]}
    common["report"] = posterior.report
    ways = {"chosen": False} | ({"denoiser": True} if together != [1] else {})
    truths = torch.randn(3, d, generator=generator)
    rows = []
    for count in together:
        sets = [simulate(truth.expand(count, d)) for truth in truths]
        for way, plain in ways.items():
            row: dict[str, Any] = {"observations": count, "way": way, "shift": [], "width": [], "covariance": []}
            row |= common | {"exact": []}
            started = time.process_time()
            for observed in sets:
                mean, covariance = closed_form(a, noise, observed)
                single = posterior.plain() if plain else posterior
                if count == 1:
                    drawn = single.sample(observed[0], samples)
                else:
                    drawn = posterior.repeated(count, plain=plain).sample(observed, samples)
                std, factor = covariance.diagonal().sqrt(), torch.linalg.cholesky(covariance)
                exact = mean + torch.randn(samples, d, generator=generator) @ factor.T
                ratio = drawn.std(0) / std
                row["shift"].append(float(((drawn.mean(0) - mean) / std).abs().max()))
                row["width"].append(float(ratio[ratio.log().abs().argmax()]))
                for name, values in (("covariance", drawn), ("exact", exact)):
                    row[name].append(float((torch.cov(values.T) - covariance).norm() / covariance.norm()))
            rows.append(row | {"sampling_seconds": (time.process_time() - started) / len(sets)})
    return rows


def closed_form(a: torch.Tensor, noise: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of θ given all rows of x."""
    inverse = torch.cholesky_inverse(noise)
    covariance = torch.linalg.inv(len(x) * a.T @ inverse @ a + torch.eye(len(a)))
    return covariance @ a.T @ inverse @ x.sum(0), covariance


def main() -> None:
    """Run it."""
    given = arguments()
    torch.set_num_threads(given.threads)
    print("   d       n  obs.  shift  width  covar.   exact  fit s  draw s    MiB  chosen", flush=True)
    rows = []
    for d in given.parameters:
        for simulations in given.simulations:
            for row in measured(d, simulations, given.together, given.samples, given.seed):
                rows.append(row)
                width = max(row["width"], key=lambda ratio: max(ratio, 1 / ratio))
                way = row["report"]["chosen"] if row["way"] == "chosen" else "the denoiser alone"
                print(
                    f"{d:4} {simulations:7,} {row['observations']:5} {max(row['shift']):6.2f} {width:6.2f} "
                    f"{max(row['covariance']):7.3f} {max(row['exact']):7.3f} {row['cpu_seconds']:6.0f} "
                    f"{row['sampling_seconds']:7.1f} {row['peak_mib']:6.0f}  {way}",
                    flush=True,
                )
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
