import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from openedm.ground.verifying import accept
from openedm.inference.composite import Independent
from openedm.inference.priors import Box, Normal
from openedm.inference.simulation import simulate
from openedm.inference.simulations import Store
from simulators import PRIOR, global_torch, own_seed, same

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "simulations")


def test_a_store_gives_what_memory_gives(path):
    stored = simulate(own_seed, PRIOR, 300, store=path)
    assert same(stored, simulate(own_seed, PRIOR, 300))
    assert same(stored, Store(path).load())


def test_a_store_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"store must be a folder, but .*file is a file"):
        Store(tmp_path / "file" / "store")


def test_stored_simulations_know_their_prior_and_its_names(path):
    named = Box(low=(-1.0, 0.0), high=(1.0, 5.0), names=("a", "b"))
    assert simulate(own_seed, named, 3, store=path).prior == named
    assert Store(path).load().prior == named
    assert Store(path).load().names == ("a", "b")
    manifest = Store(path).path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("inference.Box", "inference.MyBox"))
    with pytest.raises(ValueError, match=r"manifest.json was changed since it was written"):
        Store(path).load()
    accept(path)
    with pytest.warns(RuntimeWarning, match="the prior of store .* is not known: class_path 'openedm.inference.MyBox'"):
        assert Store(path).load().prior is None


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (2, 1, 4)])
def test_shapes_and_special_values_survive(path, shape):
    def simulator(theta):
        x = torch.arange(float(np.prod(shape))).reshape(shape) + theta[0]
        x.view(-1)[0] = float("nan")
        return x

    simulate(simulator, PRIOR, 5, store=path)
    found = Store(path).load()
    assert found.x.shape == (5, *shape)
    assert found.x.reshape(5, -1)[:, 0].isnan().all()
    assert torch.equal(found.x.nan_to_num(), simulate(simulator, PRIOR, 5).x.nan_to_num())


def test_more_simulations_later_keep_the_first_ones(path):
    calls = []

    def simulator(theta, seed):
        calls.append(seed)
        return own_seed(theta, seed)

    simulate(simulator, PRIOR, 40, store=path)
    files = {p: p.read_bytes() for p in Store(path).path.glob("part-*")}
    more = simulate(simulator, PRIOR, 1100, store=path)
    assert same(more, simulate(own_seed, PRIOR, 1100))
    assert len(calls) == len(set(calls)) == 1100
    assert all(p.read_bytes() == content for p, content in files.items())
    fewer = simulate(simulator, PRIOR, 7, store=path)
    assert same(fewer, simulate(own_seed, PRIOR, 7))
    assert len(calls) == 1100


def test_other_readers_read_the_files(path):
    found = simulate(own_seed, PRIOR, 10, store=path, batch_size=10)
    (part,) = Store(path).path.glob("part-*.parquet")
    table = parquet.read_table(part).to_pydict()
    assert table["index"] == list(range(10))
    assert table["seed"] == found.seeds.tolist()
    assert table["theta"] == found.theta.tolist()
    assert table["x"] == found.x.tolist()


