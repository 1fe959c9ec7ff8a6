"""The commands that are killed, doubled and starved: each small, and a function of its arguments alone."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.faults.processes import Command

Readers = Mapping[str, Callable[[Path], bytes | None]]

MLP = ["--data=Toy", "--data.num_samples=300", "--network=MLP", "--network.width=16", "--network.num_blocks=1"]
UNET = ["--network=DDPMpp", "--network.model_channels=8", "--network.channel_mult=[1]", "--network.num_blocks=1"]
SIZES = ["--options.batch_size=64", "--options.rampup=0", "--options.accumulate=1", "--tracker=none"]


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        name: for the table.
        arguments: as typed, in a folder with the inputs of `prepare` beside it, at ../../inputs.
        again: what is added to go on after an interruption.
        readers: of files that are compared by less than their bytes.
    """

    name: str
    arguments: list[str]
    again: list[str] = field(default_factory=list)
    readers: Readers = field(default_factory=dict)


def prepare(inputs: Path) -> None:
    """Make what the commands read: runs, pictures and simulations."""
    from openedm.data import Digits, save_image

    inputs.mkdir(parents=True)
    (inputs / "pictures").mkdir()
    images, _ = Digits("test").load().fetch(range(60))
    for number, image in enumerate(images):
        save_image(image, inputs / "pictures" / f"{number:03d}.png")
    average = ["--options.power_average=PowerFunction", "--options.power_average.every=128"]
    lines = [
        ["train", "toy", *MLP, *SIZES, "--options.images=640", "--conditional=false", *average],
        ["train", "digits", *UNET, *SIZES, "--options.images=128", "--options.snapshot_every=0"],
        ["inference", "simulate", "store", "--num=400", "--task=gaussian_linear"],
    ]
    for line in lines:
        ended = Command(line, inputs).wait()
        if ended.status:
            raise RuntimeError(f"{' '.join(line)}: {ended.printed}")


def _log(path: Path) -> bytes:
    """The lines of a log without the times."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps([{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]).encode()


def _report(path: Path) -> bytes:
    """A report without the times that its work took, and so without the digest of all."""
    return json.dumps(_without_times(json.loads(path.read_text()))).encode()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: v for name, v in value.items() if not name.endswith("seconds") and name != "openedm_sha256"}
        return {name: _without_times(v) for name, v in kept.items()}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _parts(path: Path) -> bytes | None:
    """All simulations of a store at its first file, and nothing at the others: how they are cut depends on times."""
    from pyarrow import parquet

    files = sorted(path.parent.glob("part-*.parquet"))
    if path != files[0]:
        return None
    tables = [parquet.read_table(file).to_pydict() for file in files]
    columns = {name: np.concatenate([np.array(t[name]) for t in tables]) for name in ("index", "seed", "theta", "x")}
    order = columns["index"].argsort(kind="stable")
    return b"".join(column[order].tobytes() for column in columns.values())


def _renamed(found: dict[str, str]) -> dict[str, str]:
    """The files of a store have the time in their names."""
    return {re.sub(r"part-[0-9a-f-]+\.parquet", "part.parquet", name): digest for name, digest in found.items()}


QUICK = (
    '--settings={"passes": 5, "emulator": null, "refinement": null, "judged": 8, '
    '"network": {"width": 8, "num_blocks": 1}}'
)
CASES = [
    Case(
        "train",
        [
            *("train", "out/run", *UNET, *SIZES, "--options.images=512", "--options.checkpoint_every=128"),
            "--tracker=tensorboard",
            *("--options.keep=2", "--options.snapshot_every=256", "--sampler.levels.num_steps=2"),
            *("--options.power_average=PowerFunction", "--options.power_average.every=128"),
            *("--options.validate_every=256", "--options.validate_samples=64"),
        ],
        ["--resume=true", "--tracker=tensorboard"],
        {"log.jsonl": _log, "tfevents": lambda _: None},
    ),
    Case("sample png", ["sample", "../../inputs/digits", "out/samples", "--seeds=0-39", "--nfe=3", "--batch_size=4"]),
    Case("sample npz", ["sample", "../../inputs/toy", "out/s.npz", "--seeds=0-39", "--nfe=5", "--batch_size=4"]),
    Case(
        "evaluate",
        [
            *("evaluate", "../../inputs/pictures", "--data=ImageFolder", "--data.path=../../inputs/pictures"),
            *("--extractor=Values", "--cache=out/cache", "--out=out/report.json", "--num_bootstrap=10"),
        ],
        readers={"report.json": _report},
    ),
    Case(
        "likelihood",
        ["likelihood", "../../inputs/toy", "--data=Toy", "--num=60", "--batch_size=10", "--out=out/l.json"],
    ),
    Case("convert", ["convert", "../../inputs/digits", "out/published.safetensors"]),
    Case(
        "data convert",
        ["data", "convert", "../../inputs/pictures", "out/shards", "--size=16", "--per_shard=7"],
        ["--resume=true"],
    ),
    Case("ema", ["ema", "../../inputs/toy", "out/average", "--sigma_rel=0.1"]),
    Case(
        "simulate",
        [
            *("inference", "simulate", "out/store", "--num=3000", "--task=slcp", "--batch_size=100"),
        ],
        readers={".parquet": _parts},
    ),
    Case(
        "fit",
        ["inference", "fit", "../../inputs/store", "out/posterior", "--task=gaussian_linear", "--run=out/run", QUICK],
        ["--resume=true"],
        {"log.jsonl": _log, "config.json": _report},
    ),
]


def renamed(case: Case, found: dict[str, str]) -> dict[str, str]:
    """The digests of a command's files under names that do not depend on the time."""
    return _renamed(found) if case.name == "simulate" else found
