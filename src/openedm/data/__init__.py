"""Data: where samples come from, what they are, how they are measured and drawn."""

from openedm.data.arrays import Arrays
from openedm.data.dataset import Batch, Dataset, InMemory, Source, wrap
from openedm.data.digits import Digits
from openedm.data.fashion_mnist import FashionMNIST
from openedm.data.folder import ImageFolder
from openedm.data.pairs import Pairs
from openedm.data.pictures import image_grid, save_image, to_image, to_uint8
from openedm.data.statistics import Statistics, measure
from openedm.data.toy import Mixture, Toy

__all__ = [
    "Arrays",
    "Batch",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "InMemory",
    "Mixture",
    "Pairs",
    "Source",
    "Statistics",
    "Toy",
    "image_grid",
    "measure",
    "save_image",
    "to_image",
    "to_uint8",
    "wrap",
]
