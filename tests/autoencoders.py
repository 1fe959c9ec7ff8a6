"""Tiny autoencoders of diffusers with random weights, saved as users have them."""

from pathlib import Path
from typing import Any

import torch

TINY = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
"""Halves height and width."""


def autoencoder(seed: int = 0, **settings: Any) -> Any:
    """An AutoencoderKL with weights of a seed."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(**TINY | settings).eval()


def save_autoencoder(path: Path, seed: int = 0, **settings: Any) -> str:
    """Save one in a folder, and return the folder."""
    autoencoder(seed, **settings).save_pretrained(path)
    return str(path)
