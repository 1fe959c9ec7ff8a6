"""Samples of checkpoints: how they are drawn, written to files, and scored against real data."""

from openedm.generation.files import SampleFiles
from openedm.generation.options import CheckpointSampler, PreparedSampler, SamplingOptions
from openedm.generation.scoring import Images, ScoringOptions, open_images, score

__all__ = [
    "CheckpointSampler",
    "Images",
    "PreparedSampler",
    "SampleFiles",
    "SamplingOptions",
    "ScoringOptions",
    "open_images",
    "score",
]
