"""Descriptions of networks that would take all time and memory are refused before anything is built."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from openedm.ground.creation import LimitedCreation
from openedm.networks import MLP, DDPMpp, DiT
from openedm.training import Model, load_denoiser, save_checkpoint

IMAGE: dict[str, Any] = {"event_shape": (1, 8, 8), "num_classes": 3}
MODELS = {
    "unet": Model(DDPMpp(model_channels=8, channel_mult=(1, 2), num_blocks=1), **IMAGE),
    "dit": Model(DiT(width=32, num_blocks=1, num_heads=2), **IMAGE),
    "mlp": Model(MLP(8, 1), event_shape=(2,), images=False, num_classes=2),
}


@pytest.mark.parametrize(
    ("kind", "field", "value", "problem"),
    [
        ("unet", "network.model_channels", 10**9, "model_channels must be at most 1,048,576, got 1000000000"),
        ("unet", "network.model_channels", 10**6, "is much larger than its weights, which are [0-9,]+ numbers"),
        ("unet", "network.num_blocks", 10**5, "is much larger than its weights"),
        ("unet", "network.channel_mult", [1, 10**6], "is much larger than its weights"),
        ("unet", "network.channel_mult_emb", 10**10, "channel_mult_emb must be at most"),
        ("unet", "augment_dim", 10**12, "augment_dim must be at most"),
        ("unet", "event_shape", [1, 10**12, 10**12], "the product of event_shape must be at most"),
        ("unet", "condition_shape", [10**12], "the product of condition_shape must be at most"),
        ("dit", "event_shape", [1, 32768, 32768], "the number of patches must be at most 1,048,576"),
        ("dit", "network.width", 10**6, "is much larger than its weights"),
        ("mlp", "network.num_blocks", 10**5, "is much larger than its weights"),
        ("mlp", "num_classes", 10**12, "num_classes must be at most"),
        ("mlp", "event_shape", [10**9], "is much larger than its weights"),
    ],
)
def test_a_network_much_larger_than_its_weights_is_not_built(
    kind: str, field: str, value: Any, problem: str, tmp_path: Path
) -> None:
    model = MODELS[kind]
    save_checkpoint(tmp_path / "checkpoint", model, model.build().network.state_dict())
    path = tmp_path / "checkpoint" / "config.json"
    content: Any = {name: part for name, part in json.loads(path.read_text()).items() if name in ("format", "model")}
    inner = content["model"]["init_args"]
    *outer, last = field.split(".")
    for name in outer:
        inner = inner[name]["init_args"]
    inner[last] = value
    path.write_text(json.dumps(content))
    started = time.process_time()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} (does not )?describes? a model.*{problem}"):
        load_denoiser(tmp_path / "checkpoint")
    assert time.process_time() - started < 2


def test_what_is_created_from_sizes_is_counted_before() -> None:
    calls = [
        lambda: torch.empty(10**8),
        lambda: torch.zeros((10**4, 10**4)),
        lambda: torch.ones(size=(10**8,)),
        lambda: torch.full((10**8,), 1.0),
        lambda: torch.arange(10**8),
        lambda: torch.arange(0, 10**8, 2),
        lambda: torch.linspace(0, 1, 10**8),
        lambda: torch.tril_indices(10**4, 10**4),
        lambda: torch.eye(10**4),
        lambda: torch.nn.functional.one_hot(torch.zeros(10**4, dtype=torch.int64), 10**4),
        lambda: torch.nn.Linear(10**4, 10**4),
        lambda: [torch.empty(1) for _ in range(2000)],
    ]
    for call in calls:
        with pytest.raises(ValueError, match="larger than w, which are 1 numb"), LimitedCreation([torch.ones(1)], "w"):
            call()
    with LimitedCreation([torch.ones(1)], "w"):
        assert torch.nn.Linear(3, 4).weight.shape == (4, 3)
    assert torch.empty(10**8, device="meta").numel() == 10**8
