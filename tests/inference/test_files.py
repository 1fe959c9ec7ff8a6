import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import openedm
from fitted import TINY
from openedm import inference
from openedm.exact import GaussianMixture
from openedm.ground.verifying import accept
from openedm.inference import Box, DenoiserPosterior, Independent, LogNormal, Normal, fit, load, save
from openedm.inference.storage import CONFIG, WEIGHTS
from openedm.likelihood import Likelihood
from openedm.sampling import Sampler

X = torch.tensor([-0.1, 0.2])


@pytest.fixture
def saved(two_moons, tmp_path):
    """A folder with the posterior in it."""
    two_moons.save(tmp_path / "posterior")
    return tmp_path / "posterior"


def refined(posterior):
    return posterior.with_refinement(TINY.refinement)


def assert_alike(first, second, x=X):
    samples = first.sample(x, 40, seed=3)
    assert torch.equal(second.sample(x, 40, seed=3), samples)
    assert torch.equal(second.log_prob(samples, x), first.log_prob(samples, x))


# What comes back.


@pytest.mark.parametrize("change", [lambda p: p.plain(), refined], ids=["plain", "refined"])
def test_a_loaded_posterior_gives_the_same_numbers_to_the_last_bit(change, two_moons, tmp_path):
    posterior = change(two_moons)
    save(posterior, tmp_path / "posterior")
    found = load(tmp_path / "posterior")
    assert found.refined == posterior.refined
    assert_alike(posterior, found)


def test_everything_about_it_comes_back(two_moons, saved):
    found = DenoiserPosterior.load(saved)
    assert found.prior == two_moons.prior
    assert (found.names, found.dim, found.x_shape) == (two_moons.names, two_moons.dim, two_moons.x_shape)
    assert (found.sampler, found.likelihood) == (two_moons.sampler, two_moons.likelihood)
    assert found.parts.parameters == two_moons.parts.parameters
    assert found.report == json.loads(json.dumps(two_moons.report))
    assert len(found.parts.denoiser.members) == 2
    assert not any(module.training for module in found.parts.denoiser.modules())
    assert not any(p.requires_grad for p in found.parts.denoiser.parameters())


def test_a_loaded_posterior_can_be_saved_again_with_the_same_bytes(saved, tmp_path):
    load(saved).save(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_another_sampler_and_likelihood_are_kept(two_moons, tmp_path):
    posterior = two_moons.with_sampler(Sampler())
    posterior.likelihood = Likelihood(sigma_min=0.01)
    posterior.save(tmp_path / "posterior")
    found = load(tmp_path / "posterior")
    assert (found.sampler, found.likelihood) == (Sampler(), Likelihood(sigma_min=0.01))


@pytest.mark.parametrize(
    "prior",
    [
        None,
        Normal([0.0, 1.0], covariance=[[1.0, 0.3], [0.3, 2.0]], names=["a", "b"]),
        LogNormal([0.0, 1.0], [0.5, 0.2]),
        Independent([Box([0.0], [1.0]), Normal([0.0], [1.0])]),
        torch.distributions.Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.0])),
    ],
    ids=["none", "normal", "log-normal", "independent", "torch"],
)
@pytest.mark.filterwarnings("ignore:x is far from all simulations")  # it lies outside of the log-normal's
def test_all_priors_are_kept(prior, tmp_path):
    known = inference.as_prior(prior)
    theta = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) if known is None else known.sample(200)
    x = theta + 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    posterior = fit(theta, x, prior, settings=replace(TINY, emulator=None, refinement=None, members=1))
    posterior.save(tmp_path / "posterior")
    assert_alike(posterior, load(tmp_path / "posterior"))
    assert load(tmp_path / "posterior").names == posterior.names


@pytest.mark.filterwarnings("ignore:columns of x")
def test_data_that_are_summarised_reduced_or_left_out_are_so_again(tmp_path):
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(300, 2, generator=generator)
    x = torch.cat([theta + 0.1 * torch.randn(300, 2, generator=generator), torch.ones(300, 1), theta[:, :1] ** 2], 1)
    posterior = fit(theta, x, ([0.0, 0.0], [1.0, 1.0]), settings=replace(TINY, reduce_above=2, compare=False))
    assert posterior.parts.data.reduction is not None
    posterior.save(tmp_path / "posterior")
    assert_alike(posterior, load(tmp_path / "posterior"), x[0])


def test_a_posterior_of_version_1_is_read(two_moons, saved):
    def age(config):
        config["format"] = "openedm-posterior-1"
        del config["version"], config["kind"]

    rewritten(saved, age)
    assert_alike(two_moons, load(saved))


def test_the_global_generator_is_left_alone(saved):
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


# What is refused.


