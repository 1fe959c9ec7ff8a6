"""Published networks as checkpoints and back, as safetensors and JSON, and on a hub."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from benchmarks.published_files import weights

import openedm
from openedm.ground.verifying import accept
from openedm.interop import Pretrained, Published, publish, published_model, read_published, write_published
from openedm.interop import hub as hub_module
from openedm.networks import ADM, MLP, DDPMpp, ModuleNetwork, NCSNpp, SongUNet
from openedm.preconditioning import EDM, IDDPM, VE, VP, Adapter
from openedm.training import Model, load_denoiser, save_checkpoint
from openedm.units import Units

SIZES: dict[str, Any] = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
X = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
MODELS = {
    "ddpmpp": Model(DDPMpp(**SIZES), EDM(), 0.3, (1, 8, 8), num_classes=2, augment_dim=9),
    "ncsnpp": Model(NCSNpp(**SIZES), VE(0.05, 40.0), 0.5, (1, 8, 8)),
    "skips": Model(SongUNet(**SIZES, encoder="skip", decoder="skip"), VP(num_levels=100), 0.5, (1, 8, 8)),
    "adm": Model(ADM(64, (1,), 1, 1, attn_resolutions=(8,)), IDDPM(num_levels=4), 0.5, (1, 8, 8)),
    "table": Model(DDPMpp(**SIZES), IDDPM(num_levels=2, table=(4.0, 1.0, 0.0)), 0.5, (1, 8, 8)),
}


def with_weights(model: Model) -> Any:
    denoiser = model.build(seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return denoiser


@pytest.mark.parametrize("name", MODELS)
def test_a_network_goes_out_and_comes_back_the_same(name: str, tmp_path: Path) -> None:
    model, denoiser = MODELS[name], with_weights(MODELS[name])
    path = tmp_path / "network.safetensors"
    write_published(path, publish(model, denoiser))
    published = read_published(path)
    back = published.denoiser()
    again = published_model(published, back)
    assert (again.preconditioning, again.sigma_data) == (model.preconditioning, model.sigma_data)
    assert (again.num_classes, again.augment_dim) == (model.num_classes, model.augment_dim)
    save_checkpoint(tmp_path / "checkpoint", again, back.network.state_dict())
    loaded = load_denoiser(tmp_path / "checkpoint")
    condition = torch.tensor([0, 1]) if model.num_classes else None
    expected = denoiser(X, 1.0, condition)
    torch.testing.assert_close(loaded(X, 1.0, condition), expected, rtol=1e-5, atol=1e-5)
    states = zip(loaded.network.state_dict().values(), denoiser.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_a_published_network_whose_writing_was_killed_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "network.safetensors", os.replace
    published = publish(MODELS["ddpmpp"], with_weights(MODELS["ddpmpp"]))

    def killed_at_the_weights(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_at_the_weights)
        with pytest.raises(KeyboardInterrupt):
            write_published(path, published)
    described = path.with_suffix(".json").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["network.json"]
    write_published(path, published)
    assert path.with_suffix(".json").read_bytes() == described
    assert sorted(p.name for p in tmp_path.iterdir()) == ["network.json", "network.safetensors"]


def test_nothing_is_overwritten_and_the_pair_of_files_belongs_together(tmp_path: Path) -> None:
    published = publish(MODELS["ddpmpp"], with_weights(MODELS["ddpmpp"]))
    path = tmp_path / "a.safetensors"
    write_published(path, published)
    with pytest.raises(ValueError, match=r"a\.safetensors exists already"):
        write_published(path, published)
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.json exists already"):
        write_published(path, publish(MODELS["ncsnpp"], with_weights(MODELS["ncsnpp"])))
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read"):
        read_published(path)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        write_published(tmp_path / "b.pt", published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "format must be 'openedm-published-1', got 'x'"),
        ({"class_name": 3}, "must hold a class_name"),
        ({"network_name": []}, "must hold a class_name"),
        ({"init_kwargs": []}, "must hold a class_name, a network_name and init_kwargs"),
        ({"init_kwargs": {"a": [[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]}}, "init_kwargs must not exceed"),
        ({"dataset_kwargs": [1]}, "dataset_kwargs must be an object"),
    ],
)
def test_a_description_that_is_none_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_published(path, publish(MODELS["ddpmpp"], with_weights(MODELS["ddpmpp"])))
    config = json.loads(path.with_suffix(".json").read_text()) | change
    path.with_suffix(".json").write_text(json.dumps(config))
    accept(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_published(path)


def test_endless_json_is_an_error_and_no_recursion(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a":' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_published(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Model(MLP(8, 1), EDM(), event_shape=(2,), images=False),
            "network must be DDPMpp, NCSNpp, SongUNet, ADM or EDM2UNet",
        ),
        (Model(DDPMpp(**SIZES), Adapter(), event_shape=(1, 8, 8)), "preconditioning must be one of EDM, VP, VE, IDDPM"),
        (Model(DDPMpp(**SIZES), EDM(), event_shape=(1, 8, 6)), "samples must be square images"),
        (Model(DDPMpp(**SIZES), EDM(), event_shape=(1, 8)), "samples must be square images"),
        (Model(DDPMpp(**SIZES), VP(), 0.3, (1, 8, 8)), "sigma_data must be 0.5 for VPPrecond"),
        (Model(DDPMpp(**SIZES), event_shape=(1, 8, 8), condition_shape=(3,)), r"condition_shape must be None .*\(3,\)"),
        (Model(DDPMpp(**SIZES), event_shape=(1, 8, 8), condition_shape=(1, 8, 8)), "condition_shape must be None"),
        (Model(DDPMpp(**SIZES), event_shape=(1, 8, 8), images=False), "images must be true"),
        (Model(DDPMpp(**SIZES), VE(), event_shape=(1, 8, 8), noise_range=(0.1, 9.0)), "noise_range must be None"),
        (
            Model(SongUNet(**SIZES, resample_filter=(5e3, 5e3)), event_shape=(1, 8, 8)),
            "resample_filter must be a list of at most 32 numbers from -1024 to 1024",
        ),
    ],
)
def test_what_has_no_published_name_is_refused(model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        publish(model, model.build())


def test_a_description_of_another_network_is_refused() -> None:
    wider = Model(DDPMpp(**{**SIZES, "model_channels": 16}), event_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"denoiser must have the network that model describes, .*got DDPMpp\("):
        publish(MODELS["ddpmpp"], wider.build())


def test_a_key_of_a_file_with_one_network_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "a.safetensors", publish(MODELS["ddpmpp"], with_weights(MODELS["ddpmpp"])))
    with pytest.raises(ValueError, match=r"key must be 'ema' for a.safetensors, which holds one network, got 'net'"):
        read_published(tmp_path / "a.safetensors", key="net")


def test_nothing_is_written_if_the_description_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kwargs must be plain values, got object"):
        write_published(tmp_path / "a.safetensors", Published("X", {"a": object()}, {"w": torch.ones(2)}))
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_written_and_read(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    tensors = {"a": base, "b": base, "c": base[1:], "d": base[:2].expand(3, 2), "empty": base[:0]}
    write_published(tmp_path / "a.safetensors", Published("X", {}, tensors))
    found = read_published(tmp_path / "a.safetensors").state_dict
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_range_of_noise_levels_is_kept_in_a_checkpoint_and_back(tmp_path: Path) -> None:
    kwargs = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet", "model_channels": 8}
    kwargs |= {"channel_mult": [1], "num_blocks": 1}
    published = Published("EDMPrecond", {**kwargs, "sigma_max": 80.0}, weights(kwargs))
    denoiser = published.denoiser()
    model = published_model(published, denoiser)
    assert model.noise_range == (0.0, 80.0)
    save_checkpoint(tmp_path / "checkpoint", model, denoiser.network.state_dict())
    for loaded in (load_denoiser(tmp_path / "checkpoint"), Pretrained.from_checkpoint(tmp_path / "checkpoint")):
        assert (loaded.sigma_min, loaded.sigma_max) == (0.0, 80.0)
    write_published(tmp_path / "again.safetensors", publish(model, denoiser))
    assert read_published(tmp_path / "again.safetensors").denoiser().sigma_max == 80.0
    above = Published("EDMPrecond", {**kwargs, "sigma_min": 0.01}, weights(kwargs))
    save_checkpoint(tmp_path / "above", published_model(above, above.denoiser()), denoiser.network.state_dict())
    assert load_denoiser(tmp_path / "above").sigma_min == 0.01  # and no highest level, which JSON cannot hold


def test_a_range_of_noise_levels_is_inside_that_of_the_preconditioning() -> None:
    network = DDPMpp(**SIZES)
    with pytest.raises(ValueError, match=r"noise_range\[0\] must be < noise_range\[1\], got .*=2\.0 and .*=1\.0"):
        Model(network, noise_range=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"noise_range\[0\] must be >= 0\.02, got 0\.01"):
        Model(network, VE(), noise_range=(0.01, 50.0))
    with pytest.raises(ValueError, match=r"noise_range\[1\] must be between 0\.02 and 100\.0, got 200\.0"):
        Model(network, VE(), noise_range=(0.02, 200.0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = MODELS["ddpmpp"]
    save_checkpoint(tmp_path / "checkpoint", model, with_weights(model).network.state_dict())
    return tmp_path / "checkpoint"


def assert_same(denoiser: Any, checkpoint: Path) -> None:
    labels = torch.tensor([0, 1])
    assert torch.equal(denoiser(X, 1.0, labels), openedm.load_denoiser(checkpoint)(X, 1.0, labels))
    assert not denoiser.training


def test_what_is_saved_for_others_is_a_checkpoint_without_pickle(checkpoint: Path, tmp_path: Path) -> None:
    pretrained = Pretrained.from_pretrained(str(checkpoint))
    assert_same(pretrained, checkpoint)
    pretrained.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (tmp_path / "saved/config.json").read_text() == (checkpoint / "config.json").read_text()
    assert "library_name: openedm" in (tmp_path / "saved/README.md").read_text()
    assert_same(openedm.load_denoiser(tmp_path / "saved"), checkpoint)
    assert_same(Pretrained.from_pretrained(tmp_path / "saved"), checkpoint)
    pretrained.save_pretrained(tmp_path / "saved")  # Saving again is what the mixin allows.


def test_a_denoiser_is_pushed_to_a_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            pushed["id"] = repo_id
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Any, **options: Any) -> str:
            pushed["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            pushed["card"] = (folder_path / "README.md").read_text()
            return "done"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert Pretrained.from_checkpoint(checkpoint).push_to_hub("someone/digits") == "done"
    assert 'from_pretrained("someone/digits")' in pushed.pop("card")
    assert pushed == {"id": "someone/digits", "files": ["README.md", "config.json", "model.safetensors"]}


def test_a_denoiser_comes_from_a_hub_and_only_its_two_files(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*, repo_id: str, filename: str, revision: str | None = None, **options: Any) -> str:
        asked.append((repo_id, filename, revision))
        return str(checkpoint / filename)

    monkeypatch.setattr(hub_module, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    assert_same(Pretrained.from_pretrained("someone/digits", revision="v1"), checkpoint)
    assert set(asked) == {("someone/digits", name, "v1") for name in ("config.json", "model.safetensors")}
    with pytest.raises(ValueError, match=r"options of from_pretrained must be among .*, got \['size'\]"):
        Pretrained.from_pretrained("someone/digits", size=3)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(**options: Any) -> str:
        raise ConnectionError("the hub was asked")

    monkeypatch.setattr(hub_module, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["./runs/x", "runs/x/checkpoint", "/runs/x", "~/x", "../x", "x", "runs/", Path("a/b")])
def test_a_mistyped_path_is_refused_without_the_hub(
    name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no folder runs, as `make demo` leaves one
    with pytest.raises(ValueError, match=rf"must be a .* folder, or owner/name .*, got '{name}': there is no /"):
        Pretrained.from_pretrained(name)


@pytest.mark.usefixtures("no_hub")
def test_the_error_of_the_hub_says_that_there_is_no_folder_either() -> None:
    with pytest.raises(ConnectionError, match="the hub was asked") as caught:
        Pretrained.from_pretrained("someone/digits")
    assert caught.value.__notes__ == [f"There is no folder {Path('someone/digits').absolute()} either."]


@pytest.mark.usefixtures("no_hub")
def test_options_of_the_hub_are_refused_for_a_folder(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"revision must be left out for a folder, .*checkpoint, .*, got 'v1'"):
        Pretrained.from_pretrained(checkpoint, revision="v1")
    with pytest.raises(ValueError, match=r"token must be left out .* got a value"):
        Pretrained.from_pretrained(str(checkpoint), token="secret")
    with pytest.raises(ValueError, match=r"config\.json is a file"):
        Pretrained.from_pretrained(checkpoint / "config.json")
    assert_same(Pretrained.from_pretrained(checkpoint, local_files_only=True, revision=None), checkpoint)


def test_a_network_that_is_not_the_described_one_is_refused_by_its_first_tensor() -> None:
    small = Model(MLP(8, 1), event_shape=(2,), images=False)
    network = small.build(seed=5).network
    assert Pretrained(small, network).network is network
    name = next(n for n, t in network.state_dict().items() if 8 in t.shape)
    with pytest.raises(ValueError, match=rf"must be the one of description, MLP\(.*but {name} has shape .* instead of"):
        Pretrained(Model(MLP(9, 1), event_shape=(2,), images=False), network)
    with pytest.raises(ValueError, match=r"but .* is missing"):
        Pretrained(Model(MLP(8, 2), event_shape=(2,), images=False), network)
    with pytest.raises(ValueError, match=r"but .* is unexpected"):
        Pretrained(small, Model(MLP(8, 2), event_shape=(2,), images=False).build().network)
    with pytest.raises(TypeError, match=r"network must be an nn\.Module, .* got function"):
        Pretrained(small, lambda x, c_noise, condition: x)


def test_a_module_of_ones_own_is_compared_where_its_class_is_known() -> None:
    class Own(torch.nn.Module):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, width)

        def forward(self, x: Any, c_noise: Any, condition: Any = None, augment: Any = None) -> Any:
            return x + self.layer(x).sum()

    model = Model(ModuleNetwork.of(Own), event_shape=(2,), images=False)
    with pytest.raises(ValueError, match=r"but layer\.weight has shape \(4, 2\) instead of \(3, 2\)"):
        Pretrained(model, Own(4))
    unknown = Model(ModuleNetwork("elsewhere.Own"), event_shape=(2,), images=False)
    assert Pretrained(unknown, Own(4)).network.layer.out_features == 4


VECTOR: dict[str, Any] = {"network": MLP(8, 1), "event_shape": (2,), "images": False}
IMAGE: dict[str, Any] = {"network": DDPMpp(**SIZES), "event_shape": (1, 8, 8)}
CARDS = {
    "nothing": Model(**VECTOR),
    "classes": Model(**VECTOR, num_classes=3),
    "floats": Model(**VECTOR, condition_shape=(2,), condition_units=Units((280.0, 1.5e-7), (20.0, 1e-8))),
    "floats as they are": Model(**VECTOR, condition_shape=(2,)),
    "many floats": Model(**VECTOR, condition_shape=(9,), condition_units=Units((7.0,) * 9, (1.0,) * 9)),
    "both": Model(**VECTOR, num_classes=3, condition_shape=(2,), condition_units=Units((5.0, 6.0), (1.0, 1.0))),
    "image": Model(**IMAGE, condition_shape=(2, 8, 8)),
    "image in units": Model(**IMAGE, condition_shape=(2, 8, 8), condition_units=Units((5.0, 6.0), (1.0, 1.0))),
    "image and classes": Model(**IMAGE, num_classes=3, condition_shape=(1, 8, 8), condition_dropout=True),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_example_of_the_model_card_runs(name: str, tmp_path: Path) -> None:
    Pretrained(CARDS[name]).save_pretrained(tmp_path)
    _, program, _ = (tmp_path / "README.md").read_text().replace("```python", "```").split("```")
    variables: dict[str, Any] = {}
    exec(program.replace("ID OF THIS REPOSITORY", str(tmp_path)).replace("nfe=32", "nfe=4"), variables)
    assert variables["x"].shape == (4, *CARDS[name].event_shape)
    given = variables.get("condition")
    assert (given is None) == (name == "nothing")
    units = CARDS[name].condition_units
    if units is not None:
        assert float(given[-1, -1].mean()) == pytest.approx(units.location[-1])
