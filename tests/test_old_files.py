"""Files that version 0.1 wrote are read, and give the numbers that they gave (`written_by_0_1/README.md`)."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import openedm.guidance  # noqa: F401  # Its choices are known once it is imported.
from marks import FAR_APART
from openedm.cli.main import main
from openedm.data import Arrays, Shards, align_classes
from openedm.denoiser import Denoiser, FunctionDenoiser
from openedm.exact import GaussianMixture
from openedm.ground.choices import Choice, from_config
from openedm.inference import Box, Joint, MixtureOptions, Settings, Store, load, simulate  # noqa: F401  # likewise
from openedm.interop import read_published
from openedm.metrics import Classifier, Report
from openedm.training import Model, list_checkpoints, load_denoiser, reconstruct

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

OLD = Path(__file__).parent / "written_by_0_1"
FLOAT32 = 1e-5
"""Of the largest number: float32 sums in another order on another CPU. On the CPU that wrote them all bits agree."""

TRAINED = 1e-3
"""The same after some steps of training, or of a sampler around a network."""

Numbers = dict[str, np.ndarray]


def expected(name: str, part: str = "") -> Numbers:
    """What version 0.1 gave: the arrays of NAME.npz whose names start with `part/`, without it."""
    with np.load(OLD / f"{name}.npz") as file:
        start = f"{part}/" if part else ""
        return {key.removeprefix(start): file[key] for key in file.files if key.startswith(start)}


def assert_close(found: Tensor | np.ndarray, wanted: np.ndarray, tolerance: float = FLOAT32) -> None:
    """The same shape, and no difference above `tolerance` times the largest number."""
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(float(abs(wanted).max()), 1e-30))


def assert_denoises(denoiser: Denoiser, wanted: Numbers, tolerance: float = FLOAT32) -> None:
    """D(x; σ) at three noise levels is what it was."""
    x = torch.from_numpy(wanted["x"])
    condition = torch.from_numpy(wanted["condition"]) if "condition" in wanted else None
    for sigma in (0.05, 0.5, 5.0):
        assert_close(denoiser(x, sigma, condition), wanted[f"denoised-{sigma}"], tolerance)


def command(*arguments: object) -> str:
    """Run a command that must succeed; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main([str(argument) for argument in arguments])
    assert status == 0, out.getvalue()
    return out.getvalue()


def shaken(module: nn.Module) -> None:
    """Move every parameter, in the order of their names, as the script that wrote the files did."""
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
            generator = torch.Generator().manual_seed(100 + i)
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (-0.2 + 0.4 * noise).to(parameter)


def plane() -> GaussianMixture:
    """The mixture that `samplers.npz` holds samples of."""
    means = [[1.0, 0.2], [-0.6, 0.9], [-0.8, -0.7], [0.5, -1.1], [0.1, 0.1]]
    covariances = [
        [[0.02, 0.01], [0.01, 0.03]],
        [[0.05, 0.0], [0.0, 0.001]],
        [[0.01, -0.005], [-0.005, 0.02]],
        [[0.002, 0.0], [0.0, 0.002]],
        [[0.1, 0.06], [0.06, 0.1]],
    ]
    return GaussianMixture([0.3, 0.25, 0.2, 0.15, 0.1], means, covariances)


# Runs and checkpoints.


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("checkpoint", ["000000000080", "000000000160"])
def test_checkpoints_of_a_run_denoise_as_they_did(checkpoint, weights):
    denoiser = load_denoiser(OLD / "trained" / "digits" / "checkpoints" / checkpoint, weights)
    assert_denoises(denoiser, expected("trained/digits", f"{checkpoint}/{weights}"))


def test_the_best_weights_of_a_run_denoise_as_they_did():
    assert_denoises(load_denoiser(OLD / "trained" / "toy"), expected("trained/toy"))


def test_an_average_of_another_width_is_rebuilt_from_a_run():
    wanted = expected("trained/digits", "reconstructed")
    found = reconstruct(OLD / "trained" / "digits", 0.08)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert_close(value, wanted[name])


def test_a_run_goes_on_with_its_own_configuration_as_it_did(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "trained" / "digits", run)
    command("train", run, "--config", run / "config.yaml", "--resume=true", "--options.images=240")
    assert_denoises(load_denoiser(run), expected("trained/digits", "resumed"), TRAINED)
    assert_denoises(load_denoiser(run, "raw"), expected("trained/digits", "resumed-raw"), TRAINED)


