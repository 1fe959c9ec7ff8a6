"""Checks of denoisers that are arguments."""

from torch import nn

from openedm.denoiser.interface import Denoiser

__all__ = ["check_denoiser", "check_evaluation_mode", "check_no_per_sample_settings"]

DROPOUT_TYPES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_denoiser(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a denoiser; the message says how functions, networks and files become one."""
    if isinstance(value, Denoiser):
        return
    calls = (
        "a function D(x, sigma) or D(x, sigma, condition) as openedm.FunctionDenoiser(function), a network as "
        "openedm.Preconditioned(network, preconditioning), a checkpoint as openedm.load_denoiser(path)"
    )
    got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    raise TypeError(f"{name} must be a Denoiser, got {got}: wrap {calls}")


def check_evaluation_mode(denoiser: Denoiser) -> None:
    """Raise an error unless `denoiser` is a denoiser in evaluation mode; with dropout every call has another result.

    Raises:
        TypeError: it is not a denoiser.
        ValueError: a dropout is active; the message names it.
    """
    check_denoiser("denoiser", denoiser)
    for name, module in denoiser.named_modules():
        if isinstance(module, DROPOUT_TYPES) and module.training and module.p > 0:
            raise ValueError(f"denoiser must be in evaluation mode, but dropout {name!r} is on: call denoiser.eval()")


def check_no_per_sample_settings(denoiser: Denoiser) -> None:
    """Raise an error for a denoiser with individual settings of samples, where samples leave the batch during a run.

    Raises:
        ValueError: it has such settings.
    """
    if denoiser.rows is not None:
        raise ValueError(
            f"denoiser must have one setting for all samples, but has a guidance weight or measurement for each of "
            f"{denoiser.rows}: finished samples leave the batch here. Give one for all, or use fixed levels"
        )
