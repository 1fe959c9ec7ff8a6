"""k-diffusion's interfaces: our solvers as its samplers, its models as denoisers, with its calls."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openedm import schedules
from openedm.denoiser import Denoiser
from openedm.exact import GaussianMixture
from openedm.interop import from_kdiffusion, sampler_function
from openedm.levels import Explicit, Karras
from openedm.sampling import (
    DDIM,
    Churn,
    DormandPrince,
    DPMSolverPP2M,
    DPMSolverPP2S,
    Euler,
    EulerMaruyama,
    Heun,
    Multistep,
    Sampler,
    SeededNoise,
    UniPC,
)

MIXTURE = GaussianMixture([0.4, 0.6], [[-0.5, 0.2], [0.5, 0.1]], [[[0.05, 0], [0, 0.02]], [[0.02, 0], [0, 0.05]]])
LEVELS = Karras(12, 0.002, 80.0)
SIGMAS = torch.cat([LEVELS.sigmas(), torch.zeros(1, dtype=torch.float64)])
SOLVERS = [Euler(), Heun(), DDIM(), DPMSolverPP2M(), DPMSolverPP2S(), UniPC()]


class Model(nn.Module):
    """A model as k-diffusion has them: σ has one value a sample, extra arguments come by name."""

    sigma_min, sigma_max = torch.tensor(0.01), torch.tensor(50.0)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.dtype, tuple[int, ...], dict[str, Any]]] = []

    def forward(self, x: Tensor, sigma: Tensor, shift: float = 0.0, cond: Tensor | None = None) -> Tensor:
        self.calls.append((x.dtype, tuple(sigma.shape), {"shift": shift}))
        moved = torch.as_tensor(shift if cond is None else cond[:, None].to(x), dtype=x.dtype)
        return (MIXTURE((x - moved).double(), sigma.double()) + moved).to(x.dtype)


def start(dtype: torch.dtype = torch.float64, count: int = 5) -> Tensor:
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (noise * 80).to(dtype)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_the_function_gives_the_samples_of_the_sampler(solver: Any) -> None:
    sampler = Sampler(solver=solver)
    inner = Model()
    samples = sampler_function(sampler)(inner, start(), SIGMAS)
    model: Denoiser = MIXTURE
    explicit = Sampler(levels=Explicit(tuple(LEVELS.sigmas().tolist())), solver=solver)
    x = start()
    states = explicit.solver.run(model, x, explicit.grid(model), None, None)
    *_, last = states
    torch.testing.assert_close(samples, last.x, rtol=0, atol=1e-12)
    assert all(shape == (5,) for _, shape, _ in inner.calls)


@pytest.mark.parametrize("solver", [*SOLVERS, None], ids=lambda s: type(s).__name__)
def test_a_run_in_two_parts_ends_near_the_whole_one_and_both_keep_the_dtype(solver: Any) -> None:
    sample = sampler_function(None if solver is None else Sampler(solver=solver))
    sigmas = torch.cat([Karras(60, 0.002, 80.0).sigmas(), torch.zeros(1, dtype=torch.float64)]).float()
    whole = sample(Model(), start(torch.float32), sigmas)
    middle = sample(Model(), start(torch.float32), sigmas[:31])
    parts = sample(Model(), middle, sigmas[30:])
    assert whole.dtype == middle.dtype == torch.float32
    assert (whole - parts).abs().max() < (0.1 if isinstance(solver, Euler | DDIM) else 0.02)
    assert 0.1 < (middle - whole).abs().max() < 3 * float(sigmas[30])  # the noise of that level is left


def test_extra_arguments_reach_the_model_and_callbacks_see_every_level() -> None:
    model, seen = Model(), list[dict[str, Any]]()
    moved = sampler_function(Sampler())(model, start(), SIGMAS, {"shift": 3.0}, seen.append, disable=True)
    plain = sampler_function(Sampler())(Model(), start() - 3.0, SIGMAS)
    torch.testing.assert_close(moved, plain + 3.0)
    assert {tuple(call[2].items()) for call in model.calls} == {(("shift", 3.0),)}
    assert [state["i"] for state in seen] == list(range(12))
    assert [float(state["sigma"]) for state in seen] == pytest.approx(SIGMAS[:-1].tolist())
    assert all(state["denoised"].shape == state["x"].shape == (5, 2) for state in seen)


@pytest.mark.parametrize("sampler", [Sampler(churn=Churn(20.0)), Sampler(solver=Multistep(eta=1.0))])
def test_noise_comes_from_the_global_generator_or_from_a_noise_sampler_or_from_seeds(sampler: Sampler) -> None:
    sample = sampler_function(sampler)

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return sample(Model(), start(), SIGMAS)

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))
    levels: list[tuple[float, float]] = []

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        levels.append((float(sigma), float(sigma_next)))
        return torch.zeros(5, 2)

    quiet = sample(Model(), start(), SIGMAS, noise_sampler=noise_sampler)
    assert all(high > low for high, low in levels)
    assert len(levels) >= 10
    assert not torch.equal(quiet, seeded(1))
    assert torch.equal(
        sample(Model(), start(), SIGMAS, seeds=range(5)), sample(Model(), start(), SIGMAS, seeds=range(5))
    )
    with pytest.raises(TypeError, match="mutually exclusive"):
        sample(Model(), start(), SIGMAS, noise_sampler=noise_sampler, seeds=range(5))


def test_a_scaled_schedule_gives_states_in_data_units() -> None:
    scaled = sampler_function(Sampler(schedule=schedules.VP(), solver=Heun()))
    seen: list[dict[str, Any]] = []
    samples = scaled(Model(), start(), SIGMAS, callback=seen.append)
    assert float(seen[0]["x"].std()) == pytest.approx(float(start().std()), rel=1e-6)
    assert (samples.abs() < 3).all()


def test_a_model_is_a_denoiser_with_its_range_and_its_condition() -> None:
    model = Model()
    denoiser = from_kdiffusion(model, (2,), condition_name="cond", num_classes=4)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (pytest.approx(0.01), 50.0)
    classes = torch.tensor([0, 3])
    samples = Sampler().sample(denoiser, [1, 1], condition=classes)
    assert model.calls[0][0] == torch.float32
    assert float((samples[1] - samples[0]).mean()) == pytest.approx(3.0, abs=0.05)  # it starts from 0
    with pytest.raises(ValueError, match="condition_name"):
        Sampler().sample(from_kdiffusion(model, (2,)), [1], condition=torch.ones(1, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sampler_function(Heun()), TypeError, r"Sampler\(solver=Heun\(\)\)"),  # type: ignore[arg-type]
        (lambda: sampler_function()(Model(), start(), SIGMAS[-1:]), ValueError, "at least two levels"),
        (lambda: sampler_function()(Model(), start(), SIGMAS.flip(0)), ValueError, "decreas|> 0"),
        (lambda: sampler_function()(lambda x, s: x[:1], start(), SIGMAS), ValueError, r"must return the denoised x"),
        (
            lambda: sampler_function(Sampler(solver=DormandPrince()))(Model(), start(), SIGMAS[:-1]),
            ValueError,
            "must end with 0",
        ),
        (lambda: from_kdiffusion(3), TypeError, "callable"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.usefixtures("without_type_checker")
def test_wrong_calls_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_seeds_are_one_a_sample_and_their_first_draw_is_that_of_the_start() -> None:
    sample = sampler_function(Sampler(solver=EulerMaruyama()))
    seeds, shape = torch.arange(len(start())), tuple(start().shape[1:])
    source = SeededNoise(seeds)
    source.draw(shape)
    assert torch.equal(sample(Model(), start(), SIGMAS, seeds=seeds), sample(Model(), start(), SIGMAS, seeds=source))
    with pytest.raises(ValueError, match="seeds must be one a sample"):
        sampler_function()(Model(), start(), SIGMAS, seeds=[0])