def test_a_run_with_the_best_weights_kept_goes_on_as_it_did(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "trained" / "toy", run)
    shutil.rmtree(list_checkpoints(run)[-1])
    command("train", run, "--config", run / "config.yaml", "--resume=true")
    assert_denoises(load_denoiser(run), expected("trained/toy", "resumed"), TRAINED)


@pytest.mark.parametrize("name", sorted(path.name for path in (OLD / "checkpoints").iterdir()))
def test_a_checkpoint_of_each_kind_denoises_as_it_did(name):
    denoiser, wanted = load_denoiser(OLD / "checkpoints" / name), expected("checkpoints", name)
    np.testing.assert_allclose([denoiser.sigma_min, denoiser.sigma_max], wanted["range"], rtol=1e-12)
    assert_denoises(denoiser, wanted)


def test_a_described_network_is_built_with_the_same_weights():
    model = from_config(Model, json.loads((OLD / "models.json").read_text())["adm"])
    denoiser = model.build(3).eval()
    shaken(denoiser.network)
    assert_denoises(denoiser, expected("models", "adm"))


@pytest.mark.parametrize("name", ["songunet-edm", "ncsnpp-ve"])
def test_published_files_denoise_as_they_did(name):
    denoiser = read_published(OLD / "published" / f"{name}.safetensors").denoiser()
    assert_denoises(denoiser, expected("published", name))


# Choices and configurations.


@pytest.mark.filterwarnings("ignore:max_nfe=40 ended the adaptive steps of 1 of 2 samples early")
@FAR_APART
def test_samplers_are_read_from_plain_data_and_draw_what_they_did(without_type_checker):
    wanted = expected("samplers")["samples"]
    for config, samples in zip(json.loads((OLD / "samplers.json").read_text()), wanted, strict=True):
        sampler: Any = from_config(Choice, config)
        # Exact denoisers are now started from their mean, other functions from the one that is given.
        exact = plane()
        denoiser = FunctionDenoiser(exact, (2,), sigma_data=exact.sigma_data, mean=0.0)
        # The first sample needs more than 40 evaluations: it was denoised half way, and is now taken to the end.
        kept = slice(1, None) if '"max_nfe": 40' in json.dumps(config) else slice(None)
        assert_close(sampler.sample(denoiser, (0, 1))[kept], samples[kept], 1e-9)


@pytest.mark.parametrize("config", json.loads((OLD / "choices.json").read_text()), ids=lambda c: c["class_path"])
def test_every_choice_is_read_from_plain_data(config):
    assert isinstance(from_config(Choice, config), Choice)


