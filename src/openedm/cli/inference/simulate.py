"""`openedm inference simulate`: draw parameters from a prior and run a simulator, into a store."""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from openedm.cli.arguments import function_of
from openedm.cli.inference.arguments import task_of
from openedm.cli.terminal import Bars
from openedm.ground import checks
from openedm.inference import simulation
from openedm.inference.priors import Prior
from openedm.inference.simulations import Store
from openedm.inference.tasks import Task


def simulate(
    store: str,
    num: int = 10_000,
    simulator: str | None = None,
    prior: Prior | None = None,
    task: str | None = None,
    seed: int = 0,
    batched: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    arrays: Literal["torch", "numpy"] = "torch",
    retry_failures: bool = False,
) -> None:
    """Draw parameters from a prior and run a simulator, into a store.

    The simulator is your function of the parameters, or that of a benchmark task. Your file is imported, so its code is
    run. Simulations that fail are reported, and the others continue. Finished simulations are on the disk: after
    Ctrl-C, or for more simulations, run the same command again.

    Args:
        store: the folder for the simulations: a new one, or one to continue.
        num: number of simulations in the store at the end.
        simulator: your function, as file.py:function. It takes parameters (d,) and returns data; an argument `seed`
            receives the seed of the simulation. Several kinds of data are a dict from names to arrays.
        prior: prior of the parameters, such as --prior Box --prior.low [0,0] --prior.high [1,5]; not with a task.
        task: a benchmark task, such as slcp, instead of simulator and prior.
        seed: seed of all random numbers.
        batched: whether the function takes a batch of parameters (b, d).
        batch_size: number of simulations that a process receives at a time.
        workers: number of processes; -1 for one a core.
        arrays: whether the function receives torch tensors or numpy arrays.
        retry_failures: whether failed simulations are run again.
    """
    checks.at_least("num", num, 1)
    known = task_of(task)
    if known is not None and (simulator is not None or prior is not None or batched):
        raise ValueError(
            "task and simulator, prior or batched are mutually exclusive, because a task has a simulator and a prior"
        )
    if known is None and (simulator is None or prior is None):
        raise ValueError("simulator and prior must be given, or a task")
    before = len(Store(store).done())
    function: Any = TaskSimulator(known) if known is not None else function_of(str(simulator))
    with Bars() as bars:
        try:
            found = simulation.simulate(
                function,
                prior if known is None else known.prior,
                num,
                seed=seed,
                batched=batched or known is not None,
                batch_size=batch_size,
                workers=workers,
                arrays=arrays,
                store=store,
                retry_failures=retry_failures,
                progress=bars,
            )
        except KeyboardInterrupt:
            bars.log(f"{len(Store(store).done())} of {num} simulations are done: {store}; the same command continues")
            raise
        except RuntimeError as error:  # each simulation failed
            raise ValueError(f"simulator={simulator!r}: {error}") from error
    total = len(Store(store).done())
    print(f"{total} simulations{_new(total - before, before)}, x of shape {found.form}: {store}")
    if total > len(found):
        print(f"num={num} is the number in the store at the end, and there were more before")
    if found.failures:
        print(f"{len(found.failures)} failed; the first: {found.failures[0]}")


def _new(count: int, before: int) -> str:
    """How many of a store's simulations this command added, where there were some before."""
    return "" if before == 0 else f", {count or 'none'} of them new"


class TaskSimulator:
    """The simulator of a benchmark task, with the task's name, by which stores distinguish simulators.

    Args:
        task: the task.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.__qualname__ = task, task.name

    def __call__(self, theta: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n ..."]:
        """One x for each θ."""
        return self.task.simulate(theta, seed)
