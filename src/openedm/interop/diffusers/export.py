"""U-Nets of this library as UNet2DModel, with identical outputs, where its layers allow.

| ours | UNet2DModel |
|---|---|
| a block that resamples by (1, 1), with x as its skip | a resnet of ResnetDownsampleBlock2D, AttnDownBlock2D, … |
| one by (1, 3, 3, 1), with a 1×1 convolution in its skip | `resnet_down` of SkipDownBlock2D, AttnSkipDownBlock2D, … |
| skip_scale 1 | the former blocks |
| skip_scale √½ | the latter, whose sums are divided by √2, for 3 channels |
| attention's qkv, channels ordered (head, channel, role) | `to_q`, `to_k`, `to_v` |
| the embedding's layers; its last silu | `time_embedding`; at the start of every block |
| late classes, none as a row of zeros more | `class_embedding` |

So ADM has a UNet2DModel, and the U-Nets of Song et al. 2021 with the filter (1, 3, 3, 1) and positional embedding have
one. DDPM++ has one only with a single level: its blocks that resample by (1, 1) have a 1×1 convolution in the skip, for
which UNet2DModel has no block. NCSN++ has none: its encoder adds a filtered copy of the features.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.interop.diffusers.package import diffusers
from openedm.networks.blocks import ResidualBlock
from openedm.networks.unet import SkipPath, UNet

__all__ = ["to_unet2d"]

SKIP_FILTER = (1.0, 3.0, 3.0, 1.0)
BLOCKS = {
    (True, True): "AttnSkip{}Block2D",
    (True, False): "Skip{}Block2D",
    (False, True): "Attn{}Block2D",
    (False, False): "Resnet{}sampleBlock2D",
}
"""The blocks of UNet2DModel by whether their sums are divided by √2, and whether they have attention."""


def to_unet2d(network: nn.Module) -> Any:
    """The `diffusers.UNet2DModel` with the same output as a U-Net of this library, in evaluation mode.

    Its input, time and output are those of the network (c_in x, c_noise and F of the denoiser): the schedulers for it
    are those of its preconditioning, `EDMEulerScheduler(sigma_data=denoiser.sigma_data)` for EDM's. Classes are labels,
    the last of them means no class. Augmentation is left out.

    Args:
        network: ADM, DDPM++ or another U-Net for images, or a denoiser made of one, such as `load_denoiser(…)`.

    Raises:
        TypeError: it is not a U-Net of this library.
        ValueError: UNet2DModel has no such layer; the message names all that differ.
    """
    unet = network.network if isinstance(network, Preconditioned) else network
    if not isinstance(unet, UNet):
        raise TypeError(f"network must be a U-Net of openedm.networks, got {type(unet).__name__}")
    differences = list(_differences(unet))
    if differences:
        raise ValueError(
            f"network has layers that UNet2DModel has not: {'; '.join(differences)}. A pipeline can use it as a module "
            "of your own that is called like a model of diffusers"
        )
    model = diffusers().UNet2DModel(**_config(unet))
    state = dict(_state(unet))
    missing = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name not in state}
    unexpected = [name for name in missing if "skip_conv" not in name and "skip_norm" not in name]
    assert not unexpected, unexpected  # Only the parts of images of skip blocks are without a counterpart.
    model.load_state_dict(state | missing)
    reference = next(unet.parameters())
    model = model.to(reference.device).eval()
    return model if reference.dtype == torch.float32 else model.to(reference.dtype)


def _blocks(unet: UNet) -> Iterator[tuple[str, ResidualBlock]]:
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, ResidualBlock))


def _uses_skip_blocks(unet: UNet) -> bool:
    """Whether the blocks of UNet2DModel are those whose sums are divided by √2."""
    return bool(unet.choice.style.skip_scale != 1)


def _head_channels(unet: UNet) -> set[int | None]:
    """The channels of a head; None where every attention has a single one."""
    attending = [block for _, block in _blocks(unet) if block.has_attention]
    if all(block.num_heads == 1 for block in attending):
        return {None}
    return {block.qkv.weight.shape[1] // block.num_heads for block in attending}


def _attends(blocks: Any) -> bool:
    return any(block.has_attention for block in blocks)


def _differences(unet: UNet) -> Iterator[str]:
    """The layers that UNet2DModel has not, in words."""
    style, shape = unet.choice.style, unet.signature.event_shape
    width, levels = unet.conv_in.weight.shape[0], len(unet.choice.channels)
    if len(shape) != 3:
        yield f"it is for samples of shape {tuple(shape)}, not for images"
        return
    if unet.choice.patch_size > 1:
        yield f"conv_in takes blocks of {unet.choice.patch_size} by {unet.choice.patch_size} values as channels"
    if style.embedding == "fourier":
        yield "embedding.noise has random frequencies, with which UNet2DModel divides its output by the time"
    elif unet.embedding.noise.num_channels != width:
        yield f"embedding.noise has {unet.embedding.noise.num_channels} channels, not those of conv_in, {width}"
    if unet.choice.channels[0] != width:
        yield f"conv_in has {width} channels, not those of the first level, {unet.choice.channels[0]}"
    if unet.signature.num_classes and not style.late_classes:
        yield "embedding.classes is added before the layers of the embedding, not after them"
    if getattr(unet.signature, "condition_shape", None) is not None:
        yield "it takes a condition of floats"
    if style.encoder == "residual":
        yield "encoder.1.auxiliary adds a filtered copy of the features"
    if any(side % 2 ** (levels - 1) for side in shape[1:]):
        yield f"sizes {shape[1:]} are padded to even ones, not multiples of {2 ** (levels - 1)}"
    yield from _differences_of_resampling(unet)
    yield from _differences_of_sums(unet)
    yield from _differences_of_norms(unet)


def _differences_of_resampling(unet: UNet) -> Iterator[str]:
    style, taps = unet.choice.style, tuple(float(tap) for tap in unet.choice.style.resample_filter)
    if len(unet.choice.channels) == 1:
        return
    down: Any = unet.encoder[1].down
    if _uses_skip_blocks(unet) and taps != SKIP_FILTER:
        yield f"encoder.1.down.skip is a 1×1 convolution after the filter {style.resample_filter}, not (1, 3, 3, 1)"
    elif not _uses_skip_blocks(unet) and (taps != (1.0, 1.0) or isinstance(down.skip, nn.Conv2d)):
        yield f"encoder.1.down.skip is {down.skip}, not the filter (1, 1) alone"


def _differences_of_sums(unet: UNet) -> Iterator[str]:
    style, channels = unet.choice.style, unet.signature.event_shape[0]
    scale, uses_skip_blocks = style.skip_scale, _uses_skip_blocks(unet)
    if uses_skip_blocks and not math.isclose(scale, math.sqrt(0.5)):
        yield f"sums of blocks are multiplied by {scale:g}, not by 1 or √½"
    images = style.encoder == "skip" or style.decoder == "skip"
    if uses_skip_blocks and len(unet.choice.channels) > 1 and (channels, unet.signature.out_channels) != (3, 3):
        yield f"conv_in has {channels} channels, where blocks divided by √2 have 3"
    if not uses_skip_blocks and images:
        yield "encoder or decoder pass images from level to level, without sums divided by √2"
    levels: Any = unet.decoder.named_children()
    for name, level in levels:
        attending = [block.has_attention for block in level.blocks]
        if any(attending) and not uses_skip_blocks and not all(attending):
            yield f"decoder.{name} has attention in some of its blocks"
    heads = _head_channels(unet)
    if len(heads) > 1:
        yield f"heads of the attention have {sorted(map(str, heads))} channels, which must be one number"


def _differences_of_norms(unet: UNet) -> Iterator[str]:
    norms = {name: m for name, m in unet.named_modules() if isinstance(m, nn.GroupNorm)}
    if not _uses_skip_blocks(unet):
        counts = {norm.num_groups for norm in norms.values()}
        if len(counts) > 1:
            yield f"normalisations have {sorted(counts)} groups, which must be one number (use more channels)"
        return
    for name, norm in norms.items():
        is_mid = name.startswith("decoder.0.enter")
        joined = ".blocks." in name and name.startswith("decoder") and name.endswith("norm0")
        wanted = 32 if joined or (name.endswith("norm2") and not is_mid) else min(norm.num_channels // 4, 32)
        if norm.num_groups != wanted:
            yield f"{name} has {norm.num_groups} groups, not {wanted} (use at least 128 channels)"
            return


def _config(unet: UNet) -> dict[str, Any]:
    """The configuration of the UNet2DModel."""
    style, signature, is_skip = unet.choice.style, unet.signature, _uses_skip_blocks(unet)
    encoder: Any = unet.encoder  # lists of levels, which have no types
    decoder: Any = unet.decoder
    down, up = (
        tuple(BLOCKS[is_skip, _attends(level.blocks)].format(direction) for level in levels)
        for direction, levels in (("Down", encoder), ("Up", decoder))
    )
    groups = unet.norm_out.num_groups
    return {
        "sample_size": tuple(signature.event_shape[1:]),
        "in_channels": signature.in_channels,
        "out_channels": signature.out_channels,
        "time_embedding_dim": unet.embedding.layer1.weight.shape[0],
        "freq_shift": 0 if style.embedding == "timestep" else 1,
        "flip_sin_to_cos": unet.embedding.noise.order == ("cos", "sin"),
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": unet.choice.channels,
        "layers_per_block": unet.choice.num_blocks,
        "mid_block_scale_factor": math.sqrt(2) if is_skip else 1,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "dropout": unet.choice.dropout,
        "attention_head_dim": next(iter(_head_channels(unet))),
        "norm_num_groups": None if is_skip else groups,
        "attn_norm_num_groups": None if is_skip else groups,
        "norm_eps": style.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if style.adaptive_scale else "default",
        "num_class_embeds": signature.num_classes + 1 if signature.num_classes else None,
    }


def _state(unet: UNet) -> Iterator[tuple[str, Tensor]]:
    """The parameters by their names in UNet2DModel."""
    yield from _layer("conv_in", unet.conv_in)
    yield from _layer("conv_norm_out", unet.norm_out)
    yield from _layer("conv_out", unet.conv_out)
    yield from _layer("time_embedding.linear_1", unet.embedding.layer0)
    yield from _layer("time_embedding.linear_2", unet.embedding.layer1)
    if unet.embedding.classes is not None:
        rows = unet.embedding.classes.weight.T
        yield "class_embedding.weight", torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    is_skip = _uses_skip_blocks(unet)
    resampled = ("resnet_down", "resnet_up") if is_skip else ("downsamplers.0", "upsamplers.0")
    encoder: Any = unet.encoder  # lists of levels, which have no types
    decoder: Any = unet.decoder
    for index, level in enumerate(encoder):
        yield from _level(f"down_blocks.{index}", level.blocks, last_only=False)
        if level.down is not None:
            yield from _block(f"down_blocks.{index - 1}.{resampled[0]}", level.down)
        if isinstance(level.auxiliary, SkipPath):
            yield from _layer(f"down_blocks.{index - 1}.skip_conv", level.auxiliary.conv)
    for index, level in enumerate(decoder):
        if index == 0:
            with_attention, without = level.enter
            yield from _block("mid_block.resnets.0", with_attention)
            yield from _attention("mid_block.attentions.0", with_attention)
            yield from _block("mid_block.resnets.1", without)
        else:
            yield from _block(f"up_blocks.{index - 1}.{resampled[1]}", level.enter[0])
        yield from _level(f"up_blocks.{index}", level.blocks, last_only=is_skip)
        if level.output is not None:
            yield from _layer(f"up_blocks.{index}.skip_norm", level.output.norm)
            yield from _layer(f"up_blocks.{index}.skip_conv", level.output.conv)


def _level(name: str, blocks: Any, *, last_only: bool) -> Iterator[tuple[str, Tensor]]:
    """The blocks of a level, of which all or only the last one have attention."""
    for number, block in enumerate(blocks):
        yield from _block(f"{name}.resnets.{number}", block)
        if block.has_attention:
            yield from _attention(f"{name}.attentions.{0 if last_only else number}", block)


def _layer(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for part, value in layer.named_parameters(recurse=False):
        yield f"{name}.{part}", value.detach()


def _block(name: str, block: ResidualBlock) -> Iterator[tuple[str, Tensor]]:
    layers: dict[str, nn.Module] = {"norm1": block.norm0, "conv1": block.conv0, "time_emb_proj": block.affine}
    layers |= {"norm2": block.norm1, "conv2": block.conv1}
    if isinstance(block.skip, nn.Conv2d):
        layers["conv_shortcut"] = block.skip
    for part, layer in layers.items():
        yield from _layer(f"{name}.{part}", layer)


def _attention(name: str, block: ResidualBlock) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values of our channel order as three matrices."""
    yield from _layer(f"{name}.group_norm", block.norm2)
    channels = block.qkv.weight.shape[1]
    weight = block.qkv.weight.detach().reshape(-1, 3, channels)
    bias = block.qkv.bias.detach().reshape(-1, 3)  # type: ignore[union-attr]  # It has a bias.
    for role, part in enumerate(("to_q", "to_k", "to_v")):
        yield f"{name}.{part}.weight", weight[:, role]
        yield f"{name}.{part}.bias", bias[:, role]
    yield f"{name}.to_out.0.weight", block.proj.weight.detach().flatten(1)
    yield f"{name}.to_out.0.bias", block.proj.bias.detach()  # type: ignore[union-attr]
