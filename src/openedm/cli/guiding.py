"""Which denoiser a command samples from: a checkpoint's, or a guided pair."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from openedm.denoiser import Denoiser
from openedm.ground.choices import to_config
from openedm.guidance import ClassifierFree, GuidanceWeight, Guided, Interval
from openedm.training import find_checkpoint, load_denoiser, read_model
from openedm.training.checkpoints import read_progress

Precision = Literal["fp32", "bf16"]


def guidance_settings(
    folder: Path, weights: Literal["ema", "raw"], guidance: GuidanceWeight, guiding: str | None
) -> dict[str, Any]:
    """What samples depend on beside the sampler: nothing, the weight, or the weight and the guiding checkpoint.

    Raises:
        ValueError: guidance that cannot take effect.
    """
    if guidance == Interval() and guiding is None:
        return {}
    if guidance.is_one:
        raise ValueError(f"guidance.weight must be other than 1, which is no guidance, got {guidance}")
    if guiding is not None:
        other = digest(find_checkpoint(guiding), weights)
        if other == digest(folder, weights):
            raise ValueError(f"guiding must have other weights than the checkpoint, got {guiding!r} with the same")
        return {"guidance": to_config(guidance), "guiding": other}
    if read_model(folder).num_classes == 0:
        raise ValueError("guidance must not be given: the model is unconditional; give another checkpoint as guiding")
    if (folder / "training.json").is_file():
        options = read_progress(folder).get("options", {}).get("init_args", {})
        if options.get("label_dropout") == 0:
            raise ValueError(
                "guidance needs a model that knows samples without a class, this one was trained with "
                "label_dropout 0: train with --options.label_dropout 0.1, or give another checkpoint as guiding"
            )
    return {"guidance": to_config(guidance)}


def load_guided(
    folder: Path, weights: Literal["ema", "raw"], guidance: GuidanceWeight, guiding: str | None
) -> Denoiser:
    """The denoiser of a checkpoint, guided where that is asked for: by itself without classes, or by another one."""
    denoiser = load_denoiser(folder, weights)
    if guiding is not None:
        return Guided(denoiser, load_denoiser(guiding, weights), guidance)
    return denoiser if guidance.is_one else ClassifierFree(denoiser, guidance)


def speed_settings(precision: Precision, compile: bool) -> dict[str, Any]:
    """The options of `configure_execution` that change samples in their last digits, where they are set."""
    return {
        **({} if precision == "fp32" else {"precision": precision}),
        **({"compile": True} if compile else {}),
    }


def digest(folder: Path, weights: Literal["ema", "raw"]) -> str:
    """SHA-256 of a checkpoint's file: which weights samples came from."""
    with open(folder / ("model.safetensors" if weights == "ema" else "training.safetensors"), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