def test_failures_are_stored_and_tried_again_on_request(path):
    broken = True

    def simulator(theta, seed):
        calls.append(seed)
        if broken and seed % 3 == 0:
            raise ValueError("licence server")
        return own_seed(theta, seed)

    calls: list[int] = []
    first = simulate(simulator, PRIOR, 30, store=path)
    assert len(first.failures) == 30 - len(first) > 0
    assert same(first, simulate(simulator, PRIOR, 30, store=path))
    assert len(calls) == 30
    again = simulate(simulator, PRIOR, 30, store=path, retry_failures=True)
    assert same(first, again)
    assert len(calls) == 30 + len(first.failures)
    broken = False
    assert same(simulate(simulator, PRIOR, 30, store=path, retry_failures=True), simulate(own_seed, PRIOR, 30))
    assert Store(path).failures() == ()


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"store '.*simulations' holds simulations with seed 0, got seed 1", {"seed": 1}),
        (r"of another prior: prior.low\[0\] is -1.0 there, got 0.0$", {"prior": Box(low=(0.0, 0.0), high=(1.0, 5.0))}),
        ("holds simulations of 2 parameters, but prior has 1", {"prior": Box(low=(0.0,), high=(1.0,))}),
        ("holds simulations of 'own_seed', got the simulator 'global_torch'", {"simulator": global_torch}),
    ],
)
def test_simulations_of_something_else_are_refused(path, message, arguments):
    simulate(own_seed, PRIOR, 3, store=path)
    given = {"simulator": own_seed, "prior": PRIOR, "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        simulate(given["simulator"], given["prior"], 5, seed=given["seed"], store=path)


WIDE = Box(low=(0.0,) * 60, high=(1.0,) * 60)


@pytest.mark.parametrize(
    ("stored", "given", "difference"),
    [
        (WIDE, replace(WIDE, high=(*WIDE.high[:-1], 2.0)), "prior.high[59] is 1.0 there, got 2.0"),
        (WIDE, replace(WIDE, low=(-1.0,) * 60), "prior.low[0] is 0.0 there, got -1.0 (and 59 more differ)"),
        (WIDE, Normal((0.0,) * 60, (1.0,) * 60), "prior is Box there, got Normal"),
        (
            Independent([Box((0.0,), (1.0,)), Normal((0.0,), (1.0,))]),
            Independent([Box((0.0,), (1.0,)), Normal((0.5,), (1.0,))]),
            "prior.parts[1].mean[0] is 0.0 there, got 0.5",
        ),
    ],
)
def test_another_prior_is_named_by_what_differs(path, stored, given, difference):
    simulate(total, stored, 1, store=path)
    with pytest.raises(ValueError, match=re.escape(f"holds simulations of another prior: {difference}") + "$"):
        simulate(total, given, 2, store=path)


def total(theta):
    return theta.sum()


def test_another_prior_without_a_form_is_named_by_its_draws(path):
    simulate(own_seed, Uniform(1.0), 1, store=path)
    with pytest.raises(
        ValueError, match=r"another prior: theta\[0\]\[0\] is 0\.\d+ there, got \d.\d+ \(and \d+ more d"
    ):
        simulate(own_seed, Uniform(3.0), 2, store=path)


class Uniform:
    """A prior of one's own.

    Args:
        high: the upper end.
    """

    def __init__(self, high):
        self.high = high

    def sample(self, shape):
        return self.high * torch.rand(*shape, 2)

    def log_prob(self, theta):
        return torch.zeros(theta.shape[:-1])


def test_results_of_another_shape_than_the_stores_fail(path):
    width = 2

    def simulator(theta):
        return [0.0] * width

    simulate(simulator, PRIOR, 3, store=path)
    width = 3
    found = simulate(simulator, PRIOR, 5, store=path)
    assert len(found) == 3
    assert found.failures[0].error == "ValueError: simulator must return shape (2,) as before, got (3,)"


def test_a_store_is_held_by_one_run_at_a_time(path):
    def simulator(theta):
        with pytest.raises(ValueError, match="is being written by this process already"):
            simulate(own_seed, PRIOR, 3, store=path)
        return theta

    simulator.__qualname__ = "own_seed"
    assert simulate(simulator, PRIOR, 2, store=path).failures == ()


def test_what_a_killed_run_left_half_written_is_ignored_and_removed(path):
    simulate(own_seed, PRIOR, 20, store=path)
    remains = Store(path).path / ".part-1.parquet.123.tmp"
    remains.write_bytes(b"PAR1 half")
    assert same(Store(path).load(), simulate(own_seed, PRIOR, 20))
    simulate(own_seed, PRIOR, 21, store=path)
    assert not remains.exists()


def test_a_damaged_file_is_told_and_its_simulations_are_done_again(path):
    simulate(own_seed, PRIOR, 20, store=path)
    simulate(own_seed, PRIOR, 40, store=path)
    first = min(Store(path).path.glob("part-*"))
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.warns(RuntimeWarning, match=r"part-.*parquet is damaged and is ignored"):
        found = simulate(own_seed, PRIOR, 40, store=path)
    assert same(found, simulate(own_seed, PRIOR, 40))


def test_an_interruption_saves_what_is_finished_and_is_passed_on(path):
    def simulator(theta, seed):
        calls.append(seed)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return own_seed(theta, seed)

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        simulate(simulator, PRIOR, 30, store=path, batch_size=5)
    assert Store(path).done().tolist() == list(range(12))
    assert same(simulate(simulator, PRIOR, 30, store=path), simulate(own_seed, PRIOR, 30))
    assert len(calls) == 31


def test_an_error_in_the_callers_progress_saves_what_is_finished(path):
    def progress(name, done, total, failed):
        if done >= 10:
            raise RuntimeError("window closed")

    with pytest.raises(RuntimeError, match="window closed"):
        simulate(own_seed, PRIOR, 30, store=path, batch_size=5, progress=progress)
    assert Store(path).done().tolist() == list(range(10))


SCRIPT = """
import sys, time
from openedm.inference import simulation

def slow(theta):
    import torch
    with open(sys.argv[2], "a") as log:
        log.write(" ".join(map(str, theta.tolist())) + "\\n")
    time.sleep(0.005)
    return theta + torch.randn(2)

simulation.SAVE_SECONDS = 0.05
simulation.simulate(slow, ((-1.0, 0.0), (1.0, 5.0)), 200, store=sys.argv[1], batch_size=4)
"""


def test_a_killed_run_resumes_without_losing_or_repeating_a_simulation(path, tmp_path):
    """Not one that is on the disk is done again; the files of the killed run are those of the end, and more."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), path, str(log)]
    run = subprocess.Popen(command)
    store = Store(path)
    while len(list(store.path.glob("part-*"))) < 3:
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    kept = store.done()
    assert 0 < len(kept) < 200
    before = log.read_text().splitlines()
    subprocess.run(command, check=True)
    again = log.read_text().splitlines()[len(before) :]
    whole = simulate(global_torch, PRIOR, 200)
    assert len(again) == 200 - len(kept)  # nothing that was kept is repeated
    on_disk = {" ".join(map(str, whole.theta[i].tolist())) for i in kept}
    assert not on_disk & set(again)
    assert same(store.load(), whole)  # nothing is lost, and all is as without the kill
    found = [parquet.read_table(p)["index"].to_pylist() for p in store.path.glob("part-*")]
    assert sorted(i for part in found for i in part) == list(range(200))


def test_paths_that_cannot_be_a_store_are_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match="store must be a folder, got the file"):
        Store(tmp_path / "file")
    with pytest.raises(ValueError, match="store must be a new folder or one of simulations"):
        Store(tmp_path)
    with pytest.raises(ValueError, match="has no simulations"):
        Store(tmp_path / "new").load()


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": "openedm-simulations-9"}), "{}"])
def test_a_manifest_of_another_format_is_refused(path, content):
    simulate(own_seed, PRIOR, 3, store=path)
    (Store(path).path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json is not a manifest of the format 'openedm-simulations-1'"):
        Store(path)


def test_without_pyarrow_the_store_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install openedm\[sbi\]"):
        Store(path)
    assert len(simulate(own_seed, PRIOR, 3)) == 3


@pytest.mark.parametrize("shape", [[5], [10**12], [1, 1]])
def test_a_manifest_that_does_not_fit_the_files_is_refused_before_there_is_room_for_them(shape, path):
    simulate(own_seed, PRIOR, 3, store=path)
    manifest = Store(path).path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"x_shape": shape}))
    accept(path)
    with pytest.raises(ValueError, match=r"numbers for theta and x, but its manifest \[\d, \d+\]"):
        Store(path).load()
