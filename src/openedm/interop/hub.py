"""Denoisers on the model hub, through huggingface_hub's mixin: safetensors and JSON, the files of a checkpoint.

`PyTorchModelHubMixin` writes a different configuration, which `load_denoiser` does not read.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from torch import nn

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.locks import locked_folder
from openedm.ground.storage import write_tensors
from openedm.ground.tensors import misfits
from openedm.interop.card import CARD, example
from openedm.networks import ModuleNetwork
from openedm.training.checkpoints import find_checkpoint, load_denoiser, read_model, write_model
from openedm.training.model import Model

__all__ = ["Pretrained"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_OPTIONS = {"revision", "cache_dir", "force_download", "local_files_only", "token"}
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""The id of a repository on the hub, owner/name; others are paths."""


class Pretrained(
    Preconditioned,
    ModelHubMixin,
    library_name="openedm",
    tags=["diffusion", "edm"],
    model_card_template=CARD,
):
    """A denoiser with its description, which can be saved and pushed to a model hub.

    `Pretrained.from_pretrained("folder or hub id")` loads one; `save_pretrained(folder)` and `push_to_hub(id)` write
    one. A folder is a checkpoint: `openedm sample` and `load_denoiser` also read it. Reading runs no code.

    Args:
        description: the description of the denoiser.
        network: its network; None means a new one.

    Raises:
        TypeError: the description is not a `Model`, or the network not a module.
        ValueError: the description cannot be built, or describes another network than the one given; the message names
            the first tensor that differs. A module of the user's own that the description does not hold and no import
            defines is not compared.
    """

    def __init__(self, description: Model, network: Any = None) -> None:
        checks.instance("description", description, Model, "a Model, or use Pretrained.from_checkpoint(path)")
        if network is None:
            network = description.build().network
        else:
            checks.instance("network", network, nn.Module, "an nn.Module, the network that the description describes")
            _check_network(description, network)
        self._hold(description, network)

    def _hold(self, description: Model, network: nn.Module) -> None:
        """Set up the denoiser with a network that fits its description."""
        super().__init__(
            network,
            description.preconditioning,
            description.sigma_data,
            event_shape=description.event_shape,
            num_classes=description.num_classes,
            condition_shape=description.condition_layout.packed_shape,
            condition_dropout=description.condition_dropout,
            units=description.units,
            condition_units=description.condition_units,
        )
        self.sigma_min, self.sigma_max = description.sigma_range
        self.description = description

    @classmethod
    def from_checkpoint(cls, path: str | Path, weights: Literal["ema", "raw"] = "ema") -> "Pretrained":
        """The denoiser of a checkpoint or run, in evaluation mode.

        Raises:
            ValueError: as for `load_denoiser`.
        """
        folder = find_checkpoint(path)
        pretrained = cls.__new__(cls)  # without the comparison, for which the network would be built a second time
        pretrained._hold(read_model(folder), load_denoiser(folder, weights).network)
        return pretrained.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Pretrained":
        """The denoiser of a folder or of a repository on the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a checkpoint or run folder; or the id of a repository, "owner/name", if there
                is no such folder.
            options: for a repository, those of `huggingface_hub.hf_hub_download`: `revision`, `cache_dir`,
                `force_download`, `local_files_only` and `token`.

        Raises:
            TypeError: the name is neither a text nor a path.
            ValueError: the name is neither that of a folder nor of the form "owner/name"; an option is unknown, or has
                no effect on a folder; or as for `load_denoiser`.
        """
        name = pretrained_model_name_or_path
        checks.instance("pretrained_model_name_or_path", name, (str, os.PathLike), "a folder, or owner/name of the hub")
        unknown = sorted(options.keys() - HUB_OPTIONS)
        if unknown:
            raise ValueError(f"options of from_pretrained must be among {sorted(HUB_OPTIONS)}, got {unknown}")
        if Path(name).exists():
            without_effect = [option for option in sorted(HUB_OPTIONS - {"local_files_only"}) if options.get(option)]
            if without_effect:
                option = without_effect[0]
                raise ValueError(
                    f"{option} must be left out for a folder, {name}, on which it has no effect, got "
                    + ("a value" if option == "token" else repr(options[option]))
                )
            return cls.from_checkpoint(name)
        if not isinstance(name, str) or not REPOSITORY.fullmatch(name):
            raise ValueError(
                "pretrained_model_name_or_path must be a checkpoint or run folder, or owner/name of the hub, got "
                f"{str(name)!r}: there is no {Path(name).absolute()}"
            )
        try:
            files = [hf_hub_download(repo_id=name, filename=file, **options) for file in (CONFIG, WEIGHTS)]
        except Exception as error:
            error.add_note(f"There is no folder {Path(name).absolute()} either.")
            raise
        return cls.from_checkpoint(Path(files[0]).parent)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Upload the denoiser with a model card; arguments and result as for `ModelHubMixin.push_to_hub`."""
        known = {"repository": repo_id} if "/" in repo_id else {}
        return super().push_to_hub(repo_id, model_card_kwargs=known | (model_card_kwargs or {}), **options)

    def generate_model_card(self, **fields: Any) -> ModelCard:
        """The model card, with an example for the conditions that the denoiser takes.

        Args:
            fields: the fields of the template; `repository`, the id of the repository, is written into the example.
        """
        named = {"repository": fields.pop("repository")} if "repository" in fields else {}
        return super().generate_model_card(**{"example": example(self.description, **named), **fields})

    def _save_pretrained(self, save_directory: Path) -> None:
        with locked_folder(save_directory, "save_directory"):
            write_tensors(save_directory / WEIGHTS, self.network.state_dict())
            write_model(save_directory, self.description)


def _check_network(description: Model, network: nn.Module) -> None:
    """Raise ValueError unless a network has the tensors of the one that is described."""
    if isinstance(description.network, ModuleNetwork) and not description.network.is_available:
        return
    expected, given = description.build().network.state_dict(), network.state_dict()
    for name in [*expected, *(name for name in given if name not in expected)]:
        if name not in given:
            problem = "is missing"
        elif name not in expected:
            problem = "is unexpected"
        else:
            problem = next(misfits(expected[name], given[name]), "")
        if problem:
            raise ValueError(f"network must be the one of description, {description.network}, but {name} {problem}")
