"""The user's own modules as choices: an `nn.Module`, its class, or a function that makes one.

Wherever a `Network` or a `Summary` is expected, a module may be given. A file cannot hold it, so that a checkpoint
records its name: to load it, the module is given again, `load_denoiser(path, network=module)`; or, if it is a class
that can be made without arguments, the user imports its Python module (`--import MODULE`).
"""

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from openedm.ground.choices import is_outside
from openedm.networks.layers import KAIMING, Linear, seeded
from openedm.networks.network import Network, Signature
from openedm.networks.summaries import Summary

__all__ = ["CALL", "ModuleNetwork", "ModuleSummary", "check_answer", "is_module_like", "own_class"]

CALL = "network(x, c_noise, condition=None, augment=None)"
"""The call that every network must answer."""


@dataclass(frozen=True)
class ModuleNetwork(Network):
    """A network that is a module of the user's own, called as `network(x, c_noise, condition=None, augment=None)`.

    It is made where a module is given for a network: `Model.for_data(dataset, network=module)`.

    Args:
        name: the name of the module's class or function, with its Python module.

    Raises:
        ValueError: when built from a file: the module was not given and is not a known class.
    """

    takes_conditions = True
    name: str

    @classmethod
    def of(cls, module: Any) -> "ModuleNetwork":
        """The choice that holds a module.

        Args:
            module: an `nn.Module`, which is copied when a denoiser is built, with its weights; or a class or function
                that makes one, called with those of the arguments `signature`, `seed` and the fields of `Signature`
                that it has.
        """
        return _holding(cls, module)

    @property
    def is_available(self) -> bool:
        """Whether the module can be made: it was given, or an import of the user has defined its class."""
        return getattr(self, "_source", None) is not None or own_class(self.name) is not None

    def module(self, signature: Signature, seed: int | None) -> nn.Module:
        """A copy of the module, or a new one."""
        known = {field.name: getattr(signature, field.name) for field in fields(signature)}
        return _made(self, "network", CALL, {**known, "signature": signature, "seed": seed}, seed)


@dataclass(frozen=True)
class ModuleSummary(Summary):
    """A summary that is a module of the user's own, `summary(condition)`: (rows, *shape) → (rows, any number).

    It is made where a module is given for a summary: `ConditionalMLP(summary=module)`.

    Args:
        name: the name of the module's class or function, with its Python module.

    Raises:
        ValueError: when built from a file: the module was not given and is not a known class.
    """

    name: str

    @classmethod
    def of(cls, module: Any) -> "ModuleSummary":
        """The choice that holds a module, as for `ModuleNetwork.of`; a class gets `condition_shape` and `features`."""
        return _holding(cls, module)

    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """A copy of the module, or a new one, checked with two conditions of zeros.

        A linear layer follows where it returns another number of features than were asked for.
        """
        known = {"condition_shape": condition_shape, "features": features}
        made = _made(self, "summary", "summary(condition)", known, None)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                found = made.eval()(torch.zeros(2, *condition_shape))
            except (TypeError, RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"summary {self.name} must answer summary(condition) for conditions of shape "
                    f"{(2, *condition_shape)}: {error}"
                ) from error
        made.train()
        called = f"summary {self.name}, called as summary(condition),"
        if isinstance(found, Tensor) and found.ndim == 2 and len(found) == 2 and 0 < found.shape[1] != features:
            _check_tensor(called, found, (2, found.shape[1]))
            return nn.Sequential(made, Linear(found.shape[1], features, init=KAIMING))
        _check_tensor(called, found, (2, features))
        return made


def is_module_like(value: object) -> bool:
    """Whether a value is a module, a class of modules, or a function, which may make one."""
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return isinstance(value, nn.Module | functools.partial) or inspect.isroutine(value)


H = TypeVar("H", ModuleNetwork, ModuleSummary)


def _holding(cls: type[H], module: Any) -> H:
    kind = type(module) if isinstance(module, nn.Module) else module
    choice = cls(f"{kind.__module__}.{getattr(kind, '__qualname__', type(kind).__name__)}")
    object.__setattr__(choice, "_source", module)  # not a field: it is not written to files
    return choice


def _made(choice: Any, what: str, call: str, known: dict[str, Any], seed: int | None) -> nn.Module:
    """A copy of the module that a choice holds, or a new one from its class or function."""
    source = getattr(choice, "_source", None) or _imported(choice.name, what)
    if isinstance(source, nn.Module):
        return copy.deepcopy(source)
    with seeded(seed):
        made = source(**_arguments(source, choice.name, known))
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{what} must be an nn.Module, called as {call}, or a class or function that makes one, but "
            f"{choice.name} returned {type(made).__name__}"
        )
    return made


def _arguments(source: Callable[..., Any], name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Those of the known arguments that a class or function has.

    Raises:
        TypeError: it requires others.
    """
    parameters = inspect.signature(source).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty and p.name not in known]
    if required:
        raise TypeError(
            f"{name} must be made without arguments other than {', '.join(known)}, but requires {', '.join(required)}: "
            "give an instance, or a function without arguments that makes one"
        )
    return {p.name: known[p.name] for p in named if p.name in known}


def _imported(name: str, what: str) -> type[nn.Module]:
    """The class of that name, if it is a module class that the user's imports have defined."""
    found = own_class(name)
    if found is not None:
        return found
    module = name.rpartition(".")[0]
    raise ValueError(
        f"the {what} is a module of your own, {name}, which is not in the file: load_denoiser(path, network=MODULE) in "
        f"Python; on the command line, --import {module} for an nn.Module class that is made without arguments, or "
        "write it as a Network choice (docs/write-your-own.md)"
    )


def own_class(name: str) -> type[nn.Module] | None:
    """The class of modules of that name, with its Python module, if an import of the user has defined it."""
    module, _, last = name.rpartition(".")
    own = is_outside(name) and not name.startswith("torch.")
    found = getattr(sys.modules.get(module), last, None) if own else None
    is_class = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module
    return found if is_class else None


def check_answer(
    network: nn.Module,
    signature: Signature,
    condition: Tensor | None,
    *,
    name: str,
) -> None:
    """Check with two samples of zeros that a network answers the call of all networks, before any long work.

    Args:
        network: the network.
        signature: its shapes.
        condition: conditions of two samples, or None.
        name: its name, for messages.

    Raises:
        ValueError: it cannot be called so, or what it returns has another shape or dtype.
    """
    x = torch.zeros(2, *signature.event_shape)
    dtype = next((p.dtype for p in network.parameters() if not isinstance(p, nn.UninitializedParameter)), x.dtype)
    augment = {"augment": torch.zeros(2, signature.augment_dim, dtype=dtype)} if signature.augment_dim else {}
    training = network.training
    shapes = f"x {tuple(x.shape)}, c_noise (2,), condition {None if condition is None else tuple(condition.shape)}"
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            found = network.eval()(x.to(dtype), torch.zeros(2), condition, **augment)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"network {name} must answer {CALL} for {shapes}: {type(error).__name__}: {error}"
            ) from error
        finally:
            network.train(training)
    _check_tensor(
        f"network {name}, called as {CALL} with {shapes},",
        found,
        (2, signature.out_channels, *signature.event_shape[1:]),
    )


def _check_tensor(what: str, found: object, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"{what} must return a tensor of shape {shape}, got {type(found).__name__}")
    if tuple(found.shape) != shape or not found.is_floating_point():
        raise ValueError(
            f"{what} must return floating-point numbers of shape {shape}, got {tuple(found.shape)} of {found.dtype}"
        )
