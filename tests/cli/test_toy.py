import contextlib
import io
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch

from openedm.cli import toy as command
from openedm.cli.main import main
from openedm.levels import Karras
from openedm.plots import toy as library
from openedm.sampling import Sampler
from openedm.schedules import VP

FIGURES = {"toy-1d.png", "toy-2d.png", "curvature.png", "error-versus-nfe.png", "loss-per-sigma.png"}
TINY = ["--images=12800", "--data.num_samples=100", "--data_1d.num_samples=500", "--sampler.levels.num_steps=12"]
ORDERS = {"Euler": 1, "Heun": 2, "Midpoint": 2, "Ralston": 2, "RK4": 4}


def run(folder, *arguments):
    """The exit status, what was printed, and the figures that were saved."""
    figures = {}
    save_figure = command.save_figure

    def record(figure, path):
        figures[Path(path).name] = figure
        save_figure(figure, path)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(command, "save_figure", record)
        status = main(["toy", "--out", str(folder), *arguments])
    return SimpleNamespace(status=status, printed=printed.getvalue(), figures=figures, folder=folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with everything left at its default but the sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the run of one's own data is checked
        return run(tmp_path_factory.mktemp("runs") / "toy", *TINY)


def table(printed, title):
    """The rows of the table below `title`: errors and the measured order by solver."""
    lines = printed[printed.index(title) :].splitlines()[2:7]
    return {line.split()[0]: [float(number) for number in line.split()[1:]] for line in lines}


def paths(axes):
    return [np.asarray(line.get_xydata()) for line in axes.lines]


def test_it_writes_its_figures_and_prints_where(finished):
    assert finished.status == 0
    assert {path.name for path in finished.folder.iterdir()} == FIGURES
    assert {Path(path).name for path in re.findall(r"^wrote (.*)$", finished.printed, re.M)} == FIGURES
    for name in FIGURES:
        assert (finished.folder / name).read_bytes().startswith(b"\x89PNG")


def test_solvers_converge_with_their_orders(finished):
    gaussian, modes = table(finished.printed, "a Gaussian"), table(finished.printed, "two modes, against")
    for name, order in ORDERS.items():
        assert modes[name][-1] == pytest.approx(order, abs=0.3)
        if name != "Midpoint":  # For a Gaussian and σ(t) = t its leading error is zero: order 3.
            assert gaussian[name][-1] == pytest.approx(order, abs=0.2)


def test_the_errors_in_the_figure_are_those_of_the_table(finished):
    for axes in finished.figures["error-versus-nfe.png"].axes:
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        for name, numbers in table(finished.printed, axes.get_title()).items():
            assert np.allclose(drawn[name][:, 1], numbers[:-1], rtol=0.06)
            assert (drawn[name][:, 0] <= library.EVALUATIONS).all()


def test_training_comes_near_the_exact_denoiser(finished):
    found = re.findall(r"loss on training data ([\d.]+); .*: ([\d.]+)", finished.printed)
    assert len(found) == 2
    for trained, exact in found:
        assert float(exact) < float(trained) < 1


def test_both_flows_start_from_the_same_noise_and_end_at_the_data(finished):
    forward, exact, learned, _ = finished.figures["toy-1d.png"].axes  # the last is the key of the density
    assert len(paths(forward)) == len(paths(exact)) == len(paths(learned)) == 24
    first = [np.array([path[0] for path in paths(axes)]) for axes in (exact, learned)]
    assert np.allclose(first[0][:, 0], first[1][:, 0])
    assert np.allclose(first[0][:, 1], first[1][:, 1], atol=0.5)
    ends = np.array([path[-1] for path in paths(exact)])
    assert (ends[:, 0] == 0).all()
    assert (abs(abs(ends[:, 1]) - 1) < 0.6).all()


def test_the_rows_in_two_dimensions_share_their_noise(finished):
    grid = np.array(finished.figures["toy-2d.png"].axes).reshape(3, 6)
    noise = [axes.lines[0].get_xydata() for axes in grid[:, 4]]
    assert len(noise[0]) == 406
    assert np.allclose(noise[0], noise[1], atol=0.05)
    assert np.array_equal(noise[1], noise[2])


def test_losses_are_drawn_beside_the_exact_denoiser(finished):
    axes = finished.figures["loss-per-sigma.png"].axes[0]
    labels = [line.get_label() for line in axes.lines]
    assert labels[-1] == "exact denoiser"
    assert labels[-2] == "12,800 images"
    assert len(labels) == 4


def test_curvature_compares_the_schedules_of_the_paper(finished):
    assert [axes.get_title() for axes in finished.figures["curvature.png"].axes[:3]] == ["VP", "VE", "EDM"]


def test_a_path_is_straighter_under_edm_than_under_ve_and_vp(finished):
    """The largest distance from the chord, over σ ≤ 25, as a part of the picture's height."""
    bend = {}
    for axes in finished.figures["curvature.png"].axes[:3]:
        t_max = axes.get_xlim()[1]
        worst = 0.0
        for path in paths(axes):
            t, x = path[path[:, 0] <= t_max].T
            worst = max(worst, abs(x - np.interp(t, [t[-1], t[0]], [x[-1], x[0]])).max())
        bend[axes.get_title()] = worst / axes.get_ylim()[1]
    assert bend["EDM"] < 0.05
    assert bend["EDM"] < bend["VP"] / 5
    assert bend["EDM"] < bend["VE"] / 5


def test_figures_of_an_earlier_run_are_not_replaced(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.iterdir()}
    again = run(finished.folder, *TINY)
    assert again.status == 1
    assert again.printed == ""
    error = capsys.readouterr().err
    assert f"out={finished.folder} has figures of an earlier run (toy-1d.png" in error
    assert "--overwrite true" in error
    assert {path: path.stat().st_mtime_ns for path in finished.folder.iterdir()} == before


def test_any_schedule_and_your_own_data_and_overwriting_when_told(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "EVALUATIONS", (8, 16))  # the run of the other tests has all of them
    (tmp_path / "toy-1d.png").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    np.save(tmp_path / "line.npy", np.linspace(-1, 1, 20).reshape(20, 1).astype(np.float32))
    found = run(
        tmp_path,
        *["--overwrite=true", "--images=600", "--data.name=eight_gaussians", "--sampler.schedule=RectifiedFlow"],
        *["--data_1d=Arrays", f"--data_1d.path={tmp_path / 'line.npy'}", "--sampler.levels.num_steps=1"],
        *["--sigma_shown=80"],
    )
    assert found.status == 0
    assert (tmp_path / "toy-1d.png").read_bytes() != b"old"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert found.figures["curvature.png"].axes[3].get_title() == "yours: RectifiedFlow"
    exact = found.figures["toy-1d.png"].axes[1]
    assert "RectifiedFlow" in exact.get_xlabel()
    assert exact.get_xlim() == pytest.approx((0, 80 / 81))
    assert "20 vectors of 1" in found.printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=Toy", "--data.name=two_modes"], "data must be vectors of 2, got 2000 vectors of 1 in 2 classes"),
        (["--data_1d=Digits"], "data_1d must be vectors of 1, got 1437 images of 1×8×8"),
        (["--sampler.churn.s_churn=10"], "sampler.churn.s_churn must be 0, got 10.0"),
        (["--sampler.levels=Explicit"], "sampler.levels must be a rule for any number of steps, got Explicit"),
        (["--sigma_shown=0"], "sigma_shown must be finite and > 0, got 0.0"),
        (["--images=0"], "images must be >= 1, got 0"),
        (["--seed=-1"], "seed must be >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(arguments, message, tmp_path, capsys):
    found = run(tmp_path / "toy", *arguments)
    assert found.status == 1
    assert message in capsys.readouterr().err
    assert found.printed == ""
    assert not (tmp_path / "toy").exists()


def test_out_must_not_be_a_file(tmp_path, capsys):
    (tmp_path / "toy").write_text("")
    assert run(tmp_path / "toy").status == 1
    assert "out must be a folder, but" in capsys.readouterr().err


def test_noising_pairs_data_with_noise_at_every_level():
    sampler = Sampler(levels=Karras(num_steps=5), schedule=VP())
    clean, noise = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5], [2.0]])
    states = library.noising(sampler, clean, noise).states
    assert [state.index for state in states] == list(range(6))
    for state, sigma in zip(states, [*sampler.levels.sigmas().tolist(), 0.0], strict=True):
        assert state.sigma == sigma
        assert state.time == pytest.approx(float(VP().time(sigma)))
        assert torch.allclose(state.x, (clean + sigma * noise).double() / math.sqrt(1 + sigma**2))
