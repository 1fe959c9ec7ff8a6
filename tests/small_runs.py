"""Checkpoints that take no training: a small U-Net for the digits with random weights."""

from pathlib import Path

import torch

from openedm.data import Digits
from openedm.networks import DDPMpp
from openedm.training import Model, save_checkpoint


def save_digits_run(folder: Path, seed: int) -> Path:
    """A class-conditional denoiser of digits in a new folder; its output depends on the seed."""
    network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1)
    model = Model.for_data(Digits().load(), network)
    generator = torch.Generator().manual_seed(seed)
    weights = model.build().network.state_dict()
    moved = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    save_checkpoint(folder, model, moved)
    return folder
