"""Memory and time of training, measured on one small pass before the first step.

    bytes = fixed + sample · (samples of a pass)         seconds = (seconds of a sample) · images + (those of an
                                                                   evaluation) · (evaluations for losses and grids)

Times are the shortest of a few repeats after a first pass, which loads kernels and fills caches. `fixed`: gradients,
Adam's two moments and a copy of the averages, beyond the weights that are there already. `sample`: what a pass keeps
for its gradient, and its largest intermediate results. On a GPU it comes from torch's allocator; on the host from the
tensors that autograd saves, because the allocator there does not count.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm.ground.memory import available_memory, explain_out_of_memory
from openedm.ground.seeding import generator
from openedm.training.augmentation import Augmentation
from openedm.training.model import Model
from openedm.training.options import Options
from openedm.training.steps import LossModule

__all__ = [
    "Cost",
    "Pass",
    "Plan",
    "format_bytes",
    "format_seconds",
    "measure_cost",
    "measure_plan",
    "plan_accumulation",
    "time_run",
]

TIMED_SECONDS = 1.0
"""About the longest time of a pass whose time is taken, and of more than one repeat."""
REPEATS = 4
"""The largest number of passes of one size whose times are compared."""
SMALL = 100_000
"""Numbers in a batch, and a fifth of the weights, that need no measurement."""
HEADROOM = 0.9
"""The share of the free memory that training may fill; the rest is for data, figures and the allocator's gaps."""
TRANSIENT = 1.4
"""Memory of a pass on the host over that of the tensors that it saves."""


ADVICE = "lower network.model_channels, network.num_blocks or data.resolution, or choose a --budget"


@dataclass(frozen=True)
class Cost:
    """The cost of training a network.

    Attributes:
        fixed: bytes of gradients, moments and copies of averages.
        sample: further bytes for each sample of a pass.
        seconds: seconds a sample: forward, backward and its share of a step of Adam and of the average, without the
            data; NaN where it was not measured.
        evaluation: seconds a sample of an evaluation without gradients, for the validation loss and for sampling.
    """

    fixed: int
    sample: int
    seconds: float
    evaluation: float = 0.0

    def bytes(self, samples: int) -> int:
        """The memory of a pass over `samples` samples."""
        return self.fixed + self.sample * samples


