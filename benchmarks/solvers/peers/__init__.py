"""Peer libraries, each called through its own interface with the same noise and, where it takes them, EDM's levels."""

from benchmarks.solvers.peers import adaptive, azula, diffusers, k_diffusion

FIXED = [*k_diffusion.FIXED, *diffusers.FIXED, *azula.FIXED]
ADAPTIVE = [*k_diffusion.ADAPTIVE, *adaptive.ADAPTIVE]
STOCHASTIC = [*k_diffusion.STOCHASTIC, *diffusers.STOCHASTIC, *azula.STOCHASTIC]
DETERMINISTIC = [
    method
    for method in FIXED
    if method.title
    in (
        "k-diffusion: Euler",
        "k-diffusion: Heun",
        "k-diffusion: DPM++ 2M",
        "diffusers: UniPC-2",
        "diffusers: UniPC-3",
        "azula: zEAB-3",
    )
]
"""Of `FIXED`, those that the stochastic ones are compared with."""

OVERHEAD = [*k_diffusion.OVERHEAD, *diffusers.OVERHEAD, *azula.OVERHEAD]

PACKAGES = ("k-diffusion", "diffusers", "azula", "torchdiffeq", "torchode", "torchsde")
"""The distributions, for their versions."""
