import importlib
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError
from PIL import Image

from openedm.cli import main as module
from openedm.cli.arguments import function_of, numbers_of
from openedm.cli.inference import COMMANDS
from openedm.cli.inference.arguments import settings_of, tasks_of
from openedm.cli.inference.check import _Called as Called
from openedm.cli.inference.fit import fit as command
from openedm.cli.parsing import options_of, parse
from openedm.cli.terminal import Bars, table
from openedm.ground.progress import no_progress
from openedm.ground.storage import replace_nonfinite
from openedm.inference import Box, DenoiserPosterior, Settings, Store, calibrate, fit, load, simulate, tasks
from openedm.inference import benchmark as library
from openedm.inference.benchmark import FRESH
from openedm.inference.calling import Call
from openedm.inference.local_checks import LocalTest
from openedm.inference.results import Form
from openedm.levels import Karras
from openedm.metrics import c2st
from openedm.networks import MLP, ConditionalEnsemble
from openedm.plots import pair_plot
from openedm.sampling import Churn, Sampler

# The simulator of these tests fails on purpose, of which each fit warns (tests/inference/test_fitting.py).
pytestmark = pytest.mark.filterwarnings("ignore:.* simulations gave no result:UserWarning")

CHANGES = {
    "images": 1024,
    "passes": 2,
    "batch_size": 256,
    "pool": 1000,
    "judged": 4,
    "network": {"width": 8, "num_blocks": 1},
    "emulator": {"steps": 10, "width": 8, "components": [2], "folds": 4},
    "base": {"steps": 10, "width": 8},
    "refinement": {"num_steps": 4, "max_steps": 8, "num_pilots": 16},
}
TINY = f"--settings={json.dumps(CHANGES)}"

SIMULATOR = """
import torch

def noisy(theta, seed):
    if theta[0] > 0.95:
        raise RuntimeError("too large")
    return theta + 0.1 * torch.randn(2, generator=torch.Generator().manual_seed(seed))

number = 3
"""
BOX = ["--prior=Box", "--prior.low=[-1,-1]", "--prior.high=[1,1]", "--prior.names=[a,b]"]


@pytest.fixture(scope="module")
def made(openedm, tmp_path_factory):
    """A simulator of one's own, a store of its simulations and a posterior of them."""
    folder = tmp_path_factory.mktemp("inference")
    file = folder / "simulator_of_the_tests.py"
    file.write_text(SIMULATOR)
    simulated = openedm("inference", "simulate", folder / "store", "--num=200", f"--simulator={file}:noisy", *BOX)
    fitted = openedm("inference", "fit", folder / "store", folder / "posterior", TINY)
    return SimpleNamespace(
        folder=folder, file=file, store=folder / "store", posterior=folder / "posterior", runs=(simulated, fitted)
    )


def settings(n):
    return settings_of(CHANGES, n, 2, (2,))


def refuses(result, message):
    assert result.status != 0
    assert message in "\n".join(result.err.splitlines()[-2:])


# The group.


def test_the_group_explains_itself(openedm):
    result = openedm("inference")
    assert result.status == 2
    assert result.out == openedm("inference", "--help").out
    assert result.out.startswith("usage: openedm inference COMMAND [options]\n")
    for name, text in COMMANDS.items():
        assert f"  {name:<12}{text}\n" in result.out


def test_an_unknown_command_of_the_group_is_an_error_that_suggests_the_nearest(openedm):
    result = openedm("inference", "sampel")
    assert result.status == 2
    known = ", ".join(COMMANDS)
    assert result.err == (
        f"openedm inference: error: command must be one of {known}, got 'sampel'; did you mean 'sample'?\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_something_on_every_argument(name, openedm):
    result = openedm("inference", name, "--help")
    assert result.status == 0
    assert result.out.startswith(f"usage: openedm inference {name} ")
    command = getattr(importlib.import_module(f"openedm.cli.inference.{name}"), name)
    for option in options_of(command):
        assert f"--{option}" in result.out or option.upper() in result.out, option


def test_arguments_that_cannot_be_read_end_with_status_2(openedm):
    result = openedm("inference", "fit")
    assert result.status == 2
    assert "required: simulations, out" in result.err
    assert result.err.endswith(" (openedm inference fit --help describes all options)\n")
    assert result.err.count("\n") == 1


def test_the_groups_name_real_commands():
    assert set(module.GROUPS) <= set(module.COMMANDS)


# Settings.


def given(*typed):
    """The changes of settings that a command is given."""
    return parse("openedm inference fit", command, ["store", "posterior", *typed])["settings"]


def test_dotted_settings_become_one_mapping():
    typed = ["--settings.images", "10", "--seed=1", "--settings.emulator.steps=5", "--settings.emulator.folds", "3"]
    assert given(*typed) == {"images": 10, "emulator": {"steps": 5, "folds": 3}}
    assert given("--seed=1") is None
    both = ["--settings.images=4", "--settings", "{images: 3, emulator: {steps: 2}}", "--settings.emulator.folds=2"]
    assert given(*both) == {"images": 4, "emulator": {"steps": 2, "folds": 2}}
    assert given("--settings.network=MLP", "--settings.network.width=8") == {
        "network": {"class_path": "MLP", "width": 8}
    }


def test_settings_change_the_rule_and_nothing_else(tmp_path):
    rule = Settings.of(1000, 2, (2,))
    assert settings_of(None, 1000, 2, (2,)) is None
    assert settings_of({}, 1000, 2, (2,)) == rule
    changed = settings_of(given("--settings={learning_rate: 1e-4, emulator: null, network: {width: 8}}"), 1000, 2, (2,))
    assert (changed.learning_rate, changed.emulator) == (1e-4, None)
    assert changed.network == replace(rule.network, width=8)
    assert isinstance(changed.network, ConditionalEnsemble)
    assert changed.images == rule.images
    (tmp_path / "changes.yaml").write_text("network:\n  class_path: MLP\n  width: 8\n")
    assert settings_of(given(f"--settings={tmp_path / 'changes.yaml'}"), 1000, 2, (2,)).network == MLP(width=8)
    assert settings_of({"network": "MLP"}, 1000, 2, (2,)).network == MLP()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imags": 3}, "does not accept option 'imags'"),
        ({"images": "few"}, 'Parser key "settings.images":\n.*int.*few'),
        ({"images": 0}, "images must be >= 1, got 0"),
        ({"network": "Nothing"}, 'Parser key "settings.network":\n.*Nothing'),
    ],
)
def test_settings_that_make_no_sense_are_errors(changes, message):
    with pytest.raises((ArgumentError, ValueError), match=message):
        settings_of(changes, 1000, 2, (2,))


