"""Fine-tuning: a run starts from the weights of another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openedm import preconditioning
from openedm.data import InMemory
from openedm.ground.storage import read_tensors, write_tensors
from openedm.ground.verifying import accept
from openedm.networks import MLP, DDPMpp, EDM2UNet, Network
from openedm.training import Augmentation, Initial, Model, Options, Trainer, load_denoiser
from openedm.training.checkpoints import find_checkpoint, read_progress, save_checkpoint

pytestmark = pytest.mark.usefixtures("without_type_checker", "fresh_accelerate")

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
NET = MLP(width=8, num_blocks=1)
QUICK = Options(images=32, batch_size=16, rampup=0, validate_every=0, snapshot_every=0)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    Trainer(Model.for_data(X, NET), X, options=QUICK, run=tmp_path / "first").fit()
    return tmp_path / "first"


@pytest.mark.parametrize("form", ["path", "choice", "denoiser"])
def test_a_run_starts_from_the_averaged_weights_of_another(form: str, first: Path) -> None:
    before = load_denoiser(first)
    init = {"path": first, "choice": Initial(str(first)), "denoiser": before}[form]
    trainer = Trainer(Model.for_data(X, NET), X * 3, options=QUICK, init=init)  # type: ignore[arg-type]
    for module in (trainer.denoiser.network, trainer.average.network):
        for name, value in module.state_dict().items():
            assert torch.equal(value, before.network.state_dict()[name])


def test_a_checkpoint_records_where_its_run_started(first: Path, tmp_path: Path) -> None:
    trainer = Trainer(Model.for_data(X, NET), X, options=QUICK, run=tmp_path / "second", init=first)
    trainer.fit()
    origin = read_progress(find_checkpoint(tmp_path / "second"))["init"]
    assert origin["origin"] == str(find_checkpoint(first))
    assert len(origin["digest"]) == 64
    again = Trainer(Model.for_data(X, NET), X, options=QUICK, run=tmp_path / "second")
    again.resume()
    assert again.origin == origin


@pytest.mark.parametrize("network", [DDPMpp(8, (1,), num_blocks=1), EDM2UNet(8, (1,), num_blocks=1, head_channels=8)])
def test_a_run_without_augmentation_starts_from_one_with_it(network: Network, tmp_path: Path) -> None:
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    augmented = replace(QUICK, augmentation=Augmentation(p=0.5))
    with_labels = Model.for_data(images, network, augment_dim=augmented.augment_dim)
    before = Trainer(with_labels, images, options=augmented, run=tmp_path / "first").fit()
    trainer = Trainer(Model.for_data(images, network), images, options=QUICK, init=tmp_path / "first")
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    torch.testing.assert_close(trainer.denoiser.eval()(x, sigma), before(x, sigma))
    plain = Trainer(Model.for_data(images, network), images, options=QUICK).fit()
    with pytest.raises(ValueError, match=r"embedding.augment\S* is missing.*--init\.mismatch new"):
        Trainer(with_labels, images, options=augmented, init=plain)


def test_data_of_another_size_or_with_classes_at_other_places_are_a_warning(tmp_path: Path) -> None:
    small, large = -torch.ones(4, 1, 8, 8), -torch.ones(4, 1, 16, 16)
    small[0], large[0] = 1, 1
    network, labels = DDPMpp(8, (1,), num_blocks=1), torch.tensor([0, 1, 0, 1])
    first = Model.for_data(InMemory(small, labels, class_names=("ant", "bee")), network)
    save_checkpoint(tmp_path / "first", first, first.build().network.state_dict())
    for x, names, message in [
        (large, ("ant", "bee"), r"trained on samples of 1×8×8, and the data are of 1×16×16; --data.resolution 8x8 "),
        (small, ("bee", "cow"), r"has the classes at other places, .* of others: bee of ant$"),
    ]:
        data = InMemory(x, labels, class_names=names)
        with pytest.warns(UserWarning, match=message):
            Trainer(Model.for_data(data, network), data, options=QUICK, init=tmp_path / "first")


def test_parameters_that_do_not_fit_are_refused_with_a_list_or_start_anew(first: Path) -> None:
    wide = torch.randn(64, 3)
    with pytest.raises(ValueError, match=r"init: .* do not fit the network: .* instead of .*--init\.mismatch new"):
        Trainer(Model.for_data(wide, NET), wide, options=QUICK, init=first)
    trainer = Trainer(Model.for_data(wide, NET), wide, options=QUICK, init=Initial(str(first), "new"))
    before, after = load_denoiser(first).network.state_dict(), trainer.denoiser.network.state_dict()
    assert trainer.origin is not None
    new = trainer.origin["new_parameters"]
    assert 0 < len(new) < len(before)
    assert all(torch.equal(after[name], before[name]) for name in before if name not in new)


def test_what_cannot_start_a_run_is_refused(first: Path) -> None:
    other = Model.for_data(X, NET, preconditioning.VP())
    with pytest.raises(ValueError, match="preconditioning must be that of init"):
        Trainer(other, X, options=QUICK, init=first)
    with pytest.raises(ValueError, match="does not exist"):
        Trainer(Model.for_data(X, NET), X, options=QUICK, init="no-such-run")
    with pytest.raises(TypeError, match="init must be the path of a checkpoint"):
        Trainer(Model.for_data(X, NET), X, options=QUICK, init=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mismatch must be one of"):
        Initial("x", "never")  # type: ignore[arg-type]


@pytest.mark.parametrize("mismatch", ["error", "new"])
def test_weights_that_are_nan_start_no_run(first: Path, mismatch: str) -> None:
    damaged = load_denoiser(first)
    name, weight = next(iter(damaged.network.named_parameters()))
    tensors = read_tensors(find_checkpoint(first) / "model.safetensors")
    tensors[name].view(-1)[0] = torch.nan
    write_tensors(find_checkpoint(first) / "model.safetensors", tensors)
    list(accept(find_checkpoint(first)))
    with pytest.raises(ValueError, match=rf"init: {name} of .* holds 1 NaN of {weight.numel()} numbers"):
        Trainer(Model.for_data(X, NET), X, options=QUICK, init=Initial(str(first), mismatch))
    with torch.no_grad():
        weight.view(-1)[0] = torch.inf
    with pytest.raises(ValueError, match=rf"init: {name} of the denoiser given holds 1 infinite"):
        Trainer(Model.for_data(X, NET), X, options=QUICK, init=damaged)
