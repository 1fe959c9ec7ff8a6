"""`openedm paper`: the table, and the figures that are asked for."""


def test_the_command_prints_the_table_and_writes_what_is_asked_for(openedm, tmp_path):
    assert "preconditioning.EDM" in openedm("paper", tmp_path, "--figures=none").out
    result = openedm("paper", tmp_path, "--figures", "schedules,preconditioning")
    assert result.status == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["preconditioning.png", "schedules.png"]
    again = openedm("paper", tmp_path, "--figures=schedules")
    assert "has figures of an earlier run (schedules.png): pass --overwrite true" in again.err
    wrong = openedm("paper", tmp_path / "other", "--figures=fig7")
    assert "figures must be some of" in wrong.err
    assert not (tmp_path / "other").exists()
    assert "write --figures errors" in openedm("paper", "errors").err
