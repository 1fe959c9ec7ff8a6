"""The classifier two-sample test: how well a network tells samples from a reference, as sbibm measures posteriors.

Both sets are standardised with the reference's mean and standard deviation; a network with two hidden layers of 10·d
learns to tell them apart by Adam; the score is its mean accuracy on the held-out parts of a shuffled 5-fold
cross-validation. The networks of all folds are trained at once, as one batch of matrices, by hand-written backward
passes; folds, first weights, order of samples and the rule by which each fold stops are those of scikit-learn's
`KFold` and `MLPClassifier`, which sbibm uses, so that scores differ by rounding alone.

The loop is not that of `optimisation`: folds leave the batch one by one, by scikit-learn's rule, and without autograd,
norms of gradients and a wait for the device in each step it takes about half of the time (0.37 against 0.65 ms, d = 5).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.optimisation import BestLoss

__all__ = ["c2st"]

# MLPClassifier's defaults, and sbibm's max_iter.
BATCH, LEARNING_RATE, BETAS, EPS, ALPHA = 200, 1e-3, (0.9, 0.999), 1e-8, 1e-4
TOLERANCE, PATIENCE, EPOCHS = 1e-4, 10, 1000

Numbers = Float[Tensor, "folds numbers"]
"""All weights and biases of the networks of all folds."""


def c2st(
    samples: Float[Tensor, "n d"],
    reference: Float[Tensor, "n d"],
    *,
    seed: int = 1,
    folds: int = 5,
    max_epochs: int = EPOCHS,
) -> float:
    """The accuracy with which a classifier tells samples from the reference: 0.5 is indistinguishable, 1 disjoint.

    Of 10,000 against 10,000 its standard deviation over new draws is about 0.004. Where samples are very alike it falls
    below 0.5 half of the time.

    Args:
        samples: (n, d), to be judged.
        reference: (n, d), samples of the truth, on the same device.
        seed: ≥ 0; of the folds, first weights and batches. sbibm's is 1.
        folds: ≥ 2; of the cross-validation.
        max_epochs: ≥ 1; passes over the data at most.

    Raises:
        ValueError: shapes differ, a value is not finite, the reference does not vary in a column, there are fewer
            samples than folds, or a number is out of its range.
        TypeError: a number is not an integer.

    Source: Lueckmann et al. 2021, appendix A.3 (metric); Friedman 2003; Lopez-Paz & Oquab 2017.
    """
    for name, value, low in (("seed", seed, 0), ("folds", folds, 2), ("max_epochs", max_epochs, 1)):
        checks.integer(name, value, low)
    _check(samples, reference, folds)
    mean, std = reference.float().mean(0), reference.float().std(0)
    if not bool((std > 0).all()):
        raise ValueError(f"reference must vary in every column, got a constant column {int((std <= 0).int().argmax())}")
    x = (torch.cat([reference, samples]).float() - mean) / std
    y = torch.cat([torch.zeros(len(reference)), torch.ones(len(samples))]).to(x)
    train, test = _splits(len(x), folds, seed)
    with torch.no_grad():
        networks = _fit(x, y, train.to(x.device), np.random.RandomState(seed), max_epochs)
        scores = [
            float(((_forward(network, x[rows][None])[2][0, :, 0] > 0) == (y[rows] > 0.5)).double().mean())
            for network, rows in zip(networks, test, strict=True)
        ]
    return math.fsum(scores) / folds


class _Layers(NamedTuple):
    """The networks of all folds: views of `flat`, in which weights come before biases."""

    flat: Numbers
    weights: list[Float[Tensor, "folds inputs outputs"]]
    biases: list[Float[Tensor, "folds 1 outputs"]]
    num_weights: int


def _layers(flat: Numbers, widths: list[int]) -> _Layers:
    """The views of three weights, then three biases."""
    pairs = list(pairwise(widths))
    sizes = [a * b for a, b in pairs] + widths[1:]
    pieces = torch.split(flat, sizes, dim=1)
    weights = [piece.view(-1, a, b) for piece, (a, b) in zip(pieces, pairs, strict=False)]
    return _Layers(flat, weights, [piece[:, None] for piece in pieces[3:]], sum(sizes[:3]))


def _fit(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, " n"],
    train: Int64[Tensor, "folds rows"],
    stream: np.random.RandomState,
    max_epochs: int,
) -> list[_Layers]:
    """The trained network of each fold. A fold whose loss no longer falls leaves the batch."""
    d, (folds, rows) = x.shape[1], train.shape
    widths = [d, 10 * d, 10 * d, 1]
    params = _layers(_initial(widths, stream).to(x).repeat(folds, 1), widths)
    grads, squares, average = (_layers(torch.zeros_like(params.flat), widths) for _ in range(3))
    active, done = list(range(folds)), dict[int, _Layers]()
    best = BestLoss(torch.full((folds,), math.inf, dtype=torch.float64, device=x.device), tolerance=TOLERANCE)
    step = 0
    order = np.arange(rows)
    batch = min(BATCH, rows)
    for _ in range(max_epochs):
        shuffled = np.arange(rows)
        stream.shuffle(shuffled)
        order = order[shuffled]
        chosen = train[active][:, torch.from_numpy(order).to(x.device)]
        inputs, targets = x[chosen], y[chosen][..., None]
        logits = torch.empty_like(targets)
        for start in range(0, rows, batch):
            part = slice(start, start + batch)
            logits[:, part] = _gradients(params, grads, inputs[:, part], targets[:, part])
            step += 1
            _adam(params.flat, grads.flat, average.flat, squares.flat, step)
        losses = (torch.nn.functional.softplus(logits) - targets * logits).double().mean((1, 2))
        losses = losses + ALPHA / (2 * batch) * params.flat[:, : params.num_weights].double().square().sum(1)
        best.update(losses)
        ended = (best.stale > PATIENCE).tolist()
        done |= {fold: _layers(params.flat[i : i + 1].clone(), widths) for i, fold in enumerate(active) if ended[i]}
        if any(ended):
            keep = [i for i, end in enumerate(ended) if not end]
            active = [active[i] for i in keep]
            best = BestLoss(best.lowest[keep], best.stale[keep], tolerance=TOLERANCE)
            params, grads, average, squares = (
                _layers(kept.flat[keep].contiguous(), widths) for kept in (params, grads, average, squares)
            )
        if not active:
            break
    for i, fold in enumerate(active):
        done[fold] = _layers(params.flat[i : i + 1], widths)
    return [done[fold] for fold in range(folds)]


def _initial(widths: list[int], stream: np.random.RandomState) -> Float[Tensor, "1 numbers"]:
    """Uniform weights and biases within ±√(6/(in + out)) (Glorot & Bengio 2010), in the order of `_layers`."""
    weights, biases = [], []
    for a, b in pairwise(widths):
        bound = math.sqrt(6 / (a + b))
        weights.append(stream.uniform(-bound, bound, (a, b)).ravel())
        biases.append(stream.uniform(-bound, bound, b))
    return torch.from_numpy(np.concatenate(weights + biases))[None]


def _forward(network: _Layers, x: Float[Tensor, "folds rows d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Both hidden layers, and the logits (folds, rows, 1)."""
    (w1, w2, w3), (b1, b2, b3) = network.weights, network.biases
    first = torch.baddbmm(b1, x, w1).relu_()
    second = torch.baddbmm(b2, first, w2).relu_()
    return first, second, torch.baddbmm(b3, second, w3)


