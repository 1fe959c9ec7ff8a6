"""Small pictures of every kind, as bytes."""

import io

import numpy as np
import PIL.Image


def pixels(seed: int, size: tuple[int, int] = (8, 8), bands: int = 3) -> np.ndarray:
    shape = (size[1], size[0]) if bands == 1 else (size[1], size[0], bands)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(picture: np.ndarray | PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, PIL.Image.Image) else PIL.Image.fromarray(picture)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
