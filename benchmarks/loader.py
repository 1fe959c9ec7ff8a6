"""How many images a second the loader alone delivers: a table, and a JSON file with versions and machine.

    OMP_NUM_THREADS=1 python -m benchmarks.loader [--out loader.json] [--size 64] [--images 4000] [--workers 0 1 2]

The same pictures, made here (smooth colours and a little noise), lie as an array in memory, as PNG in a folder, in tar
shards and in Parquet, the latter two also streamed. Nothing is decoded beforehand. Batches are drawn as training draws
them: shuffled, float32 in [-1, 1], by as many worker processes as a column says; 0 is the process that trains. Medians;
the workers' start is not counted. "a CPU second" counts the processor time of a process without workers, which other
load on the machine changes little: how many cores keep a GPU fed follows from it. Where webdataset is installed, its
own reader of the same shards is measured, too (a shuffle of 1000, decoded, batched, scaled).
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from benchmarks.common import machine, write_json

from openedm.data import Arrays, Dataset, FolderImages, Form, ImageFolder, Shards, Table, convert, decoded
from openedm.training import Options
from openedm.training.loading import batches


def pictures(size: int, count: int) -> Iterator[np.ndarray]:
    """Random smooth pictures with a little noise."""
    random = np.random.default_rng(0)
    for _ in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(PIL.Image.fromarray(coarse).resize((size, size), PIL.Image.Resampling.BICUBIC))
        yield (smooth.astype(np.int64) + random.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def make(root: Path, size: int, count: int) -> None:
    """The set in every form."""
    from pyarrow import parquet, table

    (root / "folder").mkdir()
    arrays = np.stack(list(pictures(size, count)))
    np.save(root / "arrays.npy", arrays)
    for i, array in enumerate(arrays):
        PIL.Image.fromarray(array).save(root / "folder" / f"{i:06d}.png")
    convert(FolderImages(str(root / "folder")), root / "shards", Form(crop="none"), per_shard=500)
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((root / "folder").iterdir())]
    parquet.write_table(table({"image": cells}), root / "table.parquet", row_group_size=100)


@contextmanager
def undecoded() -> Iterator[None]:
    """Every set counts as large, so that nothing is decoded when it is loaded."""
    before, decoded.MAX_BYTES_IN_MEMORY = decoded.MAX_BYTES_IN_MEMORY, 0
    try:
        yield
    finally:
        decoded.MAX_BYTES_IN_MEMORY = before


def datasets(root: Path) -> dict[str, Dataset]:
    """The set in every form, loaded."""
    with undecoded():
        return {
            "array in memory": Arrays(str(root / "arrays.npy")).load(),
            "folder of PNG": ImageFolder(str(root / "folder")).load(),
            "tar shards": Shards(str(root / "shards")).load(),
            "tar shards, streaming": Shards(str(root / "shards"), streaming=True, window=1024).load(),
            "Parquet, streaming": Table(str(root / "table.parquet"), streaming=True, window=1024).load(),
        }


def peer(root: Path, batch_size: int) -> Iterator[torch.Tensor]:
    """webdataset's own way through the shards, without end."""
    import webdataset

    shards = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
    while True:
        stream = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000).decode("rgb8")
        for (pixels,) in stream.to_tuple("png").batched(batch_size):
            yield torch.from_numpy(np.stack(list(pixels))).permute(0, 3, 1, 2).float() / 127.5 - 1


def rate(loader: Iterator[Any], batch_size: int, seconds: float, *, cpu: bool) -> float:
    """Images a second, or a CPU second of this process, after two batches that are not counted."""
    clock = time.process_time if cpu else time.perf_counter
    times = []
    for _ in range(2):
        next(loader)
    deadline = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < deadline:
        started = clock()
        for _ in range(4):
            next(loader)
        times.append(clock() - started)
    return 4 * batch_size / statistics.median(times)


def measure(
    root: Path, sets: dict[str, Dataset], workers: int, batch_size: int, seconds: float
) -> list[dict[str, Any]]:
    """The rates of each set, one after another: workers of others would prefetch meanwhile."""
    options = Options(batch_size=batch_size, workers=workers)
    loaders: dict[str, Iterator[Any]] = {
        name: batches(dataset, options, start=0, rank=0, processes=1) for name, dataset in sets.items()
    }
    if workers == 0 and importlib.util.find_spec("webdataset") is not None:
        loaders["tar shards, webdataset"] = peer(root, batch_size)
    rows: list[dict[str, Any]] = []
    for name, loader in loaders.items():
        for unit in ("images/s", "images/CPU s") if workers == 0 else ("images/s",):
            value = rate(loader, batch_size, seconds, cpu=unit == "images/CPU s")
            rows.append({"what": name, "workers": workers, "value": value, "unit": unit})
        loader.close()  # type: ignore[attr-defined]
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--images", type=int, default=4000, help="how many pictures")
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="worker processes, one column each")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time of each case")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, arguments.size, arguments.images)
        sets = datasets(root)
        size = sum(path.stat().st_size for path in (root / "folder").iterdir()) / arguments.images
        print(f"{arguments.images} pictures of 3×{arguments.size}×{arguments.size}, {size:.0f} bytes each as PNG")
        for workers in arguments.workers:
            rows += measure(root, sets, workers, arguments.batch, arguments.seconds)
    columns = [(0, "images/CPU s"), *((n, "images/s") for n in arguments.workers)]
    heads = ["a CPU second", *(f"{n} workers" for n in arguments.workers)]
    print(f"{'images a second':<24}" + "".join(f"{head:>14}" for head in heads))
    for name in dict.fromkeys(row["what"] for row in rows):
        found = {(row["workers"], row["unit"]): row["value"] for row in rows if row["what"] == name}
        print(f"{name:<24}" + "".join(f"{found[c]:>14.0f}" if c in found else " " * 14 for c in columns))
    if arguments.out is not None:
        settings = {"size": arguments.size, "images": arguments.images, "batch": arguments.batch, "bytes": size}
        packages = ("pillow", "pyarrow", *(["webdataset"] if importlib.util.find_spec("webdataset") else []))
        write_json(arguments.out, {"machine": machine(packages), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
