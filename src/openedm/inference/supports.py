"""Supports and densities of torch's distributions, whose own statements are wider where they are transformed.

y = f(x), x ~ p:   support of y = f(support of x),   ln p(y) = ln p(x) − ln |df/dx|

`TransformedDistribution.support` is the range of f for any x, all positive numbers for a uniform distribution of ln y;
`VonMises.support` is R, on which the density, periodic, is none: draws lie in [−π, π].
"""

import math
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, distributions
from torch.distributions import Distribution, Transform, constraints

__all__ = ["CONTINUOUS", "interval_of", "log_density"]

CONTINUOUS = (
    "continuous, since discrete parameters have no density (fit one posterior for each of their values, with the "
    "others as parameters, and weigh them, or give a continuous parameter in their place)"
)

Ends = tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]


def interval_of(distribution: Distribution) -> Ends:
    """The ends of a distribution's support in each coordinate, infinite where it has none.

    Raises:
        ValueError: it is discrete, or its support is no product of intervals.
    """
    match distribution:
        case distributions.Independent():
            return interval_of(distribution.base_dist)
        case distributions.VonMises():
            return _real(-math.pi), _real(math.pi)
        case distributions.TransformedDistribution() if _elementwise(distribution):
            low, high = interval_of(distribution.base_dist)
            for transform in distribution.transforms:
                low, high = _mapped(transform, low, high)
            return low, high
        case distributions.MixtureSameFamily():
            return _common(distribution)
    return _stated(distribution)


def log_density(distribution: Distribution, value: Float64[Tensor, "*values"]) -> Tensor:
    """Ln p of values inside the support, which rounding in a transform may move to just outside that of its base."""
    match distribution:
        case distributions.Independent():
            found = log_density(distribution.base_dist, value)
            return found.sum(tuple(range(-distribution.reinterpreted_batch_ndims, 0)))
        case distributions.TransformedDistribution() if _elementwise(distribution):
            slope: Tensor = torch.zeros_like(value)
            for transform in reversed(distribution.transforms):
                before = transform.inv(value)
                steepness: Any = transform.log_abs_det_jacobian
                slope, value = slope + steepness(before, value), before
            low, high = interval_of(distribution.base_dist)
            up, down = torch.full_like(low, math.inf), torch.full_like(high, -math.inf)
            value = torch.minimum(torch.maximum(value, torch.nextafter(low, up)), torch.nextafter(high, down))
            axes = tuple(range(-len(distribution.event_shape), 0))
            return log_density(distribution.base_dist, value) - (slope.sum(axes) if axes else slope)
    found = distribution.log_prob(value)
    assert isinstance(found, Tensor)
    return found


def _elementwise(distribution: distributions.TransformedDistribution) -> bool:
    """Whether each coordinate is a monotone function of one coordinate of the base, by a user's transforms.

    Torch's own distributions that are transformed ones, such as Gumbel's, state their supports.
    """
    own = type(distribution) is not distributions.TransformedDistribution
    return not own and all(
        t.bijective and t.domain.event_dim == t.codomain.event_dim == 0 for t in distribution.transforms
    )


def _mapped(transform: Transform, low: Float64[Tensor, "..."], high: Float64[Tensor, "..."]) -> Ends:
    """The interval that a monotone function maps an interval onto; its own range where an end is infinite."""
    try:
        reach = _ends(transform.codomain)
    except ValueError:
        reach = _real(-math.inf), _real(math.inf)
    rising = torch.as_tensor(transform.sign) > 0
    low, high = low.reshape(-1), high.reshape(-1)  # not single numbers, so that the result is float64
    first, last = transform(low), transform(high)
    start, stop = torch.where(rising, first, last), torch.where(rising, last, first)
    open_start = torch.where(rising, low.isinf(), high.isinf())
    open_stop = torch.where(rising, high.isinf(), low.isinf())
    return torch.where(open_start, reach[0], start), torch.where(open_stop, reach[1], stop)


def _common(mixture: distributions.MixtureSameFamily) -> Ends:
    """The support that all components of a mixture share."""
    axis = -1 - len(mixture.event_shape)
    low, high = (end.broadcast_to(end.shape or (1,)) for end in interval_of(mixture.component_distribution))
    many = low.ndim >= -axis
    ends = [(end.amin(axis), end.amax(axis)) if many else (end, end) for end in (low, high)]
    if any(not torch.equal(least, most) for least, most in ends):
        raise ValueError(
            "prior must have a support that is an interval in every coordinate, got a mixture of components with "
            f"different supports, low {low.tolist()} and high {high.tolist()}: give other coordinates of theta, with "
            "their prior, or None"
        )
    return ends[0][0], ends[1][0]


def _stated(distribution: Distribution) -> Ends:
    """The ends of what the distribution states."""
    try:
        support: Any = distribution.support
    except NotImplementedError:
        support = None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if getattr(support, "is_discrete", False):
        raise ValueError(f"prior must be {CONTINUOUS}, got {type(distribution).__name__}")
    try:
        return _ends(support)
    except ValueError as error:
        advice = "give other coordinates of theta, with their prior, or None"
        if support is constraints.simplex:
            advice = (
                "give as parameters v_i, of all shares but the last, what each takes of the rest that those before it "
                "leave, share i = v_i (1 − v_1) … (1 − v_(i−1)), for Dirichlet(a) v_i ~ Beta(a_i, a_(i+1) + … + a_k)"
            )
        raise ValueError(
            "prior must have a support that is an interval in every coordinate, got the support "
            f"{support} of {type(distribution).__name__}: {advice}"
        ) from error


def _ends(support: Any) -> Ends:
    low, high = -math.inf, math.inf
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        low, high = support.lower_bound, support.upper_bound
    elif isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        low = support.lower_bound
    elif isinstance(support, constraints.less_than):
        high = support.upper_bound
    elif support is not constraints.real:
        raise ValueError("not an interval")
    return _real(low), _real(high)


def _real(value: Any) -> Float64[Tensor, "..."]:
    return torch.as_tensor(value, dtype=torch.float64)
