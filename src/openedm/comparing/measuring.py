"""Trained denoisers measured alike: samples against data, and the validation loss at common noise levels."""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from openedm import objective as objectives
from openedm.comparing.runs import TrainedRun
from openedm.data import Dataset, Source, align_classes
from openedm.generation import SamplingOptions, ScoringOptions, open_images, score
from openedm.generation.images import Log
from openedm.generation.scoring import trains_classifier
from openedm.ground.choices import brief, from_config, to_config
from openedm.ground.digests import file_digest
from openedm.ground.progress import ShowProgress, showing
from openedm.ground.storage import read_json, write_json
from openedm.metrics import Report
from openedm.metrics.features import ImageBatch
from openedm.objective import Objective
from openedm.sampling import Sampler
from openedm.training import Validation, ValidationLoss, find_checkpoint, load_denoiser, make_accelerator

__all__ = ["Quality", "measure_loss", "measure_quality", "recorded_quality", "shared_scoring"]

VERSION = 1
"""Version of the files of qualities: those of another version are measured anew."""


@dataclass(frozen=True)
class Quality:
    """How good samples are, and what they cost.

    Attributes:
        report: the metrics, with intervals and floors.
        sampler: what drew the samples, in words; empty where it is not known.
        nfe: evaluations of the network for a sample; None for adaptive steps, or where it is not known.
        images_per_second: of drawing, without loading the weights; None where it was not measured.
    """

    report: Report
    sampler: str = ""
    nfe: int | None = None
    images_per_second: float | None = None


@contextmanager
def shared_scoring(options: ScoringOptions, data: Source) -> Iterator[ScoringOptions]:
    """Scoring options for several sets of samples: a classifier is trained once, and the features of `data` are kept.

    Both are forgotten at the end of the block, unless the options name files for them.
    """
    if options.classifier is not None or not trains_classifier(options, data.load()):
        yield options
        return
    with tempfile.TemporaryDirectory() as folder:
        yield dataclasses.replace(options, classifier=str(Path(folder) / "classifier.safetensors"), cache=folder)


def measure_quality(
    run: TrainedRun,
    num: int,
    data: Source,
    held_out: Source | None = None,
    sampling: SamplingOptions = SamplingOptions(),
    scoring: ScoringOptions = ScoringOptions(),
    *,
    keep: Path | None = None,
    identity: Any = None,
    accelerator: Accelerator | None = None,
    progress: ShowProgress = None,
    log: Log = lambda line: None,
) -> Quality:
    """Draw samples of a checkpoint and score them, as `openedm evaluate` does.

    Args:
        run: the trained denoiser.
        num: the number of samples, with seeds 0 … num − 1 and the classes in turn.
        data: the real data.
        held_out: labelled data for the classifier's accuracy on real images.
        sampling: how samples are drawn.
        scoring: how they are compared.
        keep: a folder where results are kept; those that are there already, of the same weights and options, are read.
        identity: what identifies the scoring beside `scoring`; by default `scoring` itself.
        accelerator: the device; None for the machine's.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            name of the work and what is done.
        log: called with a line about the sampler.

    Raises:
        ValueError: samples and data do not fit each other, or an option has no effect.
    """
    options = {
        "version": VERSION,
        "weights": _digests(run, sampling),
        "num": num,
        "data": to_config(data),
        "held_out": None if held_out is None else to_config(held_out),
        "sampling": to_config(sampling),
        "scoring": to_config(scoring) if identity is None else identity,
    }
    name = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    path = None if keep is None else keep / f"{name}.json"
    if path is not None and path.is_file():
        content = read_json(path)
        return Quality(Report.from_dict(content["report"]), **content["sampler"])
    accelerator = accelerator or make_accelerator()
    with showing(progress, here=accelerator.is_main_process) as shown:
        images = open_images(
            run.checkpoint,
            sampling,
            num,
            data=data,
            batch_size=scoring.batch_size,
            accelerator=accelerator,
            progress=shown,
            log=log,
        )
        timer = _Timer()
        timed = dataclasses.replace(images, batches=lambda chosen: timer.of(images.batches(chosen)))
        report = score(timed, data, held_out, scoring, accelerator=accelerator, progress=shown, log=log)
    assert report is not None  # of a single process
    sampler = from_config(Sampler, images.drawn["sampler"])
    cost = {"sampler": brief(sampler), "nfe": sampler.nfe, "images_per_second": timer.images / max(timer.seconds, 1e-9)}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"report": report.to_dict(), "sampler": cost, "options": options}, files=())
    return Quality(report, **cost)  # type: ignore[arg-type]


class _Timer:
    """The time in which images are made, without that in which they are used."""

    def __init__(self) -> None:
        self.seconds, self.images = 0.0, 0

    def of(self, batches: Any) -> Iterator[ImageBatch]:
        """The batches, timed."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            self.images += len(batch[0])
            yield batch


def _digests(run: TrainedRun, sampling: SamplingOptions) -> list[str]:
    """The digests of all weights that samples depend on."""
    name = "model.safetensors" if sampling.weights == "ema" else "training.safetensors"
    guiding = [] if sampling.guiding is None else [find_checkpoint(sampling.guiding)]
    return [file_digest(folder / name) for folder in (run.checkpoint, *guiding)]


def recorded_quality(run: TrainedRun) -> Quality | None:
    """The report.json beside the checkpoint or in its run, as `openedm evaluate --out` writes it, if it is of it."""
    for folder in dict.fromkeys((run.checkpoint, run.path)):
        if not (file := folder / "report.json").is_file():
            continue
        content = read_json(file)
        drawn = content.get("drawn", {})
        if drawn.get("weights") not in _digests(run, SamplingOptions()):
            continue
        try:
            sampler = from_config(Sampler, drawn["sampler"])
            return Quality(Report.from_dict(content), brief(sampler), sampler.nfe)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not a report of openedm evaluate: {error!r}") from error
    return None


def measure_loss(
    runs: Sequence[TrainedRun],
    data: Dataset,
    objective: Objective = objectives.EDM(),
    *,
    levels: int = 8,
    samples: int = 1024,
    progress: ShowProgress = None,
) -> list[ValidationLoss]:
    """The loss of each denoiser on the same samples, with the same noise, at the same levels and weights.

    Args:
        runs: the trained denoisers, with one σ_data.
        data: the samples; at most `samples` of them are used, at even distances.
        objective: its p(σ) gives the levels, its λ(σ) the weights.
        levels: the number of noise levels.
        samples: the largest number of samples.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            number of denoisers that are done.

    Raises:
        ValueError: the data do not fit a denoiser, or σ_data differ.
    """
    sigma_data = runs[0].model.sigma_data
    device = make_accelerator().device
    found = []
    with showing(progress) as report:
        for i, run in enumerate(runs):
            if abs(run.model.sigma_data / sigma_data - 1) > 1e-6:
                raise ValueError(
                    f"{run.name} must have the sigma_data of {runs[0].name}, {sigma_data:.6g}, as levels do"
                )
            aligned = align_classes(data, run.model.num_classes, run.model.class_names, name="data")
            measured = Validation(
                aligned,
                objective,
                sigma_data=sigma_data,
                device=device,
                levels=levels,
                samples=samples,
                seed=0,
                tails=True,
                held_out=run.validation != run.data,
            )
            found.append(measured.measure(load_denoiser(run.checkpoint).to(device)))
            report("loss", i + 1, len(runs))
    return found
