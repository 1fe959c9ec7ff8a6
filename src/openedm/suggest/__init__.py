"""Suggestions of σ_data, σ_min, σ_max, P_mean and P_std for some data, with the evidence for each."""

from openedm.suggest.limits import Highest, Lowest
from openedm.suggest.reducible import Reducible
from openedm.suggest.suggestion import Scale, Suggestion, in_standard_units, suggest

__all__ = ["Highest", "Lowest", "Reducible", "Scale", "Suggestion", "in_standard_units", "suggest"]
