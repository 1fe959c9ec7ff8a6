"""Denoisers on the model hub, through huggingface_hub's mixin: safetensors and JSON, the files of a checkpoint.

`PyTorchModelHubMixin` writes a different configuration, which `load_denoiser` does not read.
"""

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelHubMixin, hf_hub_download

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.storage import write_json, write_tensors
from openedm.training.checkpoints import FORMAT, find_checkpoint, load_denoiser, read_model
from openedm.training.model import Model

__all__ = ["Pretrained"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_OPTIONS = {"revision", "cache_dir", "force_download", "local_files_only", "token"}

CARD = """---
{{ card_data }}
---

A diffusion model: a denoiser of openedm, by `openedm.interop.Pretrained`.

```python
from openedm.interop import Pretrained
from openedm.sampling import Auto

denoiser = Pretrained.from_pretrained("ID OF THIS REPOSITORY")
x = Auto(nfe=32).sample(denoiser, seeds=range(4))
```

`config.json` describes the denoiser; the weights are safetensors. Reading them runs no code.
"""


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
        ValueError: the description cannot be built.
    """

    def __init__(self, description: Model, network: Any = None) -> None:
        checks.instance("description", description, Model, "a Model, or use Pretrained.from_checkpoint(path)")
        super().__init__(
            description.build().network if network is None else network,
            description.preconditioning,
            description.sigma_data,
            event_shape=description.event_shape,
            num_classes=description.num_classes,
            condition_shape=description.condition_layout.packed_shape,
            condition_dropout=description.condition_dropout,
            units=description.units,
            condition_units=description.condition_units,
        )
        self.description = description

    @classmethod
    def from_checkpoint(cls, path: str | Path, weights: Literal["ema", "raw"] = "ema") -> "Pretrained":
        """The denoiser of a checkpoint or run, in evaluation mode.

        Raises:
            ValueError: as for `load_denoiser`.
        """
        folder = find_checkpoint(path)
        return cls(read_model(folder), load_denoiser(folder, weights).network).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        write_tensors(save_directory / WEIGHTS, self.network.state_dict())
        write_json(save_directory / CONFIG, {"format": FORMAT, "model": to_config(self.description)})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Pretrained":
        unknown = sorted(options.keys() - HUB_OPTIONS)
        if unknown:
            raise ValueError(f"options of from_pretrained must be among {sorted(HUB_OPTIONS)}, got {unknown}")
        if Path(model_id).is_dir():
            return cls.from_checkpoint(model_id)
        files = [hf_hub_download(repo_id=model_id, filename=name, **options) for name in (WEIGHTS, CONFIG)]
        return cls.from_checkpoint(Path(files[1]).parent)
