"""Training one denoiser for every conditional of a vector: which of its variables are known, drawn anew at each step.

Of a sample y with flags m the condition is [m y, m], and the denoiser is

    D(y + σ n; σ, [m y, m]) = m y + (1 − m) D_network:

what is known is returned as it is, exactly, so that it adds nothing to the loss. The expected loss is least where D is
E[latent | noisy latent, known], for every m that training sees   (Gloeckler et al. 2024, arXiv 2404.09636, Section 3).
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm.data import Dataset
from openedm.data.dataset import Indices, as_index
from openedm.denoiser import Condition, Denoiser, Preconditioned, take_attributes
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.networks import JointTransformer, Network
from openedm.training import Model

__all__ = ["JointModel", "Latent", "MaskedData", "Masks", "Pinned"]


@dataclass(frozen=True)
class Masks(Choice):
    """How often each kind of conditional is trained: shares, of which the ratios count.

    Args:
        posterior: θ given all of x.
        likelihood: x given all of θ.
        joint: everything, given nothing.
        random: each variable is known with a probability that is itself uniform in (0, 1), so that every number of
            known variables is equally likely.

    Raises:
        ValueError: a share is negative or not finite, or all are 0.

    >>> Masks(posterior=1.0, likelihood=0.0, joint=0.0, random=0.0).draw(1, 2, 3)
    tensor([[0., 0., 1., 1., 1.]])
    """

    posterior: float = 0.4
    likelihood: float = 0.2
    joint: float = 0.1
    random: float = 0.3

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            checks.finite(name, share)
            checks.at_least(name, share, 0)
        checks.positive("the sum of posterior, likelihood, joint and random", sum(astuple(self)))

    def draw(
        self, rows: int, dim: int, data: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "rows variables"]:
        """Flags of `rows` samples of `dim` parameters and `data` numbers of x: 1 where known. One at least is latent.

        Args:
            rows, dim, data: counts, ≥ 1.
            generator: on the CPU; None means the global one, which training seeds for every batch.
        """
        shares = torch.tensor(astuple(self), dtype=torch.float64)
        kinds = torch.multinomial(shares, rows, replacement=True, generator=generator)
        chances = torch.rand(rows, 1, generator=generator)
        random = (torch.rand(rows, dim + data, generator=generator) < chances).float()
        random[random.all(1)] = 0.0
        is_data = (torch.arange(dim + data) >= dim).float()
        fixed = torch.stack([is_data, 1 - is_data, torch.zeros(dim + data)])
        return torch.where((kinds < 3)[:, None], fixed[kinds.clamp(max=2)], random)


class MaskedData(Dataset):
    """Vectors whose condition is [values, flags] by random masks.

    Args:
        vectors: (samples, dim + data), standardised.
        dim: how many of the variables are parameters.
        masks: how flags are drawn.
        seed: None draws new flags at every fetch, from the global generator, which training seeds; a number fixes the
            flags of each sample, for validation.
    """

    def __init__(
        self, vectors: Float[Tensor, "samples variables"], dim: int, masks: Masks, *, seed: int | None = None
    ) -> None:
        self._vectors, self._dim, self._masks = vectors.float(), dim, masks
        self.event_shape = (vectors.shape[1],)
        self.condition_shape = (2 * vectors.shape[1],)
        self.num_classes, self.class_names, self.kind = 0, None, "vectors"
        self._flags = None if seed is None else self._draw(len(vectors), torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self._vectors)

    def fetch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """The vectors (batch, variables) and their conditions (batch, 2 · variables)."""
        index = as_index(indices, len(self))
        vectors = self._vectors[index]
        flags = self._draw(len(index), None) if self._flags is None else self._flags[index]
        return vectors, torch.cat([vectors * flags, flags], 1)

    def _draw(self, rows: int, generator: torch.Generator | None) -> Tensor:
        return self._masks.draw(rows, self._dim, self.event_shape[0] - self._dim, generator)


class Pinned(Preconditioned):
    """A preconditioned network that returns what is known as it is.

    Its condition is (batch, 2 · variables): values and flags.
    """

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """The known values, and c_skip x + c_out F of the others."""
        assert condition is not None  # as its condition_shape says
        values, flags = condition.chunk(2, dim=1)
        denoised = super().denoise(x, sigma, condition, **options)
        return torch.where(flags > 0.5, values.to(x.dtype), denoised)


class Latent(Denoiser):
    """The denoiser of the latent variables; condition (batch, known): the values of the known ones.

    Args:
        denoiser: of all variables, with condition [values, flags].
        latent, known: numbers of variables, which together are all of them.
    """

    where: Tensor
    given: Tensor

    def __init__(self, denoiser: Denoiser, latent: Sequence[int], known: Sequence[int]) -> None:
        super().__init__()
        self.joint = denoiser
        self.register_buffer("where", torch.tensor(list(latent), dtype=torch.int64), persistent=False)
        self.register_buffer("given", torch.tensor(list(known), dtype=torch.int64), persistent=False)
        self.event_shape, self.condition_shape = (len(latent),), (len(known),)
        take_attributes(self, denoiser, ("sigma_data", "sigma_min", "sigma_max"))

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """The latent part of what the joint denoiser gives."""
        total = len(self.where) + len(self.given)
        noisy = x.new_zeros(len(x), total).index_copy(1, self.where, x)
        assert condition is not None  # as its condition_shape says
        values = x.new_zeros(len(x), total).index_copy(1, self.given, condition.to(x).expand(len(x), -1))
        flags = x.new_zeros(len(x), total).index_fill(1, self.given, 1.0)
        return self.joint(noisy, sigma, torch.cat([values, flags], 1)).index_select(1, self.where)


@dataclass(frozen=True)
class JointModel(Model):
    """The description of a `Pinned` denoiser. Args and errors as for `Model`."""

    network: Network = JointTransformer()
    sigma_data: float = 1.0
    event_shape: tuple[int, ...] = (2,)
    images: bool = False
    condition_shape: tuple[int, ...] | None = (4,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.standardised:
            raise ValueError(f"units and condition_units must be None for a joint model, got {self.units}")

    def wrap(self, network: nn.Module) -> Pinned:
        """A denoiser around an existing network."""
        return Pinned(
            network,
            self.preconditioning,
            self.sigma_data,
            event_shape=self.event_shape,
            condition_shape=self.condition_shape,
        )
