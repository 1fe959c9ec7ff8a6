"""Samplers of this library in the pipelines of diffusers, unchanged."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from openedm import Auto, Churn, Euler, FunctionDenoiser, Heun, Sampler
from openedm.interop.diffusers import Scheduler, denoiser_of, from_diffusers, process_of
from openedm.levels import Explicit, Karras, Logistic, LogLinear
from openedm.preconditioning import EpsilonPrediction
from openedm.sampling import (
    DDIM,
    RK4,
    Ancestral,
    DormandPrince,
    DPMSolverPP2M,
    DPMSolverPP3S,
    Multistep,
    PredictorCorrector,
    Restart,
    UniPC,
)
from openedm.sampling.engine.steps import execute
from openedm.schedules import LogSigma, RectifiedFlow

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers itself
    pytest.mark.filterwarnings("ignore:.*CLIPImageProcessor.*"),
]


class Shrinking(nn.Module):
    """A model that predicts the noise of data N(0, 0.5²), called as those of diffusers are."""

    dtype = torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.process = process_of(diffusers.DDPMScheduler())

    def forward(self, x: Tensor, timestep: Any) -> tuple[Tensor]:
        times = torch.as_tensor(timestep).double().reshape(-1, *[1] * (x.ndim - 1))
        sigma = self.process.sigma(times)
        scale = 1 / (1 + sigma**2).sqrt()
        noisy = x / scale
        denoised = noisy * 0.25 / (sigma**2 + 0.25)
        return ((noisy - denoised) / sigma,)


MODEL = Shrinking()
SAMPLERS: dict[str, Any] = {
    "auto": Auto(),
    "heun": Sampler(LogLinear()),
    "flow": Sampler(schedule=RectifiedFlow(), solver=RK4()),
    "churn": Sampler(churn=Churn(4.0, s_noise=1.01)),
    "unipc": Sampler(solver=UniPC()),
    "3s": Sampler(solver=DPMSolverPP3S()),
    "sde": Sampler(solver=DPMSolverPP2M(eta=1.0)),
    "ancestral": Sampler(solver=Ancestral()),
    "corrector": Sampler(solver=PredictorCorrector(corrections=2)),
    "restart": Sampler(solver=Restart()),
    "euler step": Sampler(final="euler"),
}


class Draws:
    """The noise that a pipeline draws, as a source for samplers."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        return torch.randn((self.count, *event_shape), generator=self.generator, dtype=torch.float64)


