"""Training: any dataset × denoiser × objective   (Karras et al. 2022, Section 5 and Appendix F.2).

One step: σ ~ p(σ), n ~ N(0, I); the gradient of λ(σ) ‖D(y + σ n; σ) − y‖² averaged over the batch; Adam; the average
of the weights. A run is a function of its seed: killed and resumed, or spread over several processes, it takes the same
steps. On a GPU some gradients are summed in no fixed order, unless `torch.use_deterministic_algorithms(True)` asks for
one: there, two runs agree but for rounding.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from openedm.data import Dataset
from openedm.denoiser import Preconditioned
from openedm.ground.choices import to_config
from openedm.ground.seeding import derive_seed, seed_global
from openedm.objective import EDM, Loss, Objective
from openedm.training.averaging import Averaged
from openedm.training.checkpoints import (
    FOLDER,
    VALIDATION,
    find_checkpoint,
    flatten_optimizer,
    list_checkpoints,
    load_weights,
    part_of,
    read_model,
    read_training,
    read_weights,
    refuse_changes,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
    with_new_options,
)
from openedm.training.loading import Ahead, batches, rows_of
from openedm.training.misfits import refuse_misfits
from openedm.training.model import Model
from openedm.training.observers import Observer, Progress
from openedm.training.options import Options
from openedm.training.post_hoc import PowerAverages, remove_snapshots
from openedm.training.processes import make_accelerator
from openedm.training.randomness import DROPOUT
from openedm.training.sharding import gathered, shard, whole, whole_copy
from openedm.training.state import Run, run_of
from openedm.training.steps import LossOf, draw
from openedm.training.validation import Validation


class Trainer:
    """Trains one denoiser; `fit` may be called again to go on.

    Args:
        model: what to train; built with `options.seed`.
        dataset: what to train on.
        objective: p(σ), λ(σ).
        options: how to train.
        run: folder for checkpoints; None writes none.
        validation: data for the validation loss; None takes the training data.
        observers: who is told about progress.
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
        refuse_misfits(model, dataset, validation, objective, options)
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
        self.state = Run()
        self._build()

    def _build(self) -> None:
        device, options = self.accelerator.device, self.options
        denoiser = self.model.build(options.seed).to(device)
        if len(self.model.event_shape) == 3:
            denoiser = denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self._plain = LossOf(denoiser, self.objective).to(device).train()
        choice = options.power_average
        self._powers = None if choice is None else PowerAverages(choice, denoiser.network)
        self._sharded = options.sharding == "fsdp" and self.accelerator.num_processes > 1
        if self._sharded:
            powers = [] if self._powers is None else self._powers.networks
            shard([self._plain, self.average, *powers], device, self.accelerator.num_processes)
        trained = {name: p for name, p in self._plain.named_parameters() if p.requires_grad}
        self._names, self._parameters = list(trained), list(trained.values())
        self._averaged = Averaged(self.average, denoiser)
        settings: dict[str, Any] = {
            "lr": options.learning_rate,
            "betas": (options.beta_1, options.beta_2),
            "eps": options.epsilon,
            "fused": True,
        }
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(self._parameters, weight_decay=options.weight_decay, **settings)
            if options.weight_decay > 0
            else torch.optim.Adam(self._parameters, **settings)
        )
        self._best: dict[str, Tensor] | None = None
        self._validation: Validation | None = None
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
        """Whether training has come to its end: `images` seen, or `stop_after` measurements without improvement."""
        stalled = 0 < self.options.stop_after <= self.state.without_improvement
        return stalled or self.state.images >= self.options.images

    def fit(self, should_stop: Callable[[], bool] = lambda: False) -> Preconditioned:
        """Train until the end; returns the averaged denoiser, in evaluation mode.

        With `options.keep_best` the result is a copy, with the averaged weights of the lowest validation loss so far.

        Args:
            should_stop: asked after every step; when it says yes, a checkpoint is written and training ends early.

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
        average = self._whole_average()
        if self._best is None:
            return average
        best = copy.deepcopy(average)
        best.network.load_state_dict(gathered(self._best))
        return best

    def _whole_average(self) -> Preconditioned:
        return whole_copy(self.average, self.model) if self._sharded else self.average

    def _steps(self) -> Iterator[Progress]:
        options, state, accelerator = self.options, self.state, self.accelerator
        loader = Ahead(
            batches(
                self.dataset,
                options,
                start=state.images,
                rank=accelerator.process_index,
                processes=accelerator.num_processes,
                pin=accelerator.device.type == "cuda",
            )
        )
        while not self.finished:
            started = time.perf_counter()
            loss, norm = self._gradient(loader)
            rate = self._update(loss, norm)
            speed = options.batch_size / (time.perf_counter() - started)
            yield Progress(state.images, state.step, loss, norm, rate, speed, state.skipped)

    def _gradient(self, loader: Ahead) -> tuple[float, float]:
        """Accumulate the gradient of one batch; returns its loss and the gradient's norm before clipping."""
        options, accelerator = self.options, self.accelerator
        device, processes = accelerator.device, accelerator.num_processes
        drawn = draw(self.model, self.objective, options, self.state.step, device)
        total = torch.zeros((), device=device)
        for parameter in self._parameters:
            parameter.grad = None
        seed_global(derive_seed(options.seed, DROPOUT, self.state.step, accelerator.process_index), device)
        for round_ in range(options.accumulate):
            rows = rows_of(round_, accelerator.process_index, processes, options)
            clean, given = next(loader)
            clean = clean.to(device, non_blocking=True)
            condition = None
            if given is not None and (self.model.num_classes or self.model.condition_shape is not None):
                condition = given.to(device, non_blocking=True)
                if drawn.hidden is not None:
                    condition = condition.masked_fill(drawn.hidden[rows], -1)
            clean, augment = drawn.augment(clean, rows, self.model.augment_dim)
            synchronise = round_ == options.accumulate - 1
            with nullcontext() if synchronise else accelerator.no_sync(self._wrapped):
                with torch.autocast(device.type, torch.bfloat16) if options.precision == "bf16" else nullcontext():
                    loss: Loss = self._loss(clean, drawn.noise[rows], drawn.sigma[rows], condition, augment)
                # Not accelerator.backward, which divides by a number that an environment variable may set.
                (loss.total.sum() * (processes / options.batch_size)).backward()
            total += loss.weighted.sum() / options.batch_size
        # torch.nn.utils.get_total_norm, less its sorting of gradients by device: these are on one.
        norms = torch._foreach_norm([p.grad for p in self._parameters if p.grad is not None])
        norm = whole(torch.linalg.vector_norm(torch.stack(norms)))
        if options.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, options.clip_norm, norm)
        if device.type != "cpu" and self.state.images + options.batch_size < options.images:
            loader.fetch()  # while the device computes
        mean = total if processes == 1 else accelerator.reduce(total, reduction="sum")
        loss_value, norm_value = torch.stack([mean, norm.to(mean.dtype)]).tolist()  # the step's one synchronisation
        return loss_value, norm_value

    def _update(self, loss: float, norm: float) -> float:
        """Adam and the average, unless loss or gradient is not finite; returns the learning rate."""
        options, state = self.options, self.state
        state.images += options.batch_size
        state.step += 1
        rate = options.learning_rate_at(state.images)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            state.skipped += 1
            state.skipped_in_a_row += 1
            if state.skipped_in_a_row >= options.patience:
                raise FloatingPointError(
                    f"{options.patience} steps in a row had a loss or gradient that is not finite (images seen: "
                    f"{state.images}, loss {loss}, gradient norm {norm}): lower learning_rate, set clip_norm, or use "
                    "precision='fp32'"
                )
            return rate
        state.skipped_in_a_row = 0
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._averaged.update(options.average.decay(options.batch_size, state.images))
        if self._powers is not None:
            self._powers.update(state.step - state.skipped)
        return rate

    def _periodic(self, *, stopping: bool) -> None:
        """Validation, checkpoint and snapshot where they are due; all of them when training has finished.

        Where validation has an effect on the run it comes before the checkpoint, which holds what came of it.
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
            average = self._whole_average()
            for observer in self.observers:
                observer.on_snapshot(images, average)
        if busy and self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()

    def _validate(self) -> None:
        accelerator, options = self.accelerator, self.options
        loss, average = 0.0, self._whole_average()
        if accelerator.is_main_process:
            if self._validation is None:
                self._validation = self._new_validation()
            measured = self._validation.measure(average)
            loss = measured.loss
        if options.tracks_best:
            if accelerator.num_processes > 1:  # all must know the same number, to stop together
                shared = torch.tensor(loss, dtype=torch.float64, device=accelerator.device)
                loss = float(accelerator.reduce(shared, reduction="sum"))
            self._note(loss)
        for observer in self.observers:  # of the main process alone
            observer.on_validation(self.state.images, measured)

    def _new_validation(self) -> Validation:
        options = self.options
        # Up to 256 samples in the parts of earlier versions: sums in other parts differ in the last digits.
        large = self.validation.kind == "vectors" and options.validate_samples > 256
        return Validation(
            self.validation,
            self.objective,
            sigma_data=self.model.sigma_data,
            device=self.accelerator.device,
            levels=options.validate_levels,
            samples=options.validate_samples,
            seed=options.seed,
            batch_size=4096 if large else 128,
        )

    def _note(self, loss: float) -> None:
        """Take the averaged weights as the best, or count one measurement more that did not improve."""
        state = self.state
        if not loss < (math.inf if state.best_loss is None else state.best_loss):
            state.without_improvement += 1
            return
        state.best_loss, state.without_improvement = loss, 0
        if self.options.keep_best:
            self._best = {name: t.clone() for name, t in self.average.network.state_dict().items()}

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def _settings(self) -> dict[str, Any]:
        return {"objective": to_config(self.objective), "options": to_config(self.options)}

    def save(self) -> None:
        """Write a checkpoint named by the images seen, unless it is there already, and remove those no longer kept."""
        if self.run is None:
            raise ValueError("run must be given to save checkpoints, got None")
        path = self.run / FOLDER / f"{self.state.images:012d}"
        main = self.accelerator.is_main_process
        done = path.exists() if main else not self._sharded  # where weights are sharded, all give their slices
        if self._any_process(done) if self._sharded else done:
            return
        tensors = {f"network.{name}": t for name, t in self.denoiser.network.state_dict().items()}
        tensors |= flatten_optimizer(self.optimizer, self._names)
        weights = self.average.network.state_dict()
        if self.options.keep_best:
            tensors |= {f"average.{name}": t for name, t in weights.items()}
        if self._powers is not None:
            tensors |= self._powers.state()
        if self._plain.uncertainty is not None:
            tensors |= {f"uncertainty.{name}": t for name, t in self._plain.uncertainty.state_dict().items()}
        tensors = gathered(tensors, keep=main)
        weights = gathered(weights if self._best is None else self._best, keep=main)
        if not main:
            return
        save_checkpoint(path, self.model, weights, (tensors, {**asdict(self.state), **self._settings()}))
        remove_checkpoints(self.run, self.options.keep)
        for observer in self.observers:
            observer.on_checkpoint(self.state.images, path)

    def resume(self, path: str | Path | None = None) -> None:
        """Go on from a checkpoint, exactly: the weights after it equal those of a run that was never interrupted.

        On a GPU they do so with `torch.use_deterministic_algorithms(True)`, else but for rounding.

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
        tensors, content = read_training(folder)
        before = {
            "model": to_config(read_model(folder)),
            "objective": content.get("objective"),
            "options": with_new_options(content.get("options"), to_config(Options())),
        }
        fixed = VALIDATION if self.options.tracks_best else frozenset()
        fixed |= {"images"} if self.options.schedule == "cosine" else set()
        refuse_changes(folder, before, {"model": to_config(self.model), **self._settings()}, fixed)
        state = run_of(content, folder)
        weights = read_weights(folder)
        last = part_of(tensors, "average") if self.options.keep_best else weights
        load_weights(self.average.network, last, folder)
        load_weights(self.denoiser.network, part_of(tensors, "network"), folder)
        if self._plain.uncertainty is not None:
            load_weights(self._plain.uncertainty, part_of(tensors, "uncertainty"), folder)
        if self._powers is not None:
            self._powers.load(tensors, folder)
        restore_optimizer(self.optimizer, self._names, tensors, folder)
        if state.step > state.skipped and not self.optimizer.state:
            raise ValueError(f"the optimiser's state in {folder} is missing, after {state.step} steps")
        self.state = state
        self._best = weights if self.options.keep_best and state.best_loss is not None else None
