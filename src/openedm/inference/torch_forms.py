"""Torch's distributions as plain data: their names, parameters and transforms, and distributions made of these again.

Names are looked up among torch's own; nothing of a file is executed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import ComposeTransform
from torch.distributions.utils import lazy_property

__all__ = ["distribution_of_form", "form_of_distribution"]

TRANSFORMS: Mapping[str, tuple[str, ...]] = {
    "ExpTransform": (),
    "SigmoidTransform": (),
    "SoftplusTransform": (),
    "TanhTransform": (),
    "AffineTransform": ("loc", "scale"),
    "PowerTransform": ("exponent",),
}
"""Transforms of each coordinate that can be saved, and their parameters."""


def form_of_distribution(distribution: Distribution) -> dict[str, Any]:
    """The name and the parameters of a distribution, ready for JSON.

    Raises:
        ValueError: it is none of torch's own, or has no such parameters.
    """
    match distribution:
        case distributions.Independent():
            base, count = form_of_distribution(distribution.base_dist), distribution.reinterpreted_batch_ndims
            return {"name": "Independent", "base": base, "count": count}
        case distributions.TransformedDistribution() if type(distribution) is distributions.TransformedDistribution:
            forms = [form for transform in distribution.transforms for form in _transform_forms(transform)]
            base = form_of_distribution(distribution.base_dist)
            return {"name": "TransformedDistribution", "base": base, "transforms": forms}
    return {"name": type(distribution).__name__, "parameters": _parameters(distribution)}


def distribution_of_form(form: Mapping[str, Any]) -> Distribution:
    """The distribution that `form_of_distribution` described.

    Raises:
        ValueError: a name is not known.
    """
    name = form.get("name")
    if name == "Independent":
        return distributions.Independent(distribution_of_form(form["base"]), int(form["count"]))
    if name == "TransformedDistribution":
        transforms = [_transform(each) for each in form["transforms"]]
        return distributions.TransformedDistribution(distribution_of_form(form["base"]), transforms)
    cls: Any = getattr(distributions, name) if name in distributions.__all__ else None
    known = isinstance(cls, type) and cls is not Distribution and Distribution in cls.__mro__
    if not known:
        raise ValueError(f"distribution name must be one of torch.distributions, got {name!r}")
    found = cls(**{key: _number(entry) for key, entry in form["parameters"].items()})
    assert isinstance(found, Distribution)
    return found


def _parameters(distribution: Distribution) -> dict[str, Any]:
    cls = type(distribution)
    known = getattr(distributions, cls.__name__, None) is cls
    parameters = {}
    for name in distribution.arg_constraints if known else {}:
        # Of several forms of one parameter, the one that was given.
        if isinstance(getattr(cls, name, None), lazy_property) and name not in distribution.__dict__:
            continue
        value = getattr(distribution, name, None)
        if isinstance(value, Tensor):
            parameters[name] = _form_of_number(value)
    if not parameters:
        raise ValueError(
            f"prior {cls.__name__} cannot be saved: of torch distributions only those that torch.distributions "
            "defines by parameters can; give a Box, Normal, LogNormal or Independent, or save without a prior"
        )
    return parameters


def _transform_forms(transform: Transform) -> list[dict[str, Any]]:
    """The names and parameters of a transform, or of its parts."""
    if isinstance(transform, ComposeTransform):
        return [form for part in transform.parts for form in _transform_forms(part)]
    name = type(transform).__name__
    if name not in TRANSFORMS or getattr(distributions, name, None) is not type(transform):
        raise ValueError(
            f"prior TransformedDistribution cannot be saved: its transform {name} is none of {', '.join(TRANSFORMS)}"
        )
    return [{"name": name, "parameters": {key: _form_of_number(getattr(transform, key)) for key in TRANSFORMS[name]}}]


def _transform(form: Mapping[str, Any]) -> Transform:
    name = str(form.get("name"))
    if name not in TRANSFORMS:
        raise ValueError(f"transform name must be one of {', '.join(TRANSFORMS)}, got {name!r}")
    found = getattr(distributions, name)(**{key: _number(form["parameters"][key]) for key in TRANSFORMS[name]})
    assert isinstance(found, Transform)
    return found


def _form_of_number(value: Tensor | float) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        return {"value": float(value), "dtype": "float"}
    return {"value": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}


def _number(entry: Mapping[str, Any]) -> Tensor | float:
    if entry["dtype"] == "float":
        return float(entry["value"])
    return torch.tensor(entry["value"], dtype={"float32": torch.float32, "float64": torch.float64}[entry["dtype"]])
