"""Posteriors on disk: a folder of one format for every kind, which appears complete or not at all.

| file | content |
|---|---|
| config.json | format, version, kind; prior, names, `Model` of the denoiser, sampler, likelihood; what else; digests |
| model.safetensors | the weights of all networks, and other tensors |

Reading one runs no code from the file: weights are safetensors, the description is looked up among known classes.
Version 1 (posteriors of `fit` as "openedm-posterior-1", joint distributions as "openedm-joint-1") is read, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from openedm.denoiser import Denoiser, Preconditioned
from openedm.ground.choices import from_config, to_config
from openedm.ground.creation import LimitedCreation
from openedm.ground.storage import new_folder, read_json, read_tensors, write_json, write_tensors
from openedm.inference.composite import prior_from_config, prior_to_config
from openedm.inference.priors import Prior
from openedm.likelihood import Likelihood
from openedm.sampling import SamplerChoice
from openedm.training import Model
from openedm.training.checkpoints import load_weights, tensors_with_prefix

__all__ = ["CONFIG", "FORMAT", "VERSION", "WEIGHTS", "Common", "Stored", "read", "write"]

FORMAT, VERSION = "openedm-posterior", 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FURTHER = ("reduction", "trained_on", "reference")
"""Tensors of posteriors that are not weights, or what such tensors belong to; each may be absent."""
JOINT_1 = "joint.json"


class Common(NamedTuple):
    """What every kind of posterior consists of.

    Attributes:
        model: describes the denoiser.
        members: one denoiser, or those of an ensemble.
        prior: of the parameters, or None.
        names: of the variables.
        sampler: how samples are drawn.
        likelihood: how log-densities are computed.
    """

    model: Model | None
    members: Sequence[Denoiser]
    prior: Prior | None
    names: Sequence[str]
    sampler: SamplerChoice
    likelihood: Likelihood


def write(
    path: str | Path,
    kind: str,
    common: Common,
    further: Mapping[str, Any],
    modules: Mapping[str, nn.Module | None],
    tensors: Mapping[str, Tensor | None],
) -> None:
    """Write a posterior to a new folder.

    Args:
        path: the folder to make.
        kind: of posterior.
        common: what every kind has.
        further: plain data of this kind.
        modules: its networks besides the denoiser.
        tensors: its other tensors.

    Raises:
        ValueError: `path` exists; the denoiser has no description from which it can be built again, or another one; or
            the prior has no plain form.
    """
    folder, members = Path(path), _preconditioned(common)
    if common.model is None or len(members) < len(common.members):
        raise ValueError(
            f"posterior must be one that was trained here, to be saved: a {type(common.members[0]).__name__} of your "
            "own has no description from which it could be built again"
        )
    networks = {f"denoiser.{i}": member.network for i, member in enumerate(members)}
    for network in networks.values():
        load_weights(common.model.build().network, network.state_dict(), folder)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "prior": None if common.prior is None else prior_to_config(common.prior),
        "names": list(common.names),
        "model": to_config(common.model),
        "members": len(members),
        "sampler": to_config(common.sampler),
        "likelihood": to_config(common.likelihood),
        **further,
    }
    states = {name: module.state_dict() for name, module in {**networks, **modules}.items() if module is not None}
    weights = {f"{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()}
    with new_folder(folder, "a posterior") as new:
        write_tensors(new / WEIGHTS, weights | {name: t for name, t in tensors.items() if t is not None})
        write_json(new / CONFIG, config, files=(WEIGHTS,))


@dataclass(frozen=True)
class Stored:
    """The content of a posterior's folder.

    Attributes:
        folder: where it was read.
        kind: of posterior.
        config: the description, in the form of the newest version.
        tensors: all tensors.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @contextmanager
    def described(self) -> Iterator[None]:
        """Errors of a description that does not fit name the file."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / CONFIG} does not describe a posterior: {error!r}") from error

    def limited(self) -> LimitedCreation:
        """Inside the block, networks much larger than the weights are not built."""
        return LimitedCreation(self.tensors.values(), f"the weights in {WEIGHTS}")

    def common(self) -> Common:
        """What every kind has; the denoisers still have the weights that they are built with."""
        config = self.config
        model = from_config(Model, config["model"])
        with self.limited():
            members = [model.build() for _ in range(int(config["members"]))]
        return Common(
            model,
            members,
            None if config["prior"] is None else prior_from_config(config["prior"]),
            config["names"],
            from_config(SamplerChoice, config["sampler"]),
            from_config(Likelihood, config["likelihood"]),
        )

    def load_weights(self, common: Common, modules: Mapping[str, nn.Module | None]) -> None:
        """Give the denoisers and further modules their weights.

        Raises:
            ValueError: weights are missing, too many or of another shape.
        """
        networks = {f"denoiser.{i}": member.network for i, member in enumerate(_preconditioned(common))}
        parts = {name: module for name, module in {**networks, **modules}.items() if module is not None}
        for name, module in parts.items():
            load_weights(module, tensors_with_prefix(self.tensors, name), self.folder / WEIGHTS)
        owned = tuple(f"{name}." for name in parts)
        for name in self.tensors:
            if not name.startswith(owned) and name.split(".")[0] not in FURTHER:
                raise ValueError(f"{self.folder / WEIGHTS}: {name} is unexpected")


def read(path: str | Path, kind: str | None = None) -> Stored:
    """The content of a posterior's folder, of this or an older version.

    Args:
        path: the folder.
        kind: the kind of posterior expected; None takes any.

    Raises:
        ValueError: no posterior there, an unknown format or version, another kind, or a damaged file; names the file.
    """
    stored = _read(Path(path))
    if kind not in (None, stored.kind):
        raise ValueError(
            f"{path} holds a posterior of the kind {stored.kind!r} instead of {kind!r}: openedm.inference.load reads it"
        )
    return stored


def _read(folder: Path) -> Stored:
    if not (folder / CONFIG).is_file():
        what = "holds no posterior" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}: give one that a posterior was saved to, with {CONFIG}")
    config, tensors = read_json(folder / CONFIG), read_tensors(folder / WEIGHTS, folder / CONFIG)
    if (folder / JOINT_1).is_file():
        return _joint_1(folder, config, tensors)
    if config.get("format") == "openedm-posterior-1":
        return Stored(folder, "fit", config, tensors)
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise ValueError(
            f"{folder / CONFIG}: format must be {FORMAT!r} in version {VERSION}, got {config.get('format')!r} in "
            f"version {config.get('version')!r}"
        )
    return Stored(folder, str(config.get("kind")), config, tensors)


def _joint_1(folder: Path, checkpoint: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Stored:
    """A joint distribution of version 1: a checkpoint with the rest of the description in a file beside it."""
    old = read_json(folder / JOINT_1)
    if old.get("format") != "openedm-joint-1":
        raise ValueError(f"{folder / JOINT_1}: format must be 'openedm-joint-1', got {old.get('format')!r}")
    coordinates = {name: old.get(name) for name in ("bijection", "columns")}
    config = {
        **old,
        "model": checkpoint.get("model"),
        "members": 1,
        "likelihood": old.get("density"),
        "coordinates": {"class_path": "openedm.inference.maps.Coordinates", "init_args": coordinates},
    }
    return Stored(folder, "joint", config, {f"denoiser.0.{name}": tensor for name, tensor in tensors.items()})


def _preconditioned(common: Common) -> list[Preconditioned]:
    """The denoisers that are networks."""
    return [member for member in common.members if isinstance(member, Preconditioned)]
