import json

import pytest
import torch

from openedm.data import Digits, InMemory
from openedm.metrics import (
    Classifier,
    ClassifierFeatures,
    GaussianStatistics,
    ModuleFeatures,
    compare,
    content_hash,
    extract,
    gaussian,
    image_batches,
    kept_features,
    stream_statistics,
)


def network(seed: int = 0) -> ClassifierFeatures:
    return ClassifierFeatures(Classifier((1, 8, 8), 10, width=4, dim=6, seed=seed))


def digits(count: int = 60) -> InMemory:
    return InMemory(*Digits("all").load().fetch(range(count)))


def changed(dataset: InMemory, index: int) -> InMemory:
    x, labels = dataset.fetch(range(len(dataset)))
    x[index, 0, 3, 3] = 0.123
    return InMemory(x, labels)


@pytest.fixture(scope="module")
def forgetful():
    """Batches that are emptied once the next one is asked for: nothing may hold on to them."""

    def batches(dataset, size):
        for x, labels in image_batches(dataset, size):
            yield x, labels
            x.fill_(float("nan"))

    return batches


def test_images_are_seen_batch_by_batch_and_need_not_stay(forgetful):
    dataset, net = digits(), network()
    x, labels = dataset.fetch(range(60))
    found = extract(net, forgetful(dataset, 7))
    with torch.no_grad():
        features, logits = net(x)
    torch.testing.assert_close(found.values, features)
    torch.testing.assert_close(found.probabilities, logits.softmax(1))
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.predicted, logits.argmax(1))
    streamed = stream_statistics(net, forgetful(dataset, 7)).finalize()
    torch.testing.assert_close(streamed.covariance, gaussian(features).covariance, rtol=1e-5, atol=1e-9)


def test_shards_that_are_merged_are_the_whole():
    dataset, net = digits(), network()
    x, _ = dataset.fetch(range(60))
    merged = GaussianStatistics(net.dim)
    for shard in (x[:13], x[13:14], x[14:]):
        merged.merge(stream_statistics(net, [(shard, None)]))
    whole = stream_statistics(net, [(x, None)]).finalize()
    torch.testing.assert_close(merged.finalize().covariance, whole.covariance, rtol=1e-5, atol=1e-9)
    assert merged.count == 60


def test_kept_features_are_those_that_are_extracted_again(tmp_path):
    dataset, net = digits(), network()
    first, path, there = kept_features(dataset, net, tmp_path / "new", batch_size=16)
    again, same, then = kept_features(dataset, net, tmp_path / "new", batch_size=60)
    assert (there, then) == (False, True)
    assert same == path
    fresh = extract(net, image_batches(dataset, 16))
    for found in (first, again):
        assert torch.equal(found.values, fresh.values)
        assert torch.equal(found.probabilities, fresh.probabilities)
        assert torch.equal(found.labels, fresh.labels)
        assert found.fingerprint == fresh.fingerprint
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["images"] == dataset.describe()
    assert about["data"] == content_hash(dataset)
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".safetensors"]


def test_what_has_changed_is_not_found(tmp_path):
    dataset, net = digits(), network()
    _, path, _ = kept_features(dataset, net, tmp_path)
    x, labels = dataset.fetch(range(60))
    others = [
        (changed(dataset, 59), net),
        (InMemory(x[:59], labels[:59], num_classes=10), net),
        (InMemory(x.flip(0), labels.flip(0)), net),
        (InMemory(x, (labels + 1) % 10), net),
        (InMemory(x), net),
        (dataset, network(seed=1)),
    ]
    found = [kept_features(*other, tmp_path) for other in others]
    assert not any(there for _, _, there in found)
    assert len({path, *(p for _, p, _ in found)}) == 7
    assert kept_features(dataset, net, tmp_path)[2]


@pytest.mark.parametrize("damage", ["truncated", "another"])
def test_a_damaged_or_exchanged_file_is_made_again(damage, tmp_path):
    dataset, net = digits(), network()
    expected, path, _ = kept_features(dataset, net, tmp_path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        other = kept_features(changed(dataset, 0), net, tmp_path)[1]
        path.write_bytes(other.read_bytes())
    found, _, there = kept_features(dataset, net, tmp_path)
    assert not there
    assert torch.equal(found.values, expected.values)
    assert kept_features(dataset, net, tmp_path)[2]


def test_the_hash_is_of_the_content_and_not_of_how_it_is_read():
    dataset = digits()
    assert content_hash(dataset, 7) == content_hash(dataset, 60) != content_hash(changed(dataset, 3))


def test_images_and_features_that_are_not_finite_are_named():
    x = torch.zeros(6, 1, 8, 8)
    x[4, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="images must be finite, but image 4 is not"):
        extract(network(), [(x[:3], None), (x[3:], None)])
    with pytest.raises(ValueError, match="number of images must be >= 1, got 0"):
        extract(network(), [])
    broken = ModuleFeatures(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Threshold(2.0, float("nan"))), "nan", 64)
    with pytest.raises(ValueError, match="those of image 0 are not"):
        extract(broken, [(x[:3], None)])


def test_features_of_two_networks_are_not_compared():
    one, other = (extract(network(seed), image_batches(digits())) for seed in (0, 1))
    with pytest.raises(ValueError, match="features of one network"):
        compare(one, other)


def test_metrics_that_do_not_apply_are_refused_and_what_is_left_out_is_said(without_type_checker):
    flat = ModuleFeatures(torch.nn.Flatten(), "pixels", 64)
    seen = extract(flat, image_batches(digits()))
    with pytest.raises(ValueError, match="the extractor gives no class probabilities"):
        compare(seen, seen, metrics=["inception"])
    with pytest.raises(ValueError, match="metrics must be one of 'kernel', 'neighbours', 'inception', got 'fid'"):
        compare(seen, seen, metrics=["fid"])
    assert {m.name for m in compare(seen, seen, num_splits=2).measures} == {
        "kernel distance",
        "precision",
        "recall",
        "density",
        "coverage",
    }
    few = extract(flat, image_batches(digits(8)))
    with pytest.raises(ValueError, match="on either side, for 'neighbours', must be >= 6, got 4"):
        compare(few, few, metrics=["neighbours"])
    report = compare(few, few)
    assert [m.name for m in report.measures] == ["kernel distance"]
    assert any("4 images on either side are too few for: neighbours" in note for note in report.notes)
    assert compare(seen, seen, metrics=[], num_bootstrap=0).frechet_interval is None


def test_pairwise_metrics_are_taken_at_the_number_that_is_asked_for():
    seen = extract(network(), image_batches(digits()))
    report = compare(seen, seen, num_pairwise=12)
    assert (report.measured_samples, report.matched_samples) == (12, 30)
    assert "kernel distance, × 1000, 12 images" in dict(report.rows())
