"""Data: where samples come from, what they are, how they are measured and drawn."""

from openedm.data.arrays import Arrays
from openedm.data.converting import convert
from openedm.data.dataset import Batch, Chunks, Dataset, InMemory, Source, wrap
from openedm.data.digits import Digits
from openedm.data.fashion_mnist import FashionMNIST
from openedm.data.folder import ImageFolder
from openedm.data.form import Form
from openedm.data.gathering import Files, Held, Pictures, Rows, Tars
from openedm.data.pairs import Pairs
from openedm.data.pictures import image_grid, save_image, to_image, to_uint8
from openedm.data.shards import Shards
from openedm.data.statistics import Statistics, measure
from openedm.data.table import Table
from openedm.data.toy import Mixture, Toy

__all__ = [
    "Arrays",
    "Batch",
    "Chunks",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "Files",
    "Form",
    "Held",
    "ImageFolder",
    "InMemory",
    "Mixture",
    "Pairs",
    "Pictures",
    "Rows",
    "Shards",
    "Source",
    "Statistics",
    "Table",
    "Tars",
    "Toy",
    "convert",
    "image_grid",
    "measure",
    "save_image",
    "to_image",
    "to_uint8",
    "wrap",
]
