"""The model card of a denoiser on the model hub: a template, and an example that draws samples of that denoiser."""

from openedm.training.model import Model

__all__ = ["CARD", "example"]

CARD = """---
{{ card_data }}
---

A diffusion model: a denoiser of openedm, by `openedm.interop.Pretrained`.

```python
{{ example }}
```

`config.json` describes the denoiser; the weights are safetensors. Reading them runs no code.
"""

UNKNOWN_ID = "ID OF THIS REPOSITORY"
MAX_NUMBERS = 8
"""The largest number of features of a condition that the example spells out."""


def example(description: Model, repository: str = UNKNOWN_ID) -> str:
    """A program that loads a denoiser and draws four samples, with a condition if it takes one.

    Classes are the first ones, floats the means of the training data, or 0 where these are not known.

    Args:
        description: the description of the denoiser.
        repository: the id of its repository, or the folder.
    """
    layout = description.condition_layout
    imports, comments, values = [], [], []
    if layout.num_classes:
        comments.append(f"# classes 0 to {layout.num_classes - 1}, or -1 for none")
        values.append(f"torch.arange(4) % {layout.num_classes}")
    if layout.shape is not None:
        comments.append(f"# {_kind(description)}")
        values.append(_floats(description))
    if values:
        imports.append("import torch")
    if layout.is_packed:
        imports.append("from openedm.conditions import pack")
    sampler = "Consistency(nfe=2)" if description.consistency else "Auto(nfe=32)"
    name = sampler.partition("(")[0]
    imports += ["from openedm.interop import Pretrained", f"from openedm.sampling import {name}"]
    condition = f"pack({', '.join(values)})" if layout.is_packed else "".join(values)
    given = [*comments, f"condition = {condition}"] if values else []
    load = f"denoiser = Pretrained.from_pretrained({_quoted(repository)})"
    draw = f"x = {sampler}.sample(denoiser, seeds=range(4){', condition=condition' if values else ''})"
    return "\n".join([*imports, "", load, *given, draw, *_decoding(description)])


def _decoding(description: Model) -> list[str]:
    """Lines that decode samples that are latents."""
    if description.autoencoder is None:
        return []
    place = "" if description.autoencoder.hub else '"FOLDER OR NAME OF THE AUTOENCODER"'
    return [f"images = denoiser.description.autoencoder.load({place}).decode(x)  # in [-1, 1]"]


def _floats(description: Model) -> str:
    """Four rows of floats as an expression: zeros, or the location of the units of the conditions."""
    shape, units = description.condition_shape, description.condition_units
    assert shape is not None  # as the caller checks
    rows = ", ".join(map(str, (4, *shape)))
    if units is None:
        return f"torch.zeros({rows})"
    if len(shape) == 1 and len(units.location) == shape[0] <= MAX_NUMBERS:
        return f"torch.tensor({list(units.location)}).expand({rows})"
    return f"denoiser.description.condition_units.location_of({shape}).expand({rows})"


def _kind(description: Model) -> str:
    """What the floats are, for a comment."""
    if description.condition_units is not None:
        return "floats, here the means of the training data"
    return "floats, images in [-1, 1]" if len(description.condition_shape or ()) > 1 else "floats, here 0"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
