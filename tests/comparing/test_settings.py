"""Options by their dotted names, and which of them differ."""

from pathlib import Path
from typing import Any

import pytest

from openedm import objective, preconditioning
from openedm.comparing import Setting, differing, read_run, settings_of, short_names
from openedm.ground.choices import to_config
from openedm.networks import MLP
from openedm.training import Model, Options, save_checkpoint

OLD = Path(__file__).parents[1] / "written_by_0_1" / "trained"


def texts(settings: Any) -> dict[str, str]:
    return {name: setting.text for name, setting in settings.items()}


def test_names_are_those_of_the_command_line() -> None:
    found = texts(settings_of({"objective": to_config(objective.VP()), "options": {"learning_rate": 0.002}}))
    assert found["objective"] == "VP"
    assert found["objective.noise"] == "UniformTime"
    assert found["objective.noise.schedule.beta_d"] == "19.9"
    assert found["options.learning_rate"] == "0.002"


def test_fields_that_an_older_version_did_not_write_have_their_defaults() -> None:
    found = settings_of({"options": {"images": 5}})
    assert found["options.batch_size"] == Setting(str(Options().batch_size), default=True)


def test_choices_of_one_form_are_shown_by_their_class_unless_their_fields_differ() -> None:
    written = [{"augmentation": None}, {"augmentation": {"p": 0.12, "xflip": 1e8}, "average": {"half_life": 5e4}}]
    assert differing([settings_of({"options": options}) for options in written]) == ["options.augmentation"]
    runs = [settings_of({"options": {"average": {"half_life": value}}}) for value in (1.0, 2.0)]
    assert differing(runs) == ["options.average.half_life"]


def test_where_and_how_a_run_was_watched_are_not_its_options() -> None:
    assert settings_of({"out": "runs/a", "resume": False, "tracker": "none", "sampler": {"churn": 1}}) == {}


def test_classes_that_are_not_imported_are_taken_as_written() -> None:
    found = texts(settings_of({"network": {"class_path": "mine.Net", "init_args": {"width": [3, 4]}}}))
    assert found == {"network": "Net", "network.width": "[3, 4]"}


def test_only_what_differs_is_shown() -> None:
    runs = [
        settings_of({"objective": to_config(choice), "options": {"seed": 0}})
        for choice in (objective.EDM(), objective.VP())
    ]
    assert differing(runs) == ["objective", "objective.noise", "objective.weighting"]


def test_an_option_of_another_class_is_shown_where_it_is_not_the_default() -> None:
    chosen = (objective.EDM(objective.LogNormal(p_std=1.0)), objective.VP())
    runs = [settings_of({"objective": to_config(choice)}) for choice in chosen]
    assert "objective.noise.p_std" in differing(runs)
    assert "objective.noise.p_mean" not in differing(runs)
    assert "objective.noise.epsilon_t" not in differing(runs)


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_runs_of_the_first_version_can_be_compared(name: str) -> None:
    run = read_run(OLD / name)
    assert run.name == name
    assert run.parameters > 0
    assert run.settings["network"].text in ("MLP", "DDPMpp")


def test_a_checkpoint_without_a_run_tells_what_it_has(tmp_path: Path) -> None:
    model = Model(MLP(4, 1), preconditioning.VE(), event_shape=(3,), images=False)
    weights = model.build().network.state_dict()
    save_checkpoint(tmp_path / "a", model, weights)
    run = read_run(tmp_path / "a")
    assert run.settings["preconditioning"].text == "VE"
    assert (run.images, run.seconds, run.loss, run.data) == (None, None, None, None)


def test_names_are_the_shortest_ends_that_differ() -> None:
    assert short_names(["x/a/run", "x/b/run", "y/c"]) == ["a/run", "b/run", "c"]