@dataclass(frozen=True)
class Plan:
    """How the batches of a run fit into memory, and how long it will take.

    Attributes:
        cost: the cost of a sample.
        accumulate: the number of rounds in which the part of a batch of each process is computed.
        samples: the samples of a round of one process.
        available: the bytes that were free.
        checkpoint: about the bytes of a checkpoint.
    """

    cost: Cost
    accumulate: int
    samples: int
    available: int
    checkpoint: int = 0

    @classmethod
    def unknown(cls, options: Options) -> "Plan":
        """The plan of training that is not measured."""
        return cls(Cost(0, 0, math.nan), options.rounds, options.batch_size // options.rounds, 0)

    @property
    def is_unknown(self) -> bool:
        """Whether nothing was measured."""
        return math.isnan(self.cost.seconds)

    @property
    def bytes(self) -> int:
        """The memory that a round takes."""
        return self.cost.bytes(self.samples)

    def describe(self, images: int, processes: int = 1, evaluations: int = 0) -> tuple[str, ...]:
        """Memory and time of the training that is left, as two lines; none if unknown.

        Args:
            images: the number of images that are left.
            processes: the number of processes.
            evaluations: the number of evaluations of a sample for validation losses and grids, in the main process.
        """
        if self.is_unknown:
            return ()
        rounds = f", {self.accumulate} rounds of {self.samples}" if self.accumulate > 1 else ""
        speed = processes / self.cost.seconds
        extra = evaluations * self.cost.evaluation
        total = max(images, 0) / speed + extra
        return (
            f"memory   about {format_bytes(self.bytes)} of {format_bytes(self.available)} that are free{rounds}",
            f"time     about {format_seconds(total)} for {max(images, 0):,} images at {speed:.3g} a second"
            + (f", {format_seconds(extra)} of it for measured losses and grids" if extra else ""),
        )


def measure_cost(module: LossModule, model: Model, options: Options) -> Cost:
    """Measure passes over one, two and a few samples of random numbers; gradients and random states are as before.

    Args:
        module: the loss of the network, on the device of training.
        model: the shapes of its inputs.
        options: the options of training.

    Raises:
        MemoryError: not even two samples fit.
    """
    device = next(module.parameters()).device
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    # Weights and averages are in memory already: gradients, two moments and copies of averages come later.
    fixed = 3 * trained + (1 + options.keep_best) * weights
    share = max(1, options.batch_size // (options.accumulate or 1))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), explain_out_of_memory(ADVICE):
        one, two = (Pass.make(module, model, options, n, device).bytes() for n in (1, 2))
        sample = max(two - one, two // 2, 1)
        run = Pass.make(module, model, options, 1, device)
        seconds = time_run(run.run, device)
        if seconds < TIMED_SECONDS:
            seconds = min(seconds, time_run(run.run, device))  # the first of all is slow
        fitting = (available_on(device) // 2 - fixed) // sample
        count, most = 1, max(1, min(share, fitting))
        # A sample among many costs less than one alone: as many as the time allows, then more if they took less.
        while (larger := min(most, int(TIMED_SECONDS / seconds))) >= min(2 * count, most) and larger > count:
            count, run = larger, Pass.make(module, model, options, larger, device)
            seconds = _fastest(run.run, device) / count
        evaluation = _fastest(run.evaluate, device) / count
        update = _time_update(module, device) / options.batch_size
    return Cost(fixed, sample, seconds + update, evaluation)


def _fastest(run: Callable[[], None], device: torch.device) -> float:
    """The shortest time of two calls, or of more that are short."""
    times = [time_run(run, device), time_run(run, device)]
    while len(times) <= REPEATS and sum(times) < TIMED_SECONDS:
        times.append(time_run(run, device))
    return min(times)


def time_run(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call, with all that it starts on the device."""
    started = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - started


def _time_update(module: nn.Module, device: torch.device) -> float:
    """Seconds of a step of Adam and of the average, on copies of the weights."""
    copies = [p.detach().clone() for p in module.parameters() if p.requires_grad]
    averages = [copy.clone() for copy in copies]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = torch.optim.Adam(copies, lr=0.0, fused=True)

    def update() -> None:
        optimizer.step()
        torch._foreach_lerp_(averages, copies, 0.5)

    return _fastest(update, device)


def plan_accumulation(cost: Cost, options: Options, processes: int, available: int) -> Plan:
    """The fewest rounds of a batch that fit into `available` bytes, or the number that the options give.

    Raises:
        MemoryError: not even a round of one sample fits, or the number of rounds that was given does not; the message
            names the options to change.
    """
    share = options.batch_size // processes
    limit = int(HEADROOM * available)
    rounds = [n for n in range(1, share + 1) if share % n == 0] if options.accumulate is None else [options.accumulate]
    for accumulate in rounds:
        if cost.bytes(share // accumulate) <= limit:
            return Plan(cost, accumulate, share // accumulate, available)
    needed = format_bytes(cost.bytes(share // rounds[-1]))
    free = f"{format_bytes(available)} are free, of which training may take {HEADROOM:.0%}"
    if options.accumulate is not None:
        wanted = max(1, (limit - cost.fixed) // cost.sample)
        raise MemoryError(
            f"accumulate={options.accumulate} needs {needed} for {share // options.accumulate} samples at a time, but "
            f"{free}: leave options.accumulate at null, which chooses the rounds, or take at least "
            f"{math.ceil(share / wanted)}"
        )
    raise MemoryError(
        f"one sample at a time needs {needed}, {format_bytes(cost.fixed)} of it for gradients and moments, but {free}: "
        + ADVICE
    )


def measure_plan(module: LossModule, model: Model, options: Options, accelerator: Accelerator) -> Plan:
    """The plan by a measured pass and the memory that is free; every process chooses the most rounds of all.

    Arguments as for `measure_cost`, and the processes of the run. Errors as for `plan_accumulation`.
    """
    cost = measure_cost(module, model, options)
    processes, available = accelerator.num_processes, available_on(accelerator.device)
    available //= processes if accelerator.device.type == "cpu" else 1  # the processes of a host share its memory
    plan = plan_accumulation(cost, options, processes, available)
    if processes > 1 and options.accumulate is None:
        rounds = torch.tensor(plan.accumulate, device=accelerator.device)
        most = int(accelerator.gather(rounds[None]).max())
        plan = replace(plan, accumulate=most, samples=options.batch_size // processes // most)
    return plan


def is_small(model: Model, options: Options, module: nn.Module) -> bool:
    """Whether a batch needs so little memory that it is not measured: small data and few weights."""
    numbers = options.batch_size * math.prod(model.event_shape)
    return numbers <= SMALL and sum(p.numel() for p in module.parameters()) <= 5 * SMALL


def available_on(device: torch.device) -> int:
    """The free bytes of a GPU, including those that torch keeps, or of the host."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def format_bytes(count: float) -> str:
    """A number of bytes, such as "3.1 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_seconds(seconds: float) -> str:
    """A duration with two units, such as "2 h 10 min"."""
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // part)} {smaller}"
    return f"{seconds:.0f} s"


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over random samples."""

    module: LossModule
    clean: Float[Tensor, "batch *event"]
    sigma: Float64[Tensor, " noisy"]
    condition: Tensor | None
    augment: Tensor | None
    augmentation: Augmentation | None
    bf16: bool

    @classmethod
    def make(cls, module: LossModule, model: Model, options: Options, samples: int, device: torch.device) -> "Pass":
        """A pass in the precision of the options, over `samples` samples with zeros as conditions."""
        random = generator("cpu", 0, 0, samples)
        clean = torch.randn(samples, *model.event_shape, generator=random).to(device)
        condition: Tensor | None = None
        shape = model.condition_layout.packed_shape  # with the class, where a condition holds both
        if shape is not None:
            condition = torch.zeros(samples, *shape, device=device)
        elif model.num_classes:
            condition = torch.zeros(samples, dtype=torch.int64, device=device)
        augment = torch.zeros(samples, model.augment_dim, device=device) if model.augment_dim else None
        sigma = torch.full((samples * module.noises,), model.sigma_data, dtype=torch.float64)
        bf16 = options.precision == "bf16"
        return cls(module, clean, sigma, condition, augment, options.augmentation, bf16)

    def run(self) -> None:
        """The pass; gradients that were there stay, and new ones are dropped."""
        before = [p.grad for p in self.module.parameters()]
        device, clean = self.clean.device, self.clean
        if self.augmentation is not None:
            clean = self.augmentation.draw(len(clean), generator("cpu", 0, 1, len(clean))).apply(clean)
        with torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext():
            lower = self.module.objective.target_levels(self.sigma, self.module.denoiser.sigma_data, 1.0)
            noise = clean.new_zeros(len(self.sigma), *clean.shape[1:])
            loss = self.module(clean, noise, self.sigma, self.condition, self.augment, lower)
        loss.total.sum().backward()
        for p, grad in zip(self.module.parameters(), before, strict=True):
            p.grad = grad

    def evaluate(self) -> None:
        """The network in evaluation mode, as for validation losses and samples."""
        denoiser, training = self.module.denoiser, self.module.training
        denoiser.eval()
        with torch.no_grad():
            denoiser(self.clean, self.sigma[: len(self.clean)], self.condition, standard=True)
        denoiser.train(training)

    def bytes(self) -> int:
        """The memory of the pass beyond that of weights and gradients."""
        device = self.clean.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self.run()
            gradients = sum(p.numel() * p.element_size() for p in self.module.parameters() if p.requires_grad)
            return max(0, torch.cuda.max_memory_allocated(device) - before - gradients)
        kept = _Saved(self.module)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unchanged):
            self.run()
        return int(TRANSIENT * sum(kept.sizes.values()))


class _Saved:
    """The sizes of the storages that autograd saves, without those of the weights."""

    def __init__(self, module: nn.Module) -> None:
        self.sizes: dict[int, int] = {}
        self._weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self._alive: list[torch.UntypedStorage] = []  # so that no address is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is saved for the backward pass."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._weights and address not in self.sizes:
            self.sizes[address] = storage.nbytes()
            self._alive.append(storage)
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
