import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from openedm.data import Digits, LatentPairs, Toy
from openedm.ground.choices import to_config
from openedm.likelihood import ExactTrace, Hutchinson, Likelihood, bits_per_dim, dataset_log_prob
from openedm.metrics import Values, extract, image_batches
from openedm.sampling import DormandPrince
from openedm.training import find_checkpoint, load_denoiser

LOOSE = ["--method.solver=DormandPrince", "--method.solver.tolerance=0.1"]
TOY = ["--data=Toy", "--data.num_samples=300", "--num=20", *LOOSE]
PROBES = ["--method.trace=Hutchinson", "--method.trace.num_probes=2"]
METHOD = Likelihood(Hutchinson(2), DormandPrince(0.1))


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_log_likelihoods_of_vectors_are_those_of_the_library_and_are_summed_up(openedm, toy_run, tmp_path, suffix):
    out = tmp_path / "deep" / f"numbers{suffix}"
    result = openedm("likelihood", toy_run, *TOY, "--batch_size=7", f"--out={out}")
    assert (result.status, result.err.count("Traceback")) == (0, 0)
    if suffix == ".json":
        written = json.loads(out.read_text())
        table, method = {k: np.array(v, dtype=float) for k, v in written["samples"].items()}, written["method"]
    else:
        with np.load(out, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files if name != "settings"}
            method = json.loads(str(file["settings"]))["method"]
    assert method == json.loads(json.dumps(to_config(Likelihood(solver=DormandPrince(0.1)))))
    assert set(table) == {"index", "log_prob", "standard_error", "nfe"}
    assert len(set(table["index"])) == 20
    x, _ = Toy(num_samples=300).load().fetch(table["index"].astype(int).tolist())
    expected = Likelihood(solver=DormandPrince(0.1)).log_prob(load_denoiser(toy_run), x)
    np.testing.assert_allclose(table["log_prob"], expected.log_prob, rtol=1e-4)
    np.testing.assert_allclose(table["nfe"], expected.nfe)
    error = table["log_prob"].std(ddof=1) / math.sqrt(20)
    assert f"log-likelihood  {table['log_prob'].mean():.5g} ± {error:.2g} nats\n" in result.out
    assert "samples         20 of 300 vectors of 2 in 2 classes\n" in result.out
    assert f"evaluations     {table['nfe'].mean():.0f} a sample, at most {table['nfe'].max():.0f}; " in result.out
    assert f"{ExactTrace()}\nnumbers of every sample: {out}\n" in result.out
    assert "bits" not in result.out


def test_images_have_bits_per_dimension_and_are_told_their_classes(openedm, digits_run, tmp_path):
    out = tmp_path / "bits.npz"
    arguments = ["--num=4", "--draws=2", "--seed=3", *PROBES, *LOOSE]
    result = openedm("likelihood", digits_run, *arguments, f"--out={out}")
    assert result.status == 0
    with np.load(out, allow_pickle=False) as table:
        index, bits, errors = table["index"], table["bits_per_dim"], table["standard_error"]
        assert json.loads(str(table["settings"]))["num_values"] == 17
    x, labels = Digits().load().fetch(index.tolist())
    seeds = [3 * 1437 + int(i) for i in index]
    expected = bits_per_dim(
        load_denoiser(digits_run), x, labels, seeds=seeds, likelihood=METHOD, draws=2, num_values=17
    )
    np.testing.assert_allclose(bits, expected.bits_per_dim, rtol=1e-4)
    np.testing.assert_allclose(errors, expected.standard_error, rtol=1e-2)
    assert f"bits per dimension  {bits.mean():.5g} ± {bits.std(ddof=1) / 2:.2g}\n" in result.out
    untold = bits_per_dim(load_denoiser(digits_run), x, seeds=seeds, likelihood=METHOD, draws=2, num_values=17)
    assert not torch.equal(untold.bits_per_dim, expected.bits_per_dim)


def test_samples_that_used_up_their_evaluations_are_left_out_of_the_mean(openedm, toy_run, tmp_path):
    out = tmp_path / "numbers.json"
    result = openedm("likelihood", toy_run, *TOY, "--method.solver.max_nfe=10", f"--out={out}")
    assert result.status == 0
    assert "(without 20 that reached the limit of evaluations)" in result.out
    assert json.loads(out.read_text())["samples"]["log_prob"] == [None] * 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num=0"], "num must be >= 1, got 0"),
        (["--batch_size=0"], "batch_size must be >= 1, got 0"),
        (["--seed=-1"], "seed must be >= 0, got -1"),
        (["--draws=0"], "draws must be >= 1, got 0"),
        (["--num_values=0"], "num_values must be >= 2, got 0"),
        (["--importance=true"], "importance requires draws >= 2, got 1"),
        (["--out=a.txt"], "out must end in .json or .npz, got 'a.txt'"),
        (["--draws=2"], "draws, importance and num_values require images: other data are not dequantised"),
        (["--data=Digits"], "data must have the shape of the model's samples, (2,), got (1, 8, 8)"),
    ],
)
def test_what_does_not_fit_is_an_error_before_the_long_work(openedm, toy_run, given, message):
    result = openedm("likelihood", toy_run, "--data=Toy", *given)
    assert result.status == 1
    assert result.err == f"openedm likelihood: error: {message}\n"


