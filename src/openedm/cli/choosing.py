"""Which sampler a command uses: the automatic one or one that is described, with levels by rule or fitted."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from openedm.denoiser import Condition, Denoiser
from openedm.ground.choices import from_config, to_config
from openedm.ground.devices import use_full_float32
from openedm.ground.storage import replacing
from openedm.sampling import Auto, Fit, Sampler, fit_levels, pilot_seeds

NFE = 32
VERSION = 1
"""Of what a fit does: fits of another version are made anew."""


def without_budget(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--nfe=null` where a tolerance or sampler options are typed, also those that are defaults.

    >>> without_budget(["--sampler.solver", "Heun"]), without_budget(["--nfe", "9"])
    (['--sampler.solver', 'Heun', '--nfe=null'], ['--nfe', '9'])
    """
    typed = {re.split("[.=]", a[2:])[0] for a in arguments if a.startswith("--")}
    return [*arguments, *(["--nfe=null"] if "nfe" not in typed and typed & {"sampler", "tolerance"} else [])]


def choice_of_sampler(
    nfe: int | None, tolerance: float | None, sampler: Sampler, sigma_min: float | None, sigma_max: float | None
) -> Auto | Sampler:
    """The automatic sampler, unless another one is described.

    Raises:
        ValueError: an option that would have no effect.
    """
    described = sampler != Sampler()
    if tolerance is not None:
        if described or nfe is not None:
            raise ValueError(
                f"tolerance goes without nfe, which must be null, and sampler options, got nfe={nfe!r} and {sampler}"
            )
        return Auto(None, tolerance, sigma_min, sigma_max)
    if described and nfe is not None:
        raise ValueError(
            f"nfe is of the automatic sampler and must be null beside sampler options, got nfe={nfe} and {sampler}"
        )
    if nfe is not None:
        return Auto(nfe, None, sigma_min, sigma_max)
    if (sigma_min, sigma_max) != (None, None):
        raise ValueError(
            "sigma_min and sigma_max are of the automatic sampler, got them beside sampler options: use "
            "sampler.levels.sigma_min and sampler.levels.sigma_max"
        )
    return sampler


def make_sampler(
    chosen: Auto | Sampler,
    levels: Literal["rule", "fitted"],
    denoiser: Denoiser,
    condition: Condition,
    cache: Path,
    made_with: Mapping[str, Any],
    *,
    main: bool = True,
) -> Sampler:
    """The sampler itself; fitted levels are read from `cache`, or fitted and kept there.

    Args:
        chosen: the automatic sampler, or a described one.
        levels: by the sampler's rule, or fitted to the denoiser.
        denoiser: what will be sampled.
        condition: one row a pilot of the fit (`pilot_conditions`).
        cache: a folder beside the checkpoint.
        made_with: everything else that the denoiser depends on, such as its weights and guidance.
        main: whether this process shows progress and writes the cache.
    """
    if levels == "fitted" or chosen.nfe is None:
        use_full_float32()
    if levels == "rule":
        sampler = chosen.choose(denoiser) if isinstance(chosen, Auto) else chosen
        if main and isinstance(chosen, Auto):
            print(f"sampler: {sampler}")
        return sampler
    settings = {"sampler": to_config(chosen), "fit": VERSION, **made_with}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{name}.json"
    if path.is_file():
        sampler = from_config(Sampler, json.loads(path.read_text(encoding="utf-8"))["fitted"])
        if main:
            print(f"sampler, fitted before ({path}): {sampler}")
        return sampler
    if main:
        cache.mkdir(parents=True, exist_ok=True)  # what cannot be written is refused before the work
    with tqdm(desc="fitting levels", unit="evaluation", disable=not main) as bar:
        fit = _fit(chosen, denoiser, condition, bar)
    if main:
        found = {"fitted": to_config(fit.sampler), "error": fit.error, "error_before": fit.error_before}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({**found, **settings}, indent=1) + "\n", encoding="utf-8")
        print(f"sampler, fitted (error {fit.error_before:.2g} -> {fit.error:.2g}, kept in {path}): {fit.sampler}")
    return fit.sampler


def _fit(chosen: Auto | Sampler, denoiser: Denoiser, condition: Condition, bar: "tqdm[Any]") -> Fit:
    def show(count: int) -> None:
        bar.update(count - bar.n)

    if isinstance(chosen, Auto):
        return chosen.fit(denoiser, condition=condition, progress=show)
    return fit_levels(denoiser, chosen, condition=condition, progress=show)


def pilot_conditions(event_shape: tuple[int, ...], num_classes: int, classes: list[int] | None) -> Condition:
    """The classes of the pilots: those that are drawn, in turn."""
    if num_classes == 0:
        return None
    wanted = list(range(num_classes)) if classes is None else classes
    return torch.tensor([wanted[i % len(wanted)] for i in range(len(pilot_seeds(event_shape)))])
