"""Posteriors on disk: a folder that appears all at once or not at all.

| file | content |
|---|---|
| config.json | prior, maps, `Model` of the denoiser, sizes of the mixtures, sampler, likelihood, refinement, report |
| model.safetensors | the weights of all of them, and the reduction of data with many columns |

Reading one runs no code from the file: weights are safetensors, the description is looked up among known classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openedm.denoiser import Denoiser, Preconditioned
from openedm.ground.choices import from_config, to_config
from openedm.ground.storage import new_folder, read_json, read_tensors, write_json, write_tensors
from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.prior_conversion import prior_from_config, prior_to_config
from openedm.inference.refinement import Refinement
from openedm.inference.settings import Settings
from openedm.inference.trained import Average, DenoiserPosterior, Parts
from openedm.inference.transforms import Columns
from openedm.likelihood import Likelihood
from openedm.networks.layers import seeded
from openedm.networks.mixtures import ConditionalMixture
from openedm.sampling import Auto, Sampler
from openedm.training import Model
from openedm.training.checkpoints import load_weights, part_of

FORMAT = "openedm-posterior-1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MIXTURES = ("base", "emulator")
SIZES = ("condition_dim", "dim", "members", "components", "width", "num_blocks")


def save(posterior: DenoiserPosterior, path: str | Path) -> None:
    """Write a posterior to a new folder; loaded again, it gives the same samples and densities.

    Args:
        posterior: what `fit` returned, also with another sampler or without refinement.
        path: the folder to make.

    Raises:
        ValueError: `path` exists; the denoiser is none that `fit` trains, or the prior has no plain form.
    """
    parts = posterior.parts
    members = _members(parts.denoiser, posterior.report)
    config: dict[str, Any] = {
        "format": FORMAT,
        "prior": None if posterior.prior is None else prior_to_config(posterior.prior),
        "names": list(posterior.names),
        "parameters": to_config(parts.parameters),
        "data": parts.data.to_config(),
        "target": None if parts.target is None else to_config(parts.target),
        "model": to_config(_model_of(members, posterior.report)),
        "members": len(members),
        "refinement": None if parts.refinement is None else to_config(parts.refinement),
        "sampler": to_config(posterior.sampler),
        "likelihood": to_config(posterior.likelihood),
        "report": posterior.report,
    }
    tensors: dict[str, Tensor] = {}
    for i, member in enumerate(members):
        tensors |= _named(f"denoiser.{i}", member.network.state_dict())
    for name in MIXTURES:
        mixture = getattr(parts, name)
        config[name] = None if mixture is None else {size: getattr(mixture, size) for size in SIZES}
        tensors |= {} if mixture is None else _named(name, mixture.state_dict())
    if parts.data.reduction is not None:
        tensors["reduction"] = parts.data.reduction
    with new_folder(Path(path), "a posterior") as folder:
        write_json(folder / CONFIG, config)
        write_tensors(folder / WEIGHTS, tensors)


def load(path: str | Path, device: torch.device | str = "cpu") -> DenoiserPosterior:
    """The posterior that `save` wrote, in evaluation mode.

    Args:
        path: the folder.
        device: where it is to compute.

    Raises:
        ValueError: no posterior there, an unknown format, a damaged file, or weights that do not fit the description;
            names the file.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        what = "holds no posterior" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}: give one that a posterior was saved to, with {CONFIG}")
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: format must be {FORMAT!r}, got {config.get('format')!r}")
    tensors = read_tensors(folder / WEIGHTS)
    try:
        mixtures = {name: _mixture(config[name]) for name in MIXTURES}
        model, count = from_config(Model, config["model"]), int(config["members"])
        members: list[Preconditioned] = [model.build() for _ in range(count)]
        posterior = DenoiserPosterior(
            Parts(
                _averaged(members).to(device),
                from_config(ParameterMap, config["parameters"]),
                DataMap.from_config(config["data"], tensors.get("reduction")),
                base=_moved(mixtures["base"], device),
                emulator=_moved(mixtures["emulator"], device),
                target=None if config["target"] is None else from_config(Columns, config["target"]),
                refinement=None if config["refinement"] is None else from_config(Refinement, config["refinement"]),
            ),
            prior=None if config["prior"] is None else prior_from_config(config["prior"]),
            names=config["names"],
            sampler=_sampler(config["sampler"]),
            likelihood=from_config(Likelihood, config["likelihood"]),
            report=dict(config["report"]),
        )
    except (AttributeError, KeyError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a posterior: {error!r}") from error
    for i, member in enumerate(members):
        load_weights(member.network, part_of(tensors, f"denoiser.{i}"), folder / WEIGHTS)
    for name, mixture in mixtures.items():
        if mixture is not None:
            load_weights(mixture, part_of(tensors, name), folder / WEIGHTS)
    if (wanted := posterior.parts.denoiser.condition_shape) != posterior.parts.data.shape:
        raise ValueError(
            f"{folder} holds data of shape {posterior.parts.data.shape} for networks that need {wanted}: {WEIGHTS} "
            "and config.json do not belong together"
        )
    return posterior


def _members(denoiser: Denoiser, report: Mapping[str, Any]) -> list[Preconditioned]:
    members = list(denoiser.members) if isinstance(denoiser, Average) else [denoiser]
    known = [member for member in members if isinstance(member, Preconditioned)]
    if "settings" not in report or len(known) < len(members):
        raise ValueError(
            f"posterior must be one that `fit` made, to be saved: a {type(members[0]).__name__} of your own has no "
            "description from which it could be built again"
        )
    return known


def _model_of(members: Sequence[Preconditioned], report: Mapping[str, Any]) -> Model:
    """What the members are, by the settings in the report of their fit."""
    first = members[0]
    if first.event_shape is None:
        raise ValueError("posterior must be one that `fit` made: its denoiser has no event_shape")
    model = Model(
        network=from_config(Settings, report["settings"]).network,
        preconditioning=first.preconditioning,
        sigma_data=float(first.sigma_data),
        event_shape=first.event_shape,
        condition_shape=first.condition_shape,
        images=False,
    )
    built = _shapes(model.build().network)
    if any(_shapes(member.network) != built for member in members):
        raise ValueError("posterior must be one that `fit` made: its networks are others than its report says")
    return model


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _mixture(sizes: Mapping[str, Any] | None) -> ConditionalMixture | None:
    if sizes is None:
        return None
    first, second, *others = (int(sizes[name]) for name in SIZES)
    with seeded(0):
        mixture = ConditionalMixture(first, second, **dict(zip(SIZES[2:], others, strict=True)))
    return mixture.eval().requires_grad_(False)


def _moved(mixture: ConditionalMixture | None, device: torch.device | str) -> ConditionalMixture | None:
    return None if mixture is None else mixture.to(device)


def _averaged(members: list[Preconditioned]) -> Denoiser:
    whole = members[0] if len(members) == 1 else Average(members)
    return whole.eval().requires_grad_(False)


def _sampler(config: Mapping[str, Any]) -> Auto | Sampler:
    is_auto = str(config["class_path"]).rpartition(".")[2] == Auto.__name__
    return from_config(Auto, config) if is_auto else from_config(Sampler, config)
