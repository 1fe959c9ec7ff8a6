"""k-diffusion's two interfaces: models `model(x, sigma, **extra_args)` and samplers `sample(model, x, sigmas, …)`.

Both speak EDM's language: x = y + σ n, a model returns D(x; σ), σ is a tensor with one value a sample. Programs with a
list of samplers for k-diffusion call each as

    sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options)

with x at the level σ_0 and decreasing `sigmas`, the last of which is 0, or positive where a run stops early.
`sampler_function` makes such a function of any solver of this library, and `from_kdiffusion` a denoiser of such a
model. k-diffusion itself (Crowson 2022) is not needed for either, only its calls.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground.devices import float64_on
from openedm.levels import Explicit
from openedm.preconditioning import VelocityPrediction
from openedm.sampling import Multistep, Sampler, SeededNoise
from openedm.sampling.engine.plan import Plan, PlannedSolver, State, execute
from openedm.sampling.noise import NoiseSource, Seeds
from openedm.schedules import FlowTime

__all__ = ["SamplerFunction", "from_kdiffusion", "sampler_function"]

KModel = Callable[..., Tensor]
"""A model of k-diffusion: `model(x, sigma, **extra_args)`, with sigma (batch,), returns the denoised x."""


@runtime_checkable
class SamplerFunction(Protocol):
    """A sampler as k-diffusion has them; see `sampler_function`."""

    def __call__(
        self,
        model: KModel,
        x: Float[Tensor, "batch *event"],
        sigmas: Float[Tensor, " levels"],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
        seeds: Seeds | NoiseSource | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """The sample, or the state at the last level if that is not 0."""
        ...


def sampler_function(sampler: Sampler | None = None) -> SamplerFunction:
    """A sampler of this library in k-diffusion's form, for programs that load its samplers.

    The returned function takes

    - `model`: called as `model(x, sigma, **extra_args)` with x in the dtype of the given x, returns the denoised x;
    - `x`: (batch, *event), noise of standard deviation σ_0 added to the mean of the data or to samples;
    - `sigmas`: decreasing noise levels in data units; if the last is 0 the sample is returned, else the state there;
    - `extra_args`: keyword arguments of the model, None for none;
    - `callback`: called at each level with a dict of `i`, `x`, `sigma`, `sigma_hat` and `denoised`;
    - `disable`: accepted as k-diffusion's samplers do; this function shows no progress of its own;
    - `noise_sampler`: for solvers that add noise, `noise_sampler(sigma, sigma_next)` returns unit noise of the shape of
      x, as k-diffusion's `BrownianTreeNoiseSampler`; None means new noise from torch's global generator;
    - `seeds`: instead of it, a `NoiseSource` of this library, or one seed a sample, of which the draws after the first
      are taken, as the first is that of the start;

    and returns a tensor in the dtype of x. States are float64 in between (float32 on devices without it).

    Args:
        sampler: its solver, churn, schedule and scaling are used; its levels are replaced by `sigmas`. None means
            exponential multistep in the velocity of rectified flow for σ_data 0.5, of order 3 for up to 15 levels, else
            4. This was chosen on other problems than those of `benchmarks/k_diffusion_models.py`, on Karras's levels,
            where errors are several times lower than on levels at even steps of a network's times.

    Raises:
        TypeError: `sampler` is not a `Sampler`; when called, `noise_sampler` and `seeds` are both given.
        ValueError: when called, the levels do not decrease, there are fewer than two, the model returns another shape,
            or the solver cannot stop above 0 but is asked to.

    >>> import torch
    >>> from openedm.sampling import DPMSolverPP2M
    >>> sample = sampler_function(Sampler(solver=DPMSolverPP2M()))
    >>> half = lambda x, sigma: x / (1 + sigma[:, None] ** 2)
    >>> sample(half, 10 * torch.ones(1, 1), torch.tensor([10.0, 5, 2, 1, 0.5, 0.2, 0.1, 0])).round(decimals=1)
    tensor([[1.]])
    """
    if not isinstance(sampler, Sampler | None):
        raise TypeError(f"sampler must be a Sampler or None, got {sampler!r}: for example Sampler(solver=Heun())")

    def sample(
        model: KModel,
        x: Float[Tensor, "batch *event"],
        sigmas: Float[Tensor, " levels"],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
        seeds: Seeds | NoiseSource | None = None,
    ) -> Float[Tensor, "batch *event"]:
        if noise_sampler is not None and seeds is not None:
            raise TypeError("noise_sampler and seeds are mutually exclusive, got both")
        denoiser = _KDenoiser(model, x.dtype, extra_args or {})
        levels, ends_at_zero = _levels(sigmas)
        chosen = replace(default_sampler(len(levels)) if sampler is None else sampler, levels=Explicit(levels))
        source = _source(x, noise_sampler) if seeds is None else _seeded(seeds, x)
        final = None
        with torch.no_grad():
            for state in _states(chosen, denoiser, x.to(float64_on(x.device)), source, ends_at_zero=ends_at_zero):
                final = state.x / state.scale
                if callback is not None and state.sigma > (0.0 if ends_at_zero else levels[-1]):
                    callback(_report(state, x.dtype))
        assert final is not None
        return final.to(x.dtype)

    sample.__doc__ = f"{_solver_name(sampler)} with k-diffusion's arguments; see `openedm.interop.sampler_function`."
    sample.__name__ = f"sample_openedm_{_solver_name(sampler).lower()}"
    return sample


def default_sampler(num_levels: int) -> Sampler:
    """The sampler for given levels, of whose data nothing is known."""
    predictor = 2 if num_levels <= 15 else 3
    return Sampler(solver=Multistep(VelocityPrediction(0.5), FlowTime(0.5), predictor, predictor + 1))


def _solver_name(sampler: Sampler | None) -> str:
    """The class of the solver, "Default" without a sampler."""
    return "Default" if sampler is None else type(sampler.solver).__name__


def from_kdiffusion(
    model: KModel,
    event_shape: tuple[int, ...] | None = None,
    *,
    extra_args: Mapping[str, Any] | None = None,
    condition_name: str | None = None,
    num_classes: int = 0,
    sigma_data: float = 0.5,
) -> Denoiser:
    """The denoiser of a model of k-diffusion, such as `K.external.CompVisDenoiser` or `K.Denoiser`.

    σ is limited to the model's `sigma_min` and `sigma_max`, where it has them. The state starts from 0 + σ_max n, as in
    k-diffusion.

    Args:
        model: called as `model(x, sigma, **extra_args)`, sigma (batch,) in the dtype of its weights, float32 without
            any.
        event_shape: the shape of one sample; None if any.
        extra_args: keyword arguments of every call.
        condition_name: the keyword argument that takes the condition; None for a model without condition.
        num_classes: the number of classes of the condition, 0 for conditions of another kind.
        sigma_data: standard deviation of the data, > 0.

    Raises:
        TypeError: the model cannot be called.
        ValueError: sigma_data is not > 0.
    """
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, sigma, **extra_args), got {type(model).__name__}")
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    dtype = torch.float32 if parameter is None else parameter.dtype
    denoiser = _KDenoiser(model, dtype, extra_args or {}, condition_name)
    denoiser.event_shape, denoiser.num_classes, denoiser.sigma_data = event_shape, num_classes, sigma_data
    for name in ("sigma_min", "sigma_max"):
        limit = getattr(model, name, None)
        if limit is not None:
            setattr(denoiser, name, float(limit))
    return denoiser


class _KDenoiser(Denoiser):
    """D(x; σ) of a model of k-diffusion, which is called in `dtype`."""

    def __init__(
        self, model: KModel, dtype: torch.dtype, extra_args: Mapping[str, Any], condition_name: str | None = None
    ) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.extra_args, self.condition_name = dict(extra_args), condition_name

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The model's result, in the dtype of x."""
        extra = dict(self.extra_args)
        if condition is not None:
            if self.condition_name is None:
                raise ValueError("condition must be None for a model without condition_name")
            extra[self.condition_name] = condition
        levels = sigma.to(x.device, self.dtype).expand(len(x))
        denoised = self.model(x.to(self.dtype), levels, **extra)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            found = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            raise ValueError(
                f"model(x, sigma, **extra_args) must return the denoised x, of shape {tuple(x.shape)}, got {found}"
            )
        return denoised.to(x.dtype)


