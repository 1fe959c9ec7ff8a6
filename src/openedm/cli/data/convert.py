"""`openedm data convert`: crop and resize pictures into shards with a manifest."""

from typing import Literal

from openedm.cli.terminal import Bars
from openedm.data import Form, Table, converting, encoded_images


def convert(
    source: str,
    out: str,
    size: int | tuple[int, int] | str | None = None,
    crop: Literal["centre", "adm", "wide", "pad", "none"] = "centre",
    height: int | None = None,
    channels: Literal[1, 3, 4] = 3,
    encoding: Literal["png", "webp"] = "png",
    bits: Literal[8] | None = None,
    labels: Literal["auto", "folders", "json", "none"] = "auto",
    subset: str | None = None,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    condition: str | tuple[str, ...] | None = None,
    condition_resize: Literal["bicubic", "nearest"] = "bicubic",
    per_shard: int = 10_000,
    damaged: Literal["refuse", "drop"] = "refuse",
    threads: int = 1,
    resume: bool = False,
) -> None:
    """Crop and resize pictures into shards with a manifest, for `--data Shards --data.path OUT`.

    Shards are plain tar archives, which WebDataset also reads. Pictures are rotated upright; transparent parts become
    white; palettes, CMYK and grey become RGB, or the mode of `channels`; 16 bits a channel are kept. After Ctrl-C the
    same command with `--resume true` continues.

    Args:
        source: a folder of pictures, a .zip or .tar file, a folder of .tar files, Parquet or Arrow files, or the name
            of a set on the Hugging Face Hub (tables require `pip install openedm[images]`).
        out: the folder for the shards; a new or empty one.
        size: side of the results in pixels, or height x width: 64x128; required unless crop is none.
        crop: centre: the largest central part with the proportions of size, Lanczos. adm: as ADM and EDM prepare
            ImageNet. wide: a wide part with black bars above and below. pad: the whole picture between black bars.
            none: the whole picture, distorted to size if given.
        height: height of the part between the bars, for wide.
        channels: 1 (grey), 3 (RGB) or 4 (with alpha).
        encoding: lossless encoding of the results; webp has 8 bits a channel.
        bits: 8 rounds 16 bits a channel to 8; by default they are kept.
        labels: the source of classes in folders and archives: sub-folders, dataset.json, or the .cls of WebDataset.
        subset: subset of a set on the Hub, if it has several.
        split: split of a set on the Hub or of a folder of tables.
        image: column of pictures in a table.
        label: column of classes in a table; "none" for no classes.
        condition: a folder or archive with a picture of the same name for each picture, its condition; "none" to leave
            out the conditions that dataset.json has; columns of a table, one or several: [stroke,slant].
        condition_resize: how a condition of another size than its picture is resized to that size, before both are
            cropped alike: bicubic, or nearest, which keeps the numbers of masks.
        per_shard: number of pictures in a shard.
        damaged: refuse: a picture that cannot be decoded ends the conversion with an error, after which drop and resume
            go on. drop: it is left out and listed in the manifest.
        threads: number of threads that decode and encode.
        resume: continue an interrupted conversion.
    """
    form = Form(size=size, crop=crop, height=height, channels=channels, encoding=encoding, bits=bits)
    columns = Table(source, subset=subset, split=split, image=image, label=label)
    images = encoded_images(source, labels, columns, condition)
    with Bars() as bars:
        try:
            manifest = converting.convert(
                images,
                out,
                form,
                per_shard=per_shard,
                damaged=damaged,
                resume=resume,
                threads=threads,
                about={"source": source},
                condition_resize=condition_resize,
                progress=bars,
            )
        except KeyboardInterrupt:
            bars.log(f"stopped; the same command with --resume true continues: {out}")
            raise
    shape = "×".join(map(str, manifest["shape"]))
    classes = f"in {manifest['num_classes']} classes" if manifest["num_classes"] else "without classes"
    if "condition" in manifest:
        classes += f" with conditions of {'×'.join(map(str, manifest['condition']['shape']))}"
    print(f"{manifest['images']} images of {shape} {classes} in {len(manifest['shards'])} shards: {out}")
    for entry in manifest["dropped"]:
        print(f"dropped {entry['reason']}")
