"""Figures after those of the paper: the numbers behind them, at small size."""

import re

import numpy as np
import pytest

from openedm.plots import paper


def logged(name, monkeypatch, **changes):
    for key, value in changes.items():
        monkeypatch.setattr(paper, key, value)
    lines = []
    (figure,) = paper.paper_figures([name], log=lines.append).values()
    assert any(axes.get_xlabel() for axes in figure.axes)
    return lines, figure


def test_table_1_names_a_class_for_every_choice_of_every_family():
    text = paper.table_1()
    for row, columns in paper.FAMILIES.items():
        assert f"\n{row}\n" in text
        assert list(columns) == ["VP", "VE", "iDDPM", "EDM"]
        for cls in columns.values():
            assert re.search(rf"\.{cls.__name__} +\S", text)


def test_edm_paths_turn_least(monkeypatch):
    lines, figure = logged("trajectories", monkeypatch)
    turns = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert turns["EDM"] < turns["VP"] < turns["VE"]
    assert len(figure.axes) >= 6


def test_only_edm_keeps_the_error_of_the_network_small_at_high_noise(monkeypatch):
    lines, _ = logged("preconditioning", monkeypatch)
    last = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert last == {"VP": 80.0, "VE": 80.0, "EDM": 0.5}


def test_an_untrained_network_loses_1_at_every_level_and_no_training_gets_below_the_exact_denoiser(monkeypatch):
    lines, figure = logged("loss", monkeypatch, DIGITS=30)
    untrained, best = (np.array(line.get_ydata()) for line in figure.axes[0].lines)
    assert untrained == pytest.approx(np.ones(len(untrained)), abs=0.1)
    assert (best < untrained + 0.02).all()
    assert "most to learn" in lines[0]


def test_each_step_from_ve_to_edm_lowers_the_error(monkeypatch):
    lines, figure = logged("errors", monkeypatch, EVALUATIONS=(35, 79), DIGITS=20)
    errors = {line[:26].strip(): [float(part) for part in line[26:].split()] for line in lines[:-1]}
    original, heun, steps, edm, _ = (row for name, row in errors.items() if name.startswith("VE"))
    assert edm[1] < steps[1] < heun[1] < original[1]
    assert "Heun's method is worse than Euler's" in figure.get_supxlabel()


def test_levels_are_where_the_figure_says(monkeypatch):
    lines, _ = logged("schedules", monkeypatch)
    assert [int(re.search(r" (\d+) of 18", line)[1]) for line in lines] == [5, 10, 7]


def test_an_unknown_figure_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"figures must be some of schedules, .*, got 'fig7'"):
        paper.paper_figures(["fig7"])
