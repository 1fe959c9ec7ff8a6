"""`openedm sample` chooses the sampler from a budget, keeps fitted levels, and refuses options without effect."""

import json

import numpy as np
import pytest
import torch

from openedm.ground.choices import brief, from_config
from openedm.levels import Karras
from openedm.sampling import Ancestral, Auto, BrownianNoise, Multistep, Sampler
from openedm.training import find_checkpoint, load_denoiser


def drawn(path):
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file["samples"])


def test_a_budget_is_spent_by_the_automatic_sampler_which_says_what_it_picked(openedm, toy_run, tmp_path):
    out = tmp_path / "a.npz"
    result = openedm("sample", toy_run, out, "--format=npz", "--seeds=0-9", "--nfe=9")
    assert result.status == 0
    denoiser = load_denoiser(toy_run, "ema")
    sampler = Auto(9).choose(denoiser)
    assert result.out == f"sampler: {brief(sampler)}\ndrew 10 samples with 9 network evaluations each: {out}\n"
    torch.testing.assert_close(drawn(out), sampler.sample(denoiser, range(10)).float(), rtol=1e-5, atol=1e-5)


def test_the_range_of_the_automatic_sampler_can_be_set(openedm, toy_run, tmp_path):
    out = tmp_path / "a.npz"
    options = ["--format=npz", "--seeds=0-3", "--nfe=9", "--sigma_min=0.01", "--sigma_max=10"]
    assert openedm("sample", toy_run, out, *options).status == 0
    denoiser = load_denoiser(toy_run, "ema")
    expected = Auto(9, sigma_min=0.01, sigma_max=10.0).sample(denoiser, range(4)).float()
    torch.testing.assert_close(drawn(out), expected, rtol=1e-5, atol=1e-5)


def test_without_options_the_automatic_sampler_draws_and_with_nfe_null_edms(openedm, toy_run, tmp_path):
    assert "with 32 network evaluations" in openedm("sample", toy_run, tmp_path / "a.npz", "--format=npz").out
    edm = openedm("sample", toy_run, tmp_path / "b.npz", "--format=npz", "--nfe=null")
    assert edm.out == f"drew 64 samples with 35 network evaluations each: {tmp_path / 'b.npz'}\n"


@pytest.mark.parametrize("option", ["--sampler.solver=Heun", "--sampler.levels.num_steps=18"])
def test_sampler_options_count_although_they_are_the_defaults(openedm, toy_run, tmp_path, option):
    result = openedm("sample", toy_run, tmp_path / "a.npz", "--format=npz", "--seeds=0-3", option)
    assert result.out == f"drew 4 samples with 35 network evaluations each: {tmp_path / 'a.npz'}\n"


def test_noise_that_has_no_effect_is_refused_before_levels_are_fitted(openedm, toy_run, tmp_path):
    before = set((find_checkpoint(toy_run) / "fitted").glob("*"))
    result = openedm(
        "sample", toy_run, tmp_path / "a.npz", "--format=npz", "--nfe=5", "--levels=fitted", "--noise=path"
    )
    assert "noise='path' has no effect" in result.err
    assert set((find_checkpoint(toy_run) / "fitted").glob("*")) == before


def test_levels_are_fitted_once_and_kept_beside_the_checkpoint(openedm, toy_run, tmp_path, quick_fits):
    arguments = ["--format=npz", "--seeds=0-9", "--nfe=6", "--levels=fitted"]
    first = openedm("sample", toy_run, tmp_path / "a.npz", *arguments)
    assert first.status == 0
    (kept,) = (find_checkpoint(toy_run) / "fitted").glob("*.json")
    found = json.loads(kept.read_text())
    assert found["error"] < found["error_before"]
    sampler = from_config(Sampler, found["fitted"])
    assert sampler.nfe == 6
    assert f"kept in {kept}" in first.out
    assert brief(sampler) in first.out
    stamp = kept.stat().st_mtime_ns
    again = openedm("sample", toy_run, tmp_path / "b.npz", *arguments)
    assert f"sampler, fitted before ({kept}): {brief(sampler)}" in again.out
    assert kept.stat().st_mtime_ns == stamp
    assert torch.equal(drawn(tmp_path / "a.npz"), drawn(tmp_path / "b.npz"))
    other = openedm("sample", toy_run, tmp_path / "c.npz", *arguments, "--weights=raw")
    assert "fitted before" not in other.out
    assert len(list(kept.parent.iterdir())) == 2


