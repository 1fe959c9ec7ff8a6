"""Likelihoods of exact problems, and samples of guided and of conditioned denoisers."""

import torch
from benchmarks.recorded.library import (
    DPS,
    MMPS,
    ClassifierFree,
    GaussianMixture,
    Guided,
    Matrix,
    Measurement,
    bits_per_dim,
    config,
    make,
)
from benchmarks.recorded.problems import PROBLEMS, SEEDS, plane, points, space, uniform
from benchmarks.recorded.sampling import LEVELS, solver
from benchmarks.recorded.storage import Named

LIKELIHOODS = {
    "default": {},
    "tsit5": {"solver": solver("Tsit5", tolerance=1e-3)},
    "heun": {"solver": solver("Heun"), "num_steps": 20},
    "rk4": {"solver": solver("RK4"), "num_steps": 10},
    "noise": {"terminal": "noise"},
    "extrapolate": {"extrapolate": True, "sigma_min": 0.01},
    "exact": {"trace": config("likelihood.ExactTrace", chunk=3)},
    "hutchinson": {"trace": config("likelihood.Hutchinson", num_probes=2)},
    "gaussian": {"trace": config("likelihood.Hutchinson", num_probes=2, distribution="gaussian")},
    "capped": {"solver": solver("DormandPrince", max_nfe=10)},
}


def likelihoods() -> Named:
    """Log-densities, their errors, the noise and the evaluations, for every setting."""
    for problem, make_denoiser in PROBLEMS.items():
        denoiser = make_denoiser()
        x = denoiser.sample(4, torch.Generator().manual_seed(8))
        yield f"{problem}/exact", denoiser.log_prob(x, 0.01)
        for name, values in LIKELIHOODS.items():
            chosen = make("likelihood.Likelihood", **values)
            found = chosen.log_prob(denoiser, x, seeds=SEEDS)
            yield f"{problem}/{name}/log_prob", found.log_prob
            yield f"{problem}/{name}/standard_error", found.standard_error
            yield f"{problem}/{name}/noise", found.noise
            yield f"{problem}/{name}/nfe", found.nfe
        yield f"{problem}/encode", make("likelihood.Likelihood").encode(denoiser, x)
    pixels = (uniform(3, 8, seed=9) * 127.5 + 127.5).round() / 127.5 - 1
    found = bits_per_dim(space(), pixels, seeds=SEEDS[:3], draws=2)
    yield "bits", found.bits_per_dim


def guidance() -> Named:
    """Classifier-free guidance, autoguidance, intervals and weights a sample, by several solvers."""
    classes, labels = points(), torch.tensor([0, 1, 2, -1])
    narrow = plane()
    wide = GaussianMixture([0.5, 0.5], [[0.5, 0.0], [-0.5, 0.2]], [[[0.4, 0.0], [0.0, 0.4]]] * 2)
    weights = {
        "number": 1.8,
        "rows": torch.tensor([1.0, 1.5, 2.0, 0.0], dtype=torch.float64),
        "interval": make("guidance.Interval", weight=2.0, low=0.1, high=4.0),
        "piecewise": make("guidance.Piecewise", sigmas=[0.1, 1.0, 10.0], weights=[1.0, 2.5, 1.0]),
    }
    for name, weight in weights.items():
        for method in ("Heun", "DPMSolverPP2M", "Ancestral"):
            chosen = make("sampling.Sampler", levels=LEVELS, solver=solver(method))
            free = ClassifierFree(classes, weight)
            yield f"classifier-free/{name}/{method}", chosen.sample(free, SEEDS, condition=labels)
            yield f"auto/{name}/{method}", chosen.sample(Guided(narrow, wide, weight), SEEDS)
    heun = make("sampling.Sampler", levels=LEVELS)
    yield "conditional", heun.sample(classes, SEEDS, condition=labels)


def conditioning() -> Named:
    """Samples given a linear measurement."""
    measurement = Measurement(Matrix(uniform(3, 8, seed=10)), uniform(1, 3, seed=11), sigma_y=0.2)
    posteriors = {
        "MMPS": MMPS(space(), measurement),
        "DPS-likelihood": DPS(space(), measurement, zeta=0.05),
        "DPS-residual": DPS(space(), measurement, zeta=0.5, step="residual"),
    }
    for name, denoiser in posteriors.items():
        for method in ("Heun", "DPMSolverPP2M"):
            chosen = make("sampling.Sampler", levels=LEVELS, solver=solver(method))
            yield f"{name}/{method}", chosen.sample(denoiser, SEEDS)
