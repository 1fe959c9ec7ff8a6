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
    noise: Literal["independent", "path", "published"] = "independent",
    format: Format | None = None,
    batch_size: int = 64,
    trajectory: str | None = None,
    options: Flat[SamplingOptions] = SamplingOptions(),
) -> None:
    """Draw samples from a checkpoint.

    A sample depends on its seed, its class and the sampler alone, not on the batch size, the order or the number of
    processes. Seed s has class `classes[s mod number of classes]`. After an interruption, the same command draws only
    the missing seeds. Under `torchrun` or `accelerate launch` the processes share the seeds, batch by batch, and the
    files are bit-identical to those of a single process.

    Args:
        checkpoint: a checkpoint folder, or a run folder, for its newest checkpoint.
        out: a folder of PNG files, with the classes in dataset.json; or the file to write, samples.npz or grid.png.
        seeds: the seeds of the samples: numbers and ranges, such as 0-63,100.
        classes: the classes, in the same form, drawn in turn; all by default.
        noise: noise of a stochastic sampler: independent draws; path, the increments of one Brownian path a seed, so
            that samples converge as the number of steps grows; or published, classes and noise drawn as the published
            sampling script draws them on a CPU, so that its samples of a seed come out again.
        format: png, one file a seed, of 16 bits where the data had them; npz, arrays `samples`, `seeds` and `labels`
            in one file, for data of any shape, in the numbers and axes of the data where these were not bytes; grid,
            one PNG with all images (the first three of more than four channels). By default what the end of `out`
            says: npz for .npz, grid for .png, otherwise png.
        batch_size: number of samples in a batch; it changes memory and speed, not the samples. To use several processes
            there must be at least as many batches.
        trajectory: also plot the noisy and denoised images of the first seeds at each noise level to this PNG file.
        options: options of sampling.
    """
    seed_list = parse_integers("seeds", seeds)
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
        count = files.write(prepared, seed_list, batch_size=batch_size, accelerator=accelerator, progress=bars)
    if not accelerator.is_main_process:
        return
    existing = len(set(seed_list)) - count
    kept = f", {existing} already existed" if existing else ""
    network = "network" if options.guidance.is_one else "guided network"
    cost = "" if prepared.sampler.nfe is None else f" with {prepared.sampler.nfe} {network} evaluations each"
    print(f"drew {count} samples{cost}{kept}: {out}")
    if trajectory is not None:
        save_figure(denoising_trajectory(source.trajectory(prepared, seed_list[:6])), trajectory)
        print(f"denoising trajectory: {trajectory}")
