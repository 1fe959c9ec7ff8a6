"""Views of trained runs: what they draw, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from marks import FAR_APART
from openedm.exploring import Runs, State, run_figures
from openedm.exploring.links import python_lines
from openedm.exploring.problems import Budget, Stopped
from openedm.exploring.run_figures import Trained, _draw, figures_of_runs
from openedm.levels import Karras
from openedm.sampling import Churn, Sampler
from small_runs import save_digits_run

SHORT = Sampler(Karras(3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    return Runs({name: str(save_digits_run(folder / name, i)) for i, name in enumerate("ab")})


@pytest.mark.parametrize("view", ["samples", "walk", "levels", "compare"])
def test_every_view_draws_its_figures(runs: Runs, view: str) -> None:
    budget = Budget()
    for _, draw in figures_of_runs(view).values():
        assert draw(State(view=view, num=3, sampler=SHORT), runs, budget).axes
    assert budget.count % SHORT.nfe == 0


@FAR_APART
def test_the_lines_of_python_draw_the_samples_of_the_page(runs: Runs) -> None:
    state = State(view="samples", num=2, seed=5, label=3, run="b", sampler=Sampler(Karras(3), churn=Churn(2.0)))
    found: dict[str, Any] = {}
    exec(python_lines(state, runs.paths), found)
    assert torch.equal(found["x"], _draw(state, runs.get("b"), [5, 6], Budget()).x)
    for view in ("compare", "levels"):
        exec(python_lines(replace(state, view=view), runs.paths), found)
    assert found["path"] == runs.paths["b"]
    assert [len(step.x) for step in found["states"]] == [2] * 4


def test_a_walk_starts_and_ends_with_the_samples_of_its_seeds(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(run_figures, "_grid", lambda x, *titles, **columns: drawn.append(x) or Figure())
    state = State(view="walk", num=5, seed=7, seed_to=9, label=3, sampler=SHORT)
    run_figures.walk(state, runs, Budget())
    ends = _draw(state, runs.get("a"), [7, 9], Budget()).x
    torch.testing.assert_close(drawn[0][[0, -1]], ends, rtol=1e-5, atol=1e-5)
    found: dict[str, torch.Tensor] = {}
    exec(python_lines(state, runs.paths), found)
    torch.testing.assert_close(found["x"], drawn[0], rtol=1e-6, atol=1e-6)


def test_what_a_run_cannot_do_says_why(runs: Runs, tmp_path: Path) -> None:
    def refused(state: State, runs: Runs = runs) -> str:
        try:
            for _, draw in figures_of_runs(state.view).values():
                draw(state, runs, Budget())
        except ValueError as error:
            return str(error)
        return "nothing was refused"

    assert "run must be one of a, b, got '../c'" in refused(State(view="samples", run="../c"))
    assert "classes must be" in refused(State(view="samples", label=11, sampler=SHORT))
    assert "run must be given on the command line" in refused(State(view="samples"), Runs())
    one = Runs({"a": runs.paths["a"]})
    assert "against requires a second run" in refused(State(view="compare", num=1, sampler=SHORT), one)
    with pytest.raises(ValueError, match="checkpoint"):
        Runs({"x": str(tmp_path)})


def test_a_run_that_nobody_waits_for_ends_and_leaves_the_denoiser_as_it_was(runs: Runs) -> None:
    run: Trained = runs.get("a")
    with pytest.raises(Stopped):
        _draw(State(view="samples"), run, [0], Budget(lambda: False))
    assert not run.denoiser._forward_pre_hooks