@torch.no_grad()
def loop(scheduler: Any, steps: int | None, model: Any = MODEL, **options: Any) -> Tensor:
    """The loop of an unconditional pipeline, in float64, from unit noise and with generator 1."""
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(steps, **options)
    x = torch.randn((3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for time in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, time), time)[0]
        x = scheduler.step(output, time, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_pipeline_returns_what_the_sampler_returns(name: str) -> None:
    scheduler = Scheduler(SAMPLERS[name])
    result = loop(scheduler, 8)
    ends = {"sigma_min": scheduler.process.sigma_min, "sigma_max": scheduler.process.sigma_max}
    few = Logistic(**ends, centre=2.0, spread=4.0)  # as for every number of steps below 10
    in_noise = Sampler(few, solver=Multistep(EpsilonPrediction(), LogSigma(), 3))
    sampler = in_noise if name == "auto" else SAMPLERS[name]
    denoiser = FunctionDenoiser(
        lambda x, sigma, condition: x - sigma * MODEL(x / (1 + sigma**2) ** 0.5, scheduler.process.timestep(sigma))[0],
        sigma_min=scheduler.process.sigma_min,
        sigma_max=scheduler.process.sigma_max,
        sigma_data=1.0,
    )
    chosen = sampler.choose(denoiser)
    chosen = replace(chosen, levels=replace(chosen.levels, num_steps=8))
    stages = chosen.plan(denoiser).steps[0].stages
    start = float(stages[0].sigma)  # above the first level with churn, and the first noise is not added
    noise = torch.randn((3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "churn":
        assert start > 80
        plan = chosen.plan(denoiser)
        plan = replace(plan, steps=(replace(plan.steps[0], before=None), *plan.steps[1:]))
        *_, last = execute(plan, denoiser, noise * (1 + start**2) ** 0.5, None, Draws(3, 1))
        expected = last.x
    else:
        expected = chosen.sample(denoiser, Draws(3, 1), noise=noise * (1 + start**2) ** 0.5 / start)
    assert (result - expected).abs().max() < 2e-6 * expected.abs().max()  # timesteps are float32
    assert len(scheduler.timesteps) == sum(len(step.stages) for step in chosen.plan(denoiser).steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_saved_scheduler_is_the_same_and_holds_no_code(name: str, tmp_path: Path) -> None:
    scheduler = Scheduler.from_config(diffusers.DDIMScheduler(beta_end=0.01).config, sampler=SAMPLERS[name])
    scheduler.save_pretrained(tmp_path)
    again = Scheduler.from_pretrained(tmp_path)
    assert (again.sampler, again.process) == (scheduler.sampler, scheduler.process)
    assert torch.equal(loop(again, 8), loop(scheduler, 8))
    content = json.loads((tmp_path / "scheduler_config.json").read_text())
    content["_openedm"]["sampler"]["class_path"] = "os.system"
    (tmp_path / "scheduler_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"class_path 'os.system' is not known"):
        Scheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
        diffusers.PNDMScheduler(prediction_type="v_prediction"),
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        diffusers.DPMSolverSinglestepScheduler(beta_schedule="scaled_linear"),
        diffusers.EDMEulerScheduler(sigma_data=0.7),
        diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        diffusers.FlowMatchHeunDiscreteScheduler(),
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.01, sigma_max=300.0),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_configuration_tells_the_process_of_its_model(scheduler: Any) -> None:
    own = Scheduler.from_config(scheduler.config)
    assert own.process == Scheduler.from_config(scheduler).process
    assert own.process == Scheduler.from_config(own.config).process
    assert own.process.preconditioning == from_diffusers(nn.Identity(), scheduler).preconditioning
    back = type(scheduler).from_config(own.config)  # as when the user tries another scheduler next
    assert all(back.config[key] == value for key, value in scheduler.config.items() if key[0] != "_")


def test_options_of_the_training_can_be_changed_and_unknown_ones_are_refused() -> None:
    config = diffusers.DDIMScheduler().config
    scheduler = Scheduler.from_config(config, prediction_type="v_prediction", sigma_data=0.5)
    assert scheduler.process.preconditioning.predicts == "v"
    assert scheduler.process.sigma_data == 0.5
    with pytest.raises(TypeError, match=r"from_config has no option \['solver'\]"):
        Scheduler.from_config(config, solver="heun")
    with pytest.raises(ValueError, match="config must have the _class_name"):
        Scheduler.from_config({"steps": 3})
    with pytest.raises(ValueError, match=r"_class_name must be a scheduler of diffusers, got 'UNet2DModel'"):
        Scheduler.from_config({"_class_name": "UNet2DModel"})


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Auto(tolerance=1e-3), "sampler must have fixed steps, got tolerance=0.001"),
        (Sampler(solver=DormandPrince()), "got solver=DormandPrince, whose steps depend on the sample"),
        (Auto(nfe=8), r"got nfe=8: use openedm.Auto\(\) and num_inference_steps=8"),
    ],
)
def test_samplers_that_cannot_be_stepped_from_outside_are_refused_by_name(sampler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheduler(sampler)


def test_steps_out_of_turn_are_errors() -> None:
    scheduler, x = Scheduler(Sampler(solver=Euler())), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="set_timesteps must be called before step"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match=r"timestep must be .* number 1 of timesteps, got 5"):
        scheduler.step(x, 5, x)
    scheduler.step(x, scheduler.timesteps[1], x)
    with pytest.raises(ValueError, match="all have had their turn"):
        scheduler.step(x, scheduler.timesteps[1], x)
    with pytest.raises(ValueError, match="num_inference_steps, sigmas or timesteps must be given"):
        scheduler.set_timesteps()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_are_enough(steps: int) -> None:
    scheduler = Scheduler()
    assert loop(scheduler, steps).isfinite().all()
    assert len(scheduler.timesteps) == steps


def test_many_steps_on_trained_levels_do_not_repeat() -> None:
    scheduler = Scheduler(Sampler(Karras(), solver=DDIM()), levels="trained")
    scheduler.set_timesteps(300)
    times = scheduler.timesteps
    assert times.dtype == torch.int64
    assert bool((times[1:] < times[:-1]).all())


def test_levels_of_the_pipelines_choice_are_used() -> None:
    scheduler = Scheduler(Sampler(solver=Euler()))
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == pytest.approx([900, 500, 100], rel=1e-6)
    flow = Scheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    flow.set_timesteps(sigmas=[1.0, 0.5, 0.25])
    assert flow.timesteps.tolist() == pytest.approx([999.9, 750, 500], rel=1e-6)  # 3τ/(1+2τ); pure noise is left out
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    shifted = Scheduler.from_config(dynamic.config)
    shifted.set_timesteps(sigmas=[0.8, 0.4], mu=1.0)
    dynamic.set_timesteps(sigmas=[0.8, 0.4], mu=1.0)
    assert shifted.timesteps.tolist() == pytest.approx(dynamic.timesteps.tolist(), rel=1e-5)
    with pytest.raises(ValueError, match="num_inference_steps must be 2, the number of levels"):
        Scheduler(Sampler(Explicit((9.0, 1.0)))).set_timesteps(5)


def test_noise_of_a_step_depends_on_its_generator_alone() -> None:
    scheduler = Scheduler(Sampler(solver=Ancestral()))

    def run(seeds: tuple[int, int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        scheduler.set_timesteps(4)
        x = torch.ones(2, 3)
        for time in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), time, x, generator=generators).prev_sample
        return x

    first = run((1, 2))
    assert torch.equal(first, run((1, 2)))
    assert torch.equal(first[1], run((3, 2))[1])
    assert not torch.equal(first[0], run((3, 2))[0])


def test_a_copy_made_in_the_middle_of_a_run_goes_on_by_itself() -> None:
    """As for pipelines with several views, which keep a copy of the state for each."""
    scheduler = Scheduler(Sampler(solver=UniPC()))
    scheduler.set_timesteps(5)
    x = torch.ones(1, 2)
    for time in scheduler.timesteps[:2]:
        x = scheduler.step(x * 0.5, time, x).prev_sample
    other, time = copy.deepcopy(scheduler), scheduler.timesteps[2]
    assert torch.equal(scheduler.step(x, time, x).prev_sample, other.step(x, time, x).prev_sample)


@pytest.mark.parametrize("name", ["auto", "heun", "flow", "churn", "unipc", "corrector"])
def test_a_run_that_begins_later_is_the_end_of_the_path(name: str) -> None:
    """As for image to image: noise is added to a clean sample, and the rest of the run takes it away again."""
    scheduler = Scheduler(SAMPLERS[name])
    scheduler.set_timesteps(24)
    start = 12 * scheduler.order
    clean = torch.zeros((400, 2), dtype=torch.float64)
    noise = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = scheduler.add_noise(clean, noise, scheduler.timesteps[start : start + 1])
    scheduler.set_begin_index(start)
    generator = torch.Generator().manual_seed(1)
    for time in scheduler.timesteps[start:]:
        x = scheduler.step(MODEL(x, time)[0], time, x, generator=generator).prev_sample
    assert x.mean().item() == pytest.approx(0, abs=0.1)
    assert x.std().item() == pytest.approx(0.5, abs=0.2)
    with pytest.raises(ValueError, match="all have had their turn"):
        scheduler.step(x, time, x)
    if scheduler.order > 1 and name != "corrector":
        scheduler.set_timesteps(24)
        scheduler.set_begin_index(start + 1)
        with pytest.raises(ValueError, match="begin_index must be an evaluation at which a step"):
            scheduler.step(x, scheduler.timesteps[start + 1], x)


def test_noise_is_added_as_the_model_was_trained() -> None:
    y, n = torch.full((2, 3), 2.0), torch.full((2, 3), 10.0)
    times = torch.tensor([100, 900])
    ddpm = diffusers.DDPMScheduler()
    assert torch.allclose(Scheduler().add_noise(y, n, times), ddpm.add_noise(y, n, times), rtol=1e-5)
    flow = Scheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config)
    mixed = flow.scale_noise(y, torch.tensor([250.0, 1000.0]), n)
    assert torch.allclose(mixed, torch.tensor([[4.0], [10.0]]).expand(2, 3))


