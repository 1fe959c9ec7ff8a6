"""Columns side by side: means over seeds, what cannot be compared, formats and the figure."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openedm import objective as objectives
from openedm.comparing import (
    Entry,
    Quality,
    TrainedRun,
    compare_runs,
    figure_of,
    formatted,
    settings_of,
    shared_scoring,
)
from openedm.data import Digits, Toy
from openedm.generation import ScoringOptions
from openedm.ground.choices import to_config
from openedm.metrics import Measure, Report
from openedm.metrics.report import share_interval
from openedm.networks import MLP
from openedm.objective import Objective
from openedm.training import Model, ValidationLoss

SIGMAS = (0.1, 1.0)


def loss(value: float) -> ValidationLoss:
    return ValidationLoss(SIGMAS, (value, value), (value, 2 * value), 1.5 * value)


def entry(
    name: str,
    value: float = 1.0,
    objective: Objective = objectives.EDM(),
    options: Mapping[str, Any] | None = None,
    sigma_data: float = 0.5,
    quality: Quality | None = None,
    data: str = "two_moons",
) -> Entry:
    """A column as if it had been read from a run."""
    source = Toy(data)  # type: ignore[arg-type]
    config = {"objective": to_config(objective), "options": dict(options or {}), "data": to_config(source)}
    run = TrainedRun(
        name,
        Path(name),
        Path(name) / "checkpoint",
        Model(MLP(4, 1), sigma_data=sigma_data, event_shape=(2,), images=False),
        settings_of(config),
        source,
        source,
        parameters=1234,
        images=1000,
        seconds=10.0,
        progress=(),
        validations=((500, loss(2 * value)), (1000, loss(value))),
    )
    return Entry(name, run, quality=quality, loss=run.loss)


def quality(distance: float = 2.0, fingerprint: str = "a", num: int = 50) -> Quality:
    measures = (Measure("precision", 0.5, 0.1, 0.05, 0.9, 0.1), Measure("kernel distance", 0.01, 0.0, 0.001, 0.0, 0.0))
    report = Report(
        num, 100, distance, 50, 8, distance + 1, 0.2, 1.5, 0.1, None, None, (), 0.25, measures, 50, fingerprint
    )
    return Quality(report, "Sampler(…)", 18, 200.0)


def seeds(*values: float) -> list[Entry]:
    return [entry(f"a,options.seed={i}", v, options={"seed": i}) for i, v in enumerate(values)]


def test_runs_that_differ_in_the_seed_alone_are_one_column_of_means() -> None:
    found = compare_runs([*seeds(1.0, 2.0, 3.0), entry("b", 5.0, options={"learning_rate": 0.5})])
    assert found.columns == ("a (3 seeds)", "b")
    mean, single = found.numbers["validation loss"]
    assert mean is not None
    assert single is not None
    assert (mean.value, mean.low, mean.high, mean.spread) == pytest.approx((3.0, 1.5, 4.5, True))
    assert (single.value, single.low, single.spread) == (7.5, None, False)
    assert found.options["options.seed"] == ("0, 1, 2", "0")
    assert "± standard deviation over the seeds" in found.notes[0]


def test_losses_on_training_data_are_named_as_such() -> None:
    first, second = entry("a"), entry("b")
    assert second.loss is not None
    seen = replace(second, loss=replace(second.loss, held_out=False))
    assert "losses on training data, as there are no validation data: b" in compare_runs([first, seen]).notes


def test_seeds_stay_apart_where_that_is_wanted() -> None:
    found = compare_runs(seeds(1.0, 2.0), average_seeds=False)
    assert found.columns == ("a,options.seed=0", "a,options.seed=1")
    assert any("other noise" in note for note in found.notes)


def test_one_seed_twice_is_no_mean_over_seeds() -> None:
    assert compare_runs([entry("a"), entry("b")]).columns == ("a", "b")


def test_times_and_their_spread_have_one_unit() -> None:
    entries = [
        replace(each, run=replace(each.run, seconds=s)) for each, s in zip(seeds(1.0, 2.0), (360, 480), strict=True)
    ]
    assert "| time of training | 7 ± 1.4 min |" in formatted(compare_runs(entries), "markdown")


def test_names_of_ways_of_sampling_stay_in_the_columns_of_seeds() -> None:
    entries = [
        Entry(f"{each.name} nfe={n}", each.run, {"nfe": str(n)}, loss=each.loss)
        for each in seeds(1.0, 2.0)
        for n in (4, 8)
    ]
    assert compare_runs(entries).columns == ("a nfe=4 (2 seeds)", "a nfe=8 (2 seeds)")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (entry("b", objective=objectives.VP()), "the objectives have other noise levels or weights"),
        (entry("b", sigma_data=1.0), "σ_data differ"),
        (entry("b", data="rings"), "they are of other data"),
        (entry("b", options={"validate_samples": 3}), "they are of other samples or levels"),
    ],
)
def test_losses_that_cannot_be_compared_are_marked_with_the_reason(other: Entry, reason: str) -> None:
    found = compare_runs([entry("a"), other])
    assert reason in found.incomparable["validation loss"]
    assert reason in found.incomparable["loss at σ = 0.1"]
    assert "parameters" not in found.incomparable
    text = formatted(found)
    assert "validation loss (not comparable)" in text
    assert reason in " ".join(text.split())
    assert figure_of(found) is None


def test_losses_that_were_measured_alike_can_be_compared_whatever_the_objectives() -> None:
    found = compare_runs([entry("a"), entry("b", objective=objectives.VP())], measured=True)
    assert found.incomparable == {}
    figure = figure_of(found)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["noise level σ"]  # those of the logs are left out


def test_metrics_of_other_features_or_numbers_are_marked() -> None:
    for other in (quality(fingerprint="b"), quality(num=60)):
        found = compare_runs([entry("a", quality=quality()), entry("b", quality=other)])
        assert {"Fréchet distance", "precision", "kernel distance"} <= found.incomparable.keys()
        assert "validation loss" not in found.incomparable


def test_metrics_have_their_intervals_and_floors() -> None:
    lines = formatted(compare_runs([entry("a", quality=quality())]), "markdown").splitlines()
    table = dict(line.strip("| ").split(" | ") for line in lines[2:] if line.startswith("| "))
    assert table["Fréchet distance"] == "2 [1.51, 2.49]"
    assert table["Fréchet distance, 50 to 50"] == "3 ± 0.2, real 1.5"
    low, high = share_interval(0.5, 50, 0.05)
    assert table["precision"] == f"0.5 [{low:.3g}, {high:.3g}], real 0.9"
    assert table["kernel distance, × 1000"] == "10 [8.04, 12], real 0"


def test_intervals_of_shares_are_those_of_the_report_and_stay_between_0_and_1() -> None:
    measures = (Measure("precision", 1.0, 0.0, 0.0, 0.9, 0.0), Measure("recall", 0.98, 0.0, 0.05, 0.9, 0.0))
    one = quality()
    report = replace(one.report, measures=measures, accuracy=0.0)
    found = compare_runs([entry("a", quality=replace(one, report=report))]).numbers
    for name in ("precision", "recall"):
        (number,) = found[name]
        assert number is not None
        assert (number.low, number.high) == report.interval(report.measure(name))
        assert 0 <= number.low < number.high <= 1
    (accuracy,) = found["accuracy"]
    assert accuracy is not None
    assert (accuracy.low, accuracy.high) == share_interval(0.0, 50)


def compared() -> Any:
    return compare_runs(
        [
            entry("a|1", 1.0, quality=quality(2.0)),
            entry("b", 2.0, options={"learning_rate": 0.5}, quality=quality(3.0)),
        ]
    )


def test_csv_has_a_line_a_column_of_the_comparison() -> None:
    rows = list(csv.DictReader(formatted(compared(), "csv").splitlines()))
    assert [row["name"] for row in rows] == ["a|1", "b"]
    assert [row["options.learning_rate"] for row in rows] == ["0.001", "0.5"]
    assert float(rows[1]["validation loss"]) == 3.0
    assert float(rows[0]["Fréchet distance, low"]) == pytest.approx(2 - 1.96 * 0.25, abs=1e-3)
    assert float(rows[0]["precision, floor"]) == 0.9


def test_json_has_all_numbers() -> None:
    content = json.loads(formatted(compared(), "json"))
    assert [column["name"] for column in content["columns"]] == ["a|1", "b"]
    assert content["columns"][0]["numbers"]["precision"]["floor"] == 0.9
    assert content["columns"][1]["options"] == {"options.learning_rate": "0.5"}


def test_markdown_is_a_table_whose_cells_keep_their_bars() -> None:
    lines = formatted(compared(), "markdown").splitlines()
    assert lines[0] == "| | a\\|1 | b |"
    assert "| options.learning_rate | 0.001 | 0.5 |" in lines


def test_tables_wider_than_the_terminal_come_in_blocks() -> None:
    entries = [entry(f"run-{i}", options={"learning_rate": 0.1 * (i + 1)}) for i in range(6)]
    lines = formatted(compare_runs(entries), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(line for line in lines if "run-" in line).split() == [f"run-{i}" for i in range(6)]


def test_the_figure_has_losses_and_metrics_with_axis_names_and_a_key() -> None:
    figure = figure_of(compared())
    assert figure is not None
    labels = [" ".join(axes.get_xlabel().split()) for axes in figure.axes]
    assert labels[:2] == ["images seen", "noise level σ"]
    assert labels[2:] == ["Fréchet distance, 50 to 50", "kernel distance × 1000", "precision"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a|1", "b"]
    assert [tick.get_text() for tick in figure.axes[2].get_yticklabels()] == ["a|1", "b"]
    errors = figure.axes[2].containers[0]
    assert errors.has_xerr


def test_ways_of_sampling_of_one_run_have_no_panels_of_losses() -> None:
    run = entry("a").run
    ways: Sequence[Entry] = [Entry(f"nfe={n}", run, {"nfe": str(n)}, quality(), run.loss) for n in (4, 8)]
    found = compare_runs(ways)
    assert "loss at σ = 0.1" not in found.numbers
    figure = figure_of(found)
    assert figure is not None
    assert "noise level σ" not in [axes.get_xlabel() for axes in figure.axes]


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(ValueError, match="at least one"):
        compare_runs([])


def test_a_classifier_of_the_data_is_trained_once_and_forgotten() -> None:
    with shared_scoring(ScoringOptions(), Digits("test")) as options:
        folder = Path(str(options.cache))
        assert folder.is_dir()
        assert Path(str(options.classifier)).parent == folder
    assert not folder.exists()
    for kept, data in ((ScoringOptions(classifier="mine"), Digits("test")), (ScoringOptions(), Toy())):
        with shared_scoring(kept, data) as options:
            assert options == kept
