"""`openedm convert`: convert published networks to checkpoints, and checkpoints to published networks."""

import sys
from pathlib import Path
from typing import Literal

from openedm.cli.terminal import Bars, rows
from openedm.ground.storage import new_path
from openedm.interop import Published, publish, published_model, read_published, write_published
from openedm.interop.published import new_published
from openedm.training import find_checkpoint, load_denoiser, read_model, save_checkpoint

MIN_BYTES_WITH_PROGRESS = 2**26


def convert(
    source: str, out: str, key: str = "ema", weights: Literal["ema", "raw"] = "ema", vae: str | None = None
) -> None:
    """Convert a published EDM network to a checkpoint, or a checkpoint to a published network.

    Published pickles are read as data: no code in them is run, and names of functions that could be run are errors. The
    other form of a published network is NAME.safetensors, its weights, with NAME.json, its class and constructor
    arguments.

    Args:
        source: NAME.pkl or NAME.safetensors, a published network; or a checkpoint folder, or a run folder, for its
            newest checkpoint.
        out: for a published network, the checkpoint folder to create, for `openedm sample`, `info` and `evaluate`; for
            a checkpoint, NAME.safetensors. Existing files are never overwritten.
        key: the entry of a pickle that contains the network.
        weights: the weights of a checkpoint: ema, the averaged weights, or raw, those of the last step.
        vae: for a network of EDM2 of latents: the folder of Stable Diffusion's autoencoder, or its name on the Hugging
            Face Hub. Samples of the checkpoint are then decoded pictures.
    """
    if not Path(source).exists():
        raise ValueError(f"source must be a file or a checkpoint, got {source!r}, which does not exist")
    if Path(source).is_dir():
        if vae is not None:
            raise ValueError(f"vae must not be given with a checkpoint, which knows its autoencoder, got {vae!r}")
        _to_published(Path(source), Path(out), key, weights)
    else:
        _to_checkpoint(Path(source), Path(out), key, weights, vae)


def _to_checkpoint(source: Path, out: Path, key: str, weights: str, vae: str | None) -> None:
    if weights != "ema":
        raise ValueError(f"weights must be 'ema' for a file, which has one set of weights, got {weights!r}")
    new_path("out", out, what="a checkpoint")
    if out.suffix in (".safetensors", ".pkl"):
        raise ValueError(f"out must be a folder for the checkpoint of {source}, got {str(out)!r}")
    if not source.is_file():
        raise ValueError(f"source must be a file or a checkpoint, got {str(source)!r}")
    large = source.stat().st_size >= MIN_BYTES_WITH_PROGRESS and sys.stderr.isatty()
    with Bars(shown=large) as bars:
        published = read_published(source, key, bars)
    print(_describe_content(published))
    denoiser = published.denoiser()
    model = published_model(published, denoiser, vae)
    print(f"sigma            {denoiser.sigma_min:g} to {denoiser.sigma_max:g}, sigma_data {denoiser.sigma_data:g}")
    del published  # Frees half of the memory: the network has a copy of the weights.
    save_checkpoint(out, model, denoiser.network.state_dict())
    print(f"checkpoint: {out}")


def _to_published(source: Path, out: Path, key: str, weights: Literal["ema", "raw"]) -> None:
    if key != "ema":
        raise ValueError(f"key must be 'ema' for a checkpoint, got {key!r}")
    folder = find_checkpoint(source)
    model = read_model(folder)
    new_published(out, "out")
    published = publish(model, load_denoiser(folder, weights))
    write_published(out, published)
    print(_describe_content(published))
    print(f"published network: {out} and {out.with_suffix('.json')}")


def _describe_content(published: Published) -> str:
    """The content of a file, as lines; text from the file is printed without control characters."""
    tensors = published.state_dict.values()
    sizes = f"{sum(t.numel() for t in tensors):,} in {len(tensors)} tensors"
    dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
    values = {
        "network": _format_value(published.network_name),
        "preconditioning": _format_value(published.class_name),
        "numbers": f"{sizes} of {dtypes}",
        **{_printable(f"  {name}"): _format_value(value) for name, value in published.kwargs.items()},
        **{_printable(f"dataset {name}"): _format_value(value) for name, value in published.dataset_kwargs.items()},
    }
    return rows(values)


def _format_value(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return _printable(text)


def _printable(text: str, max_length: int = 200) -> str:
    """The text without control characters, which a terminal would execute, and of limited length."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:max_length])
    return shown + ("…" if len(text) > max_length else "")
