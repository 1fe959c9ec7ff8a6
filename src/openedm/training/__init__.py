"""Training: any dataset × denoiser × objective; checkpoints; resuming exactly."""

from openedm.training.augmentation import Augmentation, Augmented
from openedm.training.averaging import HalfLife, update_average
from openedm.training.checkpoints import find_checkpoint, list_checkpoints, load_denoiser, read_model, save_checkpoint
from openedm.training.model import Model, num_parameters
from openedm.training.observers import Observer, Progress
from openedm.training.options import Options
from openedm.training.processes import make_accelerator
from openedm.training.trainer import Trainer
from openedm.training.validation import ValidationLoss, validation_loss

__all__ = [
    "Augmentation",
    "Augmented",
    "HalfLife",
    "Model",
    "Observer",
    "Options",
    "Progress",
    "Trainer",
    "ValidationLoss",
    "find_checkpoint",
    "list_checkpoints",
    "load_denoiser",
    "make_accelerator",
    "num_parameters",
    "read_model",
    "save_checkpoint",
    "update_average",
    "validation_loss",
]
