import json
import math
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import TypeCheckError
from scipy.stats import binomtest

from openedm.data import Digits, InMemory
from openedm.metrics import (
    Classifier,
    Features,
    OwnMetric,
    Report,
    compare,
    evaluate,
    frechet_distance,
    gaussian,
)
from openedm.metrics.evaluate import _halves
from openedm.metrics.report import share_interval


@pytest.fixture(scope="module")
def train():
    return Digits("train").load()


@pytest.fixture(scope="module")
def test():
    return Digits("test").load()


def everything(dataset):
    return dataset.fetch(range(len(dataset)))


def noisy(x, amount):
    return x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def test_unseen_real_images_score_near_the_floor(train, test, digits_classifier):
    report = evaluate(*everything(test), train, digits_classifier, held_out=test)
    assert report.frechet_matched == pytest.approx(report.floor, rel=0.5)
    assert report.accuracy == report.accuracy_real > 0.97
    assert (report.num_samples, report.num_reference, report.matched_samples) == (360, 1437, 360)
    assert report.notes == ()


def test_the_distance_grows_with_the_damage(train, test, digits_classifier):
    x, labels = everything(test)
    reports = [evaluate(noisy(x, s), labels, train, digits_classifier) for s in (0.0, 0.5, 1.0)]
    assert reports[0].frechet < reports[1].frechet < reports[2].frechet
    assert reports[0].frechet_matched < reports[1].frechet_matched < reports[2].frechet_matched
    assert reports[0].accuracy > reports[1].accuracy > reports[2].accuracy
    assert reports[2].frechet_matched > 5 * reports[2].floor
    assert len({report.floor for report in reports}) == 1


def test_a_missing_class_shows(train, test, digits_classifier):
    x, labels = everything(test)
    whole = evaluate(x, labels, train, digits_classifier)
    assert evaluate(x[labels < 9], labels[labels < 9], train, digits_classifier).frechet > 2 * whole.frechet


def test_the_floor_falls_with_the_number_of_samples(train, test, digits_classifier):
    x, labels = everything(test)
    floors = [evaluate(x[:n], labels[:n], train, digits_classifier).floor for n in (40, 120, 360)]
    assert floors[0] > 2 * floors[1] > 4 * floors[2]


def test_the_headline_is_the_distance_of_all_to_all(train, test, digits_classifier):
    x, labels = everything(test)
    with torch.no_grad():
        made, real = (gaussian(digits_classifier.features(y)) for y in (x, everything(train)[0]))
    report = evaluate(x, labels, train, digits_classifier, batch_size=50)
    assert report.frechet == pytest.approx(frechet_distance(made, real), rel=1e-4)


def test_labels_are_judged_one_by_one(train, test, digits_classifier):
    x, labels = everything(test)
    shuffled = torch.where(torch.arange(360) < 180, (labels + 1) % 10, labels)
    right = digits_classifier.predict(x) == shuffled
    assert evaluate(x, shuffled, train, digits_classifier).accuracy == right.double().mean().item()


def test_without_labels_there_is_no_accuracy(train, test, digits_classifier):
    report = evaluate(everything(test)[0], None, train, digits_classifier)
    assert report.accuracy is None
    assert report.accuracy_real is None
    assert not any("accuracy" in name for name, _ in report.rows())


def test_more_samples_than_the_reference_can_match_is_said_not_hidden(test, train, digits_classifier):
    x, labels = everything(train)
    report = evaluate(x[:300], labels[:300], test, digits_classifier)
    assert report.matched_samples == 180
    assert any("360 real images cannot give two disjoint sets of 300" in note for note in report.notes)
    assert "180 real to 180 other real" in report.table()
    assert "two disjoint sets" in report.table()


def test_fewer_samples_than_features_is_said(train, test, digits_classifier):
    x, labels = everything(test)
    assert "do not determine a covariance" in " ".join(evaluate(x[:64], labels[:64], train, digits_classifier).notes)


