"""The mode of a density, searched from the best of some draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.optimize import minimize
from torch import Tensor

from openedm.inference.bijections import Bijection

__all__ = ["find_mode"]


def find_mode(
    density: Callable[[Tensor], Tensor], draws: Float[Tensor, "draws dim"], support: Bijection
) -> Float[Tensor, "dim"]:
    """argmax_θ ln q(θ), searched from the best of `draws` and never lower than that, in z = b(θ), θ = b⁻¹(z).

    L-BFGS (Liu & Nocedal 1989) on the gradient where autograd can follow the density; Nelder & Mead's simplex (1965)
    where it cannot. Each coordinate of z is divided by its spread, so that steps have the size of the posterior.

    Args:
        density: ln q of points (n, dim) inside the support, (n,); gradients are used if its result has them.
        draws: points inside the support, ≥ 1, with the spread of the density.
        support: b, from the support to all of R^dim.
    """
    with torch.no_grad():
        heights = density(draws)
    best = int(heights.argmax())
    z = support.forward(draws).double()
    spread = z.std(0) if len(z) > 1 else torch.ones_like(z[0])
    spread = torch.where(spread > 0, spread, 1.0)

    def theta_at(u: Tensor) -> Tensor:
        return support.inverse(z[best] + spread * u).to(draws.dtype)

    def negative(u: Float64[np.ndarray, "dim"]) -> tuple[float, Any]:
        leaf = torch.as_tensor(u, dtype=torch.float64, device=draws.device).requires_grad_()
        with torch.enable_grad():
            value = density(theta_at(leaf)[None])[0]
            slope = torch.autograd.grad(value, leaf)[0] if value.requires_grad else None
        return -float(value.detach()), None if slope is None else -slope.cpu().numpy()

    def negative_value(u: Float64[np.ndarray, "dim"]) -> float:
        return negative(u)[0]

    start = np.zeros(draws.shape[1])
    if negative(start)[1] is not None:
        found = minimize(negative, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    else:
        simplex, limit = np.vstack([start, start + np.eye(len(start)) / 4]), 200 * len(start)
        options: Any = {"initial_simplex": simplex, "maxiter": limit, "xatol": 1e-3, "fatol": 1e-4}
        found = minimize(negative_value, start, method="Nelder-Mead", options=options)
    with torch.no_grad():
        peak = theta_at(torch.as_tensor(found.x, device=draws.device))
        higher = bool(peak.isfinite().all()) and float(density(peak[None])[0]) >= float(heights[best])
    return peak if higher else draws[best]
