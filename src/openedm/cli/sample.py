"""`openedm sample`: draw samples from a checkpoint."""

from typing import Literal

from openedm import plots
from openedm.cli.arguments import parse_integers
from openedm.cli.parsing import Flat
from openedm.cli.terminal import Bars
from openedm.generation import (
    Conditions,
    PictureSampler,
    SampleFiles,
    SamplingOptions,
    checkpoint_sampler,
    read_conditions,
    split_names,
)
from openedm.generation.files import Format
from openedm.ground import checks
from openedm.ground.choices import brief
from openedm.training import Model, find_checkpoint, make_accelerator, read_model


def sample(
    checkpoint: str,
    out: str,
    seeds: str = "0-63",
    classes: str | None = None,
    conditions: str | None = None,
    conditions_key: str | None = None,
    conditions_resize: Literal["bicubic", "nearest"] = "bicubic",
    noise: Literal["independent", "path", "published"] = "independent",
    format: Format | None = None,
    batch_size: int = 64,
    vae: str | None = None,
    decode: bool = True,
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
        classes: the classes, drawn in turn; all by default. Names, such as cat,dog, or indices and ranges, such as
            0-3,7. A word that is a name is that class; where all names are numbers, numbers and ranges are names.
        conditions: for a model with conditions of floats, in the units of its data: a .npz, .npy, .csv or .json file
            with one row a condition, a folder of images for a model whose conditions are images, or the numbers of one
            condition, 0.5,-1.0. Seed s has row s mod number of rows; `labels` in a .npz are the classes of the rows.
            none: no condition, for a model that was trained with label_dropout.
        conditions_key: the array in a .npz, by default conditions; or columns of a .csv, by default all.
        conditions_resize: how conditions that are images of another size are resized: bicubic or nearest.
        noise: noise of a stochastic sampler: independent draws; path, the increments of one Brownian path a seed, so
            that samples converge as the number of steps grows; or published, classes and noise drawn as the published
            sampling script draws them on a CPU, so that its samples of a seed come out again.
        format: png, one file a seed, of 16 bits where the data had them; npz, arrays `samples`, `seeds` and `labels`
            in one file, for data of any shape, in the numbers and axes of the data where these were not bytes; grid,
            one PNG with all images (the first three of more than four channels). By default what the end of `out`
            says: npz for .npz, grid for .png, otherwise png.
        batch_size: number of samples in a batch; it changes memory and speed, not the samples. To use several processes
            there must be at least as many batches.
        vae: for a model of latents: the folder of the autoencoder, or its name on the Hugging Face Hub, if it is no
            longer where it was when the data were encoded.
        decode: whether samples of a model of latents are decoded to images; false writes latents.
        trajectory: also plot the noisy and denoised images of the first seeds at each noise level to this PNG file; of
            latents, what the autoencoder makes of both.
        options: options of sampling.
    """
    seed_list = parse_integers("seeds", seeds)
    checks.different("seeds", seed_list)
    model = read_model(find_checkpoint(checkpoint))
    chosen = None if classes is None else split_names(classes, model.class_names)
    given = _read_conditions(conditions, conditions_key, conditions_resize, model)
    source = checkpoint_sampler(checkpoint, options, chosen, noise, given, vae=vae, decode=decode)
    files = SampleFiles(source, out, format)
    if trajectory is not None:
        files.check_trajectory(trajectory)
    accelerator = make_accelerator()
    with Bars(shown=accelerator.is_main_process) as bars:
        prepared = source.prepare(accelerator, bars)
        if accelerator.is_main_process and prepared.origin:
            bars.log(f"{prepared.origin}: {brief(prepared.sampler)}")
        try:
            count = files.write(prepared, seed_list, batch_size=batch_size, accelerator=accelerator, progress=bars)
        except KeyboardInterrupt:
            if accelerator.is_main_process and files.format != "grid":
                bars.log(f"stopped; the same command continues: {out}")
            raise
    if not accelerator.is_main_process:
        return
    existing = len(seed_list) - count
    kept = f", {existing} already existed" if existing else ""
    network = "network" if options.guidance.is_one else "guided network"
    cost = "" if prepared.sampler.nfe is None else f" with {prepared.sampler.nfe} {network} evaluations each"
    print(f"drew {count} samples{cost}{kept}: {out}{files.name_columns(seed_list)}")
    if trajectory is not None:
        denoiser, states = prepared.denoiser, source.trajectory(prepared, seed_list[:6])
        location = 0.0 if denoiser.location is None else denoiser.location
        decoder = source.codec.decode if isinstance(source, PictureSampler) else None
        figure = plots.denoising_trajectory(states, sigma_data=denoiser.sigma_data, location=location, decode=decoder)
        plots.save_figure(figure, trajectory)
        print(f"denoising trajectory: {trajectory}")


def _read_conditions(
    path: str | None, key: str | None, resize: Literal["bicubic", "nearest"], model: Model
) -> Conditions | str | None:
    """The conditions in a file; None without, and "none" for no condition."""
    if path is not None and path != "none":
        return read_conditions(path, model, key, resize)
    if key is not None or resize != "bicubic":
        raise ValueError("conditions_key and conditions_resize require conditions from a file")
    return path
