"""Runs, checkpoints and ways of sampling side by side: what differs, what it costs, and how good it is."""

from openedm.comparing.comparison import Comparison, Entry, Number, compare_runs
from openedm.comparing.drawing import figure_of
from openedm.comparing.entries import Losses, Way, measure_entries
from openedm.comparing.formats import Format, formatted, to_dict
from openedm.comparing.measuring import Quality, measure_loss, measure_quality, recorded_quality, shared_scoring
from openedm.comparing.runs import TrainedRun, read_run, short_names
from openedm.comparing.settings import Setting, differing, settings_of
from openedm.comparing.variations import Combination, Variation, combinations, name_of, parse_variations

__all__ = [
    "Combination",
    "Comparison",
    "Entry",
    "Format",
    "Losses",
    "Number",
    "Quality",
    "Setting",
    "TrainedRun",
    "Variation",
    "Way",
    "combinations",
    "compare_runs",
    "differing",
    "figure_of",
    "formatted",
    "measure_entries",
    "measure_loss",
    "measure_quality",
    "name_of",
    "parse_variations",
    "read_run",
    "recorded_quality",
    "settings_of",
    "shared_scoring",
    "short_names",
    "to_dict",
]
