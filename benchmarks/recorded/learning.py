"""Networks at a fixed seed, and training runs of fifty steps: losses, gradient norms, raw and averaged weights."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.recorded.library import (
    Choice,
    ConditionalMixture,
    Config,
    InMemory,
    Observer,
    Trainer,
    config,
    from_config,
    list_checkpoints,
    make,
    reconstruct,
)
from benchmarks.recorded.problems import uniform
from benchmarks.recorded.storage import Named, reduced
from safetensors.torch import load_file
from torch import Tensor, nn

UNET = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0}
ADM = {**UNET, "model_channels": 64, "channel_mult": [1, 1]}
SUMMARIES = {
    "vector": (config("networks.VectorSummary", width=8, num_blocks=1), (5,)),
    "image": (config("networks.ImageSummary", width=4), (1, 8, 8)),
    "series": (config("networks.SeriesSummary", width=8, num_blocks=2), (2, 9)),
    "set": (config("networks.SetSummary", width=8), (6, 2)),
}
Shapes = dict[str, Any]


def networks() -> Iterator[tuple[str, Config, tuple[int, ...], Shapes]]:
    """Name, plain data, event shape and the other shapes of every kind of network."""
    images = (2, 8, 8)
    everything = {"num_classes": 3, "augment_dim": 4, "out_channels": 4}
    for name in ("DDPMpp", "NCSNpp", "SongUNet"):
        yield name, config(f"networks.{name}", **UNET), images, {}
        yield f"{name}/conditional", config(f"networks.{name}", **UNET), images, everything
    yield "ADM", config("networks.ADM", **ADM), images, {}
    yield "ADM/conditional", config("networks.ADM", **ADM), images, everything
    styles = {"embedding": "fourier", "channel_mult_noise": 2, "encoder": "skip", "decoder": "skip"}
    yield "SongUNet/skip", config("networks.SongUNet", **UNET, **styles, resample_filter=[1, 3, 3, 1]), images, {}
    yield "MLP", config("networks.MLP", width=16, num_blocks=2), (3,), {}
    yield "MLP/conditional", config("networks.MLP", width=16, num_blocks=2), (3,), everything
    tokens = {"width": 8, "num_blocks": 2, "num_heads": 2}
    yield "Transformer", config("networks.Transformer", **tokens), (3,), {}
    yield "Transformer/data", config("networks.Transformer", **tokens), (3,), {"condition_shape": (4,)}
    yield "Transformer/classes", config("networks.Transformer", **tokens), (3,), {"num_classes": 3}
    yield "JointTransformer", config("networks.JointTransformer", **tokens), (3,), {"condition_shape": (6,)}
    for name, (summary, shape) in SUMMARIES.items():
        plain = config("networks.ConditionalMLP", width=8, num_blocks=2, summary=summary)
        yield f"ConditionalMLP/{name}", plain, (3,), {"condition_shape": shape}


def shaken(module: nn.Module) -> nn.Module:
    """The same module with every parameter moved a little: many are zero at first. In the order of their names."""
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
            parameter += uniform(*parameter.shape, seed=100 + i, low=-0.2, high=0.2).to(parameter)
    return module.eval()


def given(event_shape: tuple[int, ...], shapes: Shapes) -> list[Tensor | None]:
    """x, c_noise, the condition and the augmentation label that a network of these shapes is called with."""
    x, c_noise = uniform(3, *event_shape, seed=20), torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64)
    condition = augment = None
    if shapes.get("num_classes"):
        condition = torch.tensor([0, 2, -1])
    if shapes.get("condition_shape"):
        condition = uniform(3, *shapes["condition_shape"], seed=21)
        if shapes["condition_shape"] == (2 * event_shape[0],):
            condition[:, event_shape[0] :] = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    if shapes.get("augment_dim"):
        augment = uniform(3, shapes["augment_dim"], seed=22)
    return [x, c_noise, condition, augment]


def network_outputs(dtype: torch.dtype) -> Named:
    """F of every kind of network, its gradient with respect to x, and sums of its initial weights."""
    for name, plain, event_shape, shapes in networks():
        module = make(plain["class_path"].removeprefix("openedm."), **plain["init_args"]).build(
            event_shape, **shapes, seed=1
        )
        if dtype is torch.float32:
            for key, parameter in sorted(module.named_parameters()):
                weights = parameter.detach().double()
                yield f"{name}/initial/{key}", [weights.sum(), weights.square().sum(), *parameter.shape]
        values = [v.to(dtype) if v is not None and v.is_floating_point() else v for v in given(event_shape, shapes)]
        module = shaken(module).to(dtype)
        values[0].requires_grad_(True)
        output = module(*(values if values[3] is not None else values[:3]))
        (gradient,) = torch.autograd.grad(output.square().sum(), values[0])
        yield f"{name}/output", output
        yield f"{name}/gradient", gradient


def double_networks() -> Named:
    """In float64."""
    yield from network_outputs(torch.float64)


def single_networks() -> Named:
    """In float32, as networks are trained and sampled."""
    yield from network_outputs(torch.float32)


def mixtures() -> Named:
    """Conditional mixtures in float64: densities, parameters and samples, before and after a least-squares fit."""
    u, y = uniform(12, 3, seed=23), uniform(12, 2, seed=24)
    for members, components in ((1, 1), (2, 3)):
        torch.manual_seed(25)
        mixture = ConditionalMixture(3, 2, members=members, components=components, width=8, num_blocks=1)
        mixture = shaken(mixture).double()
        for state in ("shaken", "linear"):
            name = f"{members}-{components}/{state}"
            yield f"{name}/log_prob", mixture.log_prob(y, u)
            for part, value in enumerate(mixture.parameters_of(u.expand(members, *u.shape))):
                yield f"{name}/parameters/{part}", value
            yield f"{name}/samples", mixture.sample(u, torch.Generator().manual_seed(26))
            mixture.fit_linear(y, u)


class Losses(Observer):
    """Remembers what a run tells."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.validations: list[list[float]] = []

    def on_progress(self, progress: Any) -> None:
        """Loss, gradient norm and learning rate of every step."""
        self.steps.append([progress.loss, progress.gradient_norm, progress.learning_rate])

    def on_validation(self, images: int, loss: Any) -> None:
        """The validation loss."""
        self.validations.append([images, loss.loss])