def test_a_report_repeats_with_its_seed(train, test, digits_classifier):
    x, labels = everything(test)
    state = torch.get_rng_state()
    first, again, other = (evaluate(x, labels, train, digits_classifier, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.floor != other.floor
    assert first.frechet == other.frechet
    assert torch.equal(torch.get_rng_state(), state)


def test_a_report_is_rows_of_text_and_json(train, test, digits_classifier):
    report = evaluate(*everything(test), train, digits_classifier, held_out=test)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict()["floor"] == report.floor
    rows = dict(report.rows())
    assert rows["Fréchet distance, 360 generated to 1437 real"] == "{:.2f} [{:.2f}, {:.2f}]".format(
        report.frechet, *report.frechet_interval
    )
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    low, high = share_interval(report.accuracy, 360)
    assert rows["accuracy of the classifier on generated labels"] == f"{report.accuracy:.1%} [{low:.1%}, {high:.1%}]"
    assert report.accuracy_real_samples == 360
    assert len({line.rindex("  ") for line in report.table().splitlines()}) == 1


def test_halves_are_disjoint_and_have_equal_shares_of_each_class():
    strata = torch.arange(1000) % 7
    one, other = _halves(1000, 300, strata, torch.Generator().manual_seed(0))
    assert len({*one.tolist(), *other.tolist()}) == 600
    assert (strata[one].bincount() - strata[other].bincount()).abs().max() <= 1
    again, _ = _halves(1000, 300, strata, torch.Generator().manual_seed(1))
    assert len(set(one.tolist()) & set(again.tolist())) < 150


def of_two_classes(each, seed):
    """Features that are the class, and a little noise: as many of each class."""
    labels = torch.arange(2 * each) % 2
    noise = 0.01 * torch.randn(2 * each, 2, generator=torch.Generator().manual_seed(seed))
    return Features(labels[:, None] + noise, None, labels, False, "the class")


@pytest.mark.parametrize("each", [50, 51, 200])
def test_more_generated_images_than_are_compared_are_taken_with_equal_shares_of_each_class(each):
    real = of_two_classes(50, seed=1)
    report = compare(of_two_classes(each, seed=2), real, metrics=[], num_splits=20, num_bootstrap=0)
    # 50 of a set with equal shares have a mean that differs by sqrt(2 / 4 / 50), were their classes drawn.
    assert report.matched_samples == 50
    assert report.frechet_matched < 1e-4
    assert report.floor < 1e-4


def test_what_does_not_fit_is_refused_by_name(train, test):
    classifier = Classifier((1, 8, 8), 10, width=4)
    x, labels = everything(test)
    vectors = InMemory(torch.zeros(9, 3))
    broken = x.clone()
    broken[3, 0, 0, 0] = float("nan")
    for arguments, message in [
        ((x[:1], labels[:1], train), "number of samples must be >= 2, got 1"),
        ((x, labels, InMemory(x[:3])), "number of images in reference must be >= 4, got 3"),
        ((x[:, :, :4], labels, train), r"samples must have the classifier's image shape \(1, 8, 8\), got \(1, 4, 8\)"),
        ((x, labels, vectors), "reference must have the classifier's image shape"),
        ((broken, labels, train), "samples must be finite, but 1 of 360 are not"),
        ((x, labels + 1, train), "labels must be between 0 and 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(*arguments, classifier)
    with pytest.raises((ValueError, TypeCheckError), match="labels"):
        evaluate(x, labels[:-1], train, classifier)
    with pytest.raises(ValueError, match="held_out must have the classifier's 10 classes, not 0"):
        evaluate(x, labels, train, classifier, held_out=InMemory(x))
    with pytest.raises(ValueError, match="num_splits must be >= 1"):
        evaluate(x, labels, train, classifier, num_splits=0)


@dataclass(frozen=True)
class DistanceOfMeans(OwnMetric):
    """The distance of the means, or what is given instead."""

    instead: float | None = None

    def measure(self, made, real):
        return (made.mean(0) - real.mean(0)).norm() if self.instead is None else self.instead


@dataclass(frozen=True)
class Means(OwnMetric):
    """No number."""

    def measure(self, made, real):
        return made.mean(0)


def test_a_metric_of_ones_own_stands_beside_its_floor_and_its_error():
    generator = torch.Generator().manual_seed(0)
    made, real = (
        Features(torch.randn(n, 2, generator=generator) + shift, None, None, False, "")
        for n, shift in ((60, 3.0), (120, 0.0))
    )
    report = compare(made, real, metrics=["kernel"], num_splits=4, num_bootstrap=0, own=DistanceOfMeans())
    found = report.measure("DistanceOfMeans")
    assert found.value == pytest.approx(3 * math.sqrt(2), abs=0.5)
    assert found.floor < 0.6
    assert found.error == pytest.approx(math.sqrt(2 / 60), rel=0.6)
    assert any(name.startswith("DistanceOfMeans, 60 images") for name, _ in report.rows())
    with pytest.raises(ValueError, match=r"DistanceOfMeans\.measure must return a finite number, got nan"):
        compare(made, real, own=DistanceOfMeans(math.nan))
    with pytest.raises(TypeError, match=r"Means\.measure must return a number, got Tensor"):
        compare(made, real, own=Means())


def test_intervals_of_shares_are_wilsons_and_stay_between_0_and_1():
    for count, share in ((100, 0.0), (100, 1.0), (40, 0.25), (7, 3 / 7)):
        exact = binomtest(round(share * count), count).proportion_ci(method="wilson")
        assert share_interval(share, count) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert (share_interval(0.0, 64)[0], share_interval(1.0, 64)[1]) == (0.0, 1.0)
    low, high = share_interval(0.9, 100, error=0.06)  # resampled images are fewer than they seem
    exact = share_interval(0.9, 25)
    assert (low, high) == pytest.approx(exact)
    assert share_interval(0.9, 100, error=1e-9) == share_interval(0.9, 100)
