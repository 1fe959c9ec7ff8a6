"""Training: any dataset × denoiser × objective   (Karras et al. 2022, Section 5 and Appendix F.2).

One step: σ ~ p(σ), n ~ N(0, I); the gradient of λ(σ) ‖D(y + σ n; σ) − y‖² averaged over the batch; Adam; the average of
the weights. A run is a function of its seed: its steps are the same if it is interrupted and resumed, or runs on
several processes. On a GPU the order of some sums of gradients is not fixed, so that two runs differ by rounding,
unless `torch.use_deterministic_algorithms(True)` is set.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from openedm import objective as objectives
from openedm.data import Dataset, align_classes, as_dataset
from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.locks import locked_folder
from openedm.ground.memory import explain_out_of_memory
from openedm.ground.seeding import derive_seed, seed_global
from openedm.networks import project_weights
from openedm.objective import Loss, Objective
from openedm.optimisation import OptimiserStep, minimise
from openedm.training.checkpoints import (
    FOLDER,
    RunState,
    find_checkpoint,
    is_checkpoint,
    make_room,
    read_progress,
    read_training_tensors,
    read_weights,
    remove_checkpoints,
    save_checkpoint,
)
from openedm.training.initial import Initial, as_initial, check_teacher, load_initial
from openedm.training.loading import Prefetcher, batches, rows_of
from openedm.training.model import Model
from openedm.training.monitoring import Observer, TrainingProgress, Validation, notify
from openedm.training.options import DROPOUT, Options, check_compatibility
from openedm.training.precision import PrecisionChoice, choose_precision
from openedm.training.processes import make_accelerator
from openedm.training.resources import Plan, is_small, measure_plan
from openedm.training.resuming import as_recorded, check_takes_effect, check_unchanged, with_recorded
from openedm.training.run_folder import writing_run
from openedm.training.steps import StepNoise, check_incomplete
from openedm.training.watching import watching
from openedm.training.weights import TrainedWeights

__all__ = ["Trainer"]


class Trainer:
    """Trains one denoiser.

    Args:
        model: the denoiser to train; built with `options.seed`.
        dataset: the training data, or what `openedm.data.as_dataset` takes: a tensor, a pair (x, labels), …
        objective: p(σ), λ(σ).
        options: the options of training.
        run: the folder for checkpoints; None for none.
        validation: data for the validation loss; None means the training data.
        init: what to start from instead of random weights: a checkpoint or run, for its averaged weights, an
            `Initial`, or a denoiser. A checkpoint of this run records its origin.
        observers: objects with methods that are called in training.
        accelerator: devices and processes; by default the machine's GPU if it has one, and all processes that
            `torchrun` or `accelerate launch` started.

    Raises:
        ValueError: the data do not fit the model or have classes that it does not have, a tenth or more of the
            objective's noise levels are outside the range of the model's preconditioning, the network does not take
            conditions of the data that have NaN, or the batch does not divide over processes and rounds.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        objective: Objective = objectives.EDM(),
        options: Options = Options(),
        *,
        run: str | Path | None = None,
        validation: Dataset | None = None,
        init: str | Path | Initial | Preconditioned | None = None,
        observers: Sequence[Observer] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        checks.instance("model", model, Model, "a Model, such as openedm.Model.for_data(dataset, network)")
        checks.instance("objective", objective, Objective, "an Objective, such as openedm.objective.EDM()")
        checks.instance("options", options, Options, "Options, such as openedm.Options(images=100_000)")
        for observer in observers:
            checks.instance("observers", observer, Observer, "a sequence of openedm.training.Observer")
        classes = (model.num_classes, model.class_names)
        dataset = align_classes(as_dataset(dataset), *classes, name="dataset")
        if validation is not None:
            validation = align_classes(as_dataset(validation, "validation"), *classes, name="validation")
        self.accelerator = make_accelerator() if accelerator is None else accelerator
        shares = self.accelerator.num_processes * options.rounds
        if (size := options.batch_size) % shares:
            raise ValueError(f"batch_size must be a multiple of processes × accumulate = {shares}, got {size}")
        self.model, self.dataset = check_compatibility(model, dataset, validation, objective, options), dataset
        self.objective, self.options = objective, options
        self.run = None if run is None else Path(run)
        self.validation, self._held_out = dataset if validation is None else validation, validation is not None
        self.observers = tuple(observers) if self.accelerator.is_main_process else ()
        self.state = RunState()
        self._init = as_initial(init)
        self.origin: dict[str, Any] | None = None
        self._build()

    def _build(self) -> None:
        denoiser = self.model.build_on(self.accelerator.device, self.options.seed)
        if self._init is not None:
            self.origin = load_initial(denoiser.network, self.model, self._init)
        project_weights(denoiser.network)
        average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        for name, data in (("dataset", self.dataset), ("validation", self.validation)):
            check_incomplete(name, data, average)
        self._weights = TrainedWeights(denoiser, average, self.objective, self.options, self.accelerator)
        self._loss_module = self._weights.loss_module
        self._wrapped: nn.Module = (
            self._loss_module if self._weights.sharded else self.accelerator.prepare_model(self._loss_module)
        )
        self._loss = torch.compile(self._wrapped) if self.options.compile else self._wrapped

    @property
    def denoiser(self) -> Preconditioned:
        """The denoiser with the raw weights of the last step; `average` is the denoiser for sampling."""
        return self._loss_module.denoiser

    @property
    def average(self) -> Preconditioned:
        """The denoiser with the averaged weights of the last step."""
        return self._weights.average

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam or AdamW, with its moments."""
        return self._weights.optimizer

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss so far, with `keep_best` or `stop_after`; None before the first."""
        return self.state.best_loss

    @property
    def finished(self) -> bool:
        """Whether training has ended: `images` seen, or `stop_after` measurements without improvement."""
        stalled = self.options.stop_after > 0 and self.state.best.stalled(self.options.stop_after)
        return stalled or self.state.images >= self.options.images

    def fit(self, should_stop: Callable[[], bool] = lambda: False, *, progress: bool | None = None) -> Preconditioned:
        """Train until the end, and return the averaged denoiser in evaluation mode. Continues a run that stopped early.

        With `options.keep_best`: a copy, with the averaged weights of the lowest validation loss so far.

        Args:
            should_stop: called after every step; if it returns True, a checkpoint is written and training ends early.
            progress: whether a bar and log lines are shown on the error stream. None: if it is a terminal, or in a
                notebook, unless `observers` have a `TrainingBar`.

        Raises:
            ValueError, OSError: `run` has checkpoints and was not resumed, another process writes it, or it cannot be.
            FloatingPointError: `options.patience` steps in a row were not finite.
        """
        check_teacher(self.objective, self.origin)
        device = self.accelerator.device
        with (
            writing_run(self.run, self.state.images),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            watching(self, progress),
        ):
            self.choose_precision()
            if self.options.accumulate is None and is_small(self.model, self.options, self.denoiser):
                self.options = replace(self.options, accumulate=1)
            elif self.options.accumulate is None:
                self.plan()
            with explain_out_of_memory("lower options.batch_size, or raise options.accumulate"):
                for state in self._steps():
                    for observer in self.observers:
                        observer.on_progress(state)
                    stopping = self._any_process(should_stop())
                    self._run_periodic(stopping=stopping)
                    if stopping:
                        break
        return self._weights.full_best(self.model)

    def choose_precision(self) -> PrecisionChoice | None:
        """Measure and choose `options.precision` where it is "auto"; `fit` and `plan` call it. None if it is not."""
        choice = choose_precision(self._loss_module, self.model, self.options, self.accelerator)
        if choice is not None:
            self.options = replace(self.options, precision=choice.precision)
        return choice

    def plan(self) -> Plan:
        """Measure a small pass, and choose `options.accumulate` where it is None; gradients and weights stay.

        Sharded training is not measured: None then means one round. Every process chooses the largest number of rounds
        of all. `fit` calls it, for networks that are not small.

        Raises:
            MemoryError: a batch does not fit into the memory that is free; the message names the options to change.
        """
        if self._weights.sharded:  # a pass over slices needs all processes, and their memory differs
            return Plan.unknown(self.options)
        self.choose_precision()
        plan = measure_plan(self._loss_module, self.model, self.options, self.accelerator)
        self.options = replace(self.options, accumulate=plan.accumulate)
        return replace(plan, checkpoint=self._weights.checkpoint_bytes)

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
        """Accumulate the gradient of one batch, and return its loss."""
        options, accelerator = self.options, self.accelerator
        device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
        step_noise, noisy = StepNoise.draw(self.model, self.objective, options, step, device), options.noisy_samples
        total = torch.zeros((), device=device)
        seed_global(derive_seed(options.seed, DROPOUT, step, rank), device)
        for round_ in range(options.rounds):
            rows = rows_of(round_, rank, processes, options)
            clean, labels = next(loader)
            clean = clean.to(device, non_blocking=True)
            condition = self.dataset.condition_layout.select(labels, self.model.condition_layout)
            condition = None if condition is None else condition.to(device, non_blocking=True)
            condition = step_noise.condition(condition, rows, self.model)
            clean, augment = step_noise.augment(clean, rows, self.model.augment_dim)
            with nullcontext() if round_ == options.rounds - 1 else accelerator.no_sync(self._wrapped):
                with torch.autocast(device.type, torch.bfloat16) if options.precision == "bf16" else nullcontext():
                    loss: Loss = self._loss(clean, condition=condition, augment=augment, **step_noise.of(rows))
                # Not accelerator.backward, which divides by a number that an environment variable may set.
                (loss.total.sum() * (processes / noisy)).backward()
            total += loss.weighted.sum() / noisy
        if device.type != "cpu" and (step + 1) * options.batch_size < options.images:
            loader.fetch()  # while the device computes
        return total if processes == 1 else accelerator.reduce(total, reduction="sum")

    def _update(self, step: OptimiserStep) -> None:
        """Count a step, and project the weights and update the averages if it was taken."""
        options, state = self.options, self.state
        state.images += options.batch_size
        state.step += 1
        if step.taken:
            state.skipped_in_a_row = 0
            decay = options.average.decay(options.batch_size, state.images)
            self._weights.finish_step(decay, state.step - state.skipped)
            return
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row >= options.patience:
            raise FloatingPointError(
                f"{options.patience} steps in a row had a loss or gradient that is not finite (images seen: "
                f"{state.images}, loss {step.loss}, gradient norm {step.gradient_norm}): lower learning_rate, set "
                "clip_norm, or use precision='fp32'"
            )

    def _run_periodic(self, *, stopping: bool) -> None:
        """Validate, and write a checkpoint and a snapshot, whichever are due; all of them when training has finished.

        The checkpoint comes last: it has the best loss and weights, and a killed run that goes on from it has all else.
        """
        options, images, any_due = self.options, self.state.images, stopping

        def due(every: int) -> bool:
            nonlocal any_due
            is_due = every > 0 and (self.finished or images // every != (images - options.batch_size) // every)
            any_due |= is_due
            return is_due

        if (not stopping or self.finished or options.tracks_best) and due(options.validate_every):
            self._validate()
        is_main, powers = self.accelerator.is_main_process, self._weights.power_averages
        calls = is_main or self._weights.sharded  # the others send their slices
        if self.run is not None and powers is not None and calls and due(powers.choice.every):
            powers.save(self.run, images, self.state.step - self.state.skipped, write=is_main)
        if (not stopping or self.finished) and due(options.snapshot_every):
            average = self._weights.full_average(self.model)
            notify(self.observers, images, lambda observer: observer.on_snapshot(images, average))
        if self.run is not None and (stopping or due(options.checkpoint_every)):
            self.save()
        if any_due and self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()

    @cached_property
    def _validation(self) -> Validation:
        return Validation.of_run(
            self.validation,
            self.objective,
            self.options,
            sigma_data=self.model.sigma_data,
            device=self.accelerator.device,
            held_out=self._held_out,
        )

    def _validate(self) -> None:
        accelerator = self.accelerator
        loss, average = 0.0, self._weights.full_average(self.model)
        if accelerator.is_main_process:
            measured = self._validation.measure(average)
            loss = measured.loss
        if self.options.tracks_best:
            if accelerator.num_processes > 1:  # all need the same number, to stop at the same step
                shared = torch.tensor(loss, dtype=torch.float64, device=accelerator.device)
                loss = float(accelerator.reduce(shared, reduction="sum"))
            self._track_best(loss)
        images = self.state.images  # observers are on the main process alone
        notify(self.observers, images, lambda observer: observer.on_validation(images, measured))

    def _track_best(self, loss: float) -> None:
        """Compare a validation loss with the lowest one; with `keep_best`, copy the averaged weights if it is lower."""
        if self.state.best.update(torch.tensor(loss, dtype=torch.float64)):
            self._weights.mark_best()

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def save(self) -> None:
        """Write a checkpoint named by the images seen, unless it exists, and remove those that are no longer kept."""
        if self.run is None:
            raise ValueError("run must be given to save checkpoints, got None")
        path = self.run / FOLDER / f"{self.state.images:012d}"
        is_main = self.accelerator.is_main_process
        done = is_checkpoint(path) if is_main else not self._weights.sharded  # then all send slices
        if self._any_process(done) if self._weights.sharded else done:
            return
        tensors, weights = self._weights.for_resuming(keep=is_main), self._weights.for_sampling(keep=is_main)
        if not is_main:
            return
        origin = {} if self.origin is None else {"init": self.origin}
        training = (tensors, self.state.to_json(self.objective, self.options) | origin)
        with locked_folder(self.run, "run"):
            make_room(path)
            save_checkpoint(path, self.model, weights, training)
            remove_checkpoints(self.run, self.options.keep)
        for observer in self.observers:
            observer.on_checkpoint(self.state.images, path)

    def resume(self, path: str | Path | None = None, changes: Collection[str] = ()) -> tuple[str, ...]:
        """Continue from a checkpoint: all later weights are bit-identical to those of a run that was not interrupted.

        On a GPU this requires `torch.use_deterministic_algorithms(True)`; otherwise they differ by rounding.

        Args:
            path: a checkpoint or a run; None means the run of this trainer.
            changes: the names of settings that this trainer has on purpose otherwise than the run: "options." and
                images, learning_rate, rampup, schedule, clip_norm, label_dropout, precision, accumulate or
                average.half_life; or "objective.noise". No others may change the steps.

        Returns:
            What has changed, a line for each setting.

        Raises:
            ValueError: there is no checkpoint, or it was written with another model, another objective, or options that
                change the steps of the run, or the run has ended, so that `changes` have no effect; the message lists
                them.
        """
        origin = self.run if path is None else path
        if origin is None:
            raise ValueError("path must be given to resume: this trainer has no run folder")
        folder = find_checkpoint(origin)
        tensors, content = read_training_tensors(folder), read_progress(folder)
        self.objective = self._loss_module.objective = as_recorded(content, self.objective)
        self.options = with_recorded(content, self.options)
        changed = check_unchanged(folder, content, self.model, self.objective, self.options, changes)
        state, weights = RunState.from_json(content, folder), read_weights(folder)
        self._weights.restore(tensors, weights, folder, dropout_by_bits=state.dropout_by_bits)
        if state.step > state.skipped and not self.optimizer.state:
            raise ValueError(f"the optimiser's state in {folder} is missing, after {state.step} steps")
        self.state, self.origin = state, content.get("init")
        self._weights.best = weights if self.options.keep_best and state.best_loss is not None else None
        if self.finished:
            check_takes_effect(folder, [line for line in changed if not line.startswith("options.images ")])
        return changed
