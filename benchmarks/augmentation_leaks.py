"""Whether augmentation leaks: a network that is told of it against one that is not, in a table and a JSON file.

    python -m benchmarks.augmentation_leaks [--images 160000] [--samples 500] [--out leaks.json] [--figure leaks.png]

Both are trained on the same 500 digits with p = 0.15; one is told of the transforms and sampled at label 0. A third,
`plain`, is trained on the digits as they are: what its samples show is no leak, but that they are not perfect. A
classifier, trained on the other 1297 digits, tells images as they are from mirrored ones and from ones turned by 45° or
more. Of 500 images as they are it finds some mirrored or turned (`real`), of 500 transformed ones
more (`transformed`): between the two lies how much of the augmentation the samples of a network show,

    leak = (share of its samples − share of real) / (share of transformed − share of real),

0 if nothing leaks, 1 if everything does. Standard errors are binomial, of all three shares.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from torch import Tensor

from openedm.data import Dataset, Digits, InMemory, save_image
from openedm.data.pictures import image_grid
from openedm.denoiser import Preconditioned
from openedm.metrics.classifier import Classifier, train_classifier
from openedm.networks import DDPMpp
from openedm.sampling import Sampler, sample_batches
from openedm.training import Augmentation, Augmented, HalfLife, Model, Options, Trainer

TRAINED_ON = 500
COPIES = 8
P = 0.15
NETWORK = DDPMpp(model_channels=32, channel_mult=(1, 2), num_blocks=1, dropout=0.0)
MIRRORED, TURNED = 1, 2


class Untold(Dataset):
    """Digits, transformed anew at each fetch without a word."""

    def __init__(self, clean: InMemory, augmentation: Augmentation) -> None:
        self.clean, self.augmentation = clean, augmentation
        self.event_shape, self.num_classes = clean.event_shape, clean.num_classes
        self.class_names, self.kind = clean.class_names, clean.kind

    def __len__(self) -> int:
        return len(self.clean)

    def fetch(self, indices: Any) -> tuple[Tensor, Tensor | None]:
        """Draws from torch's generator, which the trainer seeds for each batch."""
        x, labels = self.clean.fetch(indices)
        return self.augmentation.draw(len(x), torch.default_generator).apply(x), labels


def split(seed: int) -> tuple[InMemory, Tensor]:
    """500 digits to train on, and all others."""
    digits = Digits("all").load()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    x, labels = digits.fetch(order)
    assert labels is not None
    return InMemory(x[:TRAINED_ON], labels[:TRAINED_ON], class_names=digits.class_names), x[TRAINED_ON:]


def judge(x: Tensor, seed: int) -> Classifier:
    """Tells apart: as it is (0), mirrored (1), turned by 45° to 315°, mirrored or not (2); some scaled and moved."""
    generator = torch.Generator().manual_seed(seed)
    x = x.repeat(COPIES, 1, 1, 1)
    labels = torch.arange(len(x)) % 3
    x = torch.where((labels == MIRRORED)[:, None, None, None], x.flip(-1), x)
    again = (labels == TURNED) & (torch.rand(len(x), generator=generator) < 0.5)
    x = torch.where(again[:, None, None, None], x.flip(-1), x)
    theta = (0.25 + 1.5 * torch.rand(len(x), generator=generator, dtype=torch.float64)) * math.pi
    theta = theta.where(labels == TURNED, 0.0)
    linear = torch.stack([theta.cos(), -theta.sin(), theta.sin(), theta.cos()], -1).reshape(-1, 2, 2)
    nothing = torch.zeros(len(x), 2)
    x = Augmented(torch.zeros(len(x), 9), nothing.bool(), linear, nothing.double()).apply(x)
    return train_classifier(InMemory(x.clamp(-1, 1), labels), seed=seed)


def trained(data: InMemory, arm: str, *, images: int, seed: int) -> tuple[Preconditioned, float]:
    """A network, and the seconds of its training."""
    augmentation = Augmentation(p=P)
    options = Options(
        images=images,
        batch_size=64,
        learning_rate=2e-3,
        rampup=images // 20,
        schedule="cosine",
        average=HalfLife(images / 40),
        augmentation=augmentation if arm == "told" else None,
        validate_every=0,
        snapshot_every=0,
        seed=seed,
    )
    model = Model.for_data(data, NETWORK, augment_dim=options.augment_dim)
    started = time.perf_counter()
    denoiser = Trainer(model, Untold(data, augmentation) if arm == "untold" else data, options=options).fit()
    return denoiser, time.perf_counter() - started


def shares(classifier: Classifier, x: Tensor) -> tuple[float, float]:
    """The shares of images that are found mirrored and turned."""
    found = classifier.predict(x.float().clamp(-1, 1))  # the filter overshoots
    return float((found == MIRRORED).float().mean()), float((found == TURNED).float().mean())


def leak(share: float, real: float, transformed: float, count: int) -> tuple[float, float]:
    """How much of the augmentation shows, and its standard error."""
    variances = [p * (1 - p) / count for p in (share, real, transformed)]
    value, width = (share - real) / (transformed - real), transformed - real
    # The derivatives by the three shares: 1, value − 1 and −value, over the width.
    error = (variances[0] + (value - 1) ** 2 * variances[1] + value**2 * variances[2]) ** 0.5 / width
    return value, error


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160_000, help="images that each network is trained on")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--figure", type=Path, help="draw 60 samples of each network, told above untold")
    given = parser.parse_args()
    data, others = split(given.seed)
    classifier = judge(others, given.seed)
    real, _ = data.fetch(torch.arange(TRAINED_ON))
    transforms = Augmentation(p=P).draw(TRAINED_ON, torch.Generator().manual_seed(given.seed))
    condition = torch.arange(given.samples) % 10
    sets = {"real": (real, 0.0), "transformed": (transforms.apply(real), 0.0)}
    for name in ("plain", "told", "untold"):
        denoiser, seconds = trained(data, name, images=given.images, seed=given.seed)
        batches = sample_batches(Sampler(), denoiser, range(given.samples), condition=condition, batch_size=250)
        sets[name] = torch.cat([x for _, x in batches]).float(), seconds
    found = {name: shares(classifier, x) for name, (x, _) in sets.items()}
    print(f"{'images':<14}{'mirrored':>9}{'leak':>16}{'turned':>9}{'leak':>16}{'seconds':>9}")
    rows = []
    for name, share in found.items():
        row = {"images": name, "seconds": sets[name][1]}
        texts = []
        for i, kind in enumerate(("mirrored", "turned")):
            leaks = leak(share[i], found["real"][i], found["transformed"][i], given.samples)
            row |= {kind: share[i], f"{kind}_leak": leaks[0], f"{kind}_error": leaks[1]}
            texts.append(f"{share[i]:>9.3f}{leaks[0]:>8.2f} ± {leaks[1]:.2f} ")
        print(f"{name:<14}{''.join(texts)}{row['seconds']:>9.0f}")
        rows.append(row)
    if given.figure is not None:
        shown = torch.cat([sets[name][0][:60] for name in ("told", "untold")])
        save_image(image_grid(shown.repeat_interleave(4, -1).repeat_interleave(4, -2), 20), given.figure)
    if given.out is not None:
        settings = {"images": given.images, "samples": given.samples, "seed": given.seed, "p": P}
        write_json(given.out, {"machine": machine(["scikit-learn"]), **settings, "rows": rows})


if __name__ == "__main__":
    main()
