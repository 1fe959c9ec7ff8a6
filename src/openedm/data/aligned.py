"""Data whose classes are numbered as those of a model or of other data are, by name."""

from collections.abc import Sequence

import torch
from torch import Tensor

from openedm.data.dataset import Batch, Dataset, Indices
from openedm.ground import checks

__all__ = ["align_classes", "match_classes"]


def align_classes(
    dataset: Dataset, num_classes: int, class_names: Sequence[str] | None = None, *, name: str = "data"
) -> Dataset:
    """The dataset with the classes of a model, matched by name; the dataset itself where it has them already.

    The name of a class without a name is the label of the data: that of a class of a model without names is its number.

    Args:
        dataset: the data, of whose classes the model may have more.
        num_classes: the number of classes of the model; with 0 the dataset is returned unchanged.
        class_names: the names of the classes of the model, if it has names.
        name: what errors call the data.

    Raises:
        ValueError: the data have a class that the model does not have, or their classes cannot be compared.
    """
    if num_classes == 0 or dataset.num_classes == 0:
        return dataset
    own = (dataset.num_classes, dataset.class_names)
    places = match_classes(*own, num_classes, class_names, numbered=dataset.renumbered is not None, name=name)
    return dataset if places is None else _Aligned(dataset, places, num_classes, class_names)


def match_classes(
    num_own: int,
    own_names: Sequence[str] | None,
    num_classes: int,
    class_names: Sequence[str] | None,
    *,
    numbered: bool = False,
    name: str = "data",
) -> list[int] | None:
    """For each of some classes its number among others, by name; None where the numbers are the same.

    Args:
        num_own: the number of classes to find, >= 1.
        own_names: their names; None for those whose names are their numbers.
        num_classes: the number of classes among which they are.
        class_names: the names of these, if they have names.
        numbered: whether the names of the classes to find are labels that were renumbered.
        name: what errors call the data with the classes to find.

    Raises:
        ValueError: a class is not among the others, or they cannot be compared.
    """
    for what, count in ((f"the number of classes of {name}", num_own), ("the number of classes", num_classes)):
        checks.size(what, count)
    own = None if own_names is None else tuple(own_names)
    wanted = None if class_names is None else tuple(class_names)
    if (num_own, own) == (num_classes, wanted):
        return None
    numbered = numbered or own is None
    if (wanted is None and not numbered) or (own is None and wanted is not None and not all(map(str.isdigit, wanted))):
        # One side has names and the other numbers: the same numbers of classes are taken for the same classes.
        if num_own != num_classes:
            raise ValueError(f"{name} must have {num_classes} classes, got {num_own}")
        return None
    names = wanted if wanted is not None else tuple(map(str, range(num_classes)))
    given = own if own is not None else tuple(map(str, range(num_own)))
    place = {known: i for i, known in enumerate(names)}
    absent = [known for known in given if known not in place]
    if absent:
        raise ValueError(
            f"{name} must have classes among the {num_classes} known, {', '.join(names[:5])}"
            f"{', …' if num_classes > 5 else ''}, got {checks.first_of(absent, separator=', ')}"
        )
    return [place[known] for known in given]


class _Aligned(Dataset):
    def __init__(
        self, dataset: Dataset, places: Sequence[int], num_classes: int, class_names: Sequence[str] | None
    ) -> None:
        self._dataset, self._places = dataset, torch.tensor(places)
        self.num_classes, self.class_names = num_classes, None if class_names is None else tuple(class_names)
        self.event_shape, self.kind, self.chunks = dataset.event_shape, dataset.kind, dataset.chunks
        self.condition_shape, self.stored = dataset.condition_shape, dataset.stored
        self.incomplete, self.random = dataset.incomplete, dataset.random
        self.units, self.autoencoder = dataset.units, dataset.autoencoder

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, indices: Indices) -> Batch:
        x, condition = self._dataset.fetch(indices)
        assert condition is not None  # as the dataset has classes
        if self.condition_shape is None:
            return x, self._places[condition]
        return x, self._with_classes(condition)

    def _with_classes(self, packed: Tensor) -> Tensor:
        classes = self._places[packed[:, :1].to(torch.int64)]
        return torch.cat([classes.to(packed.dtype), packed[:, 1:]], 1)
