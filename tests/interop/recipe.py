"""The U-Nets written out a second time, over weights by their published names: what `openedm.networks` must agree with.

It shares nothing with the modules: resampling is a sum over shifted pixels, attention a loop over heads. It was itself
compared with the reference numbers.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


def evaluate(
    weights: Weights,
    options: dict[str, Any],
    x: Tensor,
    c_noise: Tensor,
    onehot: Tensor | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """F(x; c_noise) of the network with the published constructor arguments `options`, all of them given."""
    return _Recipe(weights, options).run(x, c_noise, onehot, augment)


class _Recipe:
    def __init__(self, weights: Weights, options: dict[str, Any]) -> None:
        self.w, self.o = weights, options
        self.adm = options["model_type"] == "DhariwalUNet"
        self.taps = tuple(options.get("resample_filter", (1, 1)))
        self.eps, self.scale = (1e-5, 1.0) if self.adm else (1e-6, math.sqrt(0.5))

    def run(self, x: Tensor, c_noise: Tensor, onehot: Tensor | None, augment: Tensor | None) -> Tensor:
        e = self._embedding(c_noise, onehot, augment)
        mult = self.o["channel_mult"]
        sizes = [self.o["img_resolution"] // 2**level for level in range(len(mult))]
        encoder, decoder = self.o.get("encoder_type", "standard"), self.o.get("decoder_type", "standard")

        aux, skips = x, []
        x = self._conv(x, f"enc.{sizes[0]}x{sizes[0]}_conv")
        for level, size in enumerate(sizes):
            at = f"enc.{size}x{size}_"
            if level > 0:
                x = self._block(x, e, at + "down", "down")
            if level > 0 and encoder == "skip":
                aux = self._down(aux)
                x = x + self._conv(aux, at + "aux_skip")
            if level > 0 and encoder == "residual":
                margin = (len(self.taps) - 1) // 2
                aux = self._conv(functional.pad(aux, [margin] * 4), at + "aux_residual")
                x = aux = (x + self._down(aux, margin=0)) / math.sqrt(2)
            skips.append(x)
            for index in range(self.o["num_blocks"]):
                x = self._block(x, e, f"{at}block{index}")
                skips.append(x)

        image = None
        for level in range(len(sizes) - 1, -1, -1):
            at = f"dec.{sizes[level]}x{sizes[level]}_"
            if level == len(sizes) - 1:
                x = self._block(self._block(x, e, at + "in0"), e, at + "in1")
            else:
                x = self._block(x, e, at + "up", "up")
            for index in range(self.o["num_blocks"] + 1):
                x = self._block(torch.cat([x, skips.pop()], 1), e, f"{at}block{index}")
            if level == 0 or decoder == "skip":
                norm, conv = ("out_norm", "out_conv") if self.adm else (at + "aux_norm", at + "aux_conv")
                part = self._conv(functional.silu(self._norm(x, norm)), conv)
                image = part if image is None else self._up(image) + part
        assert image is not None
        return image

    def _embedding(self, c_noise: Tensor, onehot: Tensor | None, augment: Tensor | None) -> Tensor:
        if self.o.get("embedding_type", "positional") == "fourier":
            angle = 2 * math.pi * c_noise[:, None] * self.w["map_noise.freqs"]
        else:
            half = self.o["model_channels"] * self.o.get("channel_mult_noise", 1) // 2
            k = torch.arange(half, dtype=torch.float64)
            angle = c_noise[:, None] * 10000 ** (-k / (half - (0 if self.adm else 1)))
        e = torch.cat([angle.cos(), angle.sin()] if self.adm else [angle.sin(), angle.cos()], 1)
        if augment is not None:
            e = e + augment @ self.w["map_augment.weight"].T
        if not self.adm and onehot is not None:
            e = e + self._linear(onehot * math.sqrt(onehot.shape[1]), "map_label")
        e = self._linear(functional.silu(self._linear(e, "map_layer0")), "map_layer1")
        if self.adm and onehot is not None:
            e = e + onehot @ self.w["map_label.weight"].T
        return functional.silu(e)

    def _block(self, x: Tensor, e: Tensor, name: str, resample: str = "") -> Tensor:
        change = {"down": self._down, "up": self._up, "": lambda image: image}[resample]
        h = self._conv(change(functional.silu(self._norm(x, f"{name}.norm0"))), f"{name}.conv0")
        p = self._linear(e, f"{name}.affine")[:, :, None, None]
        if self.adm:
            half = p.shape[1] // 2
            h = self._norm(h, f"{name}.norm1") * (1 + p[:, :half]) + p[:, half:]
        else:
            h = self._norm(h + p, f"{name}.norm1")
        h = self._conv(functional.silu(h), f"{name}.conv1")
        x = change(x)
        if f"{name}.skip.weight" in self.w:
            x = self._conv(x, f"{name}.skip")
        x = (h + x) * self.scale
        if f"{name}.qkv.weight" in self.w:
            h = self._attention(self._conv(self._norm(x, f"{name}.norm2"), f"{name}.qkv"))
            x = (self._conv(h, f"{name}.proj") + x) * self.scale
        return x

    def _attention(self, qkv: Tensor) -> Tensor:
        batch, channels, height, width = qkv.shape
        channels //= 3
        heads = channels // 64 if self.adm else 1
        results = []
        for part in qkv.flatten(2).chunk(heads, 1):
            q, k, v = part[:, 0::3], part[:, 1::3], part[:, 2::3]
            scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(q.shape[1])
            results.append(torch.einsum("bqk,bck->bcq", scores.softmax(2), v))
        return torch.cat(results, 1).reshape(batch, channels, height, width)

    def _down(self, x: Tensor, margin: int | None = None) -> Tensor:
        margin = (len(self.taps) - 1) // 2 if margin is None else margin
        x = functional.pad(x, [margin] * 4)
        total = sum(self.taps)
        for axis in (2, 3):
            count = (x.shape[axis] - len(self.taps)) // 2 + 1
            picked = [x.narrow(axis, j, 2 * count - 1).unfold(axis, 1, 2)[..., 0] for j in range(len(self.taps))]
            x = sum(tap / total * part for tap, part in zip(self.taps, picked, strict=True))
        return x

    def _up(self, x: Tensor) -> Tensor:
        total, margin = sum(self.taps), (len(self.taps) - 1) // 2
        for axis in (2, 3):
            x = x.transpose(axis, 3)
            size = x.shape[3]
            spread = x.new_zeros(*x.shape[:3], 2 * size + len(self.taps) - 2)
            for j, tap in enumerate(self.taps):
                spread[..., j : j + 2 * size - 1 : 2] += 2 * tap / total * x
            x = spread[..., margin : margin + 2 * size - len(self.taps) % 2].transpose(axis, 3)
        return x

    def _norm(self, x: Tensor, name: str) -> Tensor:
        grouped = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        x = (centred / (centred.square().mean(2, keepdim=True) + self.eps).sqrt()).reshape(x.shape)
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return x * weight[:, None, None] + bias[:, None, None]

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return functional.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]
