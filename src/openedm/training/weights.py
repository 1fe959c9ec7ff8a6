"""Every tensor that training changes: weights, their averages and the moments of the optimiser; to files and back.

| name in training.safetensors | tensors |
|---|---|
| network.… | raw weights |
| average.… | averaged weights, with `keep_best` |
| power.0.…, power.1.…, … | power-function averages |
| uncertainty.… | parameters of the loss |
| teacher.… | the weights from which training started, for objectives that use them |
| optimizer.‹parameter›.‹entry› | moments |
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.ground.tensors import all_finite, count_not_finite
from openedm.networks import project_weights
from openedm.networks.pointwise import set_dropout
from openedm.objective import Objective
from openedm.training.averaging import MovingAverage
from openedm.training.checkpoints import load_weights, tensors_with_prefix
from openedm.training.model import Model
from openedm.training.options import Options
from openedm.training.post_hoc import PowerAverages
from openedm.training.processes import full_copy, full_state_dict, shard, shard_like
from openedm.training.steps import LossModule

__all__ = ["TrainedWeights"]


class TrainedWeights:
    """The weights of a run: raw, averaged and best, and what the optimiser records of them.

    Args:
        denoiser: the denoiser to train, on its device.
        average: a frozen copy of it in evaluation mode.
        objective: whether the loss has parameters.
        options: of the optimiser, the averages and of sharding.
        accelerator: the device, and how many processes share the run.

    Attributes:
        average: the denoiser with averaged weights.
        teacher: the denoiser as training started; None for objectives that do not use it.
        loss_module: the denoiser with raw weights, and its loss.
        power_averages: power-function averages; None without them.
        optimizer: Adam or AdamW of the parameters that are trained.
        sharded: whether each process keeps a slice of every tensor.
        best: averaged weights of the lowest validation loss so far, with `keep_best`; None before the first.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        average: Preconditioned,
        objective: Objective,
        options: Options,
        accelerator: Accelerator,
    ) -> None:
        device, processes = accelerator.device, accelerator.num_processes
        self.average = average
        self.teacher = copy.deepcopy(average) if objective.uses_teacher else None
        if self.teacher is not None:
            self.teacher.consistency = False  # in contrast to what becomes of the student
        self.loss_module = LossModule(denoiser, objective, self.teacher, options.noises).to(device).train()
        choice = options.power_average
        self.power_averages = None if choice is None else PowerAverages(choice, denoiser.network)
        self.sharded = options.sharding == "fsdp" and processes > 1
        if self.sharded:
            powers = [] if self.power_averages is None else self.power_averages.networks
            shard([self.loss_module, self.average, *powers], device, processes)
        self._moving_average = MovingAverage(self.average, denoiser)
        trained = {name: p for name, p in self.loss_module.named_parameters() if p.requires_grad}
        self._parameter_names = list(trained)
        settings: dict[str, Any] = {
            "lr": options.learning_rate,
            "betas": (options.beta_1, options.beta_2),
            "eps": options.epsilon,
            "fused": True,
        }
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(trained.values(), weight_decay=options.weight_decay, **settings)
            if options.weight_decay > 0
            else torch.optim.Adam(trained.values(), **settings)
        )
        self._keep_best = options.keep_best
        self.best: dict[str, Tensor] | None = None

    def finish_step(self, decay: float, step: int) -> None:
        """Project the weights of modules that ask for it, and update all averages, after a step of the optimiser.

        Args:
            decay: β of the exponential moving average.
            step: number of steps taken, ≥ 1.
        """
        project_weights(self.loss_module)
        self._moving_average.update(decay)
        if self.power_averages is not None:
            self.power_averages.update(step)

    def mark_best(self) -> None:
        """Copy the averaged weights, which are the best so far, with `keep_best`."""
        if self._keep_best:
            self.best = {name: t.clone() for name, t in self.average.network.state_dict().items()}

    def full_average(self, model: Model) -> Preconditioned:
        """The averaged denoiser with complete weights; if they are sharded, all processes must call."""
        return full_copy(self.average, model) if self.sharded else self.average

    def full_best(self, model: Model) -> Preconditioned:
        """The denoiser with the best weights, or else the averaged ones. As `full_average`."""
        average = self.full_average(model)
        if self.best is None:
            return average
        best = copy.deepcopy(average)
        best.network.load_state_dict(full_state_dict(self.best))
        return best

    def _modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors are needed for resuming, by their prefix."""
        parts: dict[str, nn.Module] = {"network": self.loss_module.denoiser.network}
        if self._keep_best:
            parts["average"] = self.average.network
        if self.power_averages is not None:
            parts |= {f"power.{i}": network for i, network in enumerate(self.power_averages.networks)}
        if self.teacher is not None:
            parts["teacher"] = self.teacher.network
        if self.loss_module.uncertainty is not None:
            parts["uncertainty"] = self.loss_module.uncertainty
        return parts

    def for_sampling(self, *, keep: bool) -> dict[str, Tensor]:
        """The weights of model.safetensors: the best ones, or else the averaged ones. As `for_resuming`."""
        return full_state_dict(self.average.network.state_dict() if self.best is None else self.best, keep=keep)

    def for_resuming(self, *, keep: bool) -> dict[str, Tensor]:
        """The tensors of training.safetensors, complete; if they are sharded, all processes must call.

        Args:
            keep: whether this process needs the result; if not, it is empty.
        """
        tensors = {f"{part}.{name}": t for part, m in self._modules().items() for name, t in m.state_dict().items()}
        return full_state_dict(tensors | _flatten_optimizer(self.optimizer, self._parameter_names), keep=keep)

    @property
    def checkpoint_bytes(self) -> int:
        """About the bytes of a checkpoint: the weights for sampling, those for resuming, and Adam's two moments."""
        kept = [t for m in (self.average.network, *self._modules().values()) for t in m.state_dict().values()]
        trained = [p for p in self.loss_module.parameters() if p.requires_grad]
        return sum(int(t.numel()) * t.element_size() for t in (*kept, *trained, *trained))

    def restore(
        self, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], origin: Path, *, dropout_by_bits: bool
    ) -> None:
        """Undo `for_resuming` and, without `keep_best`, `for_sampling`.

        Args:
            tensors, weights: the contents of training.safetensors and model.safetensors.
            origin: the checkpoint, for messages.
            dropout_by_bits: see `RunState`.

        Raises:
            ValueError: names or shapes do not fit.
        """
        set_dropout(self.loss_module, by_bits=dropout_by_bits)
        if not self._keep_best:
            load_weights(self.average.network, weights, origin)
        for part, module in self._modules().items():
            load_weights(module, tensors_with_prefix(tensors, part), origin)
        _restore_optimizer(self.optimizer, self._parameter_names, tensors, origin)


