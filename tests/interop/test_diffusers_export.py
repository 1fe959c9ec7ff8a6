"""U-Nets of this library as UNet2DModel: the same outputs, or the layers that differ."""

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from openedm import ADM, MLP, DDPMpp, NCSNpp, Preconditioned
from openedm.interop.diffusers import Scheduler, from_diffusers, to_unet2d
from openedm.networks import SongUNet
from openedm.preconditioning import EDM
from openedm.sampling import Auto

SMALL = {"num_blocks": 1, "dropout": 0.0}


def randomised(network: nn.Module) -> nn.Module:
    """The network with weights other than zero in all layers."""
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        size = value[0].numel() if value.ndim > 1 else 25
        value.data.copy_(torch.randn(value.shape, generator=generator) / size**0.5)
    return network.eval()


@pytest.mark.parametrize(
    ("choice", "shape"),
    [
        (ADM(128, (1, 1), **SMALL), (3, 8, 16)),
        (ADM(128, (1, 2), attn_resolutions=(4,), **SMALL), (1, 8, 8)),
        (DDPMpp(128, (1,), **SMALL), (2, 8, 8)),
        (SongUNet(128, (1, 2), attn_resolutions=(4,), resample_filter=(1, 3, 3, 1), **SMALL), (3, 8, 8)),
        (
            SongUNet(128, (1, 1), encoder="skip", decoder="skip", resample_filter=(1, 3, 3, 1), **SMALL),
            (3, 8, 8),
        ),
    ],
    ids=["ADM", "ADM, attention at one level", "DDPM++ of one level", "filter 1331", "images of all levels"],
)
@torch.no_grad()
def test_the_output_is_the_same(choice: Any, shape: tuple[int, ...]) -> None:
    network = randomised(choice.build(shape, seed=0))
    x, c_noise = torch.randn(2, *shape), torch.tensor([-1.2, 0.7])
    expected = network(x, c_noise)
    assert (to_unet2d(network)(x, c_noise).sample - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_classes_are_kept_and_no_class_is_the_last_label() -> None:
    network = randomised(ADM(128, (1, 1), **SMALL).build((3, 8, 8), num_classes=4, seed=0))
    x, c_noise = torch.randn(3, 3, 8, 8), torch.zeros(3)
    expected = network(x, c_noise, torch.tensor([0, 3, -1]))
    found = to_unet2d(network)(x, c_noise, class_labels=torch.tensor([0, 3, 4])).sample
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_exported_denoiser_is_the_same_denoiser_and_runs_in_a_pipeline() -> None:
    network = randomised(ADM(128, (1, 1), **SMALL).build((3, 8, 8), seed=0))
    denoiser = Preconditioned(network, EDM(), event_shape=(3, 8, 8)).eval()
    model, trained = to_unet2d(denoiser), diffusers.EDMEulerScheduler(sigma_data=denoiser.sigma_data)
    back = from_diffusers(model, trained)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = Auto(nfe=5).sample(denoiser, noise=noise)
    assert (Auto(nfe=5).sample(back, noise=noise) - expected).abs().max() < 1e-4
    pipeline = diffusers.DDPMPipeline(model, Scheduler.from_config(trained.config))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, torch.Generator().manual_seed(0), 5, output_type="pt").images
    # The first state of a pipeline is unit noise as the model sees it: noise of √(σ² + σ_d²), not of σ.
    assert (images - (expected / 2 + 0.5).clamp(0, 1)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("choice", "shape", "message"),
    [
        (
            DDPMpp(128, (1, 1), **SMALL),
            (3, 8, 8),
            r"encoder.1.down.skip is a 1×1 convolution after .* \(1, 1\)",
        ),
        (
            DDPMpp(64, (2,), **SMALL),
            (3, 8, 8),
            "conv_in has 64 channels, not those of the first level",
        ),
        (NCSNpp(128, (1, 1), **SMALL), (3, 8, 8), "embedding.noise has random frequencies"),
        (ADM(64, (1, 1), **SMALL), (3, 8, 8), r"normalisations have \[16, 32\] groups, which must be one number"),
        (ADM(128, (1, 1), **SMALL), (3, 7, 8), r"sizes \(7, 8\) are padded to even ones"),
        (SongUNet(32, (1, 1), resample_filter=(1, 3, 3, 1), **SMALL), (3, 8, 8), "has 8 groups, not 32"),
        (
            SongUNet(128, (1, 1), resample_filter=(1, 3, 3, 1), **SMALL),
            (1, 8, 8),
            "conv_in has 1 channels, where blocks divided by √2 have 3",
        ),
    ],
)
def test_layers_that_differ_are_named(choice: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_unet2d(choice.build(shape, seed=0))


def test_classes_of_song_unets_and_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"embedding\.classes is added before the layers of the embedding"):
        to_unet2d(DDPMpp(128, (1,), **SMALL).build((3, 8, 8), num_classes=3))
    with pytest.raises(TypeError, match=r"network must be a U-Net of openedm\.networks, got .*MLP"):
        to_unet2d(MLP().build((2,)))
