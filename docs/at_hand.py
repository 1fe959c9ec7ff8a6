"""What readers of the pages have at hand: photos, a small run, data. `follow.py` makes it where a page names it."""

from pathlib import Path

import numpy as np
import PIL.Image


def photos(
    folder: str = "photos", *, number: int = 24, side: int = 16, classes: tuple[str, ...] = ("cat", "dog")
) -> None:
    """A folder of images of noise, one folder inside for each class; none if there are no classes."""
    random = np.random.default_rng(0)
    for i in range(number):
        inside = Path(folder, *classes[i % len(classes) : i % len(classes) + 1]) if classes else Path(folder)
        inside.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(inside / f"{i:03d}.png")


SMALL = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1}
"""The smallest network worth the name."""


def run(folder: str = "runs/demo/run", *, images: int = 64, **options: object) -> None:
    """A run of a small network on the digits, far from trained."""
    from openedm.data import Digits
    from openedm.networks import DDPMpp
    from openedm.training import Model, Options, Trainer

    data = Digits().load()
    chosen = Options(images=images, batch_size=32, validate_every=0, snapshot_every=0, **options)
    model = Model.for_data(data, DDPMpp(**SMALL), condition_dropout=chosen.label_dropout > 0)
    Trainer(model, data, options=chosen, run=folder).fit()


def autoencoder(folder: str) -> None:
    """An AutoencoderKL with random weights that halves height and width."""
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**kinds, block_out_channels=(8, 16), norm_num_groups=4).save_pretrained(folder)


def table(file: str) -> None:
    """A parquet file of digits with two numbers a row: how much ink, and how slanted."""
    import io

    import pyarrow as pa
    import pyarrow.parquet

    random = np.random.default_rng(0)
    rows = []
    for _ in range(24):
        written = io.BytesIO()
        PIL.Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(written, "PNG")
        ink, slant = random.normal(size=2)
        rows.append({"image": {"bytes": written.getvalue()}, "stroke": float(ink), "slant": float(slant)})
    pa.parquet.write_table(pa.Table.from_pylist(rows), file)