def _flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state as tensors `optimizer.<parameter>.<entry>`; `names` are the names of its parameters."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{names[i]}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor], origin: Path
) -> None:
    """Undo `_flatten_optimizer`.

    Raises:
        ValueError: an entry does not belong to a parameter or fit its shape, is no real number or not finite, or
            entries are missing; the message lists them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    positions = {name: i for i, name in enumerate(names)}
    content = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors_with_prefix(tensors, "optimizer").items():
        name, _, entry = key.rpartition(".")
        if name not in positions or value.shape not in ((), parameters[positions[name]].shape):
            raise ValueError(f"the optimiser's state in {origin} does not fit: {key} of shape {tuple(value.shape)}")
        if not value.is_floating_point() or not all_finite(value):
            problem = count_not_finite(value) if value.is_floating_point() else str(value.dtype)
            raise ValueError(f"the optimiser's state in {origin} must be finite real numbers: {key} holds {problem}")
        i = positions[name]
        state.setdefault(i, {})[entry] = _with_strides(parameters[i], value)
    entries = set().union(*state.values())
    missing = [f"{names[i]}.{entry}" for i in state for entry in sorted(entries - state[i].keys())]
    if missing:
        raise ValueError(f"the optimiser's state in {origin} is incomplete: {', '.join(missing[:5])} missing")
    content["state"] = state
    optimizer.load_state_dict(content)


def _with_strides(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `parameter`, as the fused optimiser requires for the state of a parameter."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(shard_like(parameter, value))