def small_unet(**options: Any) -> dict[str, Any]:
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return sizes | {"attention_head_dim": 2} | options


def small_vae() -> Any:
    return diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8).eval()


def unconditional() -> tuple[Any, Callable[[Any], Tensor]]:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**small_unet(**blocks)), diffusers.DDPMScheduler())
    return pipeline, lambda p: p(2, torch.Generator().manual_seed(0), 6, output_type="pt").images


def transformer() -> tuple[Any, Callable[[Any], Tensor]]:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "patch_size": 2}
    model = diffusers.DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    pipeline = diffusers.DiTPipeline(model.eval(), small_vae(), diffusers.DDIMScheduler())
    return (
        pipeline,
        lambda p: p([1, 7], generator=torch.Generator().manual_seed(0), num_inference_steps=6, output_type="pt").images,
    )


def text_to_image() -> tuple[Any, Callable[[Any], Tensor]]:
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    blocks["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = diffusers.UNet2DConditionModel(**small_unet(**blocks, cross_attention_dim=6)).eval()
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(**options, clip_sample=False, steps_offset=1)
    pipeline = diffusers.StableDiffusionPipeline(
        small_vae(), None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    embeds = {"prompt_embeds": torch.ones(1, 3, 6), "negative_prompt_embeds": torch.zeros(1, 3, 6)}
    return (
        pipeline,
        lambda p: (
            p(**embeds, num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="latent").images
        ),
    )


def flow() -> tuple[Any, Callable[[Any], Tensor]]:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8, "patch_size": 2}
    widths = {
        "joint_attention_dim": 6,
        "caption_projection_dim": 8,
        "pooled_projection_dim": 5,
        "pos_embed_max_size": 8,
    }
    model = diffusers.SD3Transformer2DModel(**sizes, **widths, in_channels=4, out_channels=4).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = diffusers.StableDiffusion3Pipeline(model, scheduler, small_vae(), None, None, None, None, None, None)
    embeds = {"prompt_embeds": torch.ones(1, 3, 6), "negative_prompt_embeds": torch.zeros(1, 3, 6)}
    pooled = {"pooled_prompt_embeds": torch.ones(1, 5), "negative_pooled_prompt_embeds": torch.zeros(1, 5)}
    options = {"num_inference_steps": 6, "height": 8, "width": 8, "output_type": "latent"}
    return pipeline, lambda p: p(**embeds, **pooled, **options, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("make", [unconditional, transformer, text_to_image, flow])
def test_the_scheduler_drops_into_pipelines_unchanged(make: Any) -> None:
    torch.manual_seed(0)
    pipeline, run = make()
    pipeline.set_progress_bar_config(disable=True)
    for sampler in (Auto(), Sampler(), Sampler(solver=Ancestral())):
        torch.manual_seed(1)  # the generator of pipelines that do not pass theirs to steps
        pipeline.scheduler = Scheduler.from_config(pipeline.scheduler.config, sampler=sampler)
        first = run(pipeline)
        torch.manual_seed(1)
        assert first.isfinite().all()
        assert torch.equal(run(pipeline), first)


def test_a_pipeline_with_the_scheduler_is_saved_and_read(tmp_path: Path) -> None:
    pipeline, run = unconditional()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = Scheduler.from_config(pipeline.scheduler.config, sampler=Sampler(solver=Heun()))
    expected = run(pipeline)
    pipeline.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), expected)
    assert denoiser_of(again).event_shape == (3, 8, 8)


def test_the_room_is_imported_without_diffusers_and_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import openedm.interop.diffusers as room\n"
        "try: room.Scheduler\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "openedm.interop.diffusers needs the package diffusers: pip install 'openedm[interop]'\n"
