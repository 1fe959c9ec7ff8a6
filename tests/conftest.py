"""Hypothesis draws the same examples in every run, and gives each as long as it takes."""

from hypothesis import settings

settings.register_profile("openedm", derandomize=True, deadline=None)
settings.load_profile("openedm")
