"""`openedm suggest`: suggest noise levels for some data."""

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path

from matplotlib.figure import Figure

from openedm import objective
from openedm.cli.parsing import dump
from openedm.data import Digits, Source
from openedm.ground import checks
from openedm.ground.choices import class_path
from openedm.ground.storage import new_path, write_json
from openedm.levels import Karras
from openedm.plots import reducible_loss, save_figure
from openedm.suggest import Suggestion, in_standard_units
from openedm.suggest import suggest as suggestion_for

WIDTH = 112


def suggest(
    data: Source = Digits(),
    terminal_nats: float = 0.01,
    max_samples: int = 10_000,
    levels: int = 24,
    seed: int = 0,
    json: str | None = None,
    figure: str | None = None,
) -> None:
    """Suggest sigma_data, sigma_min, sigma_max, p_mean and p_std for your data, each with its reason.

    `openedm suggest Digits`, `openedm suggest data.npy`, `openedm suggest pictures/`: the data can be given first, as a
    source, a .npy or .npz file, or a folder or .zip of pictures; further options of the source follow, such as
    `--data.split test`. It takes seconds, without training, and prints options for `openedm train`.

    Args:
        data: the source of the data.
        terminal_nats: allowed divergence of samples from the data, in nats, that is caused by the start of sampling;
            determines sigma_max.
        max_samples: largest number of samples that are used, drawn at random.
        levels: number of noise levels of the reducible loss.
        seed: seed of the draws.
        json: also write the numbers and the evidence to this JSON file.
        figure: also plot the reducible loss to this file.
    """
    _check(json, figure)
    dataset = data.load()
    checks.at_least("max_samples", max_samples, 1)
    standard = in_standard_units(dataset, max_samples)
    found = suggestion_for(standard, terminal_nats=terminal_nats, max_samples=max_samples, levels=levels, seed=seed)
    units = "" if standard is dataset else "; in the units of training, where each channel has mean 0 and std 0.5"
    print(f"data: {dataset.describe()}, {found.looked_at} of them used{units}\n")
    print(_table(found))
    noise = objective.LogNormal(round(found.p_mean, 2), round(found.p_std, 2))
    ends = {"sigma_min": float(f"{found.sigma_min:.3g}"), "sigma_max": float(f"{found.sigma_max:.3g}")}
    print(f"\ntrain with:\n  {shlex.join(_train_command(data, noise, ends))}\nor --config a file with:\n")
    print(textwrap.indent(_options_as_yaml(data, noise, ends), "  "), end="")
    sampling = ["openedm", "sample", "RUN", "SAMPLES", *(f"--{name}={value:g}" for name, value in ends.items())]
    print(f"\nand sample with:\n  {shlex.join(sampling)}")
    if json is not None:
        write_json(Path(json), {"data": dataset.describe(), **found.to_dict()})
        print(f"\nwrote {json}")
    if figure is not None:
        save_figure(reducible_loss(found), figure)
        print(f"\nwrote {figure}")


def _check(json: str | None, figure: str | None) -> None:
    """Check the output files before any work."""
    new_path("json", json)
    new_path("figure", figure)
    if figure is not None:
        suffix = Path(figure).suffix.lower().removeprefix(".")
        checks.one_of("the suffix of figure", suffix, sorted(Figure().canvas.get_supported_filetypes()))


def _table(found: Suggestion) -> str:
    """One line for each number, with its reason; and the warnings."""
    lines = []
    for name, reason in found.reasons().items():
        value = getattr(found, name)
        number = f"{value:.2f}" if name.startswith("p_") else f"{value:.3g}"
        indent = " " * 21
        lines.append(textwrap.fill(reason, WIDTH, initial_indent=f"{name:<11}{number:>8}  ", subsequent_indent=indent))
    for warning in found.warnings:
        lines.append(textwrap.fill(warning, WIDTH, initial_indent="warning: ", subsequent_indent=" " * 9))
    return "\n".join(lines)


def _train_command(data: Source, noise: objective.LogNormal, ends: Mapping[str, float]) -> list[str]:
    """`openedm train` with these choices; it measures sigma_data itself."""
    return [
        *("openedm", "train", "RUN", *_source_options(data)),
        f"--objective.noise.p_mean={noise.p_mean:g}",
        f"--objective.noise.p_std={noise.p_std:g}",
        *(f"--sampler.levels.{name}={value:g}" for name, value in ends.items()),
    ]


def _source_options(data: Source) -> Iterator[str]:
    """The source as options: its fields that differ from their defaults."""
    yield f"--data={type(data).__name__}"
    for field in fields(data):
        value = getattr(data, field.name)
        if field.default is MISSING or value != field.default:
            yield f"--data.{field.name}={value}"


def _options_as_yaml(data: Source, noise: objective.LogNormal, ends: Mapping[str, float]) -> str:
    """The suggested options as YAML."""
    return dump(
        {
            "data": data,
            "objective": {"class_path": class_path(objective.EDM), "init_args": {"noise": noise}},
            "sampler": {"levels": {"class_path": class_path(Karras), "init_args": dict(ends)}},
        }
    )
