"""Accelerate keeps its devices and processes in singletons; runs in one process of tests must not share them."""

from accelerate.state import AcceleratorState, GradientState


def forget_accelerate() -> None:
    """Reset accelerate's singletons."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
