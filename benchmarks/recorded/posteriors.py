"""Inference: priors, simulations of the benchmark's tasks, a fitted posterior, a joint distribution, calibration."""

from typing import Any

import torch
from benchmarks.recorded.library import (
    Config,
    calibrate,
    config,
    fit,
    fit_joint,
    make,
    prior_from_config,
    simulate,
    tasks,
)
from benchmarks.recorded.storage import Named, numbers_of, reduced
from torch import Tensor

BOX = config("inference.Box", low=[-1.0, 0.0], high=[1.0, 3.0])
NORMAL = config("inference.Normal", mean=[0.5, -1.0], std=[1.0, 0.3])
LOG_NORMAL = config("inference.LogNormal", loc=[0.2, -0.5], scale=[0.5, 1.0])
BETA = {
    "name": "Beta",
    "parameters": {
        "concentration1": {"value": [2.0, 3.0], "dtype": "float32"},
        "concentration0": {"value": [1.5, 4.0], "dtype": "float32"},
    },
}
PRIORS = {
    "Box": BOX,
    "Normal": NORMAL,
    "Normal-covariance": config("inference.Normal", mean=[0.0, 1.0], covariance=[[1.0, 0.3], [0.3, 2.0]]),
    "LogNormal": LOG_NORMAL,
    "Independent": config("inference.Independent", parts=[BOX, LOG_NORMAL]),
    "Truncated": config("inference.Truncated", prior=NORMAL, low=[0.0, -1.5], high=[1.0, -0.5]),
    "TorchPrior": config("inference.TorchPrior", distribution=BETA, names=["a", "b"]),
}


def priors() -> Named:
    """Draws, densities and the bijection both ways, of a prior of each kind."""
    for name, plain in PRIORS.items():
        prior = prior_from_config(plain)
        theta = prior.sample(6, 3)
        u = prior.bijection.forward(theta.double())
        yield f"{name}/samples", theta
        yield f"{name}/log_prob", prior.log_prob(theta)
        yield f"{name}/forward", u
        yield f"{name}/inverse", prior.bijection.inverse(u)
        yield f"{name}/ends", [prior.bijection.low, prior.bijection.high]


def simulations() -> Named:
    """Parameters, data and likelihoods of every task of the benchmark, and what `simulate` draws."""
    for name in tasks.names():
        task = tasks.get(name)
        theta = task.prior.sample(3, 1)
        x = task.simulate(theta, seed=2)
        yield f"{name}/theta", theta
        yield f"{name}/x", reduced(x)
        try:
            yield f"{name}/log_likelihood", task.log_likelihood(theta, x)
        except NotImplementedError:
            continue
    found = simulate(_simulator, prior_from_config(BOX), 8, seed=4, workers=1)
    yield "simulate/theta", found.theta
    yield "simulate/x", found.x


def _simulator(theta: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % 2**32)
    return theta.square() + 0.1 * torch.randn(theta.shape, generator=generator)


MIXTURE = {"width": 8, "num_blocks": 1, "steps": 40, "pilot_steps": 10, "folds": 2}
SETTINGS = {
    "network": config(
        "networks.ConditionalMLP",
        width=8,
        num_blocks=1,
        summary=config("networks.VectorSummary", width=8, num_blocks=1),
    ),
    "members": 2,
    "images": 4096,
    "passes": 4,
    "batch_size": 256,
    "emulator": config("inference.MixtureOptions", members=2, components=[1, 2], **MIXTURE),
    "pool": 1500,
    "base": config("inference.MixtureOptions", members=1, components=[1], **MIXTURE),
    "refinement": config("inference.Refinement", num_steps=4, num_pilots=16),
    "judged": 8,
}
WITHOUT = {**SETTINGS, "emulator": None, "members": 1, "bases": ["linear"]}


def problem(count: int = 400) -> tuple[Tensor, Tensor]:
    """θ uniform in a box, and three numbers of data that depend on it, noisily."""
    theta = prior_from_config(BOX).sample(count, 5)
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(6))
    a, b = theta[:, :1], theta[:, 1:]
    return theta, torch.cat([a + b, a * b, b.exp() / 10], 1) + 0.2 * noise


OBSERVED = torch.tensor([[1.2, 0.4, 0.5], [2.5, -0.3, 1.5]])


def fitted() -> Named:
    """`fit` with and without an emulator, at sizes that are far too small: samples, densities, the report."""
    theta, x = problem()
    for name, settings in {"emulator": SETTINGS, "simulations": WITHOUT}.items():
        posterior = fit(theta, x, prior_from_config(BOX), settings=make("inference.Settings", **settings), seed=7)
        yield from _posterior(name, posterior)
        report = {key: value for key, value in posterior.report.items() if key not in ("seconds", "settings")}
        yield from numbers_of(f"{name}/report", report)
    yield "simulations/map", posterior.map(OBSERVED[0], num_draws=16)
    found = calibrate(posterior, theta[:24], x[:24], num_samples=20, num_density_samples=5, seed=1)
    yield "calibration/ranks", found.ranks
    yield "calibration/sbc", found.sbc


def _posterior(name: str, posterior: Any) -> Named:
    samples = posterior.sample(OBSERVED, 20, seed=8)
    yield f"{name}/samples", samples
    yield f"{name}/log_prob", posterior.log_prob(samples[:, :6], OBSERVED)


def joint() -> Named:
    """`fit_joint` at a tiny size: samples and densities of several conditionals."""
    theta, x = problem(300)
    options: Config = config(
        "training.Options",
        images=3200,
        batch_size=64,
        rampup=640,
        validate_every=0,
        snapshot_every=0,
        checkpoint_every=3200,
    )
    found = fit_joint(
        theta,
        x,
        prior_from_config(BOX),
        network=make("networks.JointTransformer", width=8, num_blocks=1, num_heads=2),
        options=make("training.Options", **options["init_args"]),
        sampler=make("sampling.Auto", nfe=12),
        seed=9,
    )
    yield from _posterior("posterior", found.posterior())
    likelihood = found.likelihood()
    values = likelihood.sample(theta[:2], 10, seed=10)
    yield "likelihood/samples", values
    yield "likelihood/log_prob", likelihood.log_prob(values, theta[:2])
    part = found.conditional(["theta_1", "x_2"], ["x_3"])
    yield "conditional/samples", part.sample(torch.tensor([0.4]), 10, seed=11)
