"""Training: any dataset × denoiser × objective   (Karras et al. 2022, Section 5 and Appendix F.2).

One step: σ ~ p(σ), n ~ N(0, I); the gradient of λ(σ) ‖D(y + σ n; σ) − y‖² averaged over the batch; Adam; the average
of the weights. A run is a function of its seed: killed and resumed, or spread over several processes, it takes the same
steps. On a GPU some gradients are summed in no fixed order, so that two runs differ by rounding, unless
`torch.use_deterministic_algorithms(True)` is set.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from openedm.data import Dataset
from openedm.denoiser import Preconditioned
from openedm.ground.seeding import derive_seed, seed_global
from openedm.ground.storage import read_tensors
from openedm.objective import EDM, Loss, Objective
from openedm.optimisation import Step, minimise
from openedm.training.averaging import MovingAverage
from openedm.training.checkpoints import (
    FOLDER,
    RunState,
    check_unchanged,
    find_checkpoint,
    flatten_optimizer,
    list_checkpoints,
    load_weights,
    part_of,
    read_progress,
    read_weights,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from openedm.training.loading import Prefetcher, batches, rows_of
from openedm.training.model import Model
from openedm.training.monitoring import Observer, TrainingProgress, Validation
from openedm.training.options import DROPOUT, Options, check_compatibility
from openedm.training.post_hoc import PowerAverages, remove_snapshots
from openedm.training.processes import full_copy, full_state_dict, make_accelerator, shard
from openedm.training.steps import LossModule, StepNoise

__all__ = ["Trainer"]


class Trainer:
    """Trains one denoiser.

    Args:
        model: what to train; built with `options.seed`.
        dataset: what to train on.
        objective: p(σ), λ(σ).
        options: how to train.
        run: folder for checkpoints; None writes none.
        validation: data for the validation loss; None takes the training data.
        observers: called as training proceeds.
        accelerator: devices and processes; by default the machine's GPU if it has one, and all processes that
            `torchrun` or `accelerate launch` started.

    Raises:
        ValueError: the data do not fit the model, a tenth or more of the objective's noise levels lie outside the range
            of the model's preconditioning, the batch does not divide over processes and rounds, or `run` already holds
            checkpoints (call `resume`).
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        objective: Objective = EDM(),
        options: Options = Options(),
        *,
        run: str | Path | None = None,
        validation: Dataset | None = None,
        observers: Sequence[Observer] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        check_compatibility(model, dataset, validation, objective, options)
        self.accelerator = make_accelerator() if accelerator is None else accelerator
        shares = self.accelerator.num_processes * options.accumulate
        if options.batch_size % shares:
            raise ValueError(
                f"batch_size must be a multiple of processes × accumulate = {shares}, got {options.batch_size}"
            )
        self.model, self.dataset, self.objective, self.options = model, dataset, objective, options
        self.run = None if run is None else Path(run)
        self.validation = dataset if validation is None else validation
        self.observers = tuple(observers) if self.accelerator.is_main_process else ()
        self.state = RunState()
        self._best: dict[str, Tensor] | None = None
        self._build()

    def _build(self) -> None:
        device, options = self.accelerator.device, self.options
        denoiser = self.model.build(options.seed).to(device)
        if len(self.model.event_shape) == 3:
            denoiser = denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self._plain = LossModule(denoiser, self.objective).to(device).train()
        choice = options.power_average
        self._powers = None if choice is None else PowerAverages(choice, denoiser.network)
        self._sharded = options.sharding == "fsdp" and self.accelerator.num_processes > 1
        if self._sharded:
            powers = [] if self._powers is None else self._powers.networks
            shard([self._plain, self.average, *powers], device, self.accelerator.num_processes)
        self._moving = MovingAverage(self.average, denoiser)
        trained = {name: p for name, p in self._plain.named_parameters() if p.requires_grad}
        self._names = list(trained)
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
        self._wrapped: nn.Module = self._plain if self._sharded else self.accelerator.prepare_model(self._plain)
        self._loss = torch.compile(self._wrapped) if options.compile else self._wrapped

    @property
    def denoiser(self) -> Preconditioned:
        """The denoiser with the raw weights of the last step. `average` is the one to sample from."""
        return self._plain.denoiser

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss so far, with `keep_best` or `stop_after`; None before any."""
        return self.state.best_loss

    @property
    def finished(self) -> bool:
        """Whether training has ended: `images` seen, or `stop_after` measurements without improvement."""
        stalled = self.options.stop_after > 0 and self.state.best.stalled(self.options.stop_after)
        return stalled or self.state.images >= self.options.images

    def fit(self, should_stop: Callable[[], bool] = lambda: False) -> Preconditioned:
        """Train until the end; returns the averaged denoiser, in evaluation mode. Continues a run that stopped early.

        With `options.keep_best` the result is a copy, with the averaged weights of the lowest validation loss so far.

        Args:
            should_stop: called after every step; if it returns True, a checkpoint is written and training ends early.

        Raises:
            ValueError: `run` holds checkpoints of an earlier run that was not resumed.
            FloatingPointError: `options.patience` steps in a row were not finite.
        """
        if self.run is not None and self.state.images == 0 and list_checkpoints(self.run):
            raise ValueError(f"run={self.run} holds checkpoints already: call resume() first, or choose another folder")
        if self.run is not None and self._powers is not None and self.accelerator.is_main_process:
            remove_snapshots(self.run, self.state.images)
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for progress in self._steps():
                for observer in self.observers:
                    observer.on_progress(progress)
                stopping = self._any_process(should_stop())
                self._periodic(stopping=stopping)
                if stopping:
                    break
        average = self._full_average()
        if self._best is None:
            return average
        best = copy.deepcopy(average)
        best.network.load_state_dict(full_state_dict(self._best))
        return best

    def _full_average(self) -> Preconditioned:
        return full_copy(self.average, self.model) if self._sharded else self.average

    def _steps(self) -> Iterator[TrainingProgress]:
        options, state, accelerator = self.options, self.state, self.accelerator
        loader = Prefetcher(
            batches(
                self.dataset,
                options,
                start=state.images,
                rank=accelerator.process_index,
                processes=accelerator.num_processes,
                pin=accelerator.device.type == "cuda",
            )
        )
        steps = minimise(
            partial(self._gradient, loader),
            self.optimizer,
            steps=takewhile(lambda _: not self.finished, count(state.step)),
            learning_rate=lambda step: options.learning_rate_at((step + 1) * options.batch_size),
            clip_norm=options.clip_norm,
        )
        started = time.perf_counter()
        for step in steps:
            self._update(step)
            speed = options.batch_size / (time.perf_counter() - started)
            values = (step.loss, step.gradient_norm, step.learning_rate)
            yield TrainingProgress(state.images, state.step, *values, speed, state.skipped)
            started = time.perf_counter()

    def _gradient(self, loader: Prefetcher, step: int) -> Tensor:
        """Accumulate the gradient of one batch; returns its loss."""
        options, accelerator = self.options, self.accelerator
        device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
        drawn = StepNoise.draw(self.model, self.objective, options, step, device)
        total = torch.zeros((), device=device)
        seed_global(derive_seed(options.seed, DROPOUT, step, rank), device)
        for round_ in range(options.accumulate):
            rows = rows_of(round_, rank, processes, options)
            clean, given = next(loader)
            clean = clean.to(device, non_blocking=True)
            condition = None
            if given is not None and (self.model.num_classes or self.model.condition_shape is not None):
                condition = given.to(device, non_blocking=True)
                if drawn.hidden is not None:
                    condition = condition.masked_fill(drawn.hidden[rows], -1)
            clean, augment = drawn.augment(clean, rows, self.model.augment_dim)
            last = round_ == options.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self._wrapped):
                with torch.autocast(device.type, torch.bfloat16) if options.precision == "bf16" else nullcontext():
                    loss: Loss = self._loss(clean, drawn.noise[rows], drawn.sigma[rows], condition, augment)
                # Not accelerator.backward, which divides by a number that an environment variable may set.
                (loss.total.sum() * (processes / options.batch_size)).backward()
            total += loss.weighted.sum() / options.batch_size
        if device.type != "cpu" and (step + 1) * options.batch_size < options.images:
            loader.fetch()  # while the device computes
        return total if processes == 1 else accelerator.reduce(total, reduction="sum")

    def _update(self, step: Step) -> None:
        """Count a step, and let the averages follow the weights if it was taken."""
        options, state = self.options, self.state
        state.images += options.batch_size
        state.step += 1
        if step.taken:
            state.skipped_in_a_row = 0
            self._moving.update(options.average.decay(options.batch_size, state.images))
            if self._powers is not None:
                self._powers.update(state.step - state.skipped)
            return
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row >= options.patience:
            raise FloatingPointError(
                f"{options.patience} steps in a row had a loss or gradient that is not finite (images seen: "
                f"{state.images}, loss {step.loss}, gradient norm {step.gradient_norm}): lower learning_rate, set "
                "clip_norm, or use precision='fp32'"
            )

    def _periodic(self, *, stopping: bool) -> None:
        """Validation, checkpoint and snapshot where they are due; all of them when training has finished.

        Validation comes before the checkpoint, which holds the best loss and weights.
        """
        options, images, busy = self.options, self.state.images, stopping

        def due(every: int) -> bool:
            nonlocal busy
            is_due = every > 0 and (self.finished or images // every != (images - options.batch_size) // every)
            busy |= is_due
            return is_due

        if (not stopping or self.finished or options.tracks_best) and due(options.validate_every):
            self._validate()
        main, powers = self.accelerator.is_main_process, self._powers
        if self.run is not None and powers is not None and (main or self._sharded) and due(powers.choice.every):
            powers.save(self.run, images, self.state.step - self.state.skipped, write=main)
        if self.run is not None and (stopping or due(options.checkpoint_every)):
            self.save()
        if (not stopping or self.finished) and due(options.snapshot_every):
            average = self._full_average()
            for observer in self.observers:
                observer.on_snapshot(images, average)
        if busy and self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()

    @cached_property
    def _validation(self) -> Validation:
        options = self.options
        return Validation(
            self.validation,
            self.objective,
            sigma_data=self.model.sigma_data,
            device=self.accelerator.device,
            levels=options.validate_levels,
            samples=options.validate_samples,
            seed=options.seed,
        )

    def _validate(self) -> None:
        accelerator = self.accelerator
        loss, average = 0.0, self._full_average()
        if accelerator.is_main_process:
            measured = self._validation.measure(average)
            loss = measured.loss
        if self.options.tracks_best:
            if accelerator.num_processes > 1:  # all must know the same number, to stop together
                shared = torch.tensor(loss, dtype=torch.float64, device=accelerator.device)
                loss = float(accelerator.reduce(shared, reduction="sum"))
            self._track_best(loss)
        for observer in self.observers:  # of the main process alone
            observer.on_validation(self.state.images, measured)

    def _track_best(self, loss: float) -> None:
        """Compare a validation loss with the lowest one, and with `keep_best` keep the averaged weights of that."""
        if self.state.best.update(torch.tensor(loss, dtype=torch.float64)) and self.options.keep_best:
            self._best = {name: t.clone() for name, t in self.average.network.state_dict().items()}

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def _parts(self) -> dict[str, nn.Module]:
        """The modules whose tensors a checkpoint holds for resuming, by their prefix there."""
        parts: dict[str, nn.Module] = {"network": self.denoiser.network}
        if self.options.keep_best:
            parts["average"] = self.average.network
        if self._powers is not None:
            parts |= {f"power.{i}": network for i, network in enumerate(self._powers.networks)}
        if self._plain.uncertainty is not None:
            parts["uncertainty"] = self._plain.uncertainty
        return parts

    def save(self) -> None:
        """Write a checkpoint named by the images seen, unless it is there already, and remove those no longer kept."""
        if self.run is None:
            raise ValueError("run must be given to save checkpoints, got None")
        path = self.run / FOLDER / f"{self.state.images:012d}"
        main = self.accelerator.is_main_process
        done = path.exists() if main else not self._sharded  # where weights are sharded, all send their slices
        if self._any_process(done) if self._sharded else done:
            return
        parts = self._parts().items()
        tensors = {f"{part}.{name}": t for part, module in parts for name, t in module.state_dict().items()}
        tensors = full_state_dict(tensors | flatten_optimizer(self.optimizer, self._names), keep=main)
        weights = self.average.network.state_dict() if self._best is None else self._best
        weights = full_state_dict(weights, keep=main)
        if not main:
            return
        training = (tensors, self.state.to_json(self.objective, self.options))
        save_checkpoint(path, self.model, weights, training)
        remove_checkpoints(self.run, self.options.keep)
        for observer in self.observers:
            observer.on_checkpoint(self.state.images, path)

    def resume(self, path: str | Path | None = None) -> None:
        """Continue from a checkpoint: all later weights are bit-identical to those of a run that was not interrupted.

        On a GPU this needs `torch.use_deterministic_algorithms(True)`; without it they differ by rounding.

        Args:
            path: a checkpoint or a run; None means this trainer's own run.

        Raises:
            ValueError: no checkpoint there, or it was written by another model, objective or by options that change the
                steps of the run; says which.
        """
        origin = self.run if path is None else path
        if origin is None:
            raise ValueError("path must be given to resume: this trainer has no run folder")
        folder = find_checkpoint(origin)
        tensors, content = read_tensors(folder / "training.safetensors"), read_progress(folder)
        check_unchanged(folder, content, self.model, self.objective, self.options)
        state, weights = RunState.from_json(content, folder), read_weights(folder)
        if not self.options.keep_best:
            load_weights(self.average.network, weights, folder)
        for part, module in self._parts().items():
            load_weights(module, part_of(tensors, part), folder)
        restore_optimizer(self.optimizer, self._names, tensors, folder)
        if state.step > state.skipped and not self.optimizer.state:
            raise ValueError(f"the optimiser's state in {folder} is missing, after {state.step} steps")
        self.state = state
        self._best = weights if self.options.keep_best and state.best_loss is not None else None
