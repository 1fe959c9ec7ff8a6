"""What a run would cost: steps, validation, checkpoints, and the time of a step on many processes by a model."""

from openedm.training import Plan, Trainer, num_parameters
from openedm.training.resources import format_bytes, format_seconds
from openedm.training.scaling import GPUS, HOSTS, Work, efficiency, step_seconds

__all__ = ["describe_plan"]

COUNTS = (1, 2, 8, 64)
"""The numbers of processes for which a step is predicted."""


def describe_plan(trainer: Trainer, plan: Plan | None, grid: int) -> list[str]:
    """The lines about the cost of a run that is not begun.

    Args:
        trainer: the run.
        plan: what was measured; None for a run that has ended.
        grid: the evaluations of a sample that a grid of samples takes.

    Raises:
        ValueError: a step was not measured, as the weights are sharded.
    """
    if plan is None:
        return ["plan     nothing is left to train"]
    if plan.is_unknown:
        raise ValueError(
            "plan must be false with options.sharding=fsdp in several processes, none of which has a whole network to "
            "time: use one process"
        )
    options, seen = trainer.options, trainer.state.images
    steps = -(-(options.images - seen) // options.batch_size)
    measured = min(options.validate_samples, len(trainer.validation)) * options.measured_levels
    validations = options.occasions(options.validate_every, seen)
    grids = options.occasions(options.snapshot_every, seen)
    number = _count(grids, "grid")
    extra = (validations * measured + grids * grid) * plan.cost.evaluation
    return [
        f"steps    {steps:,} of {options.batch_size} samples, {_seconds(plan.cost.seconds * options.batch_size)} each",
        f"losses   {validations:,} of {measured:,} evaluations, {number} of {grid:,}: {format_seconds(extra)}",
        f"disk     {_disk(trainer, plan)}",
        *_table(trainer, plan, steps, extra),
    ]


def _disk(trainer: Trainer, plan: Plan) -> str:
    options = trainer.options
    written = options.occasions(options.checkpoint_every, trainer.state.images)
    kept = min(written, options.keep) if options.keep else written
    line = (
        f"{_count(written, 'checkpoint')} of {format_bytes(plan.checkpoint)}, of which {kept:,} stay{'s' * (kept == 1)}"
    )
    if (powers := options.power_average) is None:
        return line
    snapshots = options.occasions(powers.every, trainer.state.images) * len(powers.sigma_rel)
    size = num_parameters(trainer.denoiser) * (2 if powers.precision == "fp16" else 4)
    return f"{line}; {_count(snapshots, 'snapshot')} of averages of {format_bytes(size)}"


def _table(trainer: Trainer, plan: Plan, steps: int, extra: float) -> list[str]:
    """The time of a step and of the run on several processes with DDP, each with a device like this one."""
    options, device = trainer.options, trainer.accelerator.device
    cluster = HOSTS if device.type == "cpu" else GPUS
    work = Work(num_parameters(trainer.denoiser), 1, options.batch_size, 1 / plan.cost.seconds)
    lines = ["processes  samples each    a step  efficiency  images/s  in all"]
    for count in COUNTS:
        if options.batch_size % count:
            lines.append(f"{count:>9}  a batch of {options.batch_size} does not divide")
            continue
        link, share = cluster.link(count), options.batch_size // count
        seconds = step_seconds(work, link, count, hidden=cluster.hidden)
        gained = efficiency(work, link, count, hidden=cluster.hidden)
        lines.append(
            f"{count:>9}{share:>14,}{_seconds(seconds):>10}{gained:>12.2f}"
            f"{_rate(options.batch_size / seconds):>10}  {format_seconds(steps * seconds + extra)}"
        )
    return [*lines, f"assumed: {cluster.describe()}; a sample takes as long in any batch; validation in one process"]


def _count(number: int, noun: str) -> str:
    """A number of things, with the noun in the singular for one."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _seconds(seconds: float) -> str:
    """A time of a step with three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