def test_every_image_must_be_at_the_levels_of_dequantisation(openedm, digits_run, tmp_path):
    data = ["--data=Arrays", f"--data.path={tmp_path / 'x.npz'}", "--batch_size=2", *PROBES, *LOOSE]
    labels = np.arange(6)
    bytes = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8)).astype(np.float32)
    x = bytes / 127.5 - 1
    x[4, 0, 2, 2] = 0.123
    np.savez(tmp_path / "x.npz", x=x, labels=labels)
    options = ["--data.num_classes=10", "--data.range", "-1", "1"]
    result = openedm("likelihood", digits_run, *data, *options, "--num_values=256")
    assert result.status == 1
    assert "require images at whole levels, but image 4 is not at 256 levels of [-1, 1]" in result.err
    result = openedm("likelihood", digits_run, *data, *options)
    assert result.status == 0, result.err
    assert "image 4 is not at 256 levels of [-1, 1]: the density of the images is computed" in result.out
    assert "bits per dimension  " not in result.out


def test_importance_needs_an_exact_trace(openedm, digits_run):
    result = openedm("likelihood", digits_run, "--importance=true", "--draws=2")
    assert result.status == 1
    assert "importance requires an exact trace, got Hutchinson(num_probes=8, distribution='rademacher')" in result.err


def test_numbers_are_never_overwritten(openedm, toy_run, tmp_path):
    out = tmp_path / "numbers.json"
    out.write_text("mine")
    result = openedm("likelihood", toy_run, *TOY, f"--out={out}")
    assert result.status == 1
    assert "exists already: a file is never overwritten" in result.err
    assert out.read_text() == "mine"


def test_a_model_that_never_saw_samples_without_class_needs_the_classes(openedm, digits_run, tmp_path):
    x = Digits("test").load().fetch(range(6))[0].numpy()
    np.savez(tmp_path / "x.npz", x=x)
    data = ["--data", tmp_path / "x.npz", "--num=2", *PROBES, *LOOSE]
    result = openedm("likelihood", digits_run, *data)
    assert result.status == 1
    assert "data must have the 10 classes of the model, which was trained with label_dropout 0" in result.err
    folder = tmp_path / "converted"  # of which it is not known
    shutil.copytree(find_checkpoint(digits_run), folder, ignore=shutil.ignore_patterns("training*"))
    result = openedm("likelihood", folder, *data)
    assert result.status == 0, result.err
    assert "the data have no classes: their density is that of the model without a class" in result.out


def test_a_single_number_has_no_error_and_data_in_other_units_are_a_warning(openedm, toy_run, digits_run, tmp_path):
    result = openedm("likelihood", toy_run, "--data=Toy", "--data.num_samples=300", "--num=1", *LOOSE)
    assert re.search(r"log-likelihood  -?[\d.]+ nats\n", result.out)
    result = openedm("likelihood", toy_run, "--data=Toy", "--num=1", "--seed=99999999999999999999")
    assert "seed must be between 0 and" in result.err
    x, labels = Digits("test").load().fetch(range(6))
    np.savez(tmp_path / "x.npz", x=(x + 1).numpy() * 7.3, labels=labels.numpy())
    with pytest.warns(UserWarning, match=r"data are not images in \[-1, 1\], as those of the model"):
        openedm("likelihood", digits_run, "--data", tmp_path / "x.npz", "--data.num_classes=10", "--num=1", *LOOSE)
    np.save(tmp_path / "y.npy", Toy(num_samples=20).load().fetch(range(20))[0].numpy() + 273.15)
    with pytest.warns(UserWarning, match="data seems to be in other units than the data of the model: channel 0 is 27"):
        openedm("likelihood", toy_run, "--data", tmp_path / "y.npy", "--num=1", *LOOSE)


def test_latents_are_drawn_with_the_seed_whatever_the_batch(toy_run):
    data = LatentPairs(torch.zeros(9, 2), torch.ones(9, 2))
    denoiser, chosen = load_denoiser(toy_run), torch.arange(6)
    whole, parts, other = (
        dataset_log_prob(denoiser, data, chosen, Likelihood(solver=DormandPrince(0.1)), batch_size=size, seed=seed)
        for size, seed in ((6, 0), (4, 0), (6, 1))
    )
    torch.testing.assert_close(whole["log_prob"], parts["log_prob"], rtol=0, atol=1e-4)
    assert float((whole["log_prob"] - other["log_prob"]).abs().min()) > 1e-3
    features = [extract(Values().fit(data), image_batches(data, 4)).values for _ in range(2)]
    assert torch.equal(*features)
