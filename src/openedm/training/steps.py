"""The random numbers of one training step, and the loss of a denoiser with them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from openedm.conditions import ConditionLayout
from openedm.data import Dataset
from openedm.denoiser import Condition, Preconditioned, per_sample
from openedm.ground.devices import has_float64
from openedm.ground.seeding import generator
from openedm.networks import RawNetwork
from openedm.objective import ConsistencyTuning, Loss, Objective, Uncertainty, weighted_loss
from openedm.training.augmentation import Augmented
from openedm.training.consistency import LowerPoints, evaluate_target, same_dropout
from openedm.training.model import Model
from openedm.training.options import AUGMENT, LEVELS, NOISE, Options

__all__ = ["LossModule", "StepNoise", "check_incomplete"]


class LossModule(nn.Module):
    """Denoiser and loss in one module, so that data-parallel wrappers have a single forward call.

    A learned u(σ) is the network's own where it has one, a module `uncertainty_head` that is called with c_noise: it is
    then averaged and saved with the network. Otherwise it is a part of the loss, which sampling does not need. Without
    learned uncertainty the network's own is frozen, so that every parameter that is trained has a gradient.

    Args:
        denoiser: D, with its raw weights.
        objective: λ(σ), the target and the distance from it, and whether u(σ) is learned.
        teacher: the denoiser from which training starts, frozen, for objectives that use it. It is no part of the
            module, so that its weights are neither trained nor exchanged between processes.
        noises: how many noise levels each sample has. The network is told, and may embed a condition once for them.
    """

    def __init__(
        self, denoiser: Preconditioned, objective: Objective, teacher: Preconditioned | None = None, noises: int = 1
    ) -> None:
        super().__init__()
        self.denoiser, self.noises = denoiser, noises
        if isinstance(denoiser.network, RawNetwork):
            denoiser.network.condition_runs = noises
        self.objective = objective
        self.lower_points = LowerPoints(objective, teacher) if isinstance(objective, ConsistencyTuning) else None
        head, learned = getattr(denoiser.network, "uncertainty_head", None), objective.learned_uncertainty
        self._has_head = isinstance(head, nn.Module) and learned
        self.uncertainty = Uncertainty() if learned and not self._has_head else None
        if isinstance(head, nn.Module) and not learned:
            head.requires_grad_(False)

    def forward(
        self,
        clean: Float[Tensor, "batch *event"],
        noise: Float[Tensor, "noisy *event"],
        sigma: Float64[Tensor, " noisy"],
        condition: Condition,
        augment: Float[Tensor, "batch label"] | None = None,
        target_sigma: Float64[Tensor, " noisy"] | None = None,
    ) -> Loss:
        """The loss λ(σ) ‖D(y + σ n; σ) − y‖² of each noisy sample, in standard units, or of a consistency function.

        Args:
            clean: y, in data units.
            noise: n ~ N(0, I), `noises` in a row for each sample.
            sigma: the noise level of each.
            condition: classes or conditions of the samples.
            augment: augmentation labels, for a network with such an input.
            target_sigma: the levels of the targets of a consistency function; None for a denoiser.
        """
        if self.noises > 1:
            clean = clean.repeat_interleave(self.noises, 0)
            augment = None if augment is None else augment.repeat_interleave(self.noises, 0)
            condition = condition.repeat_interleave(self.noises, 0) if isinstance(condition, Tensor) else condition
        network_kwargs = {} if augment is None else {"augment": augment}
        clean = self.denoiser.standardise(clean)
        noisy = clean + per_sample(sigma, clean) * noise
        target = clean
        if self.lower_points is not None and target_sigma is not None:
            lower = self.lower_points.lower(clean, noise, noisy, sigma, target_sigma, condition, **network_kwargs)
            with same_dropout(clean.device):
                target = evaluate_target(self.denoiser, lower, target_sigma, condition, **network_kwargs)
        denoised = self.denoiser(noisy, sigma, condition, standard=True, **network_kwargs)
        weight = self.objective.weighting.weight(sigma, self.denoiser.sigma_data)
        with torch.autocast(clean.device.type, enabled=False):  # u in bfloat16 would have two digits
            uncertain = self._uncertainty(sigma, clean)
        distance = self.objective.distance(denoised, target, self.denoiser.sigma_data)
        return weighted_loss(distance, weight, uncertain)

    def _uncertainty(
        self, sigma: Float64[Tensor, " batch"], like: Float[Tensor, "batch *event"]
    ) -> Float[Tensor, " batch"] | None:
        """u(σ); None if it is not learned."""
        if self._has_head:
            c_noise = self.denoiser.preconditioning.coefficients(sigma, self.denoiser.sigma_data)[3]
            u: Tensor = self.denoiser.network.uncertainty_head(c_noise.to(like.device, torch.float32))  # type: ignore[operator]
            return u
        return None if self.uncertainty is None else self.uncertainty(sigma)


@dataclass(frozen=True)
class StepNoise:
    """The random numbers of one step, for the whole batch: `noises` noise levels a sample, one after the other.

    Every process draws all of them and uses those of its rows, so that they do not depend on the number of processes.

    Attributes:
        sigma: noise levels in float64, on the device if it has float64, otherwise on the host.
        noise: n ~ N(0, I), on the device, one for each noise level.
        hidden: which samples are trained without their condition, on the device; None for none.
        augmented: transforms of the images; None without augmentation.
        target_sigma: the levels of the targets of a consistency function, where `sigma` is; None for a denoiser.
        noises: noise levels a sample.
    """

    sigma: Float64[Tensor, " noisy"]
    noise: Float[Tensor, "noisy *event"]
    hidden: Bool[Tensor, " batch"] | None
    augmented: Augmented | None
    target_sigma: Float64[Tensor, " noisy"] | None = None
    noises: int = 1

    @classmethod
    def draw(cls, model: Model, objective: Objective, options: Options, step: int, device: torch.device) -> "StepNoise":
        """The random numbers of step number `step`, from 0: functions of `options.seed` and `step` alone."""
        host = generator("cpu", options.seed, LEVELS, step)
        noise_levels = objective.noise.for_data(model.sigma_data)
        count = options.noisy_samples
        sigma = noise_levels.sample(count, host, stratified=objective.stratified)
        lower = objective.target_levels(sigma, model.sigma_data, step * options.batch_size / options.images)
        hidden = None
        if options.label_dropout > 0:
            hidden = torch.rand(options.batch_size, generator=host) < options.label_dropout
            hidden = hidden.to(device, non_blocking=True)
        random = generator(device, options.seed, NOISE, step)
        noise = torch.randn(count, *model.event_shape, generator=random, device=device)
        augmented = None
        if options.augmentation is not None:
            host = generator("cpu", options.seed, AUGMENT, step)
            augmented = options.augmentation.draw(options.batch_size, host)
        if has_float64(device):
            sigma = sigma.to(device, non_blocking=True)
            lower = None if lower is None else lower.to(device, non_blocking=True)
        return cls(sigma, noise, hidden, augmented, lower, options.noises)

    def of(self, rows: slice) -> dict[str, Tensor]:
        """Noise, noise levels and those of targets of some samples of the batch, as arguments of `LossModule`.

        Args:
            rows: the rows of the samples in the batch.
        """
        values = {"noise": self.noise, "sigma": self.sigma, "target_sigma": self.target_sigma}
        chosen = slice(rows.start * self.noises, rows.stop * self.noises)
        return {name: value[chosen] for name, value in values.items() if value is not None}

    def augment(
        self, clean: Float[Tensor, "rows *event"], rows: slice, augment_dim: int
    ) -> tuple[Float[Tensor, "rows *event"], Float[Tensor, "rows label"] | None]:
        """Some samples of the batch, transformed, and their augmentation labels for a network with such an input.

        Args:
            clean: the samples.
            rows: their rows in the batch.
            augment_dim: width of the labels.
        """
        if self.augmented is not None:
            chosen = self.augmented[rows]
            return chosen.apply(clean), chosen.label.to(clean.device, clean.dtype, non_blocking=True)
        # Zeros mean the same as None, but give every weight a gradient, which several processes need.
        return clean, clean.new_zeros(len(clean), augment_dim) if augment_dim else None

    def condition(self, condition: Tensor | None, rows: slice, model: Model) -> Tensor | None:
        """The conditions of some samples of the batch, as the step trains on them.

        Images are transformed as the samples are, and the condition of a sample without one is left out.

        Args:
            condition: one row a sample; None for a model without conditions.
            rows: the rows of the samples in the batch.
            model: the model, which says what a condition holds.
        """
        layout = model.condition_layout
        if condition is None or layout == ConditionLayout():
            return None
        is_image = layout.shape is not None and len(layout.shape) == 3 and layout.shape[1:] == model.event_shape[1:]
        if self.augmented is not None and is_image:
            values = layout.unpack(condition)[1]
            assert values is not None  # as the layout has floats
            condition = layout.with_values(condition, self.augmented[rows].apply(values))
        return condition if self.hidden is None else layout.hide(condition, self.hidden[rows])


@torch.no_grad()
def check_incomplete(name: str, dataset: Dataset, denoiser: Preconditioned) -> None:
    """Evaluate a denoiser once for the conditions of some data that have NaN, before training comes to them.

    Args:
        name: what errors call the data.
        dataset: the data, whose `incomplete` samples are tried.
        denoiser: a new denoiser in evaluation mode.

    Raises:
        ValueError: the network refuses such a condition, or does not return finite numbers; the message names the
            sample.
    """
    if denoiser.condition_shape is None:
        return
    device = next(denoiser.parameters(), torch.empty(0)).device
    for index in dataset.incomplete:
        x, condition = dataset.fetch([index])
        chosen = dataset.condition_layout.select(condition, denoiser.condition_layout)
        assert chosen is not None  # as the denoiser has a condition_shape
        problem = "it returns NaN for it"
        try:
            denoised = denoiser(denoiser.standardise(x).to(device), 1.0, chosen.to(device), standard=True)
        except ValueError as error:
            problem = str(error)
        else:
            if bool(denoised.isfinite().all()):
                continue
        values = denoiser.condition_layout.unpack(chosen)[1]
        assert values is not None
        parts = "has no number" if bool(values.isnan().all()) else "has NaN in part"
        raise ValueError(
            f"{name} must have conditions that the network takes, but that of sample {index} {parts}: {problem}. "
            "Without any number it is no condition, for training with label_dropout > 0; in part, it requires a "
            "summary that takes absent entries, such as SetSummary"
        )
