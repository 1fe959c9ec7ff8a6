"""What one step of training draws, and the loss that it computes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from openedm.denoiser import Condition, Preconditioned, per_sample
from openedm.ground.devices import has_float64
from openedm.ground.seeding import generator
from openedm.objective import Loss, Objective, Uncertainty, denoising_loss
from openedm.training.augmentation import Augmented
from openedm.training.model import Model
from openedm.training.options import Options
from openedm.training.randomness import AUGMENT, LEVELS, NOISE


class LossOf(nn.Module):
    """Denoiser and loss in one module, so that data-parallel wrappers see one forward call.

    Args:
        denoiser: D, in its raw weights.
        objective: λ(σ), and whether u(σ) is learned.
    """

    def __init__(self, denoiser: Preconditioned, objective: Objective) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective
        self.uncertainty = Uncertainty() if objective.learned_uncertainty else None

    def forward(
        self, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition, augment: Tensor | None = None
    ) -> Loss:
        """The loss of each sample.

        Args:
            clean: y.
            noise: n ~ N(0, I) of the shape of `clean`.
            sigma: one noise level a sample.
            condition: classes or conditions of the samples.
            augment: augmentation labels, for a network that takes some.
        """
        told = {} if augment is None else {"augment": augment}
        denoised = self.denoiser(clean + per_sample(sigma, clean) * noise, sigma, condition, **told)
        weight = self.objective.weighting.weight(sigma, self.denoiser.sigma_data)
        with torch.autocast(clean.device.type, enabled=False):  # u in bfloat16 would have two digits
            uncertain = None if self.uncertainty is None else self.uncertainty(sigma)
        return denoising_loss(denoised, clean, weight, uncertain)


@dataclass(frozen=True)
class Drawn:
    """The random numbers of one step, for the whole batch and alike on every process.

    Attributes:
        sigma: noise levels, in float64 where the device has it, else on the host.
        noise: n ~ N(0, I), on the device.
        hidden: which samples' labels the network is not told, on the device; None hides none.
        augmented: transforms of the images; None without augmentation.
    """

    sigma: Float64[Tensor, " batch"]
    noise: Float[Tensor, "batch *event"]
    hidden: Bool[Tensor, " batch"] | None
    augmented: Augmented | None

    def augment(self, clean: Tensor, rows: slice, augment_dim: int) -> tuple[Tensor, Tensor | None]:
        """Some of the batch's samples transformed, and their augmentation labels, for a network that takes some.

        Args:
            clean: the samples.
            rows: where they are in the batch.
            augment_dim: width of the labels.
        """
        if self.augmented is not None:
            chosen = self.augmented[rows]
            return chosen.apply(clean), chosen.label.to(clean.device, clean.dtype, non_blocking=True)
        # Zeros are what None means; with zeros every weight of the network has a gradient, as several processes need.
        return clean, clean.new_zeros(len(clean), augment_dim) if augment_dim else None


def draw(model: Model, objective: Objective, options: Options, step: int, device: torch.device) -> Drawn:
    """The random numbers of a step: functions of `options.seed` and `step`.

    Args:
        model: gives the shape of one sample.
        objective: gives p(σ).
        options: seed, batch size, label dropout and augmentation.
        step: its number, from 0.
        device: where the numbers go.
    """
    host = generator(torch.device("cpu"), options.seed, LEVELS, step)
    sigma = objective.noise.sample(options.batch_size, host, stratified=objective.stratified)
    hidden = None
    if options.label_dropout > 0:
        hidden = torch.rand(options.batch_size, generator=host) < options.label_dropout
        hidden = hidden.to(device, non_blocking=True)
    random = generator(device, options.seed, NOISE, step)
    noise = torch.randn(options.batch_size, *model.event_shape, generator=random, device=device)
    augmented = None
    if options.augmentation is not None:
        host = generator(torch.device("cpu"), options.seed, AUGMENT, step)
        augmented = options.augmentation.draw(options.batch_size, host)
    return Drawn(sigma.to(device, non_blocking=True) if has_float64(device) else sigma, noise, hidden, augmented)
