"""Configurations with names of older versions are read as they would be written now."""

import pytest

from openedm.ground import legacy
from openedm.ground.choices import from_config
from openedm.schedules import EDM, VE, Schedule


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(legacy.RENAMED, "openedm.sampling.OldRoot", "openedm.schedules.VE")
    monkeypatch.setitem(legacy.REWRITTEN, "openedm.sampling.OldTime", lambda arguments: arguments["schedule"])
    monkeypatch.setitem(legacy._BARE_NAMES, "OldTime", "openedm.sampling.OldTime")


@pytest.mark.parametrize("path", ["openedm.sampling.OldRoot", "openedm.sampling.some.module.OldRoot"])
def test_a_renamed_class_is_read_under_its_old_name(path: str) -> None:
    assert from_config(Schedule, {"class_path": path, "init_args": {}}) == VE()


@pytest.mark.parametrize("path", ["openedm.sampling.OldTime", "OldTime"])
def test_rewritten_arguments_may_name_renamed_classes_at_any_depth(path: str) -> None:
    inner = {"class_path": "openedm.sampling.OldRoot"}
    config = {"steps": [{"class_path": path, "init_args": {"schedule": inner}}], "n": 3}
    assert legacy.upgrade(config) == {"steps": [{"class_path": "openedm.schedules.VE"}], "n": 3}


def test_a_class_that_moved_inside_its_room_is_found_under_its_old_module() -> None:
    assert from_config(Schedule, {"class_path": "openedm.schedules.no_longer_there.EDM"}) == EDM()


def test_names_of_other_packages_and_of_today_stay_as_they_are() -> None:
    config = {"class_path": "mine.of.three.parts.Solver", "init_args": {"x": [1, "inf"]}}
    assert legacy.upgrade(config) == config
