"""docs/interop.md: the examples with k-diffusion's calls run, on a model of two lines."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")


def model(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
    """Data that are all zeros, moved by the mean of the condition."""
    return cond.mean() + 0 * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_the_examples_run() -> None:
    section = re.search(r"^## k-diffusion\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    names: dict[str, Any] = {"model": model, "embeddings": torch.ones(2, 4)}
    examples = re.findall(r"```python\n(.*?)```", section.group(1), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, names)
    torch.testing.assert_close(names["images"], torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(names["x"].float(), torch.ones(2, 3, 8, 8), rtol=0, atol=0.01)