def _gradients(
    network: _Layers, grads: _Layers, x: Float[Tensor, "folds rows d"], y: Float[Tensor, "folds rows 1"]
) -> Float[Tensor, "folds rows 1"]:
    """Fill `grads` with those of the penalised mean logistic loss; returns the logits of the forward pass."""
    first, second, logits = _forward(network, x)
    rows = x.shape[1]
    delta = (logits.sigmoid() - y) / rows
    torch.bmm(second.mT, delta, out=grads.weights[2])
    torch.sum(delta, 1, keepdim=True, out=grads.biases[2])
    delta = torch.ops.aten.threshold_backward(torch.bmm(delta, network.weights[2].mT), second, 0)
    torch.bmm(first.mT, delta, out=grads.weights[1])
    torch.sum(delta, 1, keepdim=True, out=grads.biases[1])
    delta = torch.ops.aten.threshold_backward(torch.bmm(delta, network.weights[1].mT), first, 0)
    torch.bmm(x.mT, delta, out=grads.weights[0])
    torch.sum(delta, 1, keepdim=True, out=grads.biases[0])
    n = network.num_weights
    grads.flat[:, :n].add_(network.flat[:, :n], alpha=ALPHA / rows)
    return logits


def _adam(params: Numbers, grads: Numbers, average: Numbers, squares: Numbers, step: int) -> None:
    """One step of Adam (Kingma & Ba 2015, the form at the end of section 2, whose ε stands beside √v uncorrected)."""
    average.lerp_(grads, 1 - BETAS[0])
    squares.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1])
    rate = LEARNING_RATE * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
    params.addcdiv_(average, squares.sqrt().add_(EPS), value=-rate)


def _splits(rows: int, folds: int, seed: int) -> tuple[Int64[Tensor, "folds train"], list[Tensor]]:
    """The rows of each fold to train on, and those to test on.

    Where folds differ in size by one, the larger training sets leave out their last row.
    """
    from sklearn.model_selection import KFold  # slow to import, and used by few

    splits = list(KFold(n_splits=folds, shuffle=True, random_state=seed).split(np.zeros(rows)))
    shortest = min(len(train) for train, _ in splits)
    train = np.stack([train[:shortest] for train, _ in splits])
    return torch.from_numpy(train), [torch.from_numpy(test) for _, test in splits]


def _check(samples: Float[Tensor, "..."], reference: Float[Tensor, "..."], folds: int) -> None:
    for name, given in (("samples", samples), ("reference", reference)):
        if given.ndim != 2 or not given.shape[1]:
            raise ValueError(f"{name} must have the shape (n, d), got {tuple(given.shape)}")
        if not bool((finite := given.isfinite().all(1)).all()):
            raise ValueError(
                f"{name} must be finite, got NaN or infinity in {int((~finite).sum())} of {len(given)} rows"
            )
    if samples.shape != reference.shape:
        raise ValueError(
            "samples and reference must have one shape, so that 0.5 is indistinguishable, "
            f"got {tuple(samples.shape)} and {tuple(reference.shape)}"
        )
    if samples.device != reference.device:
        raise ValueError(f"samples and reference must lie on one device, got {samples.device} and {reference.device}")
    if len(samples) < folds:
        raise ValueError(f"samples must be at least as many as folds, {folds}, got {len(samples)}")
