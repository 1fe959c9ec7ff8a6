"""Samplers that are fitted to a checkpoint once, and kept beside it: fitted levels, and learned solvers.

Files lie in `fitted/` in the folder of the checkpoint: HASH.json with fitted levels, learned-N-HASH.json with a solver
of N evaluations. The hash is of all that the fit depends on: the weights, the guidance, the conditions, the sampler.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openedm.denoiser import Condition, Denoiser
from openedm.ground.choices import from_config, to_config
from openedm.ground.progress import Progress
from openedm.ground.storage import read_json, write_json
from openedm.sampling import (
    Auto,
    Sampler,
    SamplerChoice,
    fit_levels,
    fit_solver,
    load_solver,
    pilot_seeds,
    solver_content,
    solver_seeds,
)

__all__ = ["FittedFiles", "read_fitted", "replayed"]

FIT_VERSION = 1
"""Version of the fit of levels: fits of another version are made anew."""
LEARNED_VERSION = 1
"""Version of the fit of solvers."""
IDENTITY = ("weights", "guidance", "guiding")
"""What a learned solver in a file must have in common with a checkpoint, if the file says."""


@dataclass(frozen=True)
class FittedFiles:
    """The fits of a checkpoint.

    Args:
        folder: the checkpoint folder.
        settings: all that a fit depends on beside the sampler, as plain data.
        condition: the conditions of some seeds.
        event_shape: the shape of one sample.
    """

    folder: Path
    settings: Mapping[str, Any]
    condition: Callable[[Sequence[int]], Condition]
    event_shape: tuple[int, ...]

    def levels(
        self, denoiser: Denoiser, method: SamplerChoice, progress: Progress, *, main: bool
    ) -> tuple[Sampler, str]:
        """The sampler with fitted levels, and how it was found; fitted now if there is no file."""
        settings = {"sampler": to_config(method), "fit": FIT_VERSION, **self.settings}
        path = self._path("", settings)
        if path.is_file():
            return read_fitted(path), f"sampler, fitted before ({path})"
        self._make_folder(main)
        condition = self.condition(range(len(pilot_seeds(self.event_shape))))
        if isinstance(method, Auto):
            fit = method.fit(denoiser, condition=condition, progress=progress)
        else:
            fit = fit_levels(denoiser, method.choose(denoiser), condition=condition, progress=progress)
        if main:
            found = {"fitted": to_config(fit.sampler), "error": fit.error, "error_before": fit.error_before}
            write_json(path, {**found, **settings}, files=())
        return fit.sampler, f"sampler, fitted (error {fit.error_before:.2g} -> {fit.error:.2g}, kept in {path})"

    def solver(
        self, denoiser: Denoiser, method: SamplerChoice, progress: Progress, *, main: bool
    ) -> tuple[Sampler, str]:
        """The sampler with a learned solver, and how it was found; learned now if there is no file."""
        settings = {"sampler": to_config(method), "learn": LEARNED_VERSION, **self.settings}
        path = self._path(f"learned-{method.choose(denoiser).nfe}-", settings)
        if path.is_file():
            return read_fitted(path), f"sampler, learned before ({path})"
        self._make_folder(main)
        condition = self.condition(range(sum(map(len, solver_seeds(self.event_shape)))))
        fit = fit_solver(denoiser, method, condition=condition, event_shape=self.event_shape, progress=progress)
        if fit.learned:
            found = solver_content(fit, denoiser, condition, self.event_shape)
        else:
            found = {"fitted": to_config(fit.sampler), "error": fit.error, "error_before": fit.error_before}
        if main:
            write_json(path, {**found, **settings}, files=())
        kept = f"error {fit.error_before:.2g} -> {fit.error:.2g}, kept in {path}"
        how = "sampler, learned" if fit.learned else "sampler, fitted levels alone, a learned solver was not better"
        return fit.sampler, f"{how} ({kept})"

    def _path(self, prefix: str, settings: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / "fitted" / f"{prefix}{name}.json"

    def _make_folder(self, main: bool) -> None:
        """Make the folder, so that one that cannot be written is refused before the work."""
        if main:
            (self.folder / "fitted").mkdir(parents=True, exist_ok=True)


def read_fitted(path: Path) -> Sampler:
    """The sampler that was kept; ValueError that names the file if it is damaged or was changed."""
    content = read_json(path)
    try:
        return from_config(Sampler, content["learned"] if "learned" in content else content["fitted"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold fitted levels, delete it to fit them again: {error!r}") from error


def replayed(
    path: str,
    denoiser: Denoiser,
    source: Mapping[str, Any],
    *,
    nfe: int | None,
    sigma_min: float | None,
    sigma_max: float | None,
) -> Sampler:
    """The learned solver of a file, for a checkpoint.

    Args:
        path: the file.
        denoiser: the denoiser of the checkpoint, guided where that is asked for.
        source: digests of the weights, and the guidance.
        nfe: the number of evaluations that was asked for; None for any.
        sigma_min: the lowest noise level that was asked for; None for any.
        sigma_max: the highest noise level that was asked for; None for any.

    Raises:
        ValueError: the file is of another checkpoint or guidance, or as for `load_solver`.
    """
    content = read_json(Path(path))
    different = [name for name in IDENTITY if content.get(name) != source.get(name)] if "weights" in content else []
    if different:
        raise ValueError(
            f"solver_file must have been learned for this checkpoint and guidance, but {path} is for others, which "
            f"differ in {' and '.join(different)}: learn a solver with --levels learned"
        )
    return load_solver(path, denoiser, nfe=nfe, sigma_min=sigma_min, sigma_max=sigma_max)
