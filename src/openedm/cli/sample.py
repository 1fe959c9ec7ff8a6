"""`openedm sample`: draw samples from a checkpoint."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from openedm.cli.choosing import NFE, choice_of_sampler, make_sampler, pilot_conditions, without_budget
from openedm.cli.guiding import Precision, digest, guidance_settings, load_guided, speed_settings
from openedm.cli.reporting import save_array
from openedm.cli.seeds import columns_for, labels_for, parse_integers
from openedm.data import save_image
from openedm.data.pictures import image_grid
from openedm.denoiser import Denoiser, configure_execution
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.storage import replacing
from openedm.guidance import GuidanceWeight, Interval
from openedm.plots import denoising_trajectory, save_figure
from openedm.sampling import Auto, BrownianNoise, NoiseSource, Sampler, SeededNoise, State, sample_batches
from openedm.training import find_checkpoint, make_accelerator, read_model, share_of

SETTINGS = "settings.json"

spelled_out = without_budget


def sample(
    checkpoint: str,
    out: str,
    seeds: str = "0-63",
    classes: str | None = None,
    nfe: int | None = NFE,
    tolerance: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    levels: Literal["rule", "fitted"] = "rule",
    sampler: Sampler = Sampler(),
    noise: Literal["independent", "path"] = "independent",
    guidance: GuidanceWeight = Interval(),
    guiding: str | None = None,
    format: Literal["png", "npz", "grid"] = "png",
    weights: Literal["ema", "raw"] = "ema",
    batch_size: int = 64,
    precision: Precision = "fp32",
    compile: bool = False,
    trajectory: str | None = None,
) -> None:
    """Draw samples from a checkpoint.

    A sample depends on its seed, its class and the sampler alone, not on the batch size, the order or the number of
    processes. Seed s gets class `classes[s mod number of classes]`. Interrupted and run again, the command draws only
    the seeds that are missing. Under `torchrun` or `accelerate launch` the processes share the seeds, batch by batch,
    and write the same files as one process, to the last bit.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its newest checkpoint is taken).
        out: a folder of PNG files, with the classes in dataset.json; or the file to write, for npz and grid.
        seeds: which samples: numbers and ranges, such as 0-63,100.
        classes: which classes, in the same form, drawn in turn; all by default.
        nfe: how many network evaluations a sample may take: solver and noise levels are then chosen by rule.
        tolerance: the error a sample may have instead, in data units: an adaptive solver takes what it needs.
        sigma_min: the lowest noise level with nfe or tolerance; 0.002 unless the data are very narrow.
        sigma_max: the highest; 80 unless the data are very wide.
        levels: noise levels by rule, or fitted to the checkpoint once, which takes a few hundred times as long as a
            sample; they are kept beside it.
        sampler: levels, schedule, solver and stochasticity one by one, instead of nfe and tolerance. With nfe null and
            nothing else it is EDM's sampler: Heun's method, 35 evaluations.
        noise: what a stochastic sampler adds: independent draws, or the pieces of one Brownian path a seed, so that
            more steps refine the same sample.
        guidance: how strongly the samples are guided: a weight, 1 for none, at all noise levels or some. Without
            `guiding` this is classifier-free guidance, for models trained with label_dropout.
        guiding: another checkpoint or run, smaller or less trained, to guide away from instead (autoguidance).
        format: png, one file a seed; npz, arrays `samples`, `seeds` and `labels` in one file (also for data that are
            not images); grid, one PNG with all images.
        weights: ema, the averaged weights, or raw, those of the last step.
        batch_size: samples drawn at a time; changes memory and speed, not the samples. Several processes all have work
            if there are as many batches.
        precision: fp32, or bf16 for networks in mixed precision: faster where the processor multiplies bfloat16, and
            good to two or three digits. Samples then depend on the batch size in those digits.
        compile: compile the networks with torch.compile; pays for itself after some thousand samples.
        trajectory: also draw the noisy and denoised images of the first seeds at each noise level, into this PNG file.
    """
    folder = find_checkpoint(checkpoint)
    model = read_model(folder)
    pictures = model.images and model.event_shape[0] in (1, 3, 4)
    if format != "npz" and not pictures:
        raise ValueError(
            f"format must be 'npz' for samples of shape {model.event_shape}, which are no images, got {format!r}"
        )
    if trajectory is not None and not pictures:
        raise ValueError(f"trajectory must not be given: samples of shape {model.event_shape} are no images")
    if trajectory is not None and not trajectory.endswith(".png"):
        raise ValueError(f"trajectory must end in .png, got {trajectory!r}")
    checks.at_least("batch_size", batch_size, 1)
    wanted = parse_integers("seeds", seeds)
    chosen = None if classes is None else parse_integers("classes", classes)
    labels = labels_for(wanted, chosen, model.num_classes)
    choice = choice_of_sampler(nfe, tolerance, sampler, sigma_min, sigma_max)
    if noise == "path" and (isinstance(choice, Auto) or not choice.uses_path_noise):
        raise ValueError(f"noise='path' has no effect: the sampler adds no noise from level to level, {choice}")
    if levels == "fitted" and tolerance is not None:
        raise ValueError(
            "levels='fitted' goes with nfe or a sampler on fixed levels: a tolerance leaves them to the solver"
        )
    made_with = {"weights": digest(folder, weights), **guidance_settings(folder, weights, guidance, guiding)}
    target = Path(out)
    suffix = {"png": "", "npz": ".npz", "grid": ".png"}[format]
    if suffix and target.suffix != suffix:
        raise ValueError(f"out must end in {suffix} for format={format!r}, got {out!r}")
    if suffix and target.exists():
        raise ValueError(f"out={out} exists already: a file is never overwritten, choose another name")
    if trajectory is not None and format == "png" and target.resolve() in Path(trajectory).resolve().parents:
        raise ValueError(f"trajectory must not lie in out={out}, among the samples, got {trajectory!r}")
    parts = target if format == "png" else target.with_name(f"{target.name}.parts")
    accelerator = make_accelerator()
    denoiser = load_guided(folder, weights, guidance, guiding).to(accelerator.device)
    pilots = pilot_conditions(model.event_shape, model.num_classes, chosen)
    fitted_with = {**made_with, "classes": chosen}
    main = accelerator.is_main_process
    with accelerator.main_process_first():  # the others read what it has fitted
        sampler = make_sampler(choice, levels, denoiser, pilots, folder / "fitted", fitted_with, main=main)
    sampler.check(denoiser)  # refuses what cannot be sampled before anything is written
    configure_execution(denoiser, precision=precision, compile=compile)
    settings = {
        **made_with,
        "classes": chosen,
        "sampler": to_config(sampler),
        **speed_settings(precision, compile),
    }
    if noise == "path":
        settings["noise"] = noise
    if accelerator.is_main_process:
        _open_folder(parts, settings, format)
    accelerator.wait_for_everyone()
    suffix = ".png" if format == "png" else ".npy"
    missing = [s for s in dict.fromkeys(wanted) if not (parts / _name(s, suffix)).exists()]
    accelerator.wait_for_everyone()  # all have listed what is missing before one of them draws
    mine = share_of(missing, batch_size, accelerator.process_index, accelerator.num_processes)
    draws = BrownianNoise if noise == "path" else SeededNoise
    _draw(denoiser, mine, chosen, sampler, draws, parts, suffix, batch_size, show=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    if format == "png":
        _write_labels(parts, wanted, chosen, model.num_classes)
    else:
        _assemble(parts, target, wanted, labels, format)
    kept = f", {len(set(wanted)) - len(missing)} were there already" if len(set(wanted)) > len(missing) else ""
    kind = "network" if guidance.is_one else "guided network"
    cost = "" if sampler.nfe is None else f" with {sampler.nfe} {kind} evaluations each"
    print(f"drew {len(missing)} samples{cost}{kept}: {target}")
    if trajectory is not None:
        _draw_trajectory(denoiser, wanted, chosen, sampler, draws, Path(trajectory))


def _draw(
    denoiser: Denoiser,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    sampler: Sampler,
    noise: Callable[[Sequence[int]], NoiseSource],
    parts: Path,
    suffix: str,
    batch_size: int,
    *,
    show: bool,
) -> None:
    labels = labels_for(seeds, classes, denoiser.num_classes)
    with tqdm(total=len(seeds), unit="sample", disable=not show or not seeds) as bar:
        batches = sample_batches(sampler, denoiser, seeds, condition=labels, batch_size=batch_size, noise=noise)
        for drawn, x in batches:
            for seed, one in zip(drawn, x, strict=True):
                path = parts / _name(seed, suffix)
                if suffix == ".png":
                    save_image(one, path)
                else:
                    save_array(one, path)
            bar.update(len(drawn))


def _draw_trajectory(
    denoiser: Denoiser,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    sampler: Sampler,
    noise: Callable[[Sequence[int]], NoiseSource],
    path: Path,
) -> None:
    states: list[State] = []
    shown = seeds[:6]
    labels = labels_for(shown, classes, denoiser.num_classes)
    sampler.sample(denoiser, noise(shown), condition=labels, callback=states.append)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(denoising_trajectory(states), path)
    print(f"denoising trajectory: {path}")


def _open_folder(folder: Path, settings: dict[str, Any], format: str) -> None:
    """Make the folder, or check that what it holds was drawn with the same settings."""
    path = folder / SETTINGS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
            raise ValueError(f"{folder} holds samples drawn with other settings ({path}): choose another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no samples of this command: choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _write_labels(folder: Path, seeds: Sequence[int], classes: Sequence[int] | None, num_classes: int) -> None:
    """dataset.json, which `data.ImageFolder` reads: the classes of all pictures in the folder."""
    if num_classes == 0:
        return
    there = sorted({int(p.stem) for p in folder.glob("*.png") if p.stem.isdigit()} | set(seeds))
    labels = labels_for(there, classes, num_classes)
    assert labels is not None
    pairs = [[_name(seed, ".png"), label] for seed, label in zip(there, labels.tolist(), strict=True)]
    with replacing(folder / "dataset.json") as path:
        path.write_text(json.dumps({"labels": pairs}) + "\n", encoding="utf-8")


def _assemble(parts: Path, target: Path, seeds: Sequence[int], labels: torch.Tensor | None, format: str) -> None:
    arrays = np.stack([np.load(parts / _name(seed, ".npy"), allow_pickle=False) for seed in seeds])
    if format == "npz":
        classes = {} if labels is None else {"labels": labels.numpy()}
        with replacing(target) as path, open(path, "wb") as file:
            np.savez(file, allow_pickle=False, samples=arrays, seeds=np.array(seeds), **classes)
    else:
        x = torch.from_numpy(arrays)
        save_image(image_grid(x, columns_for(labels), scale=max(1, 32 // x.shape[-1])), target)
    shutil.rmtree(parts)


def _name(seed: int, suffix: str) -> str:
    return f"{seed:06d}{suffix}"
