"""Everything that the recording takes from the library. After a refactoring only this file should need an edit."""

from typing import Any

import openedm.conditioning
import openedm.data
import openedm.denoiser
import openedm.exact
import openedm.guidance
import openedm.inference
import openedm.inference.priors
import openedm.likelihood
import openedm.measurements
import openedm.metrics
import openedm.networks
import openedm.networks.mixtures
import openedm.objective
import openedm.sampling
import openedm.suggest
import openedm.training
from openedm.cli.main import main as command_line
from openedm.ground.choices import Choice, class_path, from_config, subclasses

ClassifierFree = openedm.guidance.ClassifierFree
ConditionalMixture = openedm.networks.mixtures.ConditionalMixture
DPS, MMPS = openedm.conditioning.DPS, openedm.conditioning.MMPS
Denoiser = openedm.denoiser.Denoiser
ExactDataset, GaussianMixture = openedm.exact.ExactDataset, openedm.exact.GaussianMixture
FunctionDenoiser, Preconditioned = openedm.denoiser.FunctionDenoiser, openedm.denoiser.Preconditioned
Guided = openedm.guidance.Guided
InMemory, measure = openedm.data.InMemory, openedm.data.measure
Matrix, Measurement = openedm.measurements.Matrix, openedm.measurements.Measurement
Observer, Trainer = openedm.training.Observer, openedm.training.Trainer
BrownianNoise, SeededNoise = openedm.sampling.BrownianNoise, openedm.sampling.SeededNoise
fit, fit_joint, tasks = openedm.inference.fit, openedm.inference.fit_joint, openedm.inference.tasks
calibrate, simulate = openedm.inference.calibrate, openedm.inference.simulate
bits_per_dim = openedm.likelihood.bits_per_dim
fit_levels = openedm.sampling.fit_levels
list_checkpoints, load_denoiser = openedm.training.list_checkpoints, openedm.training.load_denoiser
metrics = openedm.metrics
prior_from_config = openedm.inference.prior_from_config
reconstruct = openedm.training.reconstruct
suggest = openedm.suggest.suggest

Config = dict[str, Any]

__all__ = ["Choice", "class_path", "command_line", "from_config", "subclasses"]


def config(name: str, /, **values: Any) -> Config:
    """The plain data of version 0.1 for a choice: `config("levels.Karras", num_steps=4)`."""
    return {"class_path": f"openedm.{name}", "init_args": values}


def make(name: str, /, **values: Any) -> Any:
    """The choice that this plain data describes."""
    return from_config(Choice, config(name, **values))
