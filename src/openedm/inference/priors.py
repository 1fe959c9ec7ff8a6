"""Priors as users have them: torch's distributions, pairs of ends and lists, made into a `Prior`; and saved."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import distributions as torch_distributions
from torch.distributions import Distribution, constraints
from torch.distributions.utils import lazy_property

from openedm.ground.choices import from_config, to_config
from openedm.inference.bijections import Bijection
from openedm.inference.parametric import Box, Independent, LogNormal, Normal, Prior, settle_names
from openedm.inference.truncated import Truncated

__all__ = [
    "Bijection",
    "Box",
    "Independent",
    "LogNormal",
    "Normal",
    "Prior",
    "TorchPrior",
    "as_prior",
    "prior_from_config",
    "prior_to_config",
]


@dataclass(frozen=True, eq=False)
class TorchPrior(Prior):
    """A torch distribution of one event (d,), one number, or d independent numbers (its batch).

    Args:
        distribution: continuous, with a support that is a product of intervals.
        names: of the parameters.

    Raises:
        ValueError: its shapes or its support are others.
    """

    distribution: Distribution
    names: Sequence[str] | None = None
    _event: Distribution = field(init=False, repr=False)

    def __post_init__(self) -> None:
        batch, event = self.distribution.batch_shape, self.distribution.event_shape
        if len(batch) + len(event) > 1:
            raise ValueError(
                "prior must be a distribution of vectors (d,), got the batch shape "
                f"{tuple(batch)} and the event shape {tuple(event)} of {type(self.distribution).__name__}"
            )
        whole = self.distribution if not batch else torch_distributions.Independent(self.distribution, 1)
        object.__setattr__(self, "_event", whole)
        settle_names(self)
        self.bijection  # noqa: B018  # A support without one is refused here.

    @property
    def dim(self) -> int:
        """d."""
        return int(self._event.event_shape.numel())

    @property
    def bijection(self) -> Bijection:
        """Found from the distribution's support."""
        low, high = _interval(self.distribution)
        return Bijection(low.broadcast_to(self.dim).tolist(), high.broadcast_to(self.dim).tolist())

    def _draw(self, n: int, seed: int) -> Tensor:
        # torch's distributions know the global generator alone; its state is put back.
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # where its parameters may lie
        devices = [torch.cuda.current_device()] if on_gpu else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                torch.cuda.manual_seed(seed)
            return self._event.sample((n,)).reshape(n, self.dim).cpu()

    def _density(self, theta: Tensor) -> Tensor:
        point = theta if self._event.event_shape else theta[..., 0]
        return self._event.log_prob(point).double()


def as_prior(prior: Any, names: Sequence[str] | None = None) -> Prior | None:
    """The `Prior` that is meant.

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
    """The plain-data form of a prior, ready for JSON; of a torch distribution its name and parameters.

    Raises:
        ValueError: the prior wraps a distribution that is none of torch.distributions' own, or has no such parameters.
    """
    if isinstance(prior, TorchPrior):
        init: dict[str, Any] = {"distribution": _describe(prior.distribution)}
        init["names"] = None if prior.names is None else list(prior.names)
        return {"class_path": "openedm.inference.TorchPrior", "init_args": init}
    if isinstance(prior, Truncated):
        inner = {"prior": prior_to_config(prior.prior), "low": list(prior.low), "high": list(prior.high)}
        return {"class_path": "openedm.inference.Truncated", "init_args": inner}
    if isinstance(prior, Independent):
        parts = [prior_to_config(part) for part in prior.parts]
        return {"class_path": "openedm.inference.Independent", "init_args": {"parts": parts}}
    return to_config(prior)


def prior_from_config(config: Mapping[str, Any]) -> Prior:
    """The prior that `prior_to_config` described; it looks classes up by name and executes nothing of the file.

    Raises:
        ValueError: a name is not known.
    """
    init = dict(config.get("init_args") or {})
    if config.get("class_path") == "openedm.inference.TorchPrior":
        return TorchPrior(_rebuild(init["distribution"]), init.get("names"))
    if config.get("class_path") == "openedm.inference.Truncated":
        return Truncated(prior_from_config(init["prior"]), init["low"], init["high"])
    if config.get("class_path") == "openedm.inference.Independent":
        return Independent([prior_from_config(part) for part in init["parts"]])
    return from_config(Prior, config)  # type: ignore[type-abstract]


def _from_torch(distribution: Distribution, names: Sequence[str] | None) -> Prior:
    """Our own where there is one, else a `TorchPrior`."""
    base, extra = distribution, len(distribution.batch_shape) + len(distribution.event_shape)
    while isinstance(base, torch_distributions.Independent):
        base = base.base_dist
    if extra <= 1 and isinstance(base, torch_distributions.Uniform):
        return Box(base.low.flatten().tolist(), base.high.flatten().tolist(), names)
    if extra <= 1 and isinstance(base, torch_distributions.Normal):
        return Normal(base.loc.flatten().tolist(), base.scale.flatten().tolist(), names=names)
    if extra <= 1 and isinstance(base, torch_distributions.LogNormal):
        return LogNormal(base.loc.flatten().tolist(), base.scale.flatten().tolist(), names)
    if extra <= 1 and isinstance(base, torch_distributions.MultivariateNormal):
        return Normal(base.loc.tolist(), covariance=base.covariance_matrix.tolist(), names=names)
    return TorchPrior(distribution, names)


def _interval(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """The ends of a distribution's support, infinite where it has none."""
    try:
        support: Any = distribution.support
    except NotImplementedError:
        support = None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low, high = -math.inf, math.inf
    if support is constraints.real:
        pass
    elif isinstance(support, constraints.interval | constraints.half_open_interval):
        low, high = support.lower_bound, support.upper_bound
    elif isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        low = support.lower_bound
    elif isinstance(support, constraints.less_than):
        high = support.upper_bound
    else:
        raise ValueError(
            "prior must have a support that is an interval in every coordinate, got the support "
            f"{support} of {type(distribution).__name__}"
        )
    return torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)


def _describe(distribution: Distribution) -> dict[str, Any]:
    cls = type(distribution)
    if isinstance(distribution, torch_distributions.Independent):
        count = distribution.reinterpreted_batch_ndims
        return {"name": "Independent", "base": _describe(distribution.base_dist), "count": count}
    known = getattr(torch_distributions, cls.__name__, None) is cls
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
        return torch_distributions.Independent(_rebuild(form["base"]), int(form["count"]))
    cls: Any = getattr(torch_distributions, name) if name in torch_distributions.__all__ else None
    known = isinstance(cls, type) and cls is not Distribution and Distribution in cls.__mro__
    if not known:
        raise ValueError(f"distribution name must be one of torch.distributions, got {name!r}")
    stored = form["parameters"].items()
    found = cls(**{key: torch.tensor(entry["value"], dtype=_DTYPES[entry["dtype"]]) for key, entry in stored})
    assert isinstance(found, Distribution)
    return found


_DTYPES = {"float32": torch.float32, "float64": torch.float64}
