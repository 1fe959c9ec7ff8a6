"""A small convolutional classifier: its features compare images, its classes judge labels.

Trained on the real data at hand in seconds to minutes, so that evaluation needs no download. Distances in its features
compare samples of the same data with each other; they are not the published FID.
"""

import json
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import safetensors
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from openedm.data.dataset import Dataset
from openedm.ground import checks
from openedm.ground.progress import ShowProgress, showing
from openedm.ground.storage import parse_json, write_tensors
from openedm.optimisation import minimise

__all__ = ["Classifier", "train_classifier"]

L = TypeVar("L", nn.Conv2d, nn.Linear)

HEADER = "openedm.metrics.Classifier"
"""The key of the arguments in a file's header."""


class Classifier(nn.Module):
    """Two or more stages of two 3×3 convolutions, each halving the image, down to a side of 4; features; logits.

    The weights depend on the arguments alone: no global random numbers are drawn.

    Args:
        event_shape: (channels, height, width) of the images.
        num_classes: number of logits, at least 2.
        width: channels of the first stage; they double per stage, up to 4 times that.
        dim: number of features.
        seed: of the initial weights.
    """

    def __init__(
        self, event_shape: tuple[int, ...], num_classes: int, *, width: int = 32, dim: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        if len(event_shape) != 3 or min(event_shape) < 1:
            raise ValueError(f"event_shape must be (channels, height, width), got {event_shape}")
        checks.at_least("num_classes", num_classes, 2)
        checks.at_least("width", width, 1)
        checks.at_least("dim", dim, 1)
        self.config = {"event_shape": list(event_shape), "num_classes": num_classes, "width": width, "dim": dim}
        self.event_shape, self.num_classes, self.dim = tuple(event_shape), num_classes, dim
        generator = torch.Generator().manual_seed(seed)
        channels = event_shape[0]
        layers: list[nn.Module] = []
        for outputs in _widths(event_shape, width):
            for inputs, stride in ((channels, 1), (outputs, 2)):
                convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, device="meta")
                layers += [_initialised(convolution, generator), _norm(outputs), nn.SiLU()]
            channels = outputs
        self.stages = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.embed = _initialised(nn.Linear(4 * channels, dim, device="meta"), generator)
        self.head = _initialised(nn.Linear(dim, num_classes, device="meta"), generator)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        """The `dim` features of each image in `x`, values in [-1, 1].

        Raises:
            ValueError: the images have another shape than `event_shape`.
        """
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x must be images of shape {self.event_shape}, got {tuple(x.shape[1:])}")
        return functional.silu(self.embed(self.pool(self.stages(x)).flatten(1)))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits, one per class."""
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "batch channels height width"]) -> Int[Tensor, " batch"]:
        """The most likely class of each image."""
        return self.forward(x).argmax(1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and, as JSON in the header, the arguments, as one safetensors file: complete or not at all."""
        write_tensors(Path(path), self.state_dict(), {HEADER: json.dumps(self.config)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Classifier":
        """The classifier that `save` wrote, on the CPU.

        Raises:
            ValueError: `path` does not hold one.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                config = parse_json(file.metadata()[HEADER], HEADER)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            made = cls(tuple(config.pop("event_shape")), config.pop("num_classes"), **config)
            made.load_state_dict(tensors)
        except (
            OSError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            safetensors.SafetensorError,
        ) as error:
            raise ValueError(
                f"path must be a classifier that Classifier.save wrote, got {str(path)!r}: {error}"
            ) from error
        return made.eval()


def train_classifier(
    dataset: Dataset,
    *,
    seed: int,
    epochs: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    shift: int | None = None,
    width: int = 32,
    dim: int = 64,
    device: str | torch.device = "cpu",
    progress: ShowProgress = None,
) -> Classifier:
    """A `Classifier` trained on the labels of `dataset`: AdamW, one warm-up and decay, images shifted at random.

    The result depends on the data, the arguments and the machine's arithmetic; the global random state is neither read
    nor changed.

    Args:
        dataset: labelled images.
        seed: of the weights, the order and the shifts.
        epochs: passes over the data; by default as many as show 100,000 images, but from 2 to 30.
        batch_size: images per step.
        learning_rate: the highest.
        shift: images move by up to so many pixels each way; by default a sixteenth of the shorter side, at least 1.
        width: see `Classifier`.
        dim: number of features.
        device: where to train; the result stays there.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            number of epochs that are done, first with 0.

    Raises:
        ValueError: `dataset` is not labelled images, or an argument is outside its range.
        FloatingPointError: a loss or a gradient is not finite.
    """
    if dataset.kind != "images" or dataset.num_classes < 2:
        raise ValueError(f"dataset must be images in at least 2 classes, got {dataset.describe()}")
    epochs = min(max(100_000 // len(dataset), 2), 30) if epochs is None else epochs
    checks.at_least("epochs", epochs, 1)
    checks.at_least("batch_size", batch_size, 1)
    checks.positive("learning_rate", learning_rate)
    side = min(dataset.event_shape[1:])
    shift = min(max(1, side // 16), side - 1) if shift is None else shift
    checks.between("shift", shift, 0, side - 1)

    generator = torch.Generator().manual_seed(seed)
    classifier = Classifier(dataset.event_shape, dataset.num_classes, width=width, dim=dim, seed=seed).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=1e-2)
    per_epoch = math.ceil(len(dataset) / batch_size)
    rate = partial(_warm_up_and_decay, learning_rate, epochs * per_epoch)
    with showing(progress) as report:
        report("classifier", 0, epochs)
        for epoch in range(epochs):
            batches = torch.split(torch.randperm(len(dataset), generator=generator), batch_size)

            def gradient(step: int, batches: Sequence[Tensor] = batches) -> Tensor:
                x, condition = dataset.fetch(batches[step % per_epoch])
                labels = dataset.condition_layout.unpack(cast(Tensor, condition))[0]
                logits = classifier(_shifted(x, shift, generator).to(device))
                loss = functional.cross_entropy(logits, cast(Tensor, labels).to(device))
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            for step in minimise(gradient, optimizer, steps=steps, learning_rate=rate):
                if not step.taken:
                    raise FloatingPointError(
                        f"the loss of step {step.number} or its gradient is not finite: {step.loss}"
                    )
            report("classifier", epoch + 1, epochs)
    return classifier.eval()


def _widths(event_shape: tuple[int, ...], width: int) -> list[int]:
    """Channels of each stage: as many as bring the shorter side to at most 4, and at least two."""
    stages = max(2, math.ceil(math.log2(min(event_shape[1:]) / 4)))
    return [min(width * 2**i, 4 * width) for i in range(stages)]


def _warm_up_and_decay(highest: float, steps: int, step: int) -> float:
    """A learning rate: from 0 up over a tenth of the steps, then down a half cosine to 0."""
    return highest * min(10 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1)))


def _shifted(
    x: Float[Tensor, "batch channels height width"], shift: int, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Each image moved by up to `shift` pixels each way, its border repeated."""
    if shift == 0:
        return x
    batch, _, height, width = x.shape
    down, right = torch.randint(0, 2 * shift + 1, (2, batch, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    padded = functional.pad(x, (shift, shift, shift, shift), mode="replicate")
    return padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _initialised(layer: L, generator: torch.Generator) -> L:
    """The layer, made on the device meta, with weights: torch would fill it from the global random numbers."""
    layer.to_empty(device="cpu")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _norm(channels: int) -> nn.Module:
    # At least 4 channels to a group: alone in a group of one pixel, a channel would be normalised to nothing.
    return nn.GroupNorm(math.gcd(8, channels // 4) if channels % 4 == 0 else 1, channels)
