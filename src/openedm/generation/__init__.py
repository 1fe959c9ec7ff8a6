"""Samples of checkpoints: how they are drawn, written to files, and scored against real data."""

from openedm.generation.classes import find_classes, split_names
from openedm.generation.conditions import Conditions, conditions_of_data, read_conditions, warn_of_range
from openedm.generation.files import SampleFiles
from openedm.generation.images import Images, open_images
from openedm.generation.options import CheckpointSampler, PreparedSampler, SamplingOptions
from openedm.generation.pictures import PictureSampler, checkpoint_sampler, pictures_of
from openedm.generation.scoring import ScoringOptions, score

__all__ = [
    "CheckpointSampler",
    "Conditions",
    "Images",
    "PictureSampler",
    "PreparedSampler",
    "SampleFiles",
    "SamplingOptions",
    "ScoringOptions",
    "checkpoint_sampler",
    "conditions_of_data",
    "find_classes",
    "open_images",
    "pictures_of",
    "read_conditions",
    "score",
    "split_names",
    "warn_of_range",
]
