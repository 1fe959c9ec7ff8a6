"""`openedm data encode`: encode pictures once, for training in the latents of an autoencoder."""

from typing import Literal

from openedm.cli.terminal import Bars
from openedm.data import encoding, picture_source
from openedm.ground.choices import to_config
from openedm.ground.devices import use_full_float32


def encode(
    source: str,
    out: str,
    vae: str | None = None,
    size: int | tuple[int, int] | str | None = None,
    crop: Literal["centre", "adm", "pad", "none"] = "centre",
    channels: Literal[1, 3, 4] = 3,
    labels: Literal["auto", "folders", "json", "none"] = "auto",
    subset: str | None = None,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    condition: str | tuple[str, ...] | None = None,
    scaling: Literal["measured", "edm2"] = "measured",
    pixels: Literal["signed", "unit"] | None = None,
    mirror: bool = False,
    batch_size: int = 16,
    per_shard: int = 1000,
    threads: int = 1,
    device: str | None = None,
    resume: bool = False,
) -> None:
    """Encode pictures once, for training in the latents of an autoencoder, with --data Latents --data.path OUT.

    Means and standard deviations of all latents are written into shards; training draws latents from them anew in every
    pass. Samples of a model of latents, its grids and its scores are decoded pictures. The autoencoder is any
    AutoencoderKL of the package diffusers (`pip install openedm[latents]`), in safetensors. Size and memory are printed
    before the work begins; after Ctrl-C the same command with `--resume true` continues.

    Args:
        source: a folder of pictures, a .zip or .tar file, a folder of .tar files such as those of `openedm data
            convert`, a .npy or .npz file, Parquet or Arrow files, or the name of a set on the Hugging Face Hub (tables
            require `pip install openedm[images]`).
        out: the folder for the shards; a new or empty one.
        vae: the folder of the autoencoder, or of a pipeline that has one; or its name on the Hugging Face Hub,
            OWNER/NAME or OWNER/NAME/SUBFOLDER. Required.
        size: side of the pictures in pixels, or height x width: 256x384; multiples of the autoencoder's factor, such as
            8. By default pictures stay as they are, and must have one size.
        crop: centre: the largest central part with the proportions of size. adm: as ADM and EDM prepare ImageNet. pad:
            the whole picture between black bars. none: the whole picture, distorted.
        channels: 1 (grey), 3 (RGB) or 4 (with alpha): as many as the autoencoder takes.
        labels: the source of classes in folders and archives: sub-folders, or dataset.json.
        subset: subset of a set on the Hub, if it has several.
        split: split of a set on the Hub or of a folder of tables.
        image: column of pictures in a table.
        label: column of classes in a table; "none" for no classes.
        condition: columns of numbers in a table, one or several: [stroke,slant]; "none" to leave out the conditions
            that dataset.json has.
        scaling: the units in which the network sees latents: measured, each channel with mean 0 and standard deviation
            0.5; edm2, the fixed numbers of EDM2 for Stable Diffusion's autoencoder.
        pixels: what the autoencoder gets for black and white: signed, -1 and 1, as autoencoders are trained; unit, 0
            and 1, as in EDM2. By default unit with scaling edm2, otherwise signed.
        mirror: encode every picture mirrored, too: latents cannot be mirrored later.
        batch_size: pictures encoded at a time.
        per_shard: number of pictures in a shard, which is what an interruption costs at most.
        threads: number of threads that read and decode pictures ahead.
        device: where the autoencoder computes, such as cpu or cuda:1; by default the GPU if there is one.
        resume: continue an interrupted encoding.
    """
    if vae is None:
        raise ValueError("vae must be given: --vae and the folder of the autoencoder, or its name on the Hub")
    use_full_float32()  # TF32's rounding is larger than the standard deviations of latents
    pictures = picture_source(source, size, crop, channels, labels, subset, split, image, label, condition)
    where = str(encoding.default_device() if device is None else device)
    with Bars() as bars:
        try:
            manifest = encoding.encode(
                pictures.load(),
                out,
                vae,
                scaling=scaling,
                pixels=pixels,
                mirror=mirror,
                batch_size=batch_size,
                per_shard=per_shard,
                threads=threads,
                device=where,
                resume=resume,
                about={"source": source, "images_of": to_config(pictures)},
                planned=lambda plan: bars.log(f"{plan.describe()} on {where}"),
                progress=bars,
            )
        except KeyboardInterrupt:
            bars.log(f"stopped; the same command with --resume true continues: {out}")
            raise
    shape = "×".join(map(str, manifest["shape"]))
    classes = f"in {manifest['num_classes']} classes" if manifest["num_classes"] else "without classes"
    print(f"{manifest['latents']} latents of {shape} {classes} in {len(manifest['shards'])} shards: {out}")
