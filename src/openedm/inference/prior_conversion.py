"""Priors as users have them (torch's distributions, pairs of ends, lists) made into a `Prior`, and their plain form."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from openedm.ground.choices import class_path, from_config
from openedm.inference.priors import Box, Independent, LogNormal, Normal, Prior, TorchPrior
from openedm.inference.truncated import Truncated

__all__ = ["as_prior", "prior_from_config", "prior_to_config"]


def as_prior(prior: Any, names: Sequence[str] | None = None) -> Prior | None:
    """The `Prior` that `prior` stands for.

    Args:
        prior: a `Prior`; a torch distribution; a pair (low, high) of a box's ends, (d,) each; a list of
            one-dimensional torch distributions or priors, one a parameter; or None, which stays None.
        names: of the parameters, where the prior has none of its own.

    Raises:
        TypeError: prior is something else.
        ValueError: it cannot be a prior (its shape, or a support that is no product of intervals).
    """
    if prior is None or isinstance(prior, Prior):
        return prior
    if isinstance(prior, Distribution):
        return _from_torch(prior, names)
    if isinstance(prior, list | tuple) and prior and all(isinstance(p, Prior | Distribution) for p in prior):
        parts = [_from_torch(p, None) if isinstance(p, Distribution) else p for p in prior]
        return Independent(parts)
    if isinstance(prior, list | tuple) and len(prior) == 2:
        low, high = (torch.as_tensor(end, dtype=torch.float64).flatten().tolist() for end in prior)
        return Box(low, high, names)
    raise TypeError(
        "prior must be a Prior, a torch distribution, a list of them, a pair (low, high) or None, "
        f"got {type(prior).__name__}"
    )


def prior_to_config(prior: Prior) -> dict[str, Any]:
    """The plain-data form of a prior, ready for JSON; that of a torch distribution is its name and parameters.

    Raises:
        ValueError: the prior wraps a distribution that is none of torch.distributions' own, or has no such parameters.
    """
    arguments = {field.name: _plain(getattr(prior, field.name)) for field in fields(prior) if field.init}
    return {"class_path": class_path(type(prior)), "init_args": arguments}


def prior_from_config(config: Mapping[str, Any]) -> Prior:
    """The prior that `prior_to_config` described; it looks classes up by name and executes nothing of the file.

    Raises:
        ValueError: a name is not known.
    """
    init = dict(config.get("init_args") or {})
    match str(config.get("class_path")).rpartition(".")[2]:
        case TorchPrior.__name__:
            return TorchPrior(_rebuild(init["distribution"]), init.get("names"))
        case Truncated.__name__:
            return Truncated(prior_from_config(init["prior"]), init["low"], init["high"])
        case Independent.__name__:
            return Independent([prior_from_config(part) for part in init["parts"]])
        case _:
            return from_config(Prior, config)  # type: ignore[type-abstract]


def _from_torch(distribution: Distribution, names: Sequence[str] | None) -> Prior:
    """A `Box`, `Normal` or `LogNormal` where the distribution is one, else a `TorchPrior`."""
    base: Any = distribution
    while isinstance(base, distributions.Independent):
        base = base.base_dist
    if len(distribution.batch_shape) + len(distribution.event_shape) <= 1:
        match base:
            case distributions.Uniform():
                return Box(base.low.flatten().tolist(), base.high.flatten().tolist(), names)
            case distributions.Normal():
                return Normal(base.loc.flatten().tolist(), base.scale.flatten().tolist(), names=names)
            case distributions.LogNormal():
                return LogNormal(base.loc.flatten().tolist(), base.scale.flatten().tolist(), names)
            case distributions.MultivariateNormal():
                return Normal(base.loc.tolist(), covariance=base.covariance_matrix.tolist(), names=names)
    return TorchPrior(distribution, names)


def _plain(value: Any) -> Any:
    if isinstance(value, Prior):
        return prior_to_config(value)
    if isinstance(value, Distribution):
        return _describe(value)
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _describe(distribution: Distribution) -> dict[str, Any]:
    cls = type(distribution)
    if isinstance(distribution, distributions.Independent):
        count = distribution.reinterpreted_batch_ndims
        return {"name": "Independent", "base": _describe(distribution.base_dist), "count": count}
    known = getattr(distributions, cls.__name__, None) is cls
    parameters = {}
    for name in distribution.arg_constraints if known else {}:
        # Of several forms of one parameter, the one that was given.
        if isinstance(getattr(cls, name, None), lazy_property) and name not in distribution.__dict__:
            continue
        value = getattr(distribution, name, None)
        if isinstance(value, Tensor):
            parameters[name] = {"value": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if not parameters:
        raise ValueError(
            f"prior {cls.__name__} cannot be saved: of torch distributions only those that torch.distributions "
            "defines by parameters can; give a Box, Normal, LogNormal or Independent, or save without a prior"
        )
    return {"name": cls.__name__, "parameters": parameters}


def _rebuild(form: Mapping[str, Any]) -> Distribution:
    name = form.get("name")
    if name == "Independent":
        return distributions.Independent(_rebuild(form["base"]), int(form["count"]))
    cls: Any = getattr(distributions, name) if name in distributions.__all__ else None
    known = isinstance(cls, type) and cls is not Distribution and Distribution in cls.__mro__
    if not known:
        raise ValueError(f"distribution name must be one of torch.distributions, got {name!r}")
    stored = form["parameters"].items()
    found = cls(**{key: torch.tensor(entry["value"], dtype=_DTYPES[entry["dtype"]]) for key, entry in stored})
    assert isinstance(found, Distribution)
    return found


_DTYPES = {"float32": torch.float32, "float64": torch.float64}