def blobs() -> InMemory:
    """Ninety-six points in the plane, in three classes."""
    labels = torch.arange(96) % 3
    return InMemory((0.5 * uniform(96, 2, seed=27) + 0.5 * labels[:, None]).float(), labels)


COMMON = {"images": 800, "batch_size": 16, "rampup": 160, "average": config("training.HalfLife", half_life=100.0)}
RUNS: dict[str, tuple[str, Config, Config, Config, bool, dict[str, Any]]] = {
    "mlp": (
        "blobs",
        config("networks.MLP", width=16, num_blocks=1),
        config("preconditioning.EDM"),
        config("objective.EDM"),
        False,
        {**COMMON, "validate_every": 400, "validate_samples": 48},
    ),
    "mlp-everything": (
        "blobs",
        config("networks.MLP", width=16, num_blocks=1),
        config("preconditioning.VP"),
        config("objective.VP", stratified=False),
        True,
        {
            **COMMON,
            "accumulate": 2,
            "schedule": "cosine",
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "label_dropout": 0.2,
            "keep_best": True,
            "validate_every": 160,
            "validate_samples": 48,
            "power_average": config("training.PowerFunction", every=200, precision="fp32"),
        },
    ),
    "digits": (
        "digits",
        config("networks.DDPMpp", model_channels=8, channel_mult=[1], num_blocks=1, dropout=0.1),
        config("preconditioning.EDM"),
        config("objective.EDM2"),
        True,
        {**COMMON, "augmentation": config("training.Augmentation", p=0.5), "label_dropout": 0.1, "seed": 3},
    ),
}


def training() -> Named:
    """Three runs of fifty steps; the last ones with classes, augmentation, dropout and learned uncertainty."""
    for name in RUNS:
        with TemporaryDirectory() as folder:
            yield from _run(name, Path(folder) / "run")


def _run(name: str, run: Path) -> Named:
    data, network, preconditioning, objective, conditional, options = RUNS[name]
    dataset = blobs() if data == "blobs" else make("data.Digits", split="test").load()
    chosen = make("training.Options", **{"snapshot_every": 0, "validate_every": 0, "checkpoint_every": 800, **options})
    plain = {
        "network": network,
        "preconditioning": preconditioning,
        "sigma_data": 0.6,
        "event_shape": list(dataset.event_shape),
        "num_classes": dataset.num_classes if conditional else 0,
        "images": data == "digits",
        "augment_dim": chosen.augment_dim,
    }
    losses = Losses()
    trainer = Trainer(
        from_config(Choice, config("training.Model", **plain)),
        dataset,
        from_config(Choice, objective),
        chosen,
        run=run,
        observers=[losses],
    )
    denoiser = trainer.fit()
    yield f"{name}/steps", losses.steps
    yield f"{name}/validations", losses.validations
    x = uniform(2, *dataset.event_shape, seed=28).float()
    for sigma in (0.05, 0.5, 5.0):
        condition = torch.tensor([0, 1]) if conditional else None
        yield f"{name}/denoised/{sigma}", denoiser(x, sigma, condition)
    (checkpoint,) = list_checkpoints(run)
    for file in ("model", "training"):
        for key, value in sorted(load_file(checkpoint / f"{file}.safetensors").items()):
            yield f"{name}/{file}/{key}", reduced(value)
    if "power_average" in options:
        for key, value in sorted(reconstruct(run, 0.08).items()):
            yield f"{name}/reconstructed/{key}", reduced(value)
