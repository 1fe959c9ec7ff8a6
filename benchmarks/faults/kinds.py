"""One small file of every kind that commands read, and what reads it: for flipped bits and for mutations."""

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from jsonargparse import ArgumentError

from openedm.cli.arguments import arrays_of
from openedm.cli.plain import read_options
from openedm.data import Arrays, Form, ImageFolder, MemoryImages, Shards, Table, convert, save_image
from openedm.data.latents import Latents
from openedm.generation.conditions import read_conditions
from openedm.generation.fitted_files import read_fitted
from openedm.ground.choices import from_config, to_config
from openedm.ground.digests import seal_text
from openedm.ground.storage import read_json, write_arrays, write_json
from openedm.inference import Box, MixtureOptions, Settings, Store, fit, load, simulate
from openedm.inference.refine import Refinement
from openedm.interop import publish, read_published, write_published
from openedm.networks import MLP, ConditionalEnsemble, ConditionalMLP, DDPMpp, VectorSummary
from openedm.objective import Objective
from openedm.sampling import Sampler
from openedm.training import Model, Options, load_denoiser, reconstruct
from openedm.training.averaging import PowerFunction
from openedm.training.checkpoints import RunState, read_model, read_progress, read_training_tensors, save_checkpoint
from openedm.training.post_hoc import PowerAverages

_SMALL: dict[str, Any] = {"members": 1, "width": 8, "num_blocks": 1, "steps": 20, "folds": 2}
TINY = Settings(
    network=ConditionalEnsemble(members=2, width=8, num_blocks=1),
    drawn_network=ConditionalMLP(width=8, num_blocks=1, summary=VectorSummary(width=8, num_blocks=1)),
    members=1,
    images=2048,
    passes=2,
    batch_size=256,
    emulator=MixtureOptions(components=(2,), pilot_steps=5, **_SMALL),
    pool=1000,
    bases=("Gaussian",),
    base=MixtureOptions(components=(1,), **_SMALL),
    refinement=Refinement(num_steps=4, num_pilots=16),
    judged=5,
)
"""Of a posterior that is fitted in two seconds, far from well."""

EXPECTED = (ValueError, TypeError, OSError, ImportError, FloatingPointError, ArgumentError)
"""The errors whose message is written for users."""

SAID: list[str] = []
"""Warnings while a file was read: what is left out is said so."""


class Kind(NamedTuple):
    """A file of a kind.

    Attributes:
        name: of the kind.
        file: the file that is changed.
        read: what reads it and returns what users get, as bytes.
        protected: whether a digest or a checksum covers what users get.
        form: json, yaml, safetensors, npz, npy, parquet, tar, zip or image.
    """

    name: str
    file: Path
    read: Callable[[], bytes]
    protected: bool
    form: str