@FAR_APART
@pytest.mark.parametrize("path", sorted((OLD / "configs").glob("sample-*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_of_a_sampler_draws_what_it_did(path, tmp_path, without_type_checker):
    out = tmp_path / "samples.npz"
    command("sample", OLD / "trained" / "toy", out, "--config", path, "--seeds=0-1", "--format=npz")
    with np.load(out) as file:
        assert_close(file["samples"], expected("configs")[path.stem], TRAINED)


@pytest.mark.parametrize("path", sorted((OLD / "configs").glob("train-*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_of_a_run_trains_what_it_did(path, tmp_path):
    # It has no option that standardises the data, as runs have done since.
    command("train", tmp_path / "run", "--config", path, "--standardise=false")
    assert_denoises(load_denoiser(tmp_path / "run"), expected("configs", path.stem), TRAINED)


def test_fitted_levels_are_read_and_draw_what_they_did():
    checkpoint = list_checkpoints(OLD / "trained" / "toy")[-1]
    (file,) = (checkpoint / "fitted").glob("*.json")
    sampler: Any = from_config(Choice, json.loads(file.read_text())["fitted"])
    samples = sampler.sample(load_denoiser(checkpoint), range(4))
    assert_close(samples, expected("trained/toy")["fitted"], TRAINED)


def test_a_folder_of_samples_is_added_to(tmp_path):
    out = tmp_path / "samples"
    shutil.copytree(OLD / "samples", out)
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    command("sample", OLD / "trained" / "digits", out, "--seeds=0-3", "--nfe=5", "--classes=0-2")
    after = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert len(before) == 3
    assert after.keys() - before.keys() == {"000003.png"}
    assert {name: after[name] for name in before} == before


# Inference.


@pytest.mark.parametrize("name", ["emulator", "refined", "reduced", "simulations", "torch-prior", "series"])
def test_a_posterior_draws_what_it_did(name):
    posterior, wanted = load(OLD / "posteriors" / name), expected("posteriors", name)
    x = torch.from_numpy(wanted["x"])
    assert_close(posterior.sample(x, 20, seed=0), wanted["samples"], TRAINED)
    theta = torch.from_numpy(wanted["samples"])[:, :4]
    assert_close(posterior.log_prob(theta, x), wanted["log_prob"], TRAINED)
    assert posterior.refined == (name == "refined")


def test_a_joint_distribution_draws_what_it_did():
    joint, wanted = Joint.load(OLD / "posteriors" / "joint"), expected("posteriors", "joint")
    x = torch.from_numpy(wanted["x"])
    assert_close(joint.posterior().sample(x, 20, seed=0), wanted["samples"], TRAINED)
    theta = torch.from_numpy(wanted["samples"])[:, :4]
    assert_close(joint.posterior().log_prob(theta, x), wanted["log_prob"], TRAINED)
    drawn = joint.likelihood().sample(torch.from_numpy(wanted["theta"]), 5, seed=0)
    assert_close(drawn, wanted["likelihood"], TRAINED)


def simulator(theta: Tensor) -> Tensor:
    """The simulator of the store, which fails for some θ."""
    if theta[0] > 0.8:
        raise ValueError("too large")
    return torch.stack([theta[0] + theta[1], theta[0] * theta[1]])


def test_a_store_of_simulations_is_read():
    store, wanted = Store(OLD / "store"), expected("store")
    simulations = store.load()
    np.testing.assert_array_equal(np.asarray(simulations.theta), wanted["theta"])
    np.testing.assert_array_equal(np.asarray(simulations.x), wanted["x"])
    assert [failure.index for failure in store.failures()] == wanted["failed"].tolist()


def test_a_store_of_simulations_is_added_to(tmp_path):
    shutil.copytree(OLD / "store", tmp_path / "store")
    prior = Box([-1.0, 0.0], [1.0, 3.0])
    more = simulate(simulator, prior, 20, seed=4, workers=1, store=tmp_path / "store")
    fresh = simulate(simulator, prior, 20, seed=4, workers=1)
    wanted = expected("store")
    np.testing.assert_array_equal(np.asarray(more.theta)[: len(wanted["theta"])], wanted["theta"])
    np.testing.assert_array_equal(np.asarray(more.theta), np.asarray(fresh.theta))
    np.testing.assert_array_equal(np.asarray(more.x), np.asarray(fresh.x))


# Data and metrics.


@pytest.mark.parametrize("name", ["shards", "arrays"])
def test_images_are_read_with_their_classes(name):
    source = Shards(str(OLD / "data" / "shards")) if name == "shards" else Arrays(str(OLD / "data" / "arrays.npz"))
    dataset = source.load()
    if (
        name == "arrays"
    ):  # labels that skip numbers: renumbered, but not for a model that an old run trained on 8 classes
        assert dataset.class_names == ("0", "1", "2", "4", "6", "7")
        dataset = align_classes(dataset, 8)
    x, labels = dataset.fetch(torch.arange(6))
    wanted = expected("data")
    np.testing.assert_array_equal(x.numpy(), wanted[name])
    np.testing.assert_array_equal(labels.numpy(), wanted[f"{name}_labels"])


def test_a_classifier_sees_what_it_did():
    classifier = Classifier.load(OLD / "metrics" / "classifier.safetensors")
    x = torch.from_numpy(expected("data")["images"])
    wanted = expected("metrics")
    assert_close(classifier.features(x), wanted["features"])
    assert_close(classifier(x), wanted["logits"])


def test_a_report_is_read_with_all_of_its_numbers():
    content = json.loads((OLD / "metrics" / "report.json").read_text())
    report = Report.from_dict(content)
    assert report.table()
    now = json.loads(json.dumps(report.to_dict()))
    assert {name: now[name] for name in content} == content