def _levels(sigmas: Tensor) -> tuple[tuple[float, ...], bool]:
    """The levels above 0, and whether the run goes on to 0."""
    values = [float(sigma) for sigma in sigmas]
    if len(values) < 2:
        raise ValueError(f"sigmas must hold at least two levels, the last of them usually 0, got {values}")
    ends_at_zero = values[-1] == 0
    return tuple(values[:-1] if ends_at_zero else values), ends_at_zero


def _states(
    sampler: Sampler, denoiser: Denoiser, x: Tensor, source: NoiseSource, *, ends_at_zero: bool
) -> Iterator[State]:
    grid = sampler.grid(denoiser)
    sampler.solver.check(grid)
    x = x * grid.scale(grid.sigmas[0])
    if ends_at_zero:
        return sampler.solver.run(denoiser, x, grid, None, source)
    if not isinstance(sampler.solver, PlannedSolver):
        raise ValueError(
            f"sigmas must end with 0 for {type(sampler.solver).__name__}, which takes its own steps, got "
            f"{grid.sigmas[-1]:g} at the end"
        )
    *steps, top = sampler.solver.planned(grid).steps
    return execute(Plan(tuple(steps), top.time, top.sigma, top.scale), denoiser, x, None, source)


def _report(state: State, dtype: torch.dtype) -> dict[str, Any]:
    """What k-diffusion's samplers tell their callbacks."""
    x, denoised = (state.x / state.scale).to(dtype), state.denoised.to(dtype)
    sigma = torch.tensor(state.sigma, dtype=dtype, device=x.device)
    return {"x": x, "i": state.index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}


class _GlobalNoise:
    """Noise of torch's global generator of the device of x, as k-diffusion's default."""

    def __init__(self, like: Tensor) -> None:
        self.like = like

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        """The next noise."""
        return torch.randn_like(self.like)


class _StepNoise(_GlobalNoise):
    """Noise of a k-diffusion noise sampler, which is called with the two levels of a step."""

    def __init__(self, like: Tensor, noise_sampler: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(like)
        self.noise_sampler = noise_sampler

    def step_noise(
        self,
        sigma: float,
        sigma_next: float,
        event_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The noise of the step."""
        return self.noise_sampler(self.like.new_tensor(sigma), self.like.new_tensor(sigma_next)).to(device, dtype)


def _source(x: Tensor, noise_sampler: Callable[[Tensor, Tensor], Tensor] | None) -> NoiseSource:
    return _GlobalNoise(x) if noise_sampler is None else _StepNoise(x, noise_sampler)


def _seeded(seeds: Seeds | NoiseSource, x: Tensor) -> NoiseSource:
    if isinstance(seeds, NoiseSource):
        return seeds
    source = SeededNoise(seeds)
    if len(source.seeds) != len(x):
        raise ValueError(f"seeds must be one a sample ({len(x)}), got {len(source.seeds)}")
    source.draw(tuple(x.shape[1:]))
    return source
