"""How right log-likelihoods are where the density is known: a table, and a JSON file with versions and machine.

    python -m benchmarks.likelihood [--points 32] [--out likelihood.json]

For Gaussian mixtures in 2 and 16 dimensions, the largest error in nats at points drawn from them: with the exact trace,
against the density at σ_min = 0.002 and, with σ_min = 1e-4, at σ = 0; and how many of 1,000 of Hutchinson's 95 %
intervals, of four probes, hold the true density at σ_min: 950 ± 7 if they are right. In two dimensions, where four
probes are the exact trace, the share is left out.
"""

import argparse
import math
from pathlib import Path

import torch
from benchmarks.common import machine, write_json
from benchmarks.solvers.problems import problem

from openedm.exact import GaussianMixture
from openedm.likelihood import ExactTrace, Hutchinson, Likelihood

INTERVALS = 1000
PLANAR = ("gmm2d", "moons2d")


def mixture16d() -> GaussianMixture:
    """Three correlated components in 16 dimensions, standard deviations from 0.05 to about 1."""
    normal = torch.Generator().manual_seed(2)
    root = 0.2 * torch.randn(3, 16, 16, dtype=torch.float64, generator=normal)
    covariances = root @ root.mT + 0.05**2 * torch.eye(16, dtype=torch.float64)
    means = 0.5 + 0.7 * torch.randn(3, 16, dtype=torch.float64, generator=normal)
    return GaussianMixture(torch.ones(3), means, covariances)


def measured(name: str, exact: GaussianMixture, points: int) -> dict[str, float | str]:
    """The row of one mixture."""
    x = exact.sample(points, torch.Generator().manual_seed(1))
    found = Likelihood(ExactTrace(), sigma_min=0.002).log_prob(exact, x)
    fine = Likelihood(ExactTrace(), sigma_min=1e-4).log_prob(exact, x)
    extrapolated = Likelihood(ExactTrace(), sigma_min=1e-4, extrapolate=True).log_prob(exact, x)
    many = exact.sample(INTERVALS, torch.Generator().manual_seed(9))
    probed = Likelihood(Hutchinson(num_probes=4), sigma_min=0.002).log_prob(exact, many, seeds=range(INTERVALS))
    low, high = probed.interval(0.95)
    truth = exact.log_prob(many, 0.002)
    hold = float(((low <= truth) & (truth <= high)).double().mean()) if probed.num_probes else math.nan
    return {
        "mixture": name,
        "at_sigma_min": float((found.log_prob - exact.log_prob(x, 0.002)).abs().max()),
        "at_zero": float((fine.log_prob - exact.log_prob(x)).abs().max()),
        "at_zero_extrapolated": float((extrapolated.log_prob - exact.log_prob(x)).abs().max()),
        "mean_nfe": float(found.nfe.double().mean()),
        "intervals_that_hold": hold,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=32, help="points a mixture")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    given = parser.parse_args()
    mixtures = {name: problem(name).denoiser for name in (*PLANAR, "gaussian16d")} | {"mixture16d": mixture16d()}
    rows = []
    print(
        f"{'largest error, nats':<16}{'p(x; 0.002)':>12}{'p(x; 0)':>12}{'extrapolated':>14}{'NFE':>7}{'intervals':>11}"
    )
    for name, exact in mixtures.items():
        assert isinstance(exact, GaussianMixture)
        row = measured(name, exact, given.points)
        rows.append(row)
        print(
            f"{name:<19}{row['at_sigma_min']:>9.1e}{row['at_zero']:>12.1e}{row['at_zero_extrapolated']:>14.1e}"
            f"{row['mean_nfe']:>7.0f}{row['intervals_that_hold']:>11.1%}",
            flush=True,
        )
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
