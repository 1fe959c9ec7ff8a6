"""Our solvers as k-diffusion samplers beside k-diffusion's own, on its wrappers of networks that predict noise.

    make benchmarks/.venv/installed && benchmarks/.venv/bin/python -m benchmarks.k_diffusion_models

Three models that answer for the noise at 1,000 discrete steps, as a network trained by DDPM does, are wrapped by
k-diffusion's `DiscreteEpsDDPMDenoiser`. Every sampler gets the same wrapper, noise and levels, those of `get_sigmas`
and Karras's, in one process. The table has the root mean square error of the median sample at equal evaluations, in
units of that of k-diffusion's best sampler on either levels; converged samples are RK4's from 1,500 levels.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from statistics import geometric_mean
from types import ModuleType
from typing import Any

import torch
from benchmarks.common import machine
from sklearn.datasets import load_digits
from torch import Tensor, nn

from openedm.denoiser import Denoiser
from openedm.exact import GaussianMixture
from openedm.interop import from_kdiffusion, sampler_function
from openedm.levels import Karras
from openedm.sampling import RK4, Sampler

OWN = {
    "euler": ("sample_euler", 1),
    "heun": ("sample_heun", 2),
    "dpm_2": ("sample_dpm_2", 2),
    "lms": ("sample_lms", 1),
    "dpmpp_2m": ("sample_dpmpp_2m", 1),
}


class EpsModel(nn.Module):
    """The noise in x/√(1+σ²) at step t of DDPM's linear schedule, from a closed form instead of a network."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        table = ((1 - self.alphas) / self.alphas).sqrt().log()
        low = t.double().floor().clamp(0, 999).long()
        share = t.double() - low
        sigma = (table[low] * (1 - share) + table[(low + 1).clamp(max=999)] * share).exp()
        wide = sigma.reshape(-1, *[1] * (x.ndim - 1))
        noisy = x.double() * (1 + wide**2).sqrt()
        return ((noisy - self.denoiser(noisy, sigma)) / wide).to(x.dtype)


def problems() -> dict[str, tuple[Denoiser, tuple[int, ...]]]:
    """Closed forms: a mixture in the plane, one of 16 dimensions, and one with a Gaussian for each digit."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(5, 16, generator=random, dtype=torch.float64)
    covariances = torch.stack([0.05 * torch.eye(16, dtype=torch.float64)] * 5)
    plane = GaussianMixture([0.4, 0.6], [[-0.5, 0.2], [0.5, 0.1]], [[[0.05, 0], [0, 0.02]], [[0.02, 0], [0, 0.05]]])
    digits, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    parts = [digits[labels == label] / 8 - 1 for label in range(10)]
    spread = [part.T.cov() + 0.01 * torch.eye(64) for part in parts]
    classes = GaussianMixture([0.1] * 10, [p.mean(0).tolist() for p in parts], torch.stack(spread).tolist())
    return {
        "mixture, 2": (plane, (2,)),
        "mixture, 16": (GaussianMixture([0.2] * 5, means.tolist(), covariances.tolist()), (16,)),
        "digits, 64": (classes, (64,)),
    }


def k_diffusion() -> tuple[Any, Any]:
    """k-diffusion's `sampling` and `external`, without its training side; see `benchmarks.solvers.peers`."""
    sampling = importlib.import_module("benchmarks.solvers.peers.k_diffusion").sampling
    vision = {"torchvision": ModuleType("torchvision"), "torchvision.transforms": ModuleType("torchvision.transforms")}
    vision["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    sys.modules.update(vision)
    try:
        return sampling, importlib.import_module("k_diffusion.external")
    finally:
        for name in vision:
            del sys.modules[name]


def run(denoiser: Denoiser, shape: tuple[int, ...], num_levels: int, samples: int) -> dict[str, dict[str, float]]:
    """The error of each sampler on each kind of levels."""
    sampling, external = k_diffusion()
    model = external.DiscreteEpsDDPMDenoiser(EpsModel(denoiser), EpsModel(denoiser).alphas, quantize=False)
    model = model.double()
    noise = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = float(model.sigma_min), float(model.sigma_max)
    reference = Sampler(Karras(1500, low, high), solver=RK4()).sample(from_kdiffusion(model, shape), noise=noise)
    found: dict[str, dict[str, float]] = {}
    for name in ("model", "karras"):
        found[name] = {}

        def levels(count: int, name: str = name) -> Tensor:
            ready: Tensor = (
                model.get_sigmas(count) if name == "model" else sampling.append_zero(Karras(count, low, high).sigmas())
            )
            return ready

        for label, (function, stages) in OWN.items():
            sigmas = levels((num_levels - 1) // stages + 1)
            drawn = getattr(sampling, function)(model, noise * sigmas[0], sigmas, disable=True)
            found[name][f"k-diffusion {label}"] = _error(drawn, reference)
        sigmas = levels(num_levels)
        found[name]["openedm"] = _error(sampler_function()(model, noise * sigmas[0], sigmas), reference)
    return found


def _error(samples: Tensor, reference: Tensor) -> float:
    return float((samples - reference).flatten(1).square().mean(1).sqrt().median())


def main() -> None:
    """Print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[8, 12, 20, 30])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/k_diffusion_models.json"))
    options = parser.parse_args()
    rows, ratios = [], []
    for problem, (denoiser, shape) in problems().items():
        for count in options.evaluations:
            errors = run(denoiser, shape, count, options.samples)
            own = {f"{n}, {kind}": e for kind, by in errors.items() for n, e in by.items() if n != "openedm"}
            best = min(own, key=lambda n: own[n])
            ours = {kind: by["openedm"] for kind, by in errors.items()}
            ratios.append(min(ours.values()) / own[best])
            rows.append({"problem": problem, "evaluations": count, "best": best, "errors": errors})
            shown = ", ".join(f"{kind} {error / own[best]:.3f}" for kind, error in ours.items())
            print(f"{problem:12} {count:3} evaluations: {best} {own[best]:.2e}; openedm / best: {shown}")
    print(f"geometric mean of openedm / best: {geometric_mean(ratios):.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(["k-diffusion"]), "rows": rows, "geometric_mean": geometric_mean(ratios)}
    options.out.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