def test_a_solver_is_learned_once_kept_and_used_again_from_its_file(openedm, toy_run, tmp_path, quick_fits):
    arguments = ["--format=npz", "--seeds=0-9"]
    first = openedm("sample", toy_run, tmp_path / "a.npz", *arguments, "--nfe=3", "--levels=learned")
    assert first.status == 0, first.err
    (kept,) = (find_checkpoint(toy_run) / "fitted").glob("learned-3-*.json")
    found = json.loads(kept.read_text())
    assert found["error"] < found["error_before"]
    assert found["largest"] <= found["largest_before"]
    assert f"kept in {kept}" in first.out
    again = openedm("sample", toy_run, tmp_path / "b.npz", *arguments, "--nfe=3", "--levels=learned")
    assert f"sampler, learned before ({kept}): Sampler(" in again.out
    copy = tmp_path / "three.json"
    copy.write_bytes(kept.read_bytes())
    replayed = openedm("sample", toy_run, tmp_path / "c.npz", *arguments, f"--solver_file={copy}")
    assert "with 3 network evaluations" in replayed.out, replayed.err
    assert torch.equal(drawn(tmp_path / "a.npz"), drawn(tmp_path / "b.npz"))
    assert torch.equal(drawn(tmp_path / "a.npz"), drawn(tmp_path / "c.npz"))
    for options, message in (
        (["--nfe=4"], "nfe must be 3, the number of evaluations that"),
        (["--sigma_max=10"], "sigma_max must be"),
        (["--weights=raw"], "is for others, which differ in weights"),
        (["--levels=fitted"], "solver_file is a sampler of its own"),
    ):
        refused = openedm("sample", toy_run, tmp_path / "d.npz", *arguments, f"--solver_file={copy}", *options)
        assert refused.status == 1
        assert message in refused.err


def test_levels_can_be_fitted_to_a_sampler_that_is_described(openedm, digits_run, tmp_path, quick_fits):
    solver = ["--sampler.solver=Multistep", "--sampler.solver.predictor=2", "--sampler.levels.num_steps=4"]
    result = openedm(
        "sample", digits_run, tmp_path / "a.npz", "--format=npz", "--seeds=0-3", "--levels=fitted", *solver
    )
    assert result.status == 0
    assert f"solver={brief(Multistep(predictor=2))}" in result.out
    assert "drew 4 samples with 4 network evaluations" in result.out


def test_a_stochastic_sampler_can_follow_a_path(openedm, toy_run, tmp_path):
    options = ["--format=npz", "--seeds=0-5", "--sampler.solver=Ancestral", "--sampler.levels.num_steps=8"]
    assert openedm("sample", toy_run, tmp_path / "a.npz", *options, "--noise=path").status == 0
    sampler = Sampler(Karras(8), solver=Ancestral())
    expected = sampler.sample(load_denoiser(toy_run, "ema"), BrownianNoise(range(6))).float()
    torch.testing.assert_close(drawn(tmp_path / "a.npz"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nfe=2"], "nfe must be >= 3 for a denoiser, got 2"),
        (["--nfe=9", "--sampler.solver=Euler"], "nfe and sampler options are mutually exclusive"),
        (["--nfe=32", "--sampler.solver=Euler"], "nfe and sampler options are mutually exclusive"),
        (["--nfe=9", "--sampler.solver=Heun"], "got --nfe 9 and --sampler.solver Heun"),  # the default itself
        (["--nfe=9", '--sampler={"solver": "Heun"}'], "nfe and sampler options are mutually exclusive, got --nfe 9"),
        (["--tolerance=1e-3", "--sampler.levels.rho=7"], "got --tolerance 1e-3 and --sampler.levels.rho 7"),
        (["--tolerance=1e-3", "--nfe=9"], "tolerance and nfe are mutually exclusive"),
        (["--tolerance=1e-3", "--nfe=32"], "tolerance and nfe are mutually exclusive"),
        (["--tolerance=1e-3", "--sampler.solver=Euler"], "tolerance and sampler options are mutually exclusive"),
        (["--tolerance=1e-3", "--levels=fitted"], "levels='fitted' requires nfe or a sampler on fixed levels"),
        (["--tolerance=1e-3", "--levels=learned"], "levels='learned' requires nfe or a sampler on fixed levels"),
        (["--levels=learned"], "levels='learned' requires an nfe from 3 to 20, got 32"),
        (["--sigma_max=8", "--sampler.solver=Euler"], "sigma_min and sigma_max require nfe or tolerance"),
        (["--tolerance=0"], "tolerance must be finite and > 0, got 0.0"),
        (["--noise=path"], "noise='path' has no effect"),
        (["--noise=path", "--sampler.solver=Restart"], "noise='path' has no effect"),
        (["--levels=fitted", "--sampler.solver=Ancestral"], "solver must be deterministic and on fixed levels"),
    ],
)
def test_options_that_cannot_take_effect_are_refused(openedm, toy_run, tmp_path, options, message):
    result = openedm("sample", toy_run, tmp_path / "out.npz", "--format=npz", *options)
    assert result.status == 1
    assert message in result.err
    assert not list(tmp_path.iterdir())


def test_a_wrong_number_inside_a_chosen_class_is_named_in_words(openedm, toy_run, tmp_path):
    result = openedm("sample", toy_run, tmp_path / "a.npz", "--sampler.levels=VE", "--sampler.levels.num_steps=few")
    assert "num_steps must be an integer, got few" in result.err
    result = openedm("sample", toy_run, tmp_path / "a.npz", "--sampler.levels.sigma_max=high")
    assert "sigma_max must be a number or null, got high" in result.err
