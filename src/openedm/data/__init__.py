"""Data: samples in memory, and encoded images in folders, archives and tables, read, measured and converted."""

from openedm.data.aligned import align_classes, match_classes
from openedm.data.arrays import Arrays
from openedm.data.converting import convert, encoded_images, picture_source
from openedm.data.dataset import Batch, Chunks, Dataset, Source
from openedm.data.encoded import EncodedImages, MemoryImages
from openedm.data.folder import FolderImages, ImageFolder
from openedm.data.forms import Form
from openedm.data.latents import LatentPairs, Latents
from openedm.data.memory import InMemory, Pairs
from openedm.data.pictures import image_grid, save_image, to_image, to_uint8
from openedm.data.rows import TableImages
from openedm.data.shards import Shards, TarImages
from openedm.data.standard import Digits, FashionMNIST
from openedm.data.statistics import Statistics, measure
from openedm.data.stored import Stored
from openedm.data.table import Table
from openedm.data.toy import Mixture, Toy
from openedm.data.wrapping import as_dataset, wrap

__all__ = [
    "Arrays",
    "Batch",
    "Chunks",
    "Dataset",
    "Digits",
    "EncodedImages",
    "FashionMNIST",
    "FolderImages",
    "Form",
    "ImageFolder",
    "InMemory",
    "LatentPairs",
    "Latents",
    "MemoryImages",
    "Mixture",
    "Pairs",
    "Shards",
    "Source",
    "Statistics",
    "Stored",
    "Table",
    "TableImages",
    "TarImages",
    "Toy",
    "align_classes",
    "as_dataset",
    "convert",
    "encoded_images",
    "image_grid",
    "match_classes",
    "measure",
    "picture_source",
    "save_image",
    "to_image",
    "to_uint8",
    "wrap",
]
