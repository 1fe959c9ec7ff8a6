"""The benchmark of solvers: its problems against closed forms, its counting, and that its list of solvers runs."""

import json
import math
from pathlib import Path

import pytest
import torch
from benchmarks.common import peak_memory, write_json
from benchmarks.solvers import __main__ as command
from benchmarks.solvers import ours, problems, report
from benchmarks.solvers.measure import energy_distance, mean_distance, rises, run_method
from benchmarks.solvers.methods import Counted, Method
from benchmarks.solvers.problems import FACTORIES, Problem, SmoothedDataset, problem

from openedm.exact import GaussianMixture
from openedm.sampling import Auto


def test_the_reference_of_a_gaussian_is_its_closed_form() -> None:
    p = problem("gaussian16d")
    assert isinstance(p.denoiser, GaussianMixture)
    end = p.denoiser.ode_solution(p.sigma_max * p.noise, p.sigma_max, p.sigma_min)
    solution, floor = p.reference(cached=False)
    torch.testing.assert_close(solution, p.denoiser(end, p.sigma_min), rtol=0, atol=1e-12)
    assert floor < 1e-12


@pytest.mark.parametrize("name", [*FACTORIES, "random3"])
def test_sigma_data_is_that_of_samples(name: str) -> None:
    p = problem(name)
    if isinstance(p.denoiser, GaussianMixture):
        draws = p.denoiser.sample(60_000 // p.noise.shape[1], torch.Generator().manual_seed(0))
    else:
        assert isinstance(p.denoiser, SmoothedDataset)
        points = p.denoiser.points.data
        draws = points + p.denoiser.std * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    assert p.sigma_data == pytest.approx(float(draws.std()), rel=0.05)


def test_a_smoothed_data_set_is_a_mixture_of_gaussians() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)
    std = 0.3
    mixture = GaussianMixture([1.0] * 3, points, std**2 * torch.eye(2, dtype=torch.float64).expand(3, -1, -1))
    x = 2 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smoothed = SmoothedDataset(points, std)
    for sigma in (0.01, 0.5, 20.0):
        torch.testing.assert_close(smoothed(x, sigma), mixture(x, sigma), rtol=1e-10, atol=1e-12)
    several = torch.linspace(0.1, 3.0, 50, dtype=torch.float64)
    torch.testing.assert_close(smoothed(x, several), mixture(x, several), rtol=1e-10, atol=1e-12)


def test_starts_are_the_same_each_time_and_problems_too() -> None:
    first, second = problems.random_mixture(3), problems.random_mixture(3)
    assert torch.equal(first.noise, second.noise)
    x = first.noise
    assert torch.equal(first.denoiser(x, 0.5), second.denoiser(x, 0.5))
    assert 1 <= x.shape[1] <= 64


def test_an_unknown_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of gmm2d, lowrank64"):
        problem("gmm3d")


@pytest.fixture(scope="module")
def small() -> Problem:
    denoiser = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.01]], [[0.01]]])
    return Problem("small", "two modes", denoiser, math.sqrt(1.01), starts=16)


@pytest.mark.parametrize("method", ours.methods([*ours.FIXED, *ours.STOCHASTIC]), ids=lambda method: method.name)
def test_each_of_our_solvers_keeps_to_its_budget(method: Method, small: Problem) -> None:
    x, row = run_method(method, small, 18, small.noise)
    assert "failed" not in row
    assert x is not None
    assert 0 < row["nfe"] <= 18
    assert bool(x.isfinite().all())


def test_what_a_solver_raises_becomes_part_of_the_table(small: Problem) -> None:
    def prepare(budget: float, denoiser: object) -> None:
        raise ArithmeticError(f"not with {budget:g}")

    x, row = run_method(Method("peer", "broken", prepare), small, 8, small.noise)
    assert x is None
    assert row["failed"] == "ArithmeticError: not with 8"


def test_the_figure_is_drawn_again_from_files_of_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(command, "save_figure", lambda figure, path: kept.append((figure, path)))
    rows = [
        {"problem": "a", "library": library, "solver": solver, "budget": budget, "nfe": budget, "median": median}
        for library, solver in (("openedm", "Auto"), ("peer", "Euler"))
        for budget, median in ((8, 1e-2), (18, math.nan if library == "peer" else 1e-3))
    ]
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file, name in zip(files, ("a", "b"), strict=True):
        problems = [{"name": name, "title": f"the problem {name}", "floor": 1e-9}]
        write_json(file, {"problems": problems, "accuracy": [row | {"problem": name} for row in rows]})
    command.main(["--from", *map(str, files), "--figure", "figure.png"])
    ((figure, path),) = kept
    assert path == Path("figure.png")
    assert [axes.get_title() for axes in figure.axes] == ["the problem a", "the problem b"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].lines}
    assert lines["Auto"] == [[8, 1e-2], [18, 1e-3]]
    assert lines["each peer"] == [[8, 1e-2]]
    write_json(files[0], {"overhead": []})
    with pytest.raises(SystemExit, match=r"one\.json without accuracy"):
        command.main(["--from", *map(str, files), "--figure", "figure.png"])
    with pytest.raises(SystemExit):
        command.main(["--from", *map(str, files)])


