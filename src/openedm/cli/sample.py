"""`openedm sample`: draw samples from a checkpoint."""

from typing import Literal

from openedm.cli.arguments import parse_integers
from openedm.cli.parsing import Flat
from openedm.cli.terminal import Bars
from openedm.generation import CheckpointSampler, SampleFiles, SamplingOptions
from openedm.generation.files import Format
from openedm.plots import denoising_trajectory, save_figure
from openedm.training import make_accelerator


def sample(
    checkpoint: str,
    out: str,
    seeds: str = "0-63",
    classes: str | None = None,
    noise: Literal["independent", "path"] = "independent",
    format: Format = "png",
    batch_size: int = 64,
    trajectory: str | None = None,
    options: Flat[SamplingOptions] = SamplingOptions(),
) -> None:
    """Draw samples from a checkpoint.

    A sample depends on its seed, its class and the sampler alone, not on the batch size, the order or the number of
    processes. Seed s gets class `classes[s mod number of classes]`. Interrupted and run again, the command draws only
    the seeds that are missing. Under `torchrun` or `accelerate launch` the processes share the seeds, batch by batch,
    and the files are bit-identical to those of a single process.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its newest checkpoint is taken).
        out: a folder of PNG files, with the classes in dataset.json; or the file to write, for npz and grid.
        seeds: the seeds of the samples: numbers and ranges, such as 0-63,100.
        classes: the classes, in the same form, drawn in turn; all by default.
        noise: what a stochastic sampler adds: independent draws, or the pieces of one Brownian path a seed, so that
            more steps refine the same sample.
        format: png, one file a seed; npz, arrays `samples`, `seeds` and `labels` in one file (also for data that are
            not images); grid, one PNG with all images.
        batch_size: samples drawn at a time; changes memory and speed, not the samples. Several processes all have work
            if there are as many batches.
        trajectory: also draw the noisy and denoised images of the first seeds at each noise level, into this PNG file.
        options: how samples are drawn.
    """
    wanted = parse_integers("seeds", seeds)
    chosen = None if classes is None else parse_integers("classes", classes)
    source = CheckpointSampler(checkpoint, options, chosen, noise)
    files = SampleFiles(source, out, format)
    if trajectory is not None:
        files.check_trajectory(trajectory)
    accelerator = make_accelerator()
    with Bars(shown=accelerator.is_main_process) as bars:
        prepared = source.prepare(accelerator, bars)
        if accelerator.is_main_process and prepared.origin:
            bars.log(f"{prepared.origin}: {prepared.sampler}")
        count = files.write(prepared, wanted, batch_size=batch_size, accelerator=accelerator, progress=bars)
    if not accelerator.is_main_process:
        return
    there = len(set(wanted)) - count
    kept = f", {there} were there already" if there else ""
    network = "network" if options.guidance.is_one else "guided network"
    cost = "" if prepared.sampler.nfe is None else f" with {prepared.sampler.nfe} {network} evaluations each"
    print(f"drew {count} samples{cost}{kept}: {out}")
    if trajectory is not None:
        save_figure(denoising_trajectory(source.trajectory(prepared, wanted[:6])), trajectory)
        print(f"denoising trajectory: {trajectory}")
