"""What cannot be trained together, found before any step."""

import torch

from openedm.data import Dataset
from openedm.objective import Objective
from openedm.training.model import Model
from openedm.training.options import Options


def refuse_misfits(
    model: Model, dataset: Dataset, validation: Dataset | None, objective: Objective, options: Options
) -> None:
    """Refuse data, objective or options that do not go with the model.

    Raises:
        ValueError: shapes, classes or conditions differ, labels would be dropped that are not there, images are to be
            augmented that are none or of which the network would not be told, or a tenth or more of the noise levels
            lie outside the model's range.
    """
    for name, data in (("dataset", dataset), ("validation", validation)):
        if data is not None and data.event_shape != model.event_shape:
            raise ValueError(f"{name} must have samples of shape {model.event_shape}, got {data.event_shape}")
        if data is not None and model.num_classes and data.num_classes != model.num_classes:
            raise ValueError(f"{name} must have {model.num_classes} classes, got {data.num_classes}")
        if data is not None and model.condition_shape not in (None, data.condition_shape):
            raise ValueError(
                f"{name} must have conditions of shape {model.condition_shape}, got {data.condition_shape}"
            )
    if options.label_dropout > 0 and model.num_classes == 0:
        raise ValueError(f"label_dropout has no effect without classes, must be 0, got {options.label_dropout}")
    if options.augmentation is not None:
        _refuse_unaugmentable(model, options)
    _refuse_foreign_levels(model, objective)


def _refuse_unaugmentable(model: Model, options: Options) -> None:
    if len(model.event_shape) != 3 or min(model.event_shape[1:]) < 2:
        raise ValueError(f"augmentation must be None for samples of shape {model.event_shape}: it transforms images")
    if model.augment_dim != options.augment_dim:
        raise ValueError(
            f"model must have augment_dim={options.augment_dim} with augmentation, got {model.augment_dim}: "
            "Model.for_data(…, augment_dim=options.augment_dim)"
        )


def _refuse_foreign_levels(model: Model, objective: Objective) -> None:
    """Raise ValueError if training would spend much of its time where the denoiser is never used."""
    low, high = model.preconditioning.sigma_min, model.preconditioning.sigma_max
    sigmas = objective.noise.quantile((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    outside = float(((sigmas < low * (1 - 1e-9)) | (sigmas > high * (1 + 1e-9))).double().mean())
    if outside > 0.1:
        raise ValueError(
            f"objective: {outside:.0%} of the noise levels of {objective.noise} lie outside [{low:.4g}, {high:.4g}], "
            f"the range of {model.preconditioning}: give both the same schedule or range"
        )