def test_an_error_that_rises_with_one_evaluation_more_is_found_and_marked(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"library": "openedm", "solver": "Auto"}
    medians = {"a": {4: 1e-2, 5: 3e-2, 6: 3e-3, 7: 1e-9}, "b": {4: 1e-2, 5: 1e-2, 6: math.nan, 7: 1e-3}}
    rows = [
        row
        for problem, errors in medians.items()
        for row in rises(
            [names | {"problem": problem, "budget": n, "median": error} for n, error in errors.items()],
            steps=(4, 5, 6),
            floor=3e-6,
        )
    ]
    assert [(row["problem"], row["nfe"], pytest.approx(row["ratio"])) for row in rows] == [
        ("a", 4, 3.0),
        ("a", 5, 0.1),
        ("a", 6, 1e-3),
        ("b", 4, 1.0),
    ]
    report.print_rises(rows)
    printed = capsys.readouterr().out
    assert "3.00*" in printed
    assert "of 4, 1 above 1 and 1 above 1.5" in printed
    assert "a: 3.00 from 4 to 5, lower again from 6" in printed


def test_the_change_with_one_evaluation_more_is_measured_from_each_number_that_is_given(
    small: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "problem", lambda name: small)
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    file = tmp_path / "rises.json"
    words = ["--what", "rises", "--no-peers", "--problems", "small", "--only", "Auto", "--nfe", "4", "9"]
    command.main([*words, "--out", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))["rises"]
    assert [(row["solver"], row["nfe"]) for row in rows] == [("Auto", 4), ("Auto", 9)]
    four, five = (
        float(
            small.errors(
                Auto(nfe=n, sigma_min=0.002, sigma_max=80.0).sample(small.denoiser, noise=small.noise)
            ).median()
        )
        for n in (4, 5)
    )
    assert rows[0]["ratio"] == pytest.approx(five / four, rel=1e-4)


def test_evaluations_are_counted_by_batch_and_by_sample(small: Problem) -> None:
    denoiser = Counted(small.denoiser, small.sigma_data)
    denoiser(small.noise, 1.0)
    denoiser(small.noise[:4], 1.0)
    assert (denoiser.calls, denoiser.samples) == (2, 20)
    assert denoiser.sigma_data == small.sigma_data


def test_the_energy_distance_of_two_points_and_of_two_draws() -> None:
    x, y = torch.zeros(2, 1), torch.full((2, 1), 3.0)
    within = mean_distance(y, y) * 2 / 1
    assert float(energy_distance(x, y, within)) == pytest.approx(6.0)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2000, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    within = mean_distance(y, y) * 2000 / 1999
    assert abs(float(energy_distance(x, y, within))) < 5e-3
    # E‖x + a − y‖ − E‖x − y‖ of normal x and y: 0.14 for a = (1, 0), from the moments of the Rice distribution.
    moved = float(energy_distance(x + torch.tensor([1.0, 0.0]), y, within))
    assert moved == pytest.approx(2 * _rice(1.0, math.sqrt(2)) - 2 * _rice(0.0, math.sqrt(2)), rel=0.1)


def _rice(shift: float, scale: float) -> float:
    """E‖a + s n‖ for a of length `shift` in two dimensions, by quadrature over the angle and the radius."""
    radius = torch.linspace(0, 12, 4001, dtype=torch.float64)
    angle = torch.linspace(0, 2 * math.pi, 401, dtype=torch.float64)[:-1]
    length = (shift**2 + (scale * radius[:, None]).square() + 2 * shift * scale * radius[:, None] * angle.cos()).sqrt()
    return float(torch.trapezoid(length.mean(1) * radius * (-radius.square() / 2).exp(), radius))


def test_peak_memory_counts_what_is_held_at_once() -> None:
    x = torch.zeros(1000, dtype=torch.float64)

    def run() -> torch.Tensor:
        y = x + 1  # 8 kB
        z = y * 2  # and 8 kB
        del y
        z.add_(x)
        return z.reshape(10, 100)[0]

    assert peak_memory(run) == 16_000
