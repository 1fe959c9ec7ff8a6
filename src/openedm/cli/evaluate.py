"""`openedm evaluate`: score samples against real data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openedm.cli.data_of_runs import recorded_data
from openedm.cli.parsing import Flat
from openedm.cli.terminal import Bars
from openedm.data import Digits, Latents, Source
from openedm.generation import SamplingOptions, ScoringOptions, open_images, pictures_of, score
from openedm.generation.pictures import is_latents
from openedm.ground import checks
from openedm.ground.choices import brief
from openedm.ground.storage import new_path, write_json
from openedm.training import make_accelerator

LEGEND = (
    "in brackets: 95 % intervals, of recall, density and coverage with the other images held fixed; after ±: the "
    "standard deviation over random halves of the real images"
)


def evaluate(
    samples: str,
    data: Source = Digits(),
    held_out: Source | None = None,
    num: int | None = None,
    vae: str | None = None,
    out: str | None = None,
    sampling: Flat[SamplingOptions] = SamplingOptions(),
    scoring: Flat[ScoringOptions] = ScoringOptions(),
) -> None:
    """Score generated images against real ones.

    Prints the Fréchet distance in the features of a network, kernel distance, precision, recall, density, coverage and
    Inception score, each beside the score of real images against other real images of the same number; and, with a
    classifier of the data, the fraction of images whose class it finds.

    RGB images, and grey ones without classes, are compared by EfficientNet-Lite0, other images with classes by a small
    classifier trained on the real data, and all else (other channels, vectors, series, fields, volumes) by their
    standardised numbers, without an Inception score. Results can only be compared for the same network, whose
    fingerprint is in the report.

    Under `torchrun` or `accelerate launch` the processes share the images, batch by batch, and the report is
    bit-identical to that of a single process.

    Args:
        samples: a checkpoint or run folder, from which images are drawn and scored without being written; a folder of
            `openedm data encode`, for what its autoencoder loses of the images; or a folder, .zip or .tar of images, or
            a .npz or .npy file of arrays, such as `openedm sample` writes.
        data: the real data to compare with: the training data of the model. By default those that the run's config.yaml
            names, if `samples` is a run or a checkpoint in it, otherwise the digits. For latents: the images that were
            encoded, by default from where they were then.
        held_out: labelled data for the classifier's accuracy on real images; by default the test split of `data`, if
            there is one.
        num: the number of images drawn from a checkpoint, with seeds 0 … num − 1 and the classes in turn; 1000 by
            default. A model with float conditions gets those of as many samples of `data`, with their classes.
        vae: for latents: the folder of the autoencoder, or its name on the Hugging Face Hub, if it is no longer where
            it was when the data were encoded.
        out: also write the report to this JSON file.
        sampling: options of sampling from a checkpoint, as in `openedm sample`.
        scoring: options of the comparison.
    """
    target = new_path("out", out, what="a report")
    checks.at_least("num", 2 if num is None else num, 2)
    shards = data.path if isinstance(data, Latents) and data.path != samples else None
    data = pictures_of(data)
    accelerator = make_accelerator()
    with Bars(shown=accelerator.is_main_process) as bars:
        images = open_images(
            samples,
            sampling,
            num,
            data=data,
            batch_size=scoring.batch_size,
            vae=vae,
            accelerator=accelerator,
            progress=bars,
            log=bars.log,
        )
        report = score(images, data, held_out, scoring, accelerator=accelerator, progress=bars, log=bars.log)
    if report is None:
        return
    print(f"real data: {brief(data)}")
    print(report.table())
    print(f"({LEGEND})")
    if shards is not None:
        print(f"(what the autoencoder alone loses, the floor of models of its latents: openedm evaluate {shards})")
    if target is not None:
        write_json(target, report.to_dict() | ({"drawn": images.drawn} if images.drawn else {}))
        print(f"report: {out}")


def recorded_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The data of the run, or the images of a folder of latents, where data are not given."""
    path = given.get("") or given.get("samples")
    if "data" not in given and isinstance(path, str) and is_latents(Path(path)):
        return {"data": {"class_path": "Latents", "init_args": {"path": path}}}
    return recorded_data(given, "samples")


evaluate.recorded_options = recorded_options  # type: ignore[attr-defined]
