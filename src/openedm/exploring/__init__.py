"""Exploring: a state, the figures that follow from it, and the page that shows them."""

from openedm.exploring.problems import exact_problem
from openedm.exploring.run_figures import Runs, walk_noise
from openedm.exploring.serving import serve
from openedm.exploring.state import State

__all__ = ["Runs", "State", "exact_problem", "serve", "walk_noise"]