def test_nothing_is_overwritten(two_moons, saved):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(ValueError, match="exists already: a posterior is never overwritten"):
        two_moons.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_write_that_fails_leaves_nothing(two_moons, tmp_path, monkeypatch):
    def broken(path, tensors):
        raise OSError("disk full")

    monkeypatch.setattr("openedm.inference.storage.write_tensors", broken)
    with pytest.raises(OSError, match="disk full"):
        two_moons.save(tmp_path / "posterior")
    assert list(tmp_path.iterdir()) == []


def test_a_denoiser_of_ones_own_cannot_be_saved(two_moons, tmp_path):
    exact = GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
    posterior = two_moons.plain()
    posterior.parts = replace(posterior.parts, denoiser=exact)
    with pytest.raises(ValueError, match="to be saved: a GaussianMixture of your own"):
        posterior.save(tmp_path / "posterior")
    assert list(tmp_path.iterdir()) == []


def test_networks_that_do_not_fit_their_description_are_refused(two_moons, tmp_path):
    parts = two_moons.plain().parts
    other = replace(parts.model, network=replace(parts.model.network, width=16))
    posterior = DenoiserPosterior(replace(parts, model=other), prior=two_moons.prior)
    with pytest.raises(ValueError, match=r"do not fit the network: .* has shape"):
        posterior.save(tmp_path / "posterior")
    assert list(tmp_path.iterdir()) == []


def test_a_prior_without_a_plain_form_is_refused(two_moons, tmp_path):
    class Own(torch.distributions.Uniform):
        pass

    prior = inference.TorchPrior(Own(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])))
    posterior = DenoiserPosterior(two_moons.plain().parts, prior=prior, report=two_moons.report)
    with pytest.raises(ValueError, match="prior Own cannot be saved"):
        posterior.save(tmp_path / "posterior")


def test_a_folder_without_a_posterior_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no posterior"):
        load(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path / 'none'} is no folder"):
        load(tmp_path / "none")


def rewritten(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    accept(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(format="other"),
            "format must be 'openedm-posterior' in version 2, got 'other'",
        ),
        (lambda c: c.update(version=9), "format must be .* in version 2, got 'openedm-posterior' in version 9"),
        (lambda c: c.update(kind="flow"), "kind must be one of 'fit', 'joint', got 'flow'"),
        (lambda c: c.pop("model"), "does not describe a posterior: KeyError.'model'"),
        (lambda c: c["prior"].update(class_path="os.system"), "does not describe a posterior: .*os.system"),
        (lambda c: c["sampler"].update(class_path="os.system"), "does not describe a posterior: .*os.system"),
        (lambda c: c.update(members=3), "do not fit the network"),
        (lambda c: c["emulator"].update(width=9), "do not fit the network: .*has shape"),
        (lambda c: c.update(base="wide"), "does not describe a posterior"),
        (lambda c: c.update(report=1), "does not describe a posterior"),
        (lambda c: c.update(names=["one"]), "does not describe a posterior: .*names must be 2 different names"),
        (lambda c: c.update(members=0), "does not describe a posterior: .*number of members"),
        (lambda c: c["data"].update(keep=[0]), "do not belong together"),
    ],
)
def test_a_description_that_does_not_fit_is_an_error_that_names_the_file(change, message, saved):
    rewritten(saved, change)
    with pytest.raises(ValueError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_is_cut_short_is_named(name, saved):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=str(saved / name)):
        load(saved)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_that_are_missing_or_too_many_are_named(change, saved):
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name in tensors if name.startswith("denoiser"))
    value = tensors.pop(name)
    if change == "extra":
        tensors |= {name: value, f"{name}_too": value.clone()}
    save_file(tensors, saved / WEIGHTS)
    accept(saved)
    with pytest.raises(ValueError, match="is missing" if change == "missing" else "is unexpected"):
        load(saved)


def test_a_tensor_of_no_part_is_named(saved):
    save_file(load_file(saved / WEIGHTS) | {"trained_on_too": torch.zeros(2)}, saved / WEIGHTS)
    accept(saved)
    with pytest.raises(ValueError, match="trained_on_too is unexpected"):
        load(saved)


# The package.


def test_every_name_that_is_exported_is_there():
    for name in inference.__all__:
        assert getattr(inference, name) is not None
    assert {"fit", "load", "save", "simulate", "tasks"} <= set(inference.__all__) <= set(dir(inference))
    assert openedm.inference is inference
    with pytest.raises(AttributeError, match="attribute nothing"):
        inference.nothing  # noqa: B018


def test_numpy_observations_are_understood_after_loading(saved):
    assert load(saved).sample(np.array([0.1, 0.2]), 3).shape == (3, 2)
