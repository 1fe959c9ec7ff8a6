"""Training: any dataset × denoiser × objective; checkpoints; resuming exactly."""

from openedm.training.augmentation import Augmentation, Augmented
from openedm.training.averaging import HalfLife, MovingAverage, PowerFunction
from openedm.training.checkpoints import find_checkpoint, list_checkpoints, load_denoiser, read_model, save_checkpoint
from openedm.training.initial import Initial
from openedm.training.model import Model, num_parameters
from openedm.training.monitoring import Observer, TrainingProgress, Validation, ValidationLoss
from openedm.training.options import Options
from openedm.training.post_hoc import combine, list_snapshots, reachable, reconstruct
from openedm.training.precision import PrecisionChoice
from openedm.training.processes import make_accelerator, share_of
from openedm.training.recipes import (
    GUIDANCE,
    BudgetName,
    Recipe,
    budget_of,
    choose_recipe,
    label_dropout_for,
    max_resolution,
    recipe_summary,
)
from openedm.training.records import RunLog, RunTracker
from openedm.training.resources import Cost, Plan
from openedm.training.trainer import Trainer
from openedm.training.watching import LogLines, TrainingBar

__all__ = [
    "GUIDANCE",
    "Augmentation",
    "Augmented",
    "BudgetName",
    "Cost",
    "HalfLife",
    "Initial",
    "LogLines",
    "Model",
    "MovingAverage",
    "Observer",
    "Options",
    "Plan",
    "PowerFunction",
    "PrecisionChoice",
    "Recipe",
    "RunLog",
    "RunTracker",
    "Trainer",
    "TrainingBar",
    "TrainingProgress",
    "Validation",
    "ValidationLoss",
    "budget_of",
    "choose_recipe",
    "combine",
    "find_checkpoint",
    "label_dropout_for",
    "list_checkpoints",
    "list_snapshots",
    "load_denoiser",
    "make_accelerator",
    "max_resolution",
    "num_parameters",
    "reachable",
    "read_model",
    "recipe_summary",
    "reconstruct",
    "save_checkpoint",
    "share_of",
]