@pytest.mark.parametrize("text", ["3", "[", "nowhere.yaml"])
def test_settings_that_are_no_mapping_are_errors(text):
    with pytest.raises(ArgumentError, match=r"settings|nowhere\.yaml cannot be read"):
        given(f"--settings={text}")


def test_tasks_are_named_with_commas_between():
    assert [task.name for task in tasks_of("slcp, two_moons,slcp")] == ["slcp", "two_moons"]
    assert [task.name for task in tasks_of("all")] == list(tasks.names())
    with pytest.raises(ValueError, match=r"task must be one of 'two_moons', .* got 'slpc'"):
        tasks_of("slpc")


# What is read.


def test_numbers_come_from_text_and_files(tmp_path):
    assert numbers_of("x", "1,-2.5e-3").tolist() == [1.0, -0.0025]
    np.save(tmp_path / "x.npy", np.arange(3.0))
    np.savez(tmp_path / "x.npz", x=np.arange(3.0), y=np.zeros(1))
    for name in ("x.npy", "x.npz"):
        assert numbers_of("x", str(tmp_path / name)).tolist() == [0, 1, 2]
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for text, message in [
        ("1,two", "x must be numbers separated by commas"),
        (None, "x must be given"),
        (str(tmp_path / "none.npy"), "cannot be read"),
        (str(tmp_path / "object.npy"), "cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            numbers_of("x", text)
    with pytest.raises(ValueError, match="must hold an array z, got x, y"):
        numbers_of("z", str(tmp_path / "x.npz"))


def test_a_simulator_that_is_not_there_is_an_error(made, tmp_path):
    (tmp_path / "json.py").write_text("def f(theta):\n    return theta\n")
    for text, message in [
        ("noisy", "must be file.py:function"),
        (f"{made.folder}/nothing.py:noisy", "does not exist"),
        (f"{made.file}:nois", "has no function 'nois'"),
        (f"{made.file}:number", "has no function 'number'"),
        (f"{tmp_path}/json.py:f", "another module is called 'json'"),
    ]:
        with pytest.raises(ValueError, match=message):
            function_of(text)
        assert str(tmp_path) not in sys.path


# simulate.


def test_simulate_fills_a_store_with_what_the_library_simulates(made):
    result = made.runs[0]
    found = Store(made.store).load()
    assert result.status == 0
    assert result.out.startswith(f"{len(found)} simulations, x of shape (2,): {made.store}\n")
    assert f"{200 - len(found)} failed; the first: simulation {found.failures[0].index} " in result.out
    expected = simulate(function_of(f"{made.file}:noisy"), Box([-1.0, -1.0], [1.0, 1.0]), 200)
    assert torch.equal(found.theta, expected.theta)
    assert torch.equal(found.x, expected.x)


def test_simulate_goes_on_and_takes_tasks(openedm, tmp_path):
    for num in (30, 50):
        result = openedm("inference", "simulate", tmp_path / "store", f"--num={num}", "--task=slcp")
        new = ", 20 of them new" if num == 50 else ""
        assert result.out == f"{num} simulations{new}, x of shape (8,): {tmp_path / 'store'}\n"
    refuses(
        openedm("inference", "simulate", tmp_path / "store", "--task=slcp_distractors"), "holds simulations of 'slcp'"
    )
    for num, more in ((50, ""), (10, "num=10 is the number in the store at the end, and there were more before\n")):
        result = openedm("inference", "simulate", tmp_path / "store", f"--num={num}", "--task=slcp")
        assert result.out == f"50 simulations, none of them new, x of shape (8,): {tmp_path / 'store'}\n{more}"
        assert len(Store(tmp_path / "store").done()) == 50


def test_a_simulator_that_always_fails_is_one_line_with_its_first_error(openedm, tmp_path):
    (tmp_path / "mistyped.py").write_text("def simulator(theta, seed):\n    return tehta\n")
    result = openedm(
        "inference",
        "simulate",
        tmp_path / "store",
        "--num=3",
        f"--simulator={tmp_path / 'mistyped.py'}:simulator",
        *BOX,
    )
    assert result.status == 1
    refuses(result, "none of 3 simulations gave a result; simulation 0 ")
    assert "NameError: name 'tehta' is not defined" in result.err.splitlines()[-1]


def test_simulate_interrupted_says_how_to_go_on(openedm, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        simulate(*arguments, **options | {"progress": no_progress})
        raise KeyboardInterrupt

    monkeypatch.setattr("openedm.inference.simulation.simulate", interrupted)
    result = openedm("inference", "simulate", tmp_path / "store", "--num=20", "--task=two_moons")
    assert result.status == 130
    assert result.out == f"20 of 20 simulations are done: {tmp_path / 'store'}; the same command continues\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "simulator and prior must be given, or a task"),
        (["--simulator=a.py:f"], "simulator and prior must be given, or a task"),
        (["--task=slcp", *BOX], "task and simulator, prior or batched are mutually exclusive"),
        (["--task=nothing"], "task must be one of"),
        (["--task=slcp", "--num=0"], "num must be >= 1, got 0"),
    ],
)
def test_simulate_refuses_what_does_not_go_together(arguments, message, openedm, tmp_path):
    refuses(openedm("inference", "simulate", tmp_path / "store", *arguments), message)
    assert not (tmp_path / "store").exists()


# fit.


def test_fit_saves_what_the_library_fits_and_says_what_was_chosen(made):
    result, found = made.runs[1], Store(made.store).load()
    assert result.status == 0
    posterior = load(made.posterior)
    assert posterior.names == ("a", "b")
    assert posterior.prior == Box([-1.0, -1.0], [1.0, 1.0], ["a", "b"])
    rows = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert rows["chosen"].strip() == posterior.report["chosen"]
    assert rows["prior"].strip() == "Box"
    expected = fit(found.theta, found.x, posterior.prior, settings=settings(len(found)))
    assert torch.equal(expected.sample([0.1, 0.2], 20), posterior.sample([0.1, 0.2], 20))


def test_fit_reads_npz_files_and_needs_no_prior(openedm, made, tmp_path):
    found = Store(made.store).load()
    np.savez(tmp_path / "simulations.npz", theta=found.theta.numpy(), x=found.x.numpy())
    result = openedm("inference", "fit", tmp_path / "simulations.npz", tmp_path / "posterior", TINY, "--num=150")
    assert result.status == 0, result.err
    posterior = load(tmp_path / "posterior")
    assert posterior.prior is None
    assert posterior.report["simulations"] == 150


@pytest.mark.filterwarnings("ignore:columns of theta that do not look like draws")  # nor are they
def test_fit_takes_the_prior_of_a_task_or_ones_own(openedm, made, tmp_path):
    plain = [TINY, "--settings.emulator=null", "--settings.refinement=null"]
    with pytest.warns(UserWarning, match="were drawn from another prior than the one given"):
        task = openedm("inference", "fit", made.store, tmp_path / "task", *plain, "--task=two_moons")
    with pytest.warns(UserWarning, match="were drawn from another prior than the one given"):
        own = openedm("inference", "fit", made.store, tmp_path / "own", *plain, *[p.replace("1,", "2,") for p in BOX])
    assert (task.status, own.status) == (0, 0), task.err + own.err
    assert load(tmp_path / "task").prior == tasks.get("two_moons").prior
    assert load(tmp_path / "own").prior.low == (-2.0, -1.0)


def test_fit_refuses_before_it_works(openedm, made, tmp_path):
    def run(*arguments):
        return openedm("inference", "fit", *arguments)

    refuses(run(made.store, made.posterior), "exists already: a posterior is never overwritten")
    refuses(run(tmp_path / "none.npz", tmp_path / "out"), "cannot be read")
    refuses(run(made.store, tmp_path / "out", "--num=500"), "must have num=500 results")
    refuses(run(made.store, tmp_path / "out", "--task=two_moons", *BOX), "prior and task are mutually exclusive")
    refuses(run(made.store, tmp_path / "out", "--settings.imags=3"), "settings: there is no option 'imags'")
    np.savez(tmp_path / "part.npz", theta=np.zeros((3, 2)))
    refuses(run(tmp_path / "part.npz", tmp_path / "out"), "must hold the arrays theta and x, ['x'] missing")
    np.savez(tmp_path / "both.npz", theta=np.zeros((3, 2)), x=np.zeros((3, 2)), x_a=np.zeros((3, 2)))
    refuses(run(tmp_path / "both.npz", tmp_path / "out"), "must hold either x or x_a, got both")
    np.savez(tmp_path / "single.npz", theta=1.0, x=2.0)
    refuses(run(tmp_path / "single.npz", tmp_path / "out"), "one row a simulation in each array, got theta (), x ()")
    refuses(run(made.posterior, tmp_path / "out"), f"simulations: the folder {made.posterior} holds none")
    refuses(run(made.store, tmp_path / "out", "--num=0"), "num must be >= 1, got 0")
    refuses(run(made.store, tmp_path / "out", f"--run={made.file}"), f"run must be a folder, but {made.file} is a file")
    assert not (tmp_path / "out").exists()


def test_fit_interrupted_keeps_its_run_and_goes_on(openedm, made, tmp_path, monkeypatch):
    class Interrupting(Bars):
        def __call__(self, name, share):
            super().__call__(name, share)
            if name == "simulations":
                raise KeyboardInterrupt

    # Small batches: progress is told every twentieth step.
    changes = json.dumps(CHANGES | {"batch_size": 8, "refinement": None, "judged": 2})
    arguments = ["inference", "fit", made.store, tmp_path / "posterior", f"--settings={changes}"]
    arguments += [f"--run={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr("openedm.cli.inference.fit.Bars", Interrupting)
        result = openedm(*arguments)
    assert result.status == 130
    assert "the same command with --resume true continues" in result.out
    assert not (tmp_path / "posterior").exists()
    resumed = openedm(*arguments, "--resume=true")
    assert resumed.status == 0, resumed.err
    theta, x = _pair(made)
    whole = fit(theta, x, load(made.posterior).prior, settings=settings_of(json.loads(changes), len(theta), 2, (2,)))
    assert torch.equal(load(tmp_path / "posterior").sample([0.1, 0.2], 20), whole.sample([0.1, 0.2], 20))


def _pair(made):
    found = Store(made.store).load()
    return found.theta, found.x


# sample, log_prob, map.


def test_sample_writes_the_posteriors_samples_and_their_table(openedm, made, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "openedm.cli.inference.sample.pair_plot", lambda *given, **more: drawn.update(more) or pair_plot(*given, **more)
    )
    out, figure = tmp_path / "samples.npz", tmp_path / "pairs.png"
    result = openedm(
        *["inference", "sample", made.posterior, out, "--x=-0.1,0.2", "--num_samples=50", "--seed=3"],
        *[f"--figure={figure}", "--truth=0,0"],
    )
    assert result.status == 0, result.err
    assert set(drawn) == {"prior"}
    assert drawn["prior"].shape == (100_000, 2)
    expected = load(made.posterior).sample([-0.1, 0.2], 50, seed=3)
    with np.load(out, allow_pickle=False) as file:
        assert np.array_equal(file["samples"], expected.numpy())
        assert file["names"].tolist() == ["a", "b"]
        assert file["x"].tolist() == [-0.1, 0.2]
    lines = result.out.splitlines()
    assert lines[0].split() == ["parameter", "mean", "std", "5", "%", "50", "%", "95", "%"]
    assert lines[1].split()[:2] == ["a", f"{float(expected[:, 0].double().mean()):.4g}"]
    with Image.open(figure) as image:
        assert image.size[0] > 100


def test_sample_takes_batches_and_leaves_refinement_out(openedm, made, tmp_path):
    x = np.array([[0.1, 0.2], [-0.3, 0.0]])
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "samples.npz"
    result = openedm(
        *["inference", "sample", made.posterior, out, f"--x={tmp_path / 'x.npy'}", "--num_samples=40", "--plain=true"]
    )
    assert result.out == f"40 samples of each of 2 observations: {out}\n"
    with np.load(out) as file:
        assert np.array_equal(file["samples"], load(made.posterior).plain().sample(x, 40).numpy())


def test_theta_beside_x_is_said_not_to_be_used(openedm, made, tmp_path):
    x, file = np.array([[0.1, 0.2], [-0.3, 0.0], [0.2, 0.1]]), tmp_path / "simulations.npz"
    np.savez(file, theta=np.zeros((3, 2)), x=x)
    for out, *options in (["s.npz"], ["t.npz", "--together=true"]):
        run = ["inference", "sample", made.posterior, tmp_path / out, f"--x={file}", "--num_samples=2", *options]
        with pytest.warns(UserWarning, match=f"x: 3 observations of {file} taken, and theta of that file is not used"):
            assert openedm(*run, "--plain=true").status == 0
    np.savez(file, theta=np.zeros(2), x=x[0])
    with pytest.warns(UserWarning, match="x: one observation of .*, and theta of that file is not used"):
        openedm("inference", "log_prob", made.posterior, f"--x={file}", "--theta=0.1,0.2")
    assert openedm("inference", "log_prob", made.posterior, f"--x={file}", f"--theta={file}").status == 0


def test_rows_of_x_together_are_one_observation_of_one_theta(openedm, made, tmp_path):
    x, file = np.array([[0.1, 0.2], [-0.3, 0.0], [0.2, 0.1]]), tmp_path / "x.npy"
    np.save(file, x)
    out, posterior = tmp_path / "samples.npz", load(made.posterior).repeated(3)
    options = [f"--x={file}", "--together=true"]
    result = openedm("inference", "sample", made.posterior, out, *options, "--num_samples=20")
    assert result.status == 0, result.err
    with np.load(out) as found:
        assert np.array_equal(found["samples"], posterior.sample(x, 20).numpy())
    assert result.out.splitlines()[0].split()[:2] == ["parameter", "mean"]
    densities = openedm("inference", "log_prob", made.posterior, *options, "--theta=0.1,0.2")
    assert float(densities.out) == pytest.approx(float(posterior.log_prob([0.1, 0.2], x)), rel=1e-4)
    refused = openedm("inference", "map", made.posterior, "--x=0.1,0.2", "--together=true")
    refuses(refused, "x must be several observations (n, 2) with together, got (2,)")


def test_sample_takes_any_sampler_and_its_noise(openedm, made, tmp_path):
    out = tmp_path / "samples.npz"
    options = ["--x=0.1,0.2", "--num_samples=20", "--sampler.churn.s_churn=4", "--sampler.levels.num_steps=6"]
    result = openedm("inference", "sample", made.posterior, out, *options, "--noise=path", "--plain=true")
    assert result.status == 0, result.err
    churned = Sampler(Karras(num_steps=6), churn=Churn(s_churn=4.0))
    with np.load(out) as file:
        expected = load(made.posterior).plain().with_sampler(churned, "path").sample([0.1, 0.2], 20)
        assert np.array_equal(file["samples"], expected.numpy())


def test_no_samples_of_an_x_that_is_far_away_say_so(openedm, made, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise FloatingPointError("20 of 20 samples are NaN")

    monkeypatch.setattr(type(load(made.posterior)), "sample", failing)
    run = ("inference", "sample", made.posterior, tmp_path / "s.npz")
    refuses(openedm(*run, "--x=1e6,0"), "x is far from all simulations, observation 0 first: 20 of 20 samples are NaN")
    near = openedm(*run, "--x=0.1,0.2")
    refuses(near, "20 of 20 samples are NaN")
    assert "far" not in near.err


def test_sample_refuses_before_it_works(openedm, made, tmp_path):
    def run(*arguments, out="s.npz"):
        return openedm("inference", "sample", made.posterior, tmp_path / out, *arguments)

    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    refuses(run(), "x must be given")
    refuses(run("--x=1,2,3"), "x must be one observation (2,)")
    refuses(run("--x=1,nan"), "x must be finite")
    refuses(run("--x=1,2", out="s.csv"), "out must end in .npz")
    refuses(run("--x=1,2", "--figure=f.gif"), "figure must end in .png or .pdf or .svg")
    refuses(run("--x=1,2", "--truth=1,2"), "truth requires a figure")
    refuses(run("--x=1,2", "--prior=true"), "prior requires a figure")
    drawn = f"--figure={tmp_path / 'f.png'}"
    refuses(run("--x=1,2", drawn, "--truth=1,2,3"), "truth must be 2 finite numbers, one for each of a, b, got '1,2,3'")
    refuses(run("--x=1,2", drawn, "--truth=1,inf"), "truth must be 2 finite numbers, one for each of a, b, got '1,inf'")
    refuses(run("--x=1,2", "--nfe=9", "--sampler.churn.s_churn=3"), "nfe and sampler options are mutually exclusive")
    refuses(run("--x=1,2", "--noise=path"), "noise='path' requires sampler options")
    refuses(run("--x=1,2", "--noise=path", "--sampler.solver=Heun"), "noise='path' has no effect")
    refuses(run(f"--x={tmp_path / 'x.npy'}", f"--figure={tmp_path / 'f.png'}"), "figure requires a single observation")
    refuses(openedm("inference", "sample", tmp_path, tmp_path / "s.npz", "--x=1,2"), f"posterior: {tmp_path} holds no")
    np.save(tmp_path / "text.npy", np.array(["1", "2"]))
    refuses(run(f"--x={tmp_path / 'text.npy'}"), "text.npy must hold arrays of real numbers, got x of <U1")
    refuses(run("--x=1,2", "--device=gpu"), "device must be one of this machine (cpu), got 'gpu'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.npy", "x.npy"]


def test_log_prob_prints_or_writes_densities(openedm, made, tmp_path):
    theta = np.array([[0.1, 0.2], [0.0, 3.0]])
    np.save(tmp_path / "theta.npy", theta)
    arguments = ["inference", "log_prob", made.posterior, "--x=0.1,0.2", f"--theta={tmp_path / 'theta.npy'}"]
    expected = load(made.posterior).log_prob(theta, [0.1, 0.2])
    printed = openedm(*arguments)
    assert printed.out.splitlines() == [f"{float(expected[0]):.6g}", "-inf"]
    assert openedm(*arguments, f"--out={tmp_path / 'd.npy'}").out == f"2 log-densities: {tmp_path / 'd.npy'}\n"
    assert np.array_equal(np.load(tmp_path / "d.npy"), expected.float().numpy())


def test_map_prints_the_mode(openedm, made, monkeypatch):
    mode, given = torch.tensor([0.25, -0.5]), []

    def found(posterior, x, **options):
        given.append((x.tolist(), options, posterior.refined))
        return mode

    monkeypatch.setattr(DenoiserPosterior, "map", found)
    result = openedm("inference", "map", made.posterior, "--x=0.1,0.2", "--num_draws=8", "--seed=4", "--plain=true")
    assert given == [([0.1, 0.2], {"num_draws": 8, "seed": 4}, False)]
    density = float(load(made.posterior).plain().log_prob(mode, [0.1, 0.2]))
    rows = [line.split() for line in result.out.splitlines()]
    assert rows == [["parameter", "mode"], ["a", "0.25"], ["b", "-0.5"], ["log-density", f"{density:.6g}"]]


def test_fit_takes_an_embedding_of_ones_own(openedm, made, tmp_path):
    file = tmp_path / "embedding_of_the_tests.py"
    file.write_text("""
from torch import nn

class Columns(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.Tanh())
""")
    quick = "--settings=" + json.dumps({"passes": 2, "network": {"width": 8, "num_blocks": 1}})
    fitted = openedm("inference", "fit", made.store, tmp_path / "own", f"--embedding={file}:Columns", quick)
    assert fitted.status == 0, fitted.err
    drawn = openedm("inference", "sample", tmp_path / "own", tmp_path / "s.npz", "--x=0.1,0.2", "--num_samples=5")
    assert drawn.status == 0, drawn.err
    refuses(
        openedm("inference", "fit", made.store, tmp_path / "other", f"--embedding={file}:Rows"),
        "has no function 'Rows'",
    )


# check.


def test_check_gives_the_librarys_verdict_and_compares_predictions(openedm, made):
    arguments = ["inference", "check", made.posterior, "--x=0.1,0.2", "--num_draws=400"]
    result = openedm(*arguments, f"--simulator={made.file}:noisy")
    assert result.status == 0, result.err
    lines, known = result.out.splitlines(), str(load(made.posterior).verdict([0.1, 0.2])).splitlines()
    assert lines[0] in ("trust", "more simulations", "model does not fit")
    assert lines[1 : len(known)] == known[1:]
    assert lines[len(known)].startswith("predictions: p = ")
    assert lines[-2].split()[0] in ("x[0]", "x[1]")
    refuses(openedm(*arguments, "--batched=true"), "batched and arrays require a simulator")
    refuses(openedm("inference", "check", made.posterior, "--x=0.1"), "x must be one observation (2,)")


def test_check_tests_fresh_simulations_and_writes_all_numbers_and_a_figure(openedm, made, tmp_path, monkeypatch):
    posterior, given = load(made.posterior), []

    def tested(*arguments, **options):
        given.append((arguments, options))
        return LocalTest(0.03, np.array([0.01, 0.02, 0.05]))

    monkeypatch.setattr("openedm.inference.local_checks.local_c2st", tested)
    fresh = simulate(function_of(f"{made.file}:noisy"), posterior.prior, 30, seed=1)
    x = fresh.x.clone()
    x[3, 0] = torch.nan  # left out
    np.savez(tmp_path / "fresh.npz", theta=fresh.theta.numpy(), x=x.numpy())
    arguments = ["inference", "check", made.posterior, "--x=0.1,0.2", "--num_draws=260", "--num_trials=3"]
    arguments += [f"--simulations={tmp_path / 'fresh.npz'}", f"--simulator={made.file}:noisy"]
    result = openedm(*arguments, f"--out={tmp_path / 'check.json'}", f"--figure={tmp_path / 'predictions.png'}")
    assert result.status == 0, result.err
    count = len(fresh) - 1
    assert f"L-C2ST at x: p = 0.5, statistic 0.03, {count} simulations\n" in result.out
    ((_, theta, data, _), options) = given[0]
    kept = torch.arange(len(fresh)) != 3
    assert torch.equal(theta, fresh.theta[kept])
    assert torch.equal(data, fresh.x[kept])
    assert options == {"num_trials": 3, "seed": 0}
    found = json.loads((tmp_path / "check.json").read_text())
    verdict = posterior.verdict([0.1, 0.2])
    assert found["advice"] == result.out.splitlines()[0]
    assert found["likeness"] == {"p_value": verdict.likeness.p_value, "ratio": verdict.likeness.ratio}
    assert found["shortfall"] == pytest.approx(verdict.shortfall)
    assert found["effective"] == pytest.approx(verdict.effective)
    assert f"predictions: p = {found['predictive']:.2g} " in result.out
    predictions = found["predictions"]
    assert predictions["name"] == ["x[0]", "x[1]"]
    assert predictions["observed"] == pytest.approx([0.1, 0.2])
    assert predictions["p_value"] == pytest.approx([2 * min(s, 1 - s) for s in predictions["share_below"]])
    assert found["local_c2st"] == {"p_value": 0.5, "statistic": 0.03, "simulations": count}
    with Image.open(tmp_path / "predictions.png") as image:
        assert image.size[0] > 100


def test_check_simulates_in_the_number_format_of_the_parameters():
    days = 2.46e6 + 0.01 * torch.rand(12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    called = Called(Call(lambda theta: theta + 0.001, False, "torch"), Form((1,)))
    assert torch.equal(called(days, 0), days + 0.001)


def test_check_refuses_before_it_works(openedm, made, tmp_path, monkeypatch):
    def run(*arguments):
        return openedm("inference", "check", made.posterior, "--x=0.1,0.2", *arguments)

    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(DenoiserPosterior, "verdict", never)
    np.savez(tmp_path / "wide.npz", theta=np.zeros((30, 2)), x=np.zeros((30, 3)))
    np.savez(tmp_path / "few.npz", theta=np.zeros((30, 2)), x=np.full((30, 2), np.nan))
    np.savez(tmp_path / "uneven.npz", theta=np.zeros((30, 2)), x=np.zeros((29, 2)))
    (tmp_path / "there.json").write_text("{}")
    simulator = f"--simulator={made.file}:noisy"
    for arguments, message in [
        ([f"--figure={tmp_path / 'f.png'}"], "figure requires a simulator"),
        ([simulator, "--figure=f.csv"], "figure must end in .png"),
        ([f"--out={tmp_path / 'there.json'}"], "there.json exists already: a file is never overwritten"),
        (["--out=o.txt"], "out must end in .json"),
        ([f"--out={made.file}/o.json"], "out must be a folder"),
        ([simulator, "--num_draws=100"], "num_draws must be >= 200, got 100"),
        (["--num_trials=0"], "num_trials must be >= 1, got 0"),
        (["--seed=-1"], "seed must be >= 0, got -1"),
        ([f"--simulations={tmp_path / 'nowhere'}"], "simulations must be a .npy or .npz file"),
        ([f"--simulations={tmp_path}"], "holds none: give a store"),
        ([f"--simulations={tmp_path / 'wide.npz'}"], "simulations must have 2 parameters and x of shape (2,)"),
        ([f"--simulations={tmp_path / 'few.npz'}"], "simulations must be at least 20 that the posterior takes, got 0"),
        ([f"--simulations={tmp_path / 'uneven.npz'}"], "one row a simulation in each array, got theta (30, 2), x (29"),
    ]:
        refuses(run(*arguments), message)
    assert {path.name for path in tmp_path.iterdir()} == {"wide.npz", "few.npz", "uneven.npz", "there.json"}


def test_check_runs_a_few_simulations_before_it_runs_them_all(openedm, made, tmp_path):
    file = tmp_path / "counting_of_the_tests.py"
    file.write_text(f"""
from pathlib import Path

def wrong(theta, seed):
    with Path({str(tmp_path / "calls")!r}).open("a") as file:
        file.write("x")
    return [0.0, 0.0, 0.0]
""")
    result = openedm("inference", "check", made.posterior, "--x=0.1,0.2", f"--simulator={file}:wrong")
    refuses(result, "simulator: none of 10 gave a result of shape (2,); simulation 0 ")
    assert (tmp_path / "calls").read_text() == "x" * 10


# calibrate.


@pytest.mark.filterwarnings("ignore:theta and x hold at least 40 simulations")
def test_calibrate_prints_the_librarys_tests(openedm, made, tmp_path):
    figure, out = tmp_path / "calibration.png", tmp_path / "calibration.json"
    numbers = ["--num=40", "--num_samples=30", "--num_density_samples=5", "--plain=true", "--seed=2"]
    own = openedm(
        "inference",
        "calibrate",
        made.posterior,
        f"--simulations={made.store}",
        *numbers,
        f"--figure={figure}",
        f"--out={out}",
    )
    posterior, (theta, x) = load(made.posterior).plain(), _pair(made)
    tests = calibrate(posterior, theta[:40], x[:40], num_samples=30, num_density_samples=5, seed=2)
    assert own.out == f"{tests.summary()}\nfigure: {figure}\nall numbers: {out}\n"
    assert figure.is_file()
    found = json.loads(out.read_text())
    assert found["p_values"] == pytest.approx(tests.p_values)
    assert found["sbc_p_values"] == pytest.approx(dict(zip("ab", tests.sbc_p_values, strict=True)))
    assert (found["passes"], found["simulations"], found["trained_on"]) == (tests.passes(), 40, tests.trained_on)
    task, fresh = (
        tasks.get("two_moons"),
        openedm("inference", "calibrate", made.posterior, "--task=two_moons", *numbers),
    )
    drawn = simulate(task.simulate, task.prior, 40, seed=FRESH + 2, batched=True)
    tests = calibrate(posterior, drawn.theta, drawn.x, num_samples=30, num_density_samples=5, seed=2)
    assert fresh.out == f"{tests.summary()}\n"


def test_calibrate_refuses_what_does_not_fit(openedm, made):
    def run(*arguments):
        return openedm("inference", "calibrate", made.posterior, *arguments)

    refuses(run(), "either task or simulations must be given")
    refuses(run("--task=two_moons", f"--simulations={made.store}"), "either task or simulations must be given")
    refuses(run("--task=slcp"), "task must fit the posterior, with 2 parameters")
    refuses(run("--task=two_moons", "--num=5"), "num must be >= 20, got 5")
    refuses(run("--task=two_moons", "--level=2"), "level must be between")
    refuses(run("--task=two_moons", "--num_samples=0"), "num_samples must be >= 1, got 0")
    refuses(run("--task=two_moons", "--num_density_samples=501"), "num_density_samples must be between 0 and 500")
    refuses(run("--task=two_moons", "--out=o.txt"), "out must end in .json")
    refuses(run("--task=two_moons", "--device=gpu"), "device must be one of this machine (cpu), got 'gpu'")
    refuses(run(f"--simulations={made.folder}"), "simulations: the folder")


# benchmark.


@pytest.mark.parametrize("name", ["sample", "calibrate"])
def test_control_c_ends_a_command_on_one_line_and_writes_nothing(name, made, openedm, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DenoiserPosterior, "_samples", interrupted)
    given = [tmp_path / "a.npz", "--x=0.4,0.6"] if name == "sample" else ["--task=two_moons", "--num=20"]
    more = [f"--out={tmp_path / 'a.json'}"] if name == "calibrate" else []
    result = openedm("inference", name, made.posterior, *given, *more, f"--figure={tmp_path / 'a.png'}")
    assert (result.status, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in result.err
    assert not any(tmp_path.iterdir())


@pytest.fixture
def observations(tmp_path):
    """Two observations of two moons and of the Gaussian mixture, with few samples that stand for references."""
    folder = tmp_path / "observations"
    folder.mkdir()
    for name in ("two_moons", "gaussian_mixture"):
        task = tasks.get(name)
        theta = task.prior.sample(2, seed=5)
        reference = torch.stack([task.prior.sample(60, seed=6), task.prior.sample(60, seed=7)])
        arrays = {"observations": task.simulate(theta, 1), "true_parameters": theta, "reference_samples": reference}
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})
    return folder


def test_benchmark_scores_every_observation_and_writes_all_numbers(openedm, observations, tmp_path):
    out, kept = tmp_path / "results.json", tmp_path / "kept"
    result = openedm(
        *["inference", "benchmark", "--task=two_moons,gaussian_mixture", "--simulations=200", "--num_samples=50"],
        *[f"--observations={observations}", f"--out={out}", f"--posteriors={kept}", "--calibration=20"],
        *["--calibration_samples=10", TINY, "--settings.refinement=null"],
    )
    assert result.status == 0, result.err
    content = json.loads(out.read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert (content["seed"], content["simulations"]) == (0, 200)
    assert [row["task"] for row in content["tasks"]] == ["two_moons", "gaussian_mixture"]
    row, known = content["tasks"][0], tasks.observations("two_moons", observations)
    posterior = load(kept / "two_moons")
    scores = [c2st(posterior.sample(x, 50), r[:50]) for x, r in zip(known.x, known.reference, strict=True)]
    assert row["c2st"] == pytest.approx(scores)
    assert row["c2st_mean"] == pytest.approx(sum(scores) / 2)
    density = posterior.log_prob(known.reference[0, :50], known.x[0]).double().mean()
    assert row["log_prob_of_reference"] == pytest.approx(float(density))
    assert row["report"]["chosen"] == posterior.report["chosen"]
    for name in ("fit_seconds", "simulate_seconds", "calibration_seconds", "peak_mib", *library.TIMES):
        assert row[name] > 0
    assert len(row["sbc_p_values"]) == 2
    assert 0 <= row["tarp_p_value"] <= 1
    lines = result.out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("task "))
    assert "TARP p" in lines[header]
    assert lines[header + 1].split()[:2] == ["two_moons", f"{row['c2st_mean']:.3f}"]
    assert lines[header + 3].startswith("mean ")
    assert lines[-1] == f"all numbers: {out}"


def test_benchmark_interrupted_keeps_and_shows_what_is_done(openedm, observations, tmp_path, monkeypatch):
    fitted, out = library._fitted, tmp_path / "results.json"

    def first_alone(task, *arguments):
        if task.name == "gaussian_mixture":
            raise KeyboardInterrupt
        return fitted(task, *arguments)

    monkeypatch.setattr(library, "_fitted", first_alone)
    result = openedm(
        *["inference", "benchmark", "--task=two_moons,gaussian_mixture", "--simulations=200", "--num_samples=30", TINY],
        *["--first=1", f"--observations={observations}", f"--out={out}"],
    )
    assert result.status == 130
    (row,) = json.loads(out.read_text())["tasks"]
    assert len(row["c2st"]) == 1
    assert row["c2st_sd"] is None
    assert "two_moons" in result.out.splitlines()[-1]


def test_benchmark_refuses_before_it_works(openedm, observations, tmp_path, monkeypatch):
    def run(*arguments):
        return openedm("inference", "benchmark", *arguments)

    here = f"--observations={observations}"
    monkeypatch.setenv("OPENEDM_GOLDEN", str(tmp_path / "none"))
    refuses(run("--task=two_moons"), "observations must be a folder with the observations and reference samples")
    refuses(run("--task=slcp", here), "folder must hold slcp.npz")
    refuses(run("--task=slpc", here), "task must be one of")
    refuses(run("--task=two_moons", here), "num_samples must be <= 60, the reference's, got 10000")
    refuses(run("--task=two_moons", here, "--num_samples=20", "--calibration=5"), "calibration must be >= 20, got 5")
    refuses(run("--task=two_moons", here, "--num_samples=20", "--settings.images=0"), "images must be >= 1, got 0")
    refuses(run("--task=two_moons", here, "--out=results.txt"), "out must end in .json")
    (tmp_path / "two_moons").mkdir()
    refuses(run("--task=two_moons", here, "--num_samples=20", f"--posteriors={tmp_path}"), "is never overwritten")


def test_benchmark_finds_the_observations_by_the_environment(observations, monkeypatch):
    monkeypatch.setenv("OPENEDM_GOLDEN", str(observations.parent))
    with pytest.raises(ValueError, match="observations must be a folder"):
        library.reference_folder()
    observations.rename(observations.parent / "sbibm")
    assert library.reference_folder() == observations.parent / "sbibm"


def test_tables_line_up():
    assert table(["a", "bb"], [["ccc", "d"], ["e", "ffff"]]) == "a      bb\nccc     d\ne    ffff"


def test_json_holds_no_numbers_that_it_cannot():
    assert replace_nonfinite({"a": [float("nan"), 1.0], "b": (float("inf"), "c")}) == {
        "a": [None, 1.0],
        "b": [None, "c"],
    }
