"""Models of diffusers as denoisers: D is what their own schedulers call the original sample."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from openedm import Euler, Sampler
from openedm.guidance import ClassifierFree
from openedm.interop.diffusers import denoiser_of, from_diffusers, process_of
from openedm.levels import Explicit
from openedm.sampling import DDIM, Auto, DPMSolverPP2M, Heun
from openedm.schedules import RectifiedFlow

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers itself

ROUNDING = 1e-5


def unet2d(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DModel(**sizes, **blocks, **options).eval()


UNET = unet2d()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@torch.no_grad()
def test_the_denoiser_is_the_original_sample_of_a_step_with_betas(predicts: str, betas: str) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, beta_schedule=betas, clip_sample=False)
    denoiser, process = from_diffusers(UNET, scheduler), process_of(scheduler)
    scheduler.set_timesteps(5)
    for time in scheduler.timesteps:
        x = noise(2, 3, 8, 8)
        expected = scheduler.step(UNET(x, time).sample, time, x).pred_original_sample
        sigma = process.sigma(time.double())
        assert relative(denoiser(x / float(process.input_scale(sigma)), sigma), expected) < ROUNDING


def _continuous() -> Any:
    options = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0, "timestep_type": "continuous"}
    return diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **options)


SIGMA_SCHEDULERS = {
    "EDM": diffusers.EDMEulerScheduler(),
    "EDM v": diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
    "Euler": diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
    "Euler Karras": diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, beta_schedule="scaled_linear"),
    "continuous": _continuous(),
}


@pytest.mark.parametrize("name", SIGMA_SCHEDULERS)
@torch.no_grad()
def test_the_denoiser_is_the_original_sample_of_a_step_with_sigmas(name: str) -> None:
    scheduler = SIGMA_SCHEDULERS[name]
    denoiser = from_diffusers(UNET, scheduler)
    scheduler.set_timesteps(5)
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        x = noise(2, 3, 8, 8) * sigma
        output = UNET(scheduler.scale_model_input(x, time), time).sample
        assert relative(denoiser(x, sigma), scheduler.step(output, time, x).pred_original_sample) < ROUNDING


@torch.no_grad()
def test_the_denoiser_of_a_flow_is_the_end_of_its_straight_line() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoiser = from_diffusers(UNET, scheduler)
    for tau in (0.1, 0.5, 0.99):
        x = noise(2, 3, 8, 8)
        expected = x - tau * UNET(x, torch.tensor(1000 * tau)).sample
        assert relative(denoiser(x / (1 - tau), tau / (1 - tau)), expected) < ROUNDING


def pipeline_loop(scheduler: Any, steps: int) -> Tensor:
    """The samples of an unconditional pipeline."""
    scheduler.set_timesteps(steps)
    x = noise(2, 3, 8, 8) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        x = scheduler.step(UNET(scheduler.scale_model_input(x, time), time).sample, time, x).prev_sample
    return x


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_solvers_of_the_same_name_agree_at_the_same_levels(predicts: str) -> None:
    multistep = {"final_sigmas_type": "zero", "lower_order_final": False}
    pairs = [
        (diffusers.EulerDiscreteScheduler, {}, Euler()),
        (diffusers.HeunDiscreteScheduler, {"use_karras_sigmas": True}, Heun()),
        (diffusers.DPMSolverMultistepScheduler, multistep, DPMSolverPP2M()),
        (diffusers.DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}, DDIM()),
    ]
    for cls, options, solver in pairs:
        scheduler = cls(prediction_type=predicts, **options)
        expected = pipeline_loop(scheduler, 8)
        if cls is diffusers.DDIMScheduler:
            sigmas = tuple(process_of(scheduler).sigma(scheduler.timesteps.double()).tolist())
        else:
            sigmas = tuple(dict.fromkeys(scheduler.sigmas[:-1].double().tolist()))
        start = float(scheduler.init_noise_sigma)
        if start == 1:  # Its sample is scaled to unit variance.
            start = (1 + sigmas[0] ** 2) ** 0.5
        denoiser = from_diffusers(UNET, scheduler)
        samples = Sampler(Explicit(sigmas), solver=solver).sample(denoiser, noise=noise(2, 3, 8, 8) * start / sigmas[0])
        assert relative(samples, expected) < ROUNDING, cls


@torch.no_grad()
def test_eulers_method_agrees_with_that_of_flow_matching() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.9, 0.6, 0.3])
    x = noise(2, 3, 8, 8)
    start = x
    for time in scheduler.timesteps:
        x = scheduler.step(UNET(x, time).sample, time, x).prev_sample
    sampler = Sampler(Explicit((9.0, 1.5, 3 / 7)), schedule=RectifiedFlow(), solver=Euler())
    assert relative(sampler.sample(from_diffusers(UNET, scheduler), noise=start / 0.9), x) < ROUNDING


def test_levels_between_the_steps_of_training_are_used_or_rounded() -> None:
    scheduler = diffusers.DDPMScheduler()
    between, trained = (from_diffusers(UNET, scheduler, levels=levels) for levels in ("continuous", "trained"))
    assert between.round_sigma(1.2345).item() == 1.2345
    rounded = trained.round_sigma(1.2345)
    assert abs(rounded.item() - 1.2345) > 1e-4
    assert process_of(scheduler, levels="trained").timestep(rounded) % 1 == 0
    time = process_of(scheduler).timestep(torch.tensor(1.2345, dtype=torch.float64))
    assert process_of(scheduler).sigma(time).item() == pytest.approx(1.2345, rel=1e-9)
    with pytest.raises(ValueError, match="levels='trained' needs a scheduler with discrete steps"):
        from_diffusers(UNET, diffusers.EDMEulerScheduler(), levels="trained")


def test_models_trained_to_pure_noise_have_increasing_finite_levels() -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    process = process_of(scheduler)
    assert 1000 < process.sigma_max < 1e6
    with pytest.raises(ValueError, match="rescale_betas_zero_snr=True needs prediction_type"):
        process_of(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))


def test_of_learned_variances_the_first_half_is_used() -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    denoiser = from_diffusers(unet2d(out_channels=6), scheduler)
    assert Auto(nfe=3).sample(denoiser, [0]).shape == (1, 3, 8, 8)


def test_classes_are_labels_and_no_class_is_minus_one_where_the_model_has_one() -> None:
    scheduler = diffusers.DDPMScheduler()
    denoiser = from_diffusers(unet2d(num_class_embeds=5), scheduler)
    x, labels = noise(2, 3, 8, 8), torch.tensor([1, 4])
    assert denoiser.num_classes == 5
    assert torch.equal(denoiser(x, 1.0, labels), denoiser(x, 1.0, torch.eye(5)[labels]))
    with pytest.raises(ValueError, match="has no label for no class"):
        denoiser(x, 1.0)
    with_null = from_diffusers(unet2d(num_class_embeds=5), scheduler, null_class=4)
    assert torch.equal(with_null(x, 1.0), with_null(x, 1.0, torch.tensor([4, 4])))


@torch.no_grad()
def test_a_diffusion_transformer_is_guided_by_its_label_of_no_class() -> None:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "patch_size": 2}
    model = diffusers.DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, num_embeds_ada_norm=10)
    denoiser = from_diffusers(model.eval(), diffusers.DDIMScheduler())
    x, labels, none = noise(2, 4, 4, 4), torch.tensor([1, 9]), torch.tensor([-1, -1])
    given, without = denoiser(x, 2.0, labels), denoiser(x, 2.0, none)
    assert relative(given, without) > 1e-6
    assert relative(ClassifierFree(denoiser, 3.0)(x, 2.0, labels), without + 3 * (given - without)) < ROUNDING


def test_prompts_are_the_condition_and_the_empty_prompt_guides() -> None:
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
        norm_num_groups=4,
        attention_head_dim=2,
    )
    denoiser = from_diffusers(model, diffusers.PNDMScheduler())
    assert (denoiser.event_shape, denoiser.sigma_data) == ((4, 8, 8), 1.0)
    prompts, empty = noise(2, 3, 6), torch.zeros(3, 6)
    guided = ClassifierFree(denoiser, 2.0, null=empty)
    x = noise(2, 4, 8, 8)
    with torch.no_grad():
        conditional, other = (denoiser(x, 1.0, c) for c in (prompts, empty.expand(2, 3, 6)))
        assert relative(guided(x, 1.0, prompts), other + 2 * (conditional - other)) < ROUNDING
    with pytest.raises(ValueError, match="takes the embeddings of a prompt"):
        denoiser(x, 1.0)


def test_several_inputs_are_packed_into_one_condition() -> None:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "patch_size": 2}
    widths = {
        "joint_attention_dim": 6,
        "caption_projection_dim": 8,
        "pooled_projection_dim": 5,
        "pos_embed_max_size": 4,
    }
    model = diffusers.SD3Transformer2DModel(**sizes, **widths, in_channels=4, out_channels=4).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    shapes = {"encoder_hidden_states": (3, 6), "pooled_projections": (5,)}
    with pytest.raises(ValueError, match=r"condition_shapes must name the inputs of SD3Transformer2DModel"):
        from_diffusers(model, scheduler)
    denoiser = from_diffusers(model, scheduler, condition_shapes=shapes)
    text, pooled, x = noise(2, 3, 6), noise(2, 5), noise(2, 4, 4, 4)
    condition = denoiser.pack(encoder_hidden_states=text, pooled_projections=pooled)
    with torch.no_grad():
        inputs = {"encoder_hidden_states": text, "pooled_projections": pooled}
        expected = x - 0.5 * model(x, timestep=torch.tensor([500.0, 500.0]), **inputs).sample
        assert relative(denoiser(2 * x, 1.0, condition), expected) < ROUNDING
    assert Auto(nfe=3).sample(denoiser, [0, 1], condition=condition[:1]).shape == (2, 4, 4, 4)
    with pytest.raises(ValueError, match="inputs must be those of condition_shapes"):
        denoiser.pack(encoder_hidden_states=text)


def test_a_pipeline_is_a_denoiser() -> None:
    pipeline = diffusers.DDPMPipeline(UNET, diffusers.DDPMScheduler())
    denoiser = denoiser_of(pipeline)
    assert (denoiser.event_shape, denoiser.sigma_data) == ((3, 8, 8), 0.5)
    with pytest.raises(ValueError, match="condition must be None for UNet2DModel"):
        denoiser(noise(1, 3, 8, 8), 1.0, torch.zeros(1, 4))
    with pytest.raises(TypeError, match="pipeline must have a scheduler and either a unet or a transformer"):
        denoiser_of(UNET)


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"scheduler must be a scheduler of diffusers, such as pipeline.scheduler"):
        from_diffusers(UNET, diffusers.DDPMScheduler().config)
    with pytest.raises(TypeError, match="model must be a module"):
        from_diffusers(UNET.config, diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="got CMStochasticIterativeScheduler"):
        from_diffusers(UNET, diffusers.CMStochasticIterativeScheduler())
    with pytest.raises(ValueError, match=r"sigma_data must be that of EDMEulerScheduler, 0.5"):
        from_diffusers(UNET, diffusers.EDMEulerScheduler(), sigma_data=2.0)
