"""Metrics of tiny data: a classifier and the report that it gives, and every distance on two sets of features."""

import torch
from benchmarks.recorded.library import InMemory, make, metrics
from benchmarks.recorded.problems import uniform
from benchmarks.recorded.storage import Named, numbers_of, reduced


def distances() -> Named:
    """Fréchet and kernel distances, precision, recall, density and coverage, the Inception score, c2st."""
    x, y = uniform(60, 5, seed=30).square(), uniform(80, 5, seed=31)
    yield "frechet", metrics.frechet_distance(metrics.gaussian(x), metrics.gaussian(y))
    yield "frechet-error", metrics.frechet_error(x, y, num=10, seed=0)
    statistics = metrics.GaussianStatistics(5)
    for part in x.split(17):
        statistics.update(part)
    yield "frechet-streamed", metrics.frechet_distance(statistics.finalize(), metrics.gaussian(y))
    for degree in (1, 3):
        yield f"kernel-{degree}", list(metrics.kernel_distance(x, y, degree=degree))
    near = metrics.neighbours(x, y)
    yield "neighbours", [near.precision, near.recall, near.density, near.coverage]
    probabilities = (3 * uniform(40, 4, seed=32)).softmax(1)
    yield "inception", list(metrics.inception_score(probabilities, num_splits=4))
    a, b = uniform(150, 2, seed=33).float(), (uniform(150, 2, seed=34) + 0.2).float()
    yield "c2st", metrics.c2st(a, b, max_epochs=20)


def evaluations() -> Named:
    """A small classifier of the digits, and the evaluation of noisy digits by its features."""
    digits = make("data.Digits", split="test").load()
    x, labels = digits.fetch(torch.arange(200))
    dataset = InMemory(x, labels, num_classes=10, kind="images")
    classifier = metrics.train_classifier(dataset, seed=1, epochs=2, width=8, dim=16)
    for name, value in sorted(classifier.state_dict().items()):
        yield f"classifier/{name}", reduced(value)
    samples = (x[:90] + 0.3 * uniform(*x[:90].shape, seed=35).float()).clamp(-1, 1)
    for name, given in {"labels": labels[:90], "none": None}.items():
        report = metrics.evaluate(samples, given, dataset, classifier, held_out=dataset, num_splits=3)
        plain = {key: value for key, value in report.to_dict().items() if key != "fingerprint"}
        yield from numbers_of(f"report/{name}", plain)
