"""What several processes see in the same set of images, each in its share of the batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm.auto import tqdm

from openedm.data import Dataset
from openedm.metrics import FeatureNetwork, Features, extract
from openedm.metrics.features import ImageBatch
from openedm.training import share_of

Batches = Callable[[Sequence[int]], Iterable[ImageBatch]]
"""From the numbers of some images, in increasing order, to these images."""


def batches_of(dataset: Dataset, batch_size: int) -> Batches:
    """Images of a dataset."""

    def fetched(numbers: Sequence[int]) -> Iterator[ImageBatch]:
        for start in range(0, len(numbers), batch_size):
            yield dataset.fetch(numbers[start : start + batch_size])

    return fetched


def extract_together(
    network: FeatureNetwork, batches: Batches, count: int, batch_size: int, accelerator: Accelerator, *, name: str
) -> Features:
    """`extract` for images that the processes share: on each of them the features of all, to the last bit as one's.

    Args:
        network: alike on every process.
        batches: makes the images. Called once on every process, also where it has no share.
        count: how many images there are.
        batch_size: of the batches.
        accelerator: the processes.
        name: of the images, for the bar that the main process shows.

    Raises:
        ValueError: as `extract`.
    """
    mine = share_of(range(count), batch_size, accelerator.process_index, accelerator.num_processes)
    total = -(-len(mine) // batch_size)
    shown = tqdm(batches(mine), total=total, unit="batch", desc=name, disable=not accelerator.is_main_process)
    part = extract(network, iter(shown)) if mine else _nothing(network)
    return part if accelerator.num_processes == 1 else _gathered(part, mine, accelerator)


def _nothing(network: FeatureNetwork) -> Features:
    probabilities = torch.empty(0, network.num_classes) if network.num_classes else None
    return Features(torch.empty(0, network.dim), probabilities, None, network.predicts_labels, network.fingerprint())


def _gathered(part: Features, numbers: Sequence[int], accelerator: Accelerator) -> Features:
    def gather(rows: Tensor) -> Tensor:  # shares differ in length: filled up with −1
        rows = accelerator.pad_across_processes(rows.to(accelerator.device), pad_index=-1)
        gathered: Tensor = accelerator.gather(rows)
        return gathered.cpu()

    found = gather(torch.tensor(numbers, dtype=torch.int64))
    order = found.argsort()[int((found < 0).sum()) :]
    labels = gather(torch.full((len(part),), -1) if part.labels is None else part.labels.long())[order]
    return Features(
        gather(part.values)[order],
        None if part.probabilities is None else gather(part.probabilities)[order],
        None if (labels < 0).any() else labels,
        part.predicts_labels,
        part.fingerprint,
    )


def share_weights(module: nn.Module) -> None:
    """Give every process the main one's weights, in place."""
    with torch.no_grad():
        broadcast(dict(module.state_dict()))


def told(flag: bool, accelerator: Accelerator) -> bool:
    """Whether any process says yes; all must ask."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)
