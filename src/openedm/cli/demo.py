"""`openedm demo`: train, sample and score on the digits, through the other commands."""

import json
import shlex
import time
from pathlib import Path

from openedm.cli import main
from openedm.metrics import Report
from openedm.training import list_checkpoints


def demo(out: str = "runs/demo", images: int = 80_000, seed: int = 0) -> int:
    """Train a small DDPM++ on handwritten digits, draw new ones, and score them, in minutes.

    It prints the commands that it runs; each can also be run separately. After an interruption it continues.

    Args:
        out: folder for the run, the samples and the figures.
        images: number of images to train on.
        seed: seed of training and scoring.
    """
    folder = Path(out)
    run, samples, report = folder / "run", folder / "samples", folder / "report.json"
    trajectory, grid = folder / "trajectory.png", folder / "grid.png"
    trained = [int(path.name) for path in list_checkpoints(run)]
    if report.exists() and trained and trained[-1] < images:
        raise ValueError(f"out={out} has a demo with fewer images ({trained[-1]}): choose another folder")
    known = {"run", "samples", *(path.name for path in (report, trajectory, grid))}
    others = [path.name for path in folder.glob("[!.]*") if path.name not in known]
    if others and not run.exists():
        raise ValueError(f"out={out} holds other things and no demo, such as {min(others)}: choose another folder")
    started = time.perf_counter()
    commands = [
        ["train", str(run), *TRAINING, f"--options.images={images}", f"--options.seed={seed}", "--resume=true"],
        ["sample", str(run), str(samples), "--seeds=0-999", "--batch_size=100", f"--trajectory={trajectory}"],
    ]
    if not grid.exists():
        commands.append(["sample", str(run), str(grid), "--seeds=0-99", "--format=grid", "--batch_size=100"])
    if not report.exists():
        judge = folder / "classifier.safetensors"
        commands.append(
            ["evaluate", str(samples), f"--classifier={judge}", f"--out={report}", f"--seed={seed}", "--cache=null"]
        )
    for command in commands:
        print(f"\n$ openedm {shlex.join(command)}", flush=True)
        status = main.main(command)
        if status:
            return status
    print(f"\ndone in {time.perf_counter() - started:.0f} s")
    if len(commands) < 4:
        print(Report.from_dict(json.loads(report.read_text(encoding="utf-8"))).table())
    print(f"samples     {grid}  (a column a digit)")
    print(f"trajectory  {trajectory}")
    print(f"curves      {run / 'figures'}")
    return 0


TRAINING = [
    "--data=Digits",
    "--validation=Digits",
    "--validation.split=test",
    "--network=DDPMpp",
    "--network.model_channels=32",
    "--network.channel_mult=[1,2]",
    "--network.num_blocks=1",
    "--network.dropout=0.1",
    "--options.batch_size=128",
    "--options.learning_rate=2e-3",
    "--options.rampup=10000",
    "--options.average.half_life=5000",
    "--options.validate_every=25000",
    "--options.snapshot_every=50000",
]
