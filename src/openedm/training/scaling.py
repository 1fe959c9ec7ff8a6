"""What a step of training costs on many processes: a model of it.

With N weights in float32 and B/P of the B samples for each of P processes, a step takes

    T(P) = compute(B/P) + max(traffic(P) − hidden · ⅔ compute(B/P), 0),        traffic = volume · 4N/β + calls · α
    DDP: one all-reduce, volume 2 (P−1)/P, calls 2 (P−1) for each bucket of 25 MB
    FSDP2: two all-gathers of weights and one reduce-scatter, volume 3 (P−1)/P, calls 3 (P−1) for each block

Two thirds of the compute are the backward pass, behind which traffic hides on a GPU, and not where processes compute
and communicate with the same cores. Left out: stragglers, the loader, the first steps, checkpoints and validation, and
that few samples take longer each than many do.
"""

from typing import NamedTuple

__all__ = ["GPUS", "HOSTS", "Cluster", "Link", "Work", "efficiency", "step_seconds"]

BUCKET, BYTES = 25 << 20, 4
BACKWARD = 2 / 3
"""The share of the backward pass in the compute."""


class Link(NamedTuple):
    """The network between processes.

    Attributes:
        bandwidth: β, bytes a second that a process sends and receives.
        latency: α, seconds of a call.
    """

    bandwidth: float
    latency: float


class Cluster(NamedTuple):
    """Devices in machines, and what is assumed of their networks.

    Attributes:
        near: the network of the devices of a machine.
        far: that among machines, for each device.
        devices: the devices of a machine.
        hidden: the share of the backward pass behind which traffic hides.
    """

    near: Link
    far: Link
    devices: int
    hidden: float

    def link(self, count: int) -> Link:
        """The slowest network that `count` devices need."""
        return self.near if count <= self.devices else self.far

    def describe(self) -> str:
        """What is assumed, in words."""
        within = "" if self.devices == 1 else f"{_describe(self.near)} among {self.devices} devices of a machine, "
        hidden = f"hides behind {self.hidden:.0%} of the backward pass" if self.hidden > 0 else "does not hide"
        return f"{within}{_describe(self.far)} a device among machines; traffic {hidden}"


GPUS = Cluster(Link(200e9, 3e-6), Link(25e9, 10e-6), devices=8, hidden=0.9)
"""GPUs of 2023 in machines of 8, with NVLink and a network of 200 Gbit/s for each: assumed, not measured."""
HOSTS = Cluster(Link(1.25e9, 50e-6), Link(1.25e9, 50e-6), devices=1, hidden=0.0)
"""Machines without GPUs on a network of 10 Gbit/s: assumed, not measured."""


class Work(NamedTuple):
    """A network and its batch.

    Attributes:
        weights: N.
        blocks: slices of FSDP2.
        batch: samples of a step of all processes.
        rate: samples a second of one process.
    """

    weights: int
    blocks: int
    batch: int
    rate: float


def traffic(work: Work, link: Link, count: int, *, sharded: bool = False) -> float:
    """Seconds of a step's communication among `count` processes, without anything that hides it."""
    rounds = (3 if sharded else 2) * (count - 1)
    calls = work.blocks if sharded else -(-BYTES * work.weights // BUCKET)
    return rounds / count * BYTES * work.weights / link.bandwidth + rounds * calls * link.latency


def step_seconds(work: Work, link: Link, count: int, *, sharded: bool = False, hidden: float = 0.0) -> float:
    """T(P), the seconds of a step of `count` processes.

    Args:
        work: the network and its batch.
        link: the network between processes.
        count: P, ≥ 1.
        sharded: whether weights are sharded with FSDP2, instead of copied to each process (DDP).
        hidden: the share of the backward pass behind which traffic hides.

    >>> work = Work(weights=25_000_000, blocks=10, batch=64, rate=128.0)
    >>> step_seconds(work, Link(1e9, 0.0), 1), step_seconds(work, Link(1e9, 0.0), 2)  # 100 MB at 1 GB/s
    (0.5, 0.35)
    """
    compute = work.batch / count / work.rate
    if count == 1:
        return compute
    return compute + max(traffic(work, link, count, sharded=sharded) - hidden * compute * BACKWARD, 0.0)


def efficiency(work: Work, link: Link, count: int, *, sharded: bool = False, hidden: float = 0.0) -> float:
    """The share of `count` times the speed of one process that `count` processes have; arguments as above."""
    return step_seconds(work, link, 1) / (count * step_seconds(work, link, count, sharded=sharded, hidden=hidden))


def _describe(link: Link) -> str:
    return f"{link.bandwidth / 1e9:g} GB/s and {1e6 * link.latency:g} µs"
