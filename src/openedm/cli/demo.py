"""`openedm demo`: train, sample and score on the digits, through the other commands."""

import shlex
import time
from pathlib import Path

from openedm.cli import main


def demo(out: str = "runs/demo", images: int = 80_000, seed: int = 0) -> int:
    """Train a small DDPM++ on handwritten digits, draw new ones, and score them: the whole library in minutes.

    Runs the commands it prints; each can be typed by hand. Run again, it goes on where it stopped.

    Args:
        out: folder for the run, the samples and the figures.
        images: how many images to train on.
        seed: of training and scoring.
    """
    folder = Path(out)
    run, samples, report = folder / "run", folder / "samples", folder / "report.json"
    started = time.perf_counter()
    commands = [
        ["train", str(run), *TRAINING, f"--options.images={images}", f"--options.seed={seed}", "--resume=true"],
        [
            "sample",
            str(run),
            str(samples),
            "--seeds=0-999",
            "--batch_size=100",
            f"--trajectory={folder / 'trajectory.png'}",
        ],
    ]
    if not (folder / "grid.png").exists():
        commands.append(
            ["sample", str(run), str(folder / "grid.png"), "--seeds=0-99", "--format=grid", "--batch_size=100"]
        )
    if not report.exists():
        commands.append(
            [
                "evaluate",
                str(samples),
                f"--classifier={folder / 'classifier.safetensors'}",
                f"--out={report}",
                f"--seed={seed}",
            ]
        )
    for command in commands:
        print(f"\n$ openedm {shlex.join(command)}", flush=True)
        status = main.main(command)
        if status:
            return status
    print(f"\ndone in {time.perf_counter() - started:.0f} s")
    print(f"samples     {folder / 'grid.png'}  (a column a digit)")
    print(f"trajectory  {folder / 'trajectory.png'}")
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
