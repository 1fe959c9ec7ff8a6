"""Training: any dataset × denoiser × objective; checkpoints; resuming exactly."""

from openedm.training.augmentation import Augmentation, Augmented
from openedm.training.averaging import HalfLife, PowerFunction, update_average
from openedm.training.checkpoints import find_checkpoint, list_checkpoints, load_denoiser, read_model, save_checkpoint
from openedm.training.model import Model, num_parameters
from openedm.training.observers import Observer, Progress
from openedm.training.options import Options
from openedm.training.post_hoc import PowerAverages, combine, list_snapshots, reachable, reconstruct
from openedm.training.processes import make_accelerator, share_of
from openedm.training.trainer import Trainer
from openedm.training.validation import ValidationLoss, validation_loss

__all__ = [
    "Augmentation",
    "Augmented",
    "HalfLife",
    "Model",
    "Observer",
    "Options",
    "PowerAverages",
    "PowerFunction",
    "Progress",
    "Trainer",
    "ValidationLoss",
    "combine",
    "find_checkpoint",
    "list_checkpoints",
    "list_snapshots",
    "load_denoiser",
    "make_accelerator",
    "num_parameters",
    "reachable",
    "read_model",
    "reconstruct",
    "save_checkpoint",
    "share_of",
    "update_average",
    "validation_loss",
]
