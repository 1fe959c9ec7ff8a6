"""Consistency models beside the denoisers they were distilled from, in tables and a JSON file.

    python -m benchmarks.distill [--images 60000] [--channels 16] [--pairs data teacher] [--fit] [--out distill.json]
    python -m benchmarks.distill --teacher RUN      # any run of images: its data, and distilled at its own size

digits: a small class-conditional DDPM++ is trained and distilled; as many samples as half of the real images, or
--samples, are compared with the other half in the features of a classifier (`openedm.metrics.compare`). The Fréchet
distance is given above its floor, the distance of real images from real images. It is the mean over --sets sets of
samples, of other seeds, ± its standard error: of 718 digits the distances of single sets spread by 0.2 and more.

two_moons: the posterior of sbibm's task, p(θ | x), learned from 10,000 simulations by a conditional MLP; C2ST of 1,000
samples against exact ones for one observation, 0.5 if nothing tells them apart.

The teacher is sampled by `Auto` with 4, 8, 18 and 35 evaluations, with --fit also on levels fitted to it,
and with 4 and 8 by solvers learned for it; the
consistency model by `Consistency` with 1, 2 and 4.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from benchmarks.common import machine, write_json
from torch import Tensor

from openedm.cli.data_of_runs import recorded_data
from openedm.data import Dataset, Digits, Pairs, Source
from openedm.denoiser import Preconditioned
from openedm.ground.choices import from_config
from openedm.inference import tasks
from openedm.metrics import Report, compare
from openedm.metrics.c2st import c2st
from openedm.metrics.classifier import train_classifier
from openedm.metrics.extractors import ClassifierFeatures
from openedm.metrics.features import extract, image_batches
from openedm.networks import MLP, DDPMpp
from openedm.objective import ConsistencyTuning
from openedm.plots import jumps, save_figure
from openedm.sampling import Auto, Consistency, Sampler, SamplerChoice, fit_solver, sample_batches
from openedm.sampling.fitted import pilot_seeds
from openedm.sampling.learning import solver_seeds
from openedm.training import HalfLife, Model, Options, Trainer, load_denoiser, read_model
from openedm.training.checkpoints import find_checkpoint

TEACHER_NFE, STUDENT_NFE = (4, 8, 18, 35), (1, 2, 4)
LEARNED_NFE = 8
"""The largest number of evaluations for which a solver is learned."""
SIMULATIONS, POSTERIOR_SAMPLES = 10_000, 1_000
SHOWN = ("precision", "recall")


def options(images: int, batch_size: int, learning_rate: float, clip_norm: float | None = None) -> Options:
    """Options of a run without anything but its steps."""
    return Options(
        images=images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        rampup=images // 10,
        schedule="cosine",
        clip_norm=clip_norm,
        average=HalfLife(half_life=images / 16),
        validate_every=0,
        snapshot_every=0,
    )


def trained(name: str, trainer: Trainer) -> Preconditioned:
    """The trained denoiser, and a line about its time."""
    started = time.perf_counter()
    denoiser = trainer.fit(progress=False)
    print(f"{name}: {trainer.options.images:,} images in {time.perf_counter() - started:.0f} s", flush=True)
    return denoiser


def repeated(rows: Tensor, count: int) -> Tensor:
    """`count` rows, again from the first one after the last."""
    return rows[torch.arange(count) % len(rows)]


def methods(teacher: Preconditioned, condition: Tensor, *, fit: bool) -> dict[tuple[str, int], SamplerChoice]:
    """The samplers of the teacher by name and evaluations; those that are fitted take rows of `condition`."""
    found: dict[tuple[str, int], SamplerChoice] = {}
    shape = teacher.event_shape
    assert shape is not None
    for nfe in TEACHER_NFE:
        found["Auto", nfe] = Auto(nfe)
        if fit:
            rows = repeated(condition, len(pilot_seeds(shape)))
            found["Auto, fitted", nfe] = Auto(nfe).fit(teacher, condition=rows, progress=False).sampler
        if fit and nfe <= LEARNED_NFE:
            rows = repeated(condition, sum(map(len, solver_seeds(shape))))
            found["learned", nfe] = fit_solver(teacher, Auto(nfe), condition=rows, progress=False).sampler
    return found


def draw(sampler: SamplerChoice, denoiser: Preconditioned, condition: Tensor, seeds: Sequence[int]) -> Tensor:
    """Samples of these seeds."""
    chosen: Sampler = sampler.choose(denoiser)
    return torch.cat([x for _, x in sample_batches(chosen, denoiser, seeds, condition=condition, batch_size=128)])


def rows_of_images(
    teacher: Preconditioned,
    students: dict[str, Preconditioned],
    data: Dataset,
    *,
    seed: int,
    sets: int,
    samples: int | None,
    fit: bool,
) -> list[dict[str, Any]]:
    """One row a way of sampling: means over sets of samples."""
    judge = ClassifierFeatures(train_classifier(data, seed=seed))
    real = extract(judge, image_batches(data))
    count = len(data) // 2 if samples is None else samples
    classes = torch.arange(count) % teacher.num_classes
    rows = []

    def add(model: str, solver: str, nfe: int, sampler: SamplerChoice, denoiser: Preconditioned) -> None:
        scores = []
        for number in range(sets):
            x = draw(sampler, denoiser, classes, range(number * count, (number + 1) * count)).float()
            made = replace(extract(judge, ((part, None) for part in x.split(256))), labels=classes)
            scores.append(scores_of(compare(made, real, seed=seed, metrics=["neighbours"], num_bootstrap=0)))
        values = {name: [score[name] for score in scores] for name in scores[0]}
        row = {"model": model, "solver": solver, "nfe": nfe} | {name: fmean(found) for name, found in values.items()}
        row["error"] = stdev(values["above_floor"]) / sets**0.5
        print_row(row)
        rows.append(row | {"sets": values["above_floor"]})

    for (solver, nfe), sampler in methods(teacher, classes, fit=fit).items():
        add("teacher", solver, nfe, sampler, teacher)
    for name, student in students.items():
        for nfe in STUDENT_NFE:
            add(name, "Consistency", nfe, Consistency(nfe), student)
    return rows


def scores_of(report: Report) -> dict[str, float]:
    """The numbers of one set of samples."""
    assert report.accuracy is not None  # as the samples have classes
    found = {"frechet": report.frechet_matched, "floor": report.floor}
    found |= {"above_floor": report.frechet_matched - report.floor, "accuracy": report.accuracy}
    return found | {measure.name: measure.value for measure in report.measures if measure.name in SHOWN}


def print_row(row: dict[str, Any]) -> None:
    """A row of the table, as soon as it is known."""
    numbers = "  ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float))
    print(f"  {row['model']:<24}{row['solver']:<14}{row['nfe']:>3}  {numbers}", flush=True)


def digits(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], Preconditioned, Preconditioned]:
    """Train or load the teacher, distil it, and compare."""
    if arguments.teacher is None:
        data = Digits().load()
        network = DDPMpp(model_channels=arguments.channels, channel_mult=(1, 2), num_blocks=1, dropout=0.1)
        model = Model.for_data(data, network)
        chosen = options(arguments.images, 128, 2e-3)
        teacher = trained("teacher", Trainer(model, data, options=replace(chosen, seed=arguments.seed)))
    else:
        source = recorded_data({"": arguments.teacher}, "teacher")["data"]
        data = from_config(Source, source).load()  # type: ignore[type-abstract]
        model, teacher = read_model(find_checkpoint(arguments.teacher)), load_denoiser(arguments.teacher)
    students = {}
    for pairs in arguments.pairs:
        objective = ConsistencyTuning(pairs=pairs, first=arguments.first, last=arguments.last)
        chosen = replace(options(arguments.images, 128, arguments.learning_rate, clip_norm=1.0), seed=arguments.seed)
        students[f"pairs from {pairs}"] = trained(pairs, Trainer(model, data, objective, chosen, init=teacher))
    rows = rows_of_images(
        teacher,
        students,
        data,
        seed=arguments.seed,
        sets=arguments.sets,
        samples=arguments.samples,
        fit=arguments.fit,
    )
    return rows, teacher, next(iter(students.values()))


def two_moons(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """C2ST of the posterior of one observation."""
    task, seed = tasks.get("two_moons"), arguments.seed
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(SIMULATIONS, 2, generator=generator, dtype=torch.float64) - 1
    x = task.simulate(theta.float(), seed=seed)
    observed = x[:1]
    data = Pairs(theta.float(), x)
    model = Model.for_data(data, MLP(width=64, num_blocks=2))
    chosen = replace(options(arguments.posterior_images, 256, 2e-3), seed=seed)
    teacher = trained("two_moons", Trainer(model, data, options=chosen))
    reference = exact_posterior(task, observed, generator)
    rows, rows_of_observed = [], observed.expand(POSTERIOR_SAMPLES, -1)

    def add(name: str, solver: str, nfe: int, sampler: SamplerChoice, denoiser: Preconditioned) -> None:
        drawn = draw(sampler, denoiser, rows_of_observed, range(POSTERIOR_SAMPLES))
        rows.append({"model": name, "solver": solver, "nfe": nfe, "c2st": c2st(drawn.float(), reference)})
        print_row(rows[-1])

    for (solver, nfe), sampler in methods(teacher, rows_of_observed, fit=arguments.fit).items():
        add("teacher", solver, nfe, sampler, teacher)
    for pairs in arguments.pairs:
        objective = ConsistencyTuning(pairs=pairs, first=arguments.first, last=arguments.last)
        settings = replace(chosen, learning_rate=1e-3, clip_norm=1.0)
        student = trained(pairs, Trainer(model, data, objective, settings, init=teacher))
        for nfe in STUDENT_NFE:
            add(f"pairs from {pairs}", "Consistency", nfe, Consistency(nfe), student)
    return rows


def exact_posterior(task: tasks.Task, observed: Tensor, generator: torch.Generator) -> Tensor:
    """Samples of p(θ | x) for a uniform prior: draws of the prior, taken with probability ∝ p(x | θ)."""
    theta = 2 * torch.rand(2_000_000, 2, generator=generator, dtype=torch.float64) - 1
    weights = task.log_likelihood(theta, observed.double()[0]).exp()
    taken = torch.multinomial(weights, POSTERIOR_SAMPLES, generator=generator)
    return theta[taken].float()


def figure(teacher: Preconditioned, student: Preconditioned, path: Path) -> None:
    """The estimates of the teacher in eight steps, and those of the consistency model in one and two."""
    runs: dict[str, list[Any]] = {}
    for title, sampler, denoiser in (
        ("teacher, 8", Auto(8), teacher),
        ("2 jumps", Consistency(2), student),
        ("1 jump", Consistency(1), student),
    ):
        runs[title] = []
        sampler.sample(denoiser, seeds=range(4), condition=torch.arange(4), callback=runs[title].append)
    save_figure(jumps(runs), path)


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Ratios to the teacher's distance above the floor at 18 evaluations, which are to be ≤ 1.5 at 2 and ≤ 3 at 1."""
    base = next(row for row in rows if (row["model"], row["nfe"]) == ("teacher", 18))
    lines = []
    for row in rows:
        if row["solver"] == "Consistency" and row["nfe"] in (1, 2):
            ratio, limit = row["above_floor"] / base["above_floor"], 3.0 if row["nfe"] == 1 else 1.5
            error = ratio * math.hypot(*(one["error"] / one["above_floor"] for one in (row, base)))
            met = "met" if ratio <= limit else "MISSED"
            shown = f"{ratio:.2f} ± {error:.2f} times the teacher at 18"
            lines.append(f"{row['model']}, {row['nfe']}: {shown}, target {limit}: {met}")
    return lines


def main() -> None:
    """Measure what the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("digits", "two_moons"), default=("digits", "two_moons"))
    parser.add_argument("--teacher", help="a run of images instead of one on digits that is trained here")
    parser.add_argument("--pairs", nargs="+", choices=("data", "teacher"), default=("teacher", "data"))
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--posterior-images", type=int, default=400_000)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--first", type=int, default=4)
    parser.add_argument("--last", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=int, default=8, help="sets of samples, at least 2")
    parser.add_argument("--samples", type=int, help="samples of a set; by default half of the real images")
    parser.add_argument("--fit", action="store_true", help="also fitted levels and learned solvers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"machine": machine()}
    if "digits" in arguments.what:
        rows, teacher, student = digits(arguments)
        content |= {"images": rows, "targets": verdict(rows)}
        print("\n".join(content["targets"]))
        if arguments.figure is not None:
            figure(teacher, student, arguments.figure)
    if "two_moons" in arguments.what:
        content["two_moons"] = two_moons(arguments)
    if arguments.out is not None:
        write_json(arguments.out, content)


if __name__ == "__main__":
    main()
