"""`openedm convert`: published networks into checkpoints, and checkpoints into published names."""

import sys
from pathlib import Path
from typing import Literal

from openedm.cli.terminal import Bars, rows
from openedm.ground.storage import new_path
from openedm.interop import Published, publish, published_model, read_published, write_published
from openedm.interop.published import new_published
from openedm.training import find_checkpoint, load_denoiser, read_model, save_checkpoint

SHOW_PROGRESS_FROM = 2**26


def convert(source: str, out: str, key: str = "ema", weights: Literal["ema", "raw"] = "ema") -> None:
    """Make a checkpoint of a published EDM network, or a published network of a checkpoint.

    Published pickles are read as data: nothing in them is run, and what could be run is refused by name. The other
    form of a published network is NAME.safetensors, its weights, with NAME.json, its class and constructor arguments.

    Args:
        source: NAME.pkl or NAME.safetensors, a published network; or a checkpoint folder, or a run folder (its newest
            checkpoint is taken).
        out: for a published network the checkpoint folder to make, for `openedm sample`, `info` and `evaluate`; for a
            checkpoint NAME.safetensors. Nothing is overwritten.
        key: the entry of a pickle that holds the network.
        weights: of a checkpoint: ema, the averaged weights, or raw, those of the last step.
    """
    if Path(source).is_dir():
        _to_published(Path(source), Path(out), key, weights)
    else:
        _to_checkpoint(Path(source), Path(out), key, weights)


def _to_checkpoint(source: Path, out: Path, key: str, weights: str) -> None:
    if weights != "ema":
        raise ValueError(f"weights must be 'ema' for a file, which holds one set of them, got {weights!r}")
    new_path("out", out, what="a checkpoint")
    if not source.is_file():
        raise ValueError(f"source must be a file or a checkpoint, got {str(source)!r}")
    large = source.stat().st_size >= SHOW_PROGRESS_FROM and sys.stderr.isatty()
    with Bars(shown=large) as bars:
        published = read_published(source, key, bars)
    print(_described(published))
    denoiser = published.denoiser()
    model = published_model(published, denoiser)
    print(f"sigma            {denoiser.sigma_min:g} to {denoiser.sigma_max:g}, sigma_data {denoiser.sigma_data:g}")
    del published  # Half of the memory: the network has its own copy of the weights.
    save_checkpoint(out, model, denoiser.network.state_dict())
    print(f"checkpoint: {out}")


def _to_published(source: Path, out: Path, key: str, weights: Literal["ema", "raw"]) -> None:
    if key != "ema":
        raise ValueError(f"key must not be given for a checkpoint, got {key!r}")
    new_published(out)
    folder = find_checkpoint(source)
    model = read_model(folder)
    published = publish(model, load_denoiser(folder, weights))
    write_published(out, published)
    print(_described(published))
    print(f"published network: {out} and {out.with_suffix('.json')}")


def _described(published: Published) -> str:
    """What a file holds, as lines; text from the file is printed as a literal, never as it is."""
    tensors = published.state_dict.values()
    sizes = f"{sum(t.numel() for t in tensors):,} in {len(tensors)} tensors"
    dtypes = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
    values = {
        "network": _shown(published.network_name),
        "preconditioning": _shown(published.class_name),
        "numbers": f"{sizes} of {dtypes}",
        **{_printable(f"  {name}"): _shown(value) for name, value in published.kwargs.items()},
        **{_printable(f"dataset {name}"): _shown(value) for name, value in published.dataset_kwargs.items()},
    }
    return rows(values)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return _printable(text)


def _printable(text: str, longest: int = 200) -> str:
    """The text without control characters, which a terminal would obey, and not endless."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:longest])
    return shown + ("…" if len(text) > longest else "")
