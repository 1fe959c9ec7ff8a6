"""`openedm paper`: the table, and the figures that are asked for."""

import pytest


def test_the_command_prints_the_table_and_writes_what_is_asked_for(openedm, tmp_path):
    assert "preconditioning.EDM" in openedm("paper", "--figures=none").out
    result = openedm("paper", tmp_path, "--figures", "schedules,preconditioning")
    assert result.status == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["preconditioning.png", "schedules.png"]
    again = openedm("paper", tmp_path, "--figures=schedules")
    assert "has figures of an earlier run (schedules.png): pass --overwrite true" in again.err
    wrong = openedm("paper", tmp_path / "other", "--figures=fig7")
    assert "figures must be some of" in wrong.err
    assert not (tmp_path / "other").exists()
    assert "write --figures errors" in openedm("paper", "errors").err


@pytest.mark.parametrize("command", [("paper", "{}"), ("toy", "--out={}")])
def test_figures_are_not_written_into_a_run(command, openedm, digits_run):
    before = sorted(digits_run.rglob("*"))
    result = openedm(*(word.format(digits_run) for word in command))
    assert f"out={digits_run} holds a run" in result.err
    assert sorted(digits_run.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "meant"), [("table1", "none"), ("Table 1", "none"), ("errors", "errors"), ("fig3", "trajectories")]
)
def test_a_table_or_a_figure_in_place_of_a_folder_is_answered_with_its_option(
    name, meant, openedm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = openedm("paper", name)
    assert (result.status, result.out) == (1, "")
    assert (
        f"out must be the folder for the figures, got the name of {'Table 1' if meant == 'none' else 'a figure'}"
        in result.err
    )
    assert result.err.endswith(f"write --figures {meant}\n")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    assert openedm("paper", name, "--figures=schedules").status == 0
    assert (tmp_path / name / "schedules.png").is_file()


@pytest.mark.parametrize("given", [["folder"], ["--out", "folder"], ["--overwrite", "true"]])
def test_what_has_no_effect_without_figures_is_refused(given, openedm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = openedm("paper", *given, "--figures=none")
    name = "overwrite" if "--overwrite" in given else "out"
    assert (result.status, result.out) == (1, "")
    assert f"error: {name} has no effect with figures none, which prints the table alone" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_table_or_a_number_among_the_figures_is_answered_with_what_is_meant(openedm, tmp_path):
    assert "got 'table1': Table 1 is printed with any of them" in openedm("paper", tmp_path, "--figures=table1").err
    assert "got 'figure 4': churn" in openedm("paper", tmp_path, "--figures=figure 4").err
