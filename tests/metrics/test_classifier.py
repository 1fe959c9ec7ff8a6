import pytest
import torch

from openedm.data import Digits, InMemory
from openedm.metrics import Classifier, train_classifier
from openedm.metrics.classifier import _shifted


def stripes(samples: int = 96, channels: int = 1, size: int = 12) -> InMemory:
    """Two classes: horizontal and vertical stripes in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 2
    wave = torch.where(torch.arange(size) // 2 % 2 == 0, 0.7, -0.7)
    x = torch.where(labels.view(-1, 1, 1, 1) == 0, wave.view(1, 1, -1, 1), wave.view(1, 1, 1, -1))
    x = x.expand(samples, channels, size, size) + 0.3 * torch.randn(samples, channels, size, size, generator=generator)
    return InMemory(x.clamp(-1, 1), labels)


def equal_weights(a: Classifier, b: Classifier) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_reads_digits_it_has_not_seen(digits_classifier):
    x, labels = Digits("test").load().fetch(range(360))
    assert (digits_classifier.predict(x) == labels).double().mean() >= 0.97


def test_classes_lie_apart_in_its_features(digits_classifier):
    x, labels = Digits("test").load().fetch(range(360))
    with torch.no_grad():
        features = digits_classifier.features(x)
    centres = torch.stack([features[labels == c].mean(0) for c in range(10)])
    assert (torch.cdist(features, centres).argmin(1) == labels).double().mean() > 0.95


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (2, 5)])
def test_any_size_and_number_of_channels_is_learned(channels, size):
    dataset = stripes(channels=channels, size=size)
    classifier = train_classifier(dataset, seed=0, epochs=6, width=8, dim=16, batch_size=16)
    x, labels = dataset.fetch(range(len(dataset)))
    assert classifier.features(x).shape == (96, 16)
    assert (classifier.predict(x) == labels).double().mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 3)])
def test_slender_images_pass_too(size):
    dataset = InMemory(torch.tensor([-0.9, 0.9]).view(2, 1, 1, 1).expand(2, 1, *size), torch.tensor([0, 1]))
    assert train_classifier(dataset, seed=0, epochs=20, width=8).predict(dataset.fetch([0, 1])[0]).tolist() == [0, 1]


def test_training_is_decided_by_its_seed_and_leaves_the_global_random_state_alone():
    dataset = stripes(32)
    before = torch.get_rng_state()
    first = train_classifier(dataset, seed=3, epochs=1, width=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert equal_weights(first, train_classifier(dataset, seed=3, epochs=1, width=4))
    assert not equal_weights(first, train_classifier(dataset, seed=4, epochs=1, width=4))


def test_progress_sees_every_epoch():
    seen = []
    train_classifier(stripes(8), seed=0, epochs=3, width=4, progress=lambda *state: seen.append(state))
    assert seen == [("classifier", done, 3) for done in range(4)]


@pytest.mark.parametrize(("samples", "epochs"), [(4, 30), (10_000, 10), (60_000, 2)])
def test_without_a_number_of_epochs_large_sets_are_seen_less_often(samples, epochs):
    class Told(Exception):
        pass

    def progress(name, done, total):
        raise Told(total)

    dataset = InMemory(torch.zeros(samples, 1, 2, 2), torch.arange(samples) % 2)
    with pytest.raises(Told, match=f"^{epochs}$"):
        train_classifier(dataset, seed=0, width=4, progress=progress)


def test_a_shift_moves_an_image_as_a_whole_and_each_on_its_own():
    x = torch.zeros(64, 1, 7, 7)
    x[:, 0, 3, 3] = 1
    moved = _shifted(x, 2, torch.Generator().manual_seed(0))
    places = moved.flatten(1).argmax(1)
    assert (moved.sum((1, 2, 3)) == 1).all()
    assert {(int(p) // 7, int(p) % 7) for p in places} <= {(r, c) for r in range(1, 6) for c in range(1, 6)}
    assert len(places.unique()) > 15


def test_a_shift_repeats_the_border():
    assert torch.equal(_shifted(torch.full((5, 2, 3, 3), -1.0), 1, torch.Generator()), torch.full((5, 2, 3, 3), -1.0))


def test_a_saved_classifier_reads_back_with_the_same_answers(tmp_path):
    classifier = Classifier((2, 9, 7), 3, width=4, dim=5, seed=1)
    classifier.save(tmp_path / "classifier.safetensors")
    loaded = Classifier.load(tmp_path / "classifier.safetensors")
    x = torch.rand(4, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), classifier(x))
    assert (loaded.event_shape, loaded.num_classes, loaded.dim) == ((2, 9, 7), 3, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["classifier.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"not a classifier", "foreign"])
def test_a_file_that_holds_no_classifier_is_named(tmp_path, content):
    path = tmp_path / "c.safetensors"
    if content == "foreign":
        import safetensors.torch

        safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"other": "model"})
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path must be a classifier .* got '.*c.safetensors'"):
        Classifier.load(path)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"x must be images of shape \(1, 8, 8\), got \(1, 9, 8\)"):
        Classifier((1, 8, 8), 2, width=4).features(torch.zeros(1, 1, 9, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (8, 8)}, "event_shape must be"),
        ({"num_classes": 1}, "num_classes must be >= 2, got 1"),
        ({"width": 0}, "width must be >= 1"),
        ({"dim": 0}, "dim must be >= 1"),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"event_shape": (1, 8, 8), "num_classes": 2, **arguments})


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (InMemory(torch.zeros(4, 1, 8, 8)), {}, "dataset must be images in at least 2 classes, got 4 images"),
        (InMemory(torch.zeros(4, 2), torch.arange(4)), {}, "dataset must be images .* got 4 vectors"),
        (stripes(4), {"epochs": 0}, "epochs must be >= 1"),
        (stripes(4), {"batch_size": 0}, "batch_size must be >= 1"),
        (stripes(4), {"learning_rate": 0.0}, "learning_rate must be finite and > 0"),
        (stripes(4), {"shift": 12}, "shift must be between 0 and 11, got 12"),
    ],
)
def test_training_on_what_does_not_fit_is_refused_before_it_starts(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(dataset, seed=0, **arguments)
