"""`openedm distill`, and what other commands do with its runs."""

import json

import numpy as np
import pytest

QUIET = ["--options.validate_every=0", "--options.snapshot_every=0", "--tracker=none"]
SIZES = ["--options.images=256", "--options.batch_size=64", "--options.rampup=0", "--options.checkpoint_every=128"]


@pytest.fixture(scope="module")
def distilled(openedm, toy_run, tmp_path_factory):
    """The toy run as a consistency model, after 4 steps; its data are those of the run."""
    out = tmp_path_factory.mktemp("distilled") / "run"
    done = openedm("distill", toy_run, out, *SIZES, "--options.validate_every=128", "--options.snapshot_every=256")
    assert done.status == 0, done.err
    assert "init     " in done.out
    return out


def test_a_sample_takes_two_evaluations_unless_another_number_is_given(openedm, distilled, tmp_path):
    assert "with 2 network evaluations" in openedm("sample", distilled, tmp_path / "2.npz", "--seeds=0-7").out
    assert "with 1 network evaluations" in openedm("sample", distilled, tmp_path / "1.npz", "--seeds=5", "--nfe=1").out
    levels = ["--sampler.levels=Explicit", "--sampler.levels.values=[80,0.8]"]
    solver = "--sampler.solver=MultistepConsistency"
    assert openedm("sample", distilled, tmp_path / "levels.npz", "--seeds=5", solver, *levels).status == 0
    two, one = (np.load(tmp_path / f"{name}.npz")["samples"] for name in ("2", "levels"))
    np.testing.assert_allclose(two[5], one[0])  # the same levels, and its own seed


def test_info_says_what_it_is(openedm, distilled, toy_run):
    assert "consistency model" in openedm("info", distilled).out
    assert "ConsistencyTuning(" in openedm("info", distilled).out
    assert "consistency" not in openedm("info", toy_run).out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler.solver=Heun"], "solver must be MultistepConsistency for a consistency function"),
        (["--tolerance=0.1"], "tolerance must be None for a consistency function, got 0.1"),
        (["--levels=fitted"], "levels must be 'rule' for a consistency function"),
    ],
)
def test_samplers_of_denoisers_are_refused(openedm, distilled, tmp_path, options, message):
    failed = openedm("sample", distilled, tmp_path / "x.npz", *options)
    assert failed.status == 1
    assert message in failed.err


def test_a_denoiser_is_refused_by_samplers_of_consistency_functions(openedm, toy_run, tmp_path):
    failed = openedm("sample", toy_run, tmp_path / "x.npz", "--nfe=2")
    assert "nfe must be >= 3 for a denoiser, got 2: openedm distill makes a model" in failed.err
    failed = openedm("sample", toy_run, tmp_path / "x.npz", "--sampler.solver=MultistepConsistency")
    assert "which is for consistency functions" in failed.err


def test_a_comparison_is_refused_before_samples_are_drawn(openedm, distilled, toy_run):
    failed = openedm("compare", distilled, toy_run, "--num=8", "--data=Toy", "--vary=nfe=1,2")
    assert (failed.status, "samples" in failed.out) == (1, False)
    assert "nfe must be >= 3 for a denoiser, got 1" in failed.err


def test_a_consistency_model_has_no_likelihood(openedm, distilled):
    assert "which has no score and follows no ODE" in openedm("likelihood", distilled, "--num=2").err


def test_it_is_not_written_where_its_kind_would_be_lost_and_the_hub_is_told(openedm, distilled, tmp_path):
    assert "got a consistency function" in openedm("convert", distilled, tmp_path / "x.safetensors").err
    assert openedm("push", distilled, "someone/fast", "--out", tmp_path / "hub").status == 0
    assert "Consistency(nfe=2)" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")


def test_a_consistency_model_is_no_teacher_and_nothing_is_written(openedm, distilled, tmp_path):
    result = openedm("distill", distilled, tmp_path / "again", *SIZES, *QUIET)
    assert (result.status, result.out) == (1, "")
    assert "init must be a denoiser with pairs='teacher', got a consistency function from" in result.err
    assert not any(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_with_its_options_and_without_its_teacher(openedm, distilled, toy_run, tmp_path):
    straight = json.loads((distilled / "checkpoints" / "000000000256" / "training.json").read_text())
    assert straight["init"]["origin"].startswith(str(toy_run))
    again = openedm("distill", toy_run, distilled, "--resume=true")
    assert "trained on 256 images" in again.out
    assert "already has a run: pass --resume true" in openedm("distill", toy_run, distilled).err


def test_a_teacher_with_classes_guides_and_has_another_dropout(openedm, digits_run, tmp_path):
    failed = openedm("distill", digits_run, tmp_path / "run", *SIZES, *QUIET, "--objective.guidance=2")
    assert "objective.guidance requires a teacher that was trained with label_dropout" in failed.err
    done = openedm("distill", digits_run, tmp_path / "run", *SIZES, *QUIET, "--dropout=0.2")
    assert done.status == 0, done.err
    assert "dropout=0.2" in openedm("info", tmp_path / "run").out


def test_train_takes_the_objective_and_draws_its_grids_with_two_evaluations(openedm, tmp_path):
    small = ["--data=Toy", "--data.num_samples=64", "--network=MLP", "--network.width=16", "--network.num_blocks=1"]
    run = ["train", tmp_path / "run", *small, *SIZES, "--objective=ConsistencyTuning", "--tracker=none"]
    assert openedm(*run, "--options.snapshot_every=256", "--options.validate_every=0").status == 0
    wrong = openedm("train", tmp_path / "other", *small, *SIZES, "--sampler.solver=MultistepConsistency")
    assert "sampler.solver must be a solver for denoisers with EDM, got MultistepConsistency" in wrong.err
