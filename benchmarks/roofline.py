"""What a network costs beside its bare operations, and beside the same arithmetic written plainly.

The convolutions, matrix products and attentions of a network are recorded while it runs, with their shapes, dtypes and
memory formats, and then run alone on random numbers: nothing that computes the same can take less time without other
kernels.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from openedm.networks.blocks import ResidualBlock

__all__ = ["BareOperations", "plain"]

BARE = {
    "aten::convolution",
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
}


class BareOperations(TorchDispatchMode):
    """Records the operations of `BARE` while it is on, and runs them alone."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    @classmethod
    def of(cls, run: Callable[[], object]) -> "BareOperations":
        """Those of a run without gradients."""
        found = cls()
        with torch.no_grad(), found:
            run()
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note it."""
        if func._schema.name in BARE:
            self._calls.append((func, tree_map(_random, args), kwargs or {}))
        return func(*args, **(kwargs or {}))

    def forward(self) -> None:
        """Run all."""
        with torch.no_grad():
            for func, args, kwargs in self._calls:
                func(*args, **kwargs)

    def backward(self) -> None:
        """Run all, each with the gradients of its floating-point arguments; the first one without that of its input."""
        for number, (func, args, kwargs) in enumerate(self._calls):
            inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            for place, leaf in enumerate(inputs):
                leaf.requires_grad_(number > 0 or place > 0)
            result = func(*args, **kwargs)
            result = result if isinstance(result, Tensor) else result[0]
            torch.autograd.grad(result, [leaf for leaf in inputs if leaf.requires_grad], torch.ones_like(result))


def _random(value: Any) -> Any:
    return torch.randn_like(value) if isinstance(value, Tensor) else value


def plain(network: nn.Module) -> nn.Module:
    """A U-Net whose blocks are computed by one call of torch for each operation of their formula, as published code is.

    Attention forms the matrix of its weights. The network itself is changed.
    """
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.forward = partial(_plain_block, module)  # type: ignore[method-assign]
    return network


def _plain_block(block: ResidualBlock, x: Tensor, embedding: Tensor) -> Tensor:
    scale = block.style.skip_scale
    h = block.conv0(functional.silu(_norm(block.norm0, x)))
    h = functional.silu(_norm(block.norm1, h + block.affine(embedding)[:, :, None, None]))
    h = block.conv1(functional.dropout(h, block.dropout.p, block.training))
    x = (h + block.skip(x)) * scale
    if block.has_attention:
        batch, channels, height, width = x.shape
        qkv = block.qkv(_norm(block.norm2, x)).reshape(batch * block.num_heads, -1, 3, height * width)
        q, k, v = qkv.unbind(2)
        weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(q.shape[1])).softmax(2)
        h = torch.einsum("bqk,bck->bcq", weights, v).reshape(batch, channels, height, width)
        x = (block.proj(h) + x) * scale
    return x


def _norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return functional.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
