"""Several kinds of data at once on the command line: a simulator that returns a dict, and npz files."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openedm.cli.arguments import function_of
from openedm.inference import Box, DenoiserPosterior, Settings, Store, load, predictive_check, simulate

SIMULATOR = """
import torch

def kinds(theta, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = theta + 0.1 * torch.randn(2, generator=generator)
    return {"image": theta[0] + torch.randn(1, 4, 4, generator=generator), "counts": counts, "total": theta.sum()}

def vector(theta, seed):
    return theta
"""
BOX = ["--prior=Box", "--prior.low=[-1,-1]", "--prior.high=[1,1]", "--prior.names=[a,b]"]
SHAPES = {"image": (1, 4, 4), "counts": (2,), "total": (1,)}


@pytest.fixture(scope="module")
def made(openedm, tmp_path_factory):
    """A store of simulations of three kinds of data, a posterior of them and an observation."""
    folder = tmp_path_factory.mktemp("kinds")
    file = folder / "kinds_of_the_tests.py"
    file.write_text(SIMULATOR)
    simulated = openedm("inference", "simulate", folder / "store", "--num=120", f"--simulator={file}:kinds", *BOX)
    rule = Settings.of

    def quick(*sizes):
        found = rule(*sizes)
        return replace(found, passes=2, judged=4, network=replace(found.network, width=8, num_blocks=1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "of", quick)
        fitted = openedm("inference", "fit", folder / "store", folder / "posterior")
    simulator = function_of(f"{file}:kinds")
    x = {name: np.asarray(values) for name, values in simulator(torch.tensor([0.3, -0.2]), 5).items()}
    np.savez(folder / "x.npz", **x)
    return SimpleNamespace(
        folder=folder,
        file=file,
        store=folder / "store",
        posterior=folder / "posterior",
        simulator=simulator,
        x=x,
        observed=f"--x={folder / 'x.npz'}",
        runs=(simulated, fitted),
    )


def refuses(result, message):
    assert result.status != 0
    assert message in result.err.splitlines()[-1]


def test_stores_keep_several_kinds_and_go_on_with_them(openedm, made):
    simulated, fitted = made.runs
    listed = "{image: (1, 4, 4), counts: (2,), total: (1,)}"
    assert simulated.out == f"120 simulations, x of shape {listed}: {made.store}\n"
    assert fitted.status == 0, fitted.err
    found = Store(made.store).load()
    expected = simulate(made.simulator, Box([-1.0, -1.0], [1.0, 1.0]), 120)
    assert found.x.shape == (120, 19)
    assert found.kinds == expected.kinds == tuple(SHAPES.items())
    for name, shape in SHAPES.items():
        assert found.data[name].shape == (120, *shape)
        assert torch.equal(found.data[name], expected.data[name])
    first = made.simulator(found.theta[0], int(found.seeds[0]))
    assert all(torch.equal(found.data[name][0], first[name].reshape(shape)) for name, shape in SHAPES.items())
    again = openedm("inference", "simulate", made.store, "--num=120", f"--simulator={made.file}:kinds", *BOX)
    assert again.out == simulated.out.replace("simulations,", "simulations, none of them new,")


def test_posteriors_of_several_kinds_are_sampled_and_their_modes_found(openedm, made, tmp_path, monkeypatch):
    out = tmp_path / "s.npz"
    result = openedm("inference", "sample", made.posterior, out, made.observed, "--num_samples=20")
    assert result.status == 0, result.err
    posterior = load(made.posterior)
    with np.load(out) as file:
        assert np.array_equal(file["samples"], posterior.sample(made.x, 20).numpy())
        for name, shape in SHAPES.items():
            assert np.array_equal(file[f"x_{name}"], made.x[name].reshape(shape))
    np.savez(tmp_path / "two.npz", **{name: np.stack([values, values]) for name, values in made.x.items()})
    out = tmp_path / "two_samples.npz"
    result = openedm("inference", "sample", made.posterior, out, f"--x={tmp_path / 'two.npz'}", "--num_samples=20")
    assert result.status == 0, result.err
    with np.load(out) as file:
        assert file["samples"].shape == (2, 20, 2)
        assert file["x_image"].shape == (2, 1, 4, 4)
    given = []
    monkeypatch.setattr(DenoiserPosterior, "map", lambda self, x, **more: given.append(x) or torch.tensor([0.3, -0.2]))
    result = openedm("inference", "map", made.posterior, made.observed)
    assert result.status == 0, result.err
    assert torch.equal(given[0], posterior.flat(made.x))


def test_check_simulates_several_kinds_and_writes_their_numbers(openedm, made, tmp_path):
    out, figure = tmp_path / "check.json", tmp_path / "predictions.png"
    arguments = [made.observed, f"--simulator={made.file}:kinds", "--num_draws=200"]
    result = openedm("inference", "check", made.posterior, *arguments, f"--out={out}", f"--figure={figure}")
    assert result.status == 0, result.err
    found = json.loads(out.read_text())["predictions"]
    assert found["name"][:2] == ["image[0, 0, 0]", "image[0, 0, 1]"]
    assert found["name"][-3:] == ["counts[0]", "counts[1]", "total[0]"]
    assert found["observed"][-3:-1] == pytest.approx(made.x["counts"].tolist())
    assert "p, one of 19" in result.out
    assert figure.is_file()
    refuses(
        openedm("inference", "check", made.posterior, made.observed, f"--simulator={made.file}:vector"),
        "simulator: none of 10 gave a result of shape {image: (1, 4, 4), counts: (2,), total: (1,)}",
    )


@pytest.mark.usefixtures("without_type_checker")
def test_predictions_of_several_kinds_are_compared_in_python(made):
    def simulator(theta, seed):
        each = [made.simulator(row, seed + i) for i, row in enumerate(theta)]
        return {name: torch.stack([x[name] for x in each]) for name in SHAPES}

    found = predictive_check(load(made.posterior), simulator, made.x, num_draws=20)
    assert found.draws.shape == (20, 19)


def test_observations_of_other_kinds_are_refused_by_name(openedm, made, tmp_path):
    def run(**arrays):
        path = tmp_path / f"x{len(list(tmp_path.iterdir()))}.npz"
        np.savez(path, **arrays)
        return openedm("inference", "map", made.posterior, f"--x={path}")

    kinds = "x must be an .npz file with an array for each of {image: (1, 4, 4), counts: (2,), total: (1,)}, got "
    refuses(openedm("inference", "map", made.posterior), kinds + "nothing")
    refuses(openedm("inference", "map", made.posterior, "--x=1,2"), kinds + "'1,2'")
    refuses(run(image=made.x["image"]), "x must hold image, counts, total, got image")
    wrong = made.x | {"image": np.zeros((1, 5, 4))}
    refuses(run(**wrong), "x['image'] must be one observation (1, 4, 4) or several (n, 1, 4, 4), got (1, 5, 4)")
    refuses(run(**made.x | {"counts": np.array([0.0, np.nan])}), "x must be finite, got nan")
    several = {name: np.stack([values, values]) for name, values in made.x.items()}
    refuses(run(**several), "map requires a single observation, got x of 2")


def test_simulations_in_files_hold_several_kinds_and_are_tested_in_any_order(openedm, made, tmp_path):
    found = simulate(made.simulator, Box([-1.0, -1.0], [1.0, 1.0]), 30, seed=1)
    arrays = {f"x_{name}": found.data[name].numpy() for name in reversed(SHAPES)}
    np.savez(tmp_path / "fresh.npz", theta=found.theta.numpy(), **arrays)
    numbers = ["--num=30", "--num_samples=10", "--plain=true"]
    stored = openedm(
        "inference", "simulate", tmp_path / "fresh", "--num=30", "--seed=1", f"--simulator={made.file}:kinds", *BOX
    )
    assert stored.status == 0, stored.err
    of_file, of_store = (
        openedm("inference", "calibrate", made.posterior, f"--simulations={tmp_path / name}", *numbers)
        for name in ("fresh.npz", "fresh")
    )
    assert of_file.status == 0, of_file.err
    assert of_file.out == of_store.out
    np.savez(tmp_path / "other.npz", theta=found.theta.numpy(), x_image=arrays["x_image"])
    refuses(
        openedm("inference", "calibrate", made.posterior, f"--simulations={tmp_path / 'other.npz'}", *numbers),
        "simulations must have x of shape {image: (1, 4, 4), counts: (2,), total: (1,)}, as the posterior, got "
        "{image: (1, 4, 4)}",
    )
    refuses(
        openedm("inference", "fit", made.store, tmp_path / "other", "--settings.images=10"),
        "embedding and settings must be None where x is a mapping",
    )
