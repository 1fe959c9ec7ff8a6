"""Modules of the user's own where a network or a summary is expected."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import openedm
from openedm.ground.choices import from_config, to_config
from openedm.networks import ConditionalMLP, ModuleNetwork, ModuleSummary, Network, Signature
from openedm.training import Model, Options, Trainer, load_denoiser

pytestmark = pytest.mark.usefixtures("without_type_checker", "fresh_accelerate")

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
QUICK = Options(images=32, batch_size=16, rampup=0, validate_every=0, snapshot_every=0)


class Plain(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None = None, augment: Any = None) -> Tensor:
        found: Tensor = self.net(torch.cat([x, c_noise[:, None]], 1))
        return found


class Shaped(Plain):
    def __init__(self, event_shape: tuple[int, ...], seed: int | None, *, width: int = 4) -> None:
        assert event_shape == (2,)
        super().__init__(width)


class Mean(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.out = nn.Linear(1, features)

    def forward(self, condition: Tensor) -> Tensor:
        found: Tensor = self.out(condition.flatten(1).mean(1, keepdim=True))
        return found


def of_signature(signature: Signature) -> nn.Module:
    return Plain(width=signature.event_shape[0])


@pytest.mark.parametrize("given", [Plain(), Plain, Shaped, of_signature, lambda: Plain(5)])
def test_a_module_its_class_or_a_function_that_makes_one_is_trained_and_loaded(given: Any, tmp_path: Path) -> None:
    model = Model.for_data(X, given)
    assert isinstance(model.network, ModuleNetwork)
    trainer = Trainer(model, X, options=QUICK, run=tmp_path / "run")
    trained = trainer.fit()
    loaded = load_denoiser(tmp_path / "run", network=given)
    assert torch.equal(loaded(X, 1.0), trained(X, 1.0))
    Trainer(Model.for_data(X, given), X, options=QUICK, run=tmp_path / "run").resume()


def test_a_module_that_is_given_keeps_its_weights_and_is_copied() -> None:
    given = Plain()
    before = copy.deepcopy(given.state_dict())
    built = Model.for_data(X, given).build()
    for name, value in built.network.state_dict().items():
        assert torch.equal(value, before[name])
    Trainer(Model.for_data(X, given), X, options=QUICK).fit()
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_class_gets_its_weights_from_the_seed_of_the_run() -> None:
    model = Model.for_data(X, Plain)
    first, same, other = (model.build(seed).network.net[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_checkpoint_of_a_module_says_how_it_is_loaded(tmp_path: Path) -> None:
    Trainer(Model.for_data(X, Plain(5)), X, options=QUICK, run=tmp_path / "run").fit()
    with pytest.raises(ValueError, match="do not fit the network"):
        load_denoiser(tmp_path / "run")  # the class of this imported module has another width by default
    config = to_config(Model.for_data(X, nn.Bilinear(1, 1, 1)))
    assert config["init_args"]["network"]["init_args"]["name"] == "torch.nn.modules.linear.Bilinear"
    with pytest.raises(ValueError, match=r"load_denoiser\(path, network=MODULE\)"):
        from_config(Model, config).build()


@pytest.mark.parametrize("name", ["os.system", "subprocess.call", "mischief.Net", "pathlib.Path", "torch.nn.Linear"])
def test_a_name_in_a_file_is_neither_imported_nor_called(name: str) -> None:
    config = {"class_path": "openedm.networks.ModuleNetwork", "init_args": {"name": name}}
    with pytest.raises(ValueError, match="which is not in the file"):
        from_config(Network, config).build((2,))
    assert "mischief" not in sys.modules


class TooFew(Plain):
    def forward(self, *inputs: Any) -> Tensor:
        return super().forward(*inputs)[:, :1]


class Whole(Plain):
    def forward(self, *inputs: Any) -> Tensor:
        return super().forward(*inputs).long()


class Nothing(Plain):
    def forward(self, *inputs: Any) -> None:  # type: ignore[override]
        return None


class Rounded(nn.Module):
    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        return condition.long()


class NeedsMore(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TooFew, r"TooFew, called as network\(x, c_noise, condition=None, .*shape \(2, 2\), got \(2, 1\)"),
        (Whole, r"must return floating-point numbers of shape \(2, 2\), got \(2, 2\) of torch.int64"),
        (Nothing, r"must return a tensor of shape \(2, 2\), got NoneType"),
        (nn.Linear(2, 2), r"must answer network\(x, c_noise, condition=None, augment=None\) for x \(2, 2\), .*TypeErr"),
        (NeedsMore, r"requires depth: give an instance, or a function without arguments"),
        (lambda: 3, r"network must be an nn.Module, called as .* returned int"),
    ],
)
def test_a_module_that_does_not_answer_the_call_is_refused_before_training(given: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(Model.for_data(X, given), X, options=QUICK)


@pytest.mark.parametrize("given", [Mean(32), Mean])
def test_a_module_is_a_summary(given: Any) -> None:
    network = ConditionalMLP(width=32, num_blocks=1, summary=given)
    assert isinstance(network.summary, ModuleSummary)
    built = network.build((2,), condition_shape=(3, 4))
    assert built(X, torch.zeros(64), torch.zeros(64, 3, 4)).shape == X.shape


def test_a_summary_of_another_width_gets_a_linear_layer() -> None:
    network = ConditionalMLP(width=32, num_blocks=1, summary=Mean(5))
    assert network.build((2,), condition_shape=(3,))(X, torch.zeros(64), torch.zeros(64, 3)).shape == X.shape


def test_a_summary_that_is_not_a_vector_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"must return floating-point numbers of shape \(2, 3\), got \(2, 3\) of torch.int64"
    ):
        ConditionalMLP(width=32, summary=Rounded()).build((2,), condition_shape=(3,))
    with pytest.raises(ValueError, match=r"must return floating-point numbers of shape \(2, 32\), got \(2, 3, 4\)"):
        ConditionalMLP(width=32, summary=nn.Identity()).build((2,), condition_shape=(3, 4))


def test_the_public_names_are_there() -> None:
    assert openedm.networks.ModuleNetwork is ModuleNetwork
