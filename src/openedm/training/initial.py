"""Fine-tuning: a run that starts from the weights of another one instead of random ones."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.choices import Choice, to_config
from openedm.ground.digests import file_digest
from openedm.ground.tensors import misfits
from openedm.objective import Objective
from openedm.preconditioning import Preconditioning
from openedm.training.checkpoints import find_checkpoint, read_model, read_weights
from openedm.training.model import Model

__all__ = ["Initial", "as_initial", "check_teacher", "load_initial"]

AUGMENTATION = "embedding.augment"
"""How the names of the parameters begin that embed the labels of augmentation. The labels of images as they are, zeros,
add nothing: without augmentation, a network is the same without these parameters."""


@dataclass(frozen=True)
class Initial(Choice):
    """The weights that a run starts from: the averaged ones of a checkpoint, or random ones.

    Data, learning rate, batch and objective of the new run are its own, the units of its data too, which are measured
    anew; shapes and classes may differ where the parameters of the network do not depend on them.

    Args:
        path: a checkpoint folder, or a run folder, for its newest checkpoint; None for random weights.
        mismatch: for parameters that the checkpoint has not, or has in another shape: "error" refuses them with a list,
            "new" starts them from random values.
    """

    short: ClassVar[str] = "path"
    """The field that is meant where a text is given for the choice: `--init runs/first`."""

    path: str | None = None
    mismatch: Literal["error", "new"] = "error"

    def __post_init__(self) -> None:
        checks.one_of("mismatch", self.mismatch, ("error", "new"))


def as_initial(value: Any) -> Initial | Preconditioned | None:
    """What a run starts from: an `Initial`, a path, a denoiser with a network, or None.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, str | os.PathLike):
        return Initial(os.fspath(value))
    expected = "the path of a checkpoint or run, a training.Initial, a Preconditioned denoiser or None"
    checks.instance("init", value, (Initial, Preconditioned, type(None)), expected)
    return None if isinstance(value, Initial) and value.path is None else value


def load_initial(network: nn.Module, model: Model, init: Initial | Preconditioned) -> dict[str, Any]:
    """Copy the weights into a new network, and return what is recorded of their origin.

    Samples of another shape, and classes of the same names at other places, are a warning.

    Args:
        network: the network of the new run.
        model: its description; what the network predicts must be the same.
        init: where the weights come from.

    Raises:
        ValueError: there is no checkpoint, its network predicts something else, or parameters do not fit, are NaN or
            infinite.
    """
    if isinstance(init, Preconditioned):
        _check_prediction(init.preconditioning, model.preconditioning)
        _copy(network, init.network.state_dict(), "the denoiser given", "error")
        _compare("init", init.event_shape, None, model)
        return {"origin": type(init.network).__name__} | ({"consistency": True} if init.consistency else {})
    folder = find_checkpoint(init.path or "")
    before = read_model(folder)
    _check_prediction(before.preconditioning, model.preconditioning)
    new = _copy(network, read_weights(folder), str(folder), init.mismatch)
    if not new:  # which say it themselves
        _compare(f"init, {folder},", before.event_shape, before.class_names, model)
    kind = {"consistency": True} if before.consistency else {}
    return {"origin": str(folder), "digest": file_digest(folder / "model.safetensors"), "new_parameters": new} | kind


def check_teacher(objective: Objective, origin: Mapping[str, Any] | None) -> None:
    """Check that training starts from a denoiser if the objective takes steps with it.

    Args:
        objective: the objective.
        origin: what `load_initial` returned, or what the checkpoint records that a run goes on from.

    Raises:
        ValueError: training starts from random weights, or from a consistency function.
    """
    if not objective.uses_teacher:
        return
    if origin is None:
        raise ValueError("init must be given with pairs='teacher': a checkpoint or a denoiser, got None")
    if origin.get("consistency"):
        raise ValueError(
            f"init must be a denoiser with pairs='teacher', got a consistency function from {origin['origin']}"
        )


def _check_prediction(before: Preconditioning, now: Preconditioning) -> None:
    if to_config(before) != to_config(now):
        raise ValueError(f"preconditioning must be that of init, {before}, for its weights to mean the same, got {now}")


def _compare(origin: str, shape: Sequence[int] | None, names: Sequence[str] | None, model: Model) -> None:
    """Warn of data of another shape than the weights were trained on, and of classes that were others there."""
    if shape is not None and tuple(shape) != model.event_shape:
        before, now = ("×".join(map(str, each)) for each in (shape, model.event_shape))
        size = "x".join(map(str, tuple(shape)[-2:]))
        advice = f"; --data.resolution {size} crops and resizes pictures to its size" if len(shape) == 3 else ""
        warnings.warn(f"{origin} was trained on samples of {before}, and the data are of {now}{advice}", stacklevel=2)
    pairs = zip(names or (), model.class_names or (), strict=False)
    moved = [f"{now} of {before}" for before, now in pairs if before != now and now in (names or ())]
    if moved:
        warnings.warn(
            f"{origin} has the classes at other places, so that they start from what it learned of others: "
            f"{checks.first_of(moved, separator=', ')}",
            stacklevel=2,
        )


def _check_numbers(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that are NaN or no real numbers, also where parameters of another shape would start anew."""
    for name, given in tensors.items():
        if name in expected and given.shape == expected[name].shape:
            for problem in misfits(expected[name], given):
                raise ValueError(f"init: {name} of {origin} {problem}: start from a checkpoint without such weights")


def _copy(network: nn.Module, tensors: Mapping[str, Tensor], origin: str, mismatch: str) -> list[str]:
    """Copy what fits; the names of the parameters that do not, with `mismatch` "new"."""
    expected = network.state_dict()
    if not any(name.startswith(AUGMENTATION) for name in expected):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(AUGMENTATION)}
    _check_numbers(expected, tensors, origin)
    fits = {name: t for name, t in tensors.items() if name in expected and t.shape == expected[name].shape}
    missing = sorted(expected.keys() - fits.keys())
    problems = [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        if name in tensors
        else f"{name} is missing"
        for name in missing
    ]
    problems += [f"{name} is unexpected" for name in sorted(tensors.keys() - expected.keys())]
    if not fits:
        raise ValueError(f"init: no parameter of {origin} fits the network: give the network that it was trained with")
    if problems and mismatch == "error":
        raise ValueError(
            f"init: {len(problems)} parameters of {origin} do not fit the network: {checks.first_of(problems, 10)}. "
            "--init.mismatch new (training.Initial(path, mismatch='new')) starts these anew"
        )
    network.load_state_dict(expected | fits)
    return missing