def content(value: Any) -> bytes:
    """What a value holds, as bytes that are equal where the values are."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}".encode() + value.detach().contiguous().cpu().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, dict):
        return b"".join(str(name).encode() + content(value[name]) for name in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return b"".join(map(content, value))
    return repr(value).encode()


def _images(source: Any) -> bytes:
    dataset = source.load()
    return content([*dataset.fetch(range(len(dataset))), dataset.class_names, dataset.describe()])


def _arrays(path: Path) -> bytes:
    return content(dict(sorted(arrays_of("x", str(path)).items())))


def checkpoints(root: Path) -> list[Kind]:
    """The files of a checkpoint, of snapshots, of a published network and of kept levels."""
    model = Model(DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1), event_shape=(1, 8, 8), num_classes=3)
    denoiser = model.build()
    folder, published, run = root / "checkpoint", root / "published" / "p.safetensors", root / "run"
    weights = denoiser.network.state_dict()
    raw = {f"network.{name}": tensor + 1 for name, tensor in weights.items()}
    progress = RunState(images=64, step=4).to_json(Objective(), Options(images=640))
    save_checkpoint(folder, model, weights, (raw, progress))
    save_checkpoint(run / "checkpoints" / "000000000064", model, weights, (raw, progress))
    averages = PowerAverages(PowerFunction(every=16), denoiser.network)
    for step in (1, 2, 3, 4):
        averages.update(step)
        averages.save(run, 16 * step, step)
    published.parent.mkdir()
    write_published(published, publish(model, denoiser))
    write_json(root / "levels" / "fitted.json", {"fitted": to_config(Sampler())}, files=())

    def resumed() -> bytes:
        state = read_progress(folder)
        counts = RunState.from_json(state, folder)
        settings = [from_config(Objective, state.get("objective")), from_config(Options, state.get("options"))]
        return content([vars(counts) | {"best": counts.best_loss}, settings])

    def published_content() -> bytes:
        found = read_published(published)
        found.denoiser()
        return content([found.class_name, found.kwargs, found.state_dict, found.network_name, found.dataset_kwargs])

    def whole() -> bytes:
        return content([load_denoiser(folder).network.state_dict(), to_config(read_model(folder))])

    [snapshot] = (run / "averages").glob("000000000032-*")
    return [
        Kind("config.json of a checkpoint", folder / "config.json", whole, True, "json"),
        Kind("model.safetensors", folder / "model.safetensors", whole, True, "safetensors"),
        Kind("training.json", folder / "training.json", resumed, True, "json"),
        Kind(
            "training.safetensors",
            folder / "training.safetensors",
            lambda: content([read_training_tensors(folder), load_denoiser(folder, "raw").network.state_dict()]),
            True,
            "safetensors",
        ),
        Kind("snapshot of averages", snapshot, lambda: content(reconstruct(run, 0.1)), True, "safetensors"),
        Kind("JSON of a published network", published.with_suffix(".json"), published_content, True, "json"),
        Kind("published safetensors", published, published_content, True, "safetensors"),
        Kind(
            "fitted levels",
            root / "levels" / "fitted.json",
            lambda: content(read_fitted(root / "levels" / "fitted.json")),
            True,
            "json",
        ),
    ]


def posteriors(root: Path) -> list[Kind]:
    """The files of a posterior and of a store of simulations."""
    prior = Box(low=(-1.0, -1.0), high=(1.0, 1.0))
    store, folder = root / "store", root / "posterior"
    simulate(lambda theta: theta + 0.1, prior, 40, seed=0, store=str(store))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(simulate(lambda theta: theta + 0.1, prior, 200, seed=0), settings=TINY).save(folder)

    def simulations() -> bytes:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = Store(store).load()
            finally:
                SAID.extend(str(warning.message) for warning in said)
        return content([found.theta, found.x, found.index, found.seeds, found.failures, found.prior])

    def posterior() -> bytes:
        found = load(folder)
        return content([found.parts.denoiser.state_dict(), found.names, found.prior, found.report, found.sampler])

    [part] = store.glob("part-*")
    return [
        Kind("config.json of a posterior", folder / "config.json", posterior, True, "json"),
        Kind("weights of a posterior", folder / "model.safetensors", posterior, True, "safetensors"),
        Kind("manifest of simulations", store / "manifest.json", simulations, True, "json"),
        Kind("simulations", part, simulations, True, "parquet"),
    ]


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(_pixels(seed)).save(buffer, format=kind)
    return buffer.getvalue()


def converted(root: Path) -> list[Kind]:
    """The files of a converted set, PNG and WebP."""
    kinds = []
    images = MemoryImages({f"{i}.png": _encoded(i) for i in range(4)}, [0, 1, 0, 1], ["ant", "bee"])
    for encoding in ("png", "webp"):
        out = root / encoding
        convert(images, out, Form(size=8, encoding=encoding), per_shard=4)

        def read(out: Path = out) -> bytes:
            return _images(Shards(str(out)))

        kinds.append(Kind(f"shard of {encoding}", out / "shard-000000.tar", read, True, "tar"))
        if encoding == "png":
            kinds.append(Kind("manifest of shards", out / "manifest.json", read, True, "json"))
            kinds.append(Kind("index of shards", out / "index.npz", read, True, "npz"))
    return kinds


def samples(root: Path) -> list[Kind]:
    """What `sample` and `train` write besides: PNG, dataset.json, npz, settings, options."""
    (folder := root / "samples").mkdir(parents=True)
    for i in range(3):
        save_image(torch.from_numpy(_pixels(i)).permute(2, 0, 1) / 127.5 - 1, folder / f"{i:06d}.png")
    table = {"labels": [[f"{i:06d}.png", i % 2] for i in range(3)], "class_names": ["ant", "bee"]}
    write_json(folder / "dataset.json", table, indent=None, files=())
    write_json(root / "settings.json", {"weights": "0" * 64, "sampler": to_config(Sampler())}, files=())
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    write_arrays(root / "samples.npz", {"samples": x, "labels": np.arange(9) % 3, "seeds": np.arange(9)})
    (run := root / "run").mkdir()
    (run / "log.jsonl").write_text("")
    options = (
        "options:\n  images: 640\n  batch_size: 64\nnetwork:\n  class_path: MLP\n  init_args: {width: 16}\ndata: Toy\n"
    )
    (run / "config.yaml").write_text(seal_text(options))
    return [
        Kind("PNG", folder / "000001.png", lambda: _images(ImageFolder(str(folder))), True, "image"),
        Kind("dataset.json", folder / "dataset.json", lambda: _images(ImageFolder(str(folder))), True, "json"),
        Kind("settings.json", root / "settings.json", lambda: content(read_json(root / "settings.json")), True, "json"),
        Kind("samples.npz", root / "samples.npz", lambda: _arrays(root / "samples.npz"), True, "npz"),
        Kind(
            "config.yaml of a run",
            run / "config.yaml",
            lambda: content(read_options(str(run / "config.yaml"))),
            True,
            "yaml",
        ),
    ]


def given(root: Path) -> list[Kind]:
    """Files that users bring: nothing protects them, but they must not do harm."""
    import pyarrow
    from pyarrow import parquet

    root.mkdir()
    kinds = []

    def add(name: str, file: Path, read: Callable[[], bytes], form: str) -> None:
        kinds.append(Kind(name, file, read, False, form))

    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.save(root / "x.npy", x)
    add("array.npy", root / "x.npy", lambda: _images(Arrays(str(root / "x.npy"))), "npy")
    np.savez(root / "x.npz", x=x, labels=np.arange(20) % 3)
    add("data.npz", root / "x.npz", lambda: _images(Arrays(str(root / "x.npz"))), "npz")
    np.savez(root / "latents.npz", mean=x.reshape(5, 3, 4, 1), std=np.ones((5, 3, 4, 1), np.float32))
    add("latents.npz", root / "latents.npz", lambda: content(len(Latents(str(root / "latents.npz")).load())), "npz")
    cells = [{"bytes": _encoded(i), "path": None} for i in range(6)]
    parquet.write_table(pyarrow.table({"image": cells, "label": [0, 1] * 3}), root / "t.parquet", row_group_size=3)
    add("table.parquet", root / "t.parquet", lambda: _images(Table(str(root / "t.parquet"))), "parquet")
    with tarfile.open(root / "web.tar", "w") as archive, zipfile.ZipFile(root / "pictures.zip", "w") as zipped:
        for i in range(4):
            files = {
                "png": _encoded(i),
                "cls": str(i % 2).encode(),
                "json": json.dumps({"condition": [i, 0.5]}).encode(),
            }
            for suffix, data in files.items():
                entry = tarfile.TarInfo(f"{i}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            zipped.writestr(f"{i % 2}/{i}.png", files["png"], zipfile.ZIP_DEFLATED)
    add("WebDataset", root / "web.tar", lambda: _images(Shards(str(root / "web.tar"))), "tar")
    add("zip of pictures", root / "pictures.zip", lambda: _images(ImageFolder(str(root / "pictures.zip"))), "zip")
    for suffix, kind in {
        "jpg": "JPEG",
        "webp": "WEBP",
        "gif": "GIF",
        "bmp": "BMP",
        "tiff": "TIFF",
        "ppm": "PPM",
    }.items():
        (folder := root / suffix).mkdir()
        (folder / f"a.{suffix}").write_bytes(_encoded(3, kind))
        add(kind, folder / f"a.{suffix}", lambda folder=folder: _images(ImageFolder(str(folder))), "image")
    model = Model(MLP(8, 1), event_shape=(2,), images=False, condition_shape=(3,))
    (root / "conditions.json").write_text(json.dumps([[0.1, 0.2, 0.3]] * 4))
    (root / "conditions.csv").write_text("a,b,c\n0.1,0.2,0.3\n1,2,3\n")
    np.savez(root / "conditions.npz", conditions=x)
    for name, form in (("conditions.json", "json"), ("conditions.csv", "yaml"), ("conditions.npz", "npz")):
        path = root / name
        add(name, path, lambda path=path: content(vars(read_conditions(str(path), model))), form)
    (root / "options.yaml").write_text("options:\n  images: 640\n  batch_size: 64\ndata: Toy\nimport: []\n")
    add("options.yaml", root / "options.yaml", lambda: content(read_options(str(root / "options.yaml"))), "yaml")
    return kinds


def make(root: Path, *, protected_only: bool = False) -> list[Kind]:
    """The files of all kinds, below a folder."""
    root.mkdir(parents=True, exist_ok=True)
    kinds = [*checkpoints(root / "a"), *posteriors(root / "b"), *converted(root / "c"), *samples(root / "d")]
    return kinds if protected_only else [*kinds, *given(root / "e")]
