"""What pipelines of diffusers gain from a sampler of this library: errors at equal evaluations of the model.

    python -m benchmarks.diffusers_pipelines --out pipelines.json

For each problem, all schedulers start from the same state at the model's highest noise level, and their samples are
compared with the converged solution of the probability-flow ODE from that state. The error of a scheduler is the median
over samples of the root mean square over coordinates. Of diffusers, every scheduler is tried with every option that it
has for its levels (Karras's, the spacing of the timesteps, the order), and the lowest error of all counts.

| problem | model | its scheduler |
|---|---|---|
| mixture | exact noise for Gaussians around digits, 8 × 8 | DDPM, linear betas |
| mixture v | the same, v, cosine betas | DDPM, squaredcos_cap_v2 |
| mixture flow | the same, the velocity of flow matching | FlowMatchEuler |
| mixture, latents' betas | the same as the first | DDPM, scaled_linear |
| digits | UNet2DModel trained on digits here | DDPM, linear betas |
| digits 16 × 16 | the same, another size and other betas | DDPM, scaled_linear |
| text to image | StableDiffusionPipeline, random weights, guidance 5 | PNDM, scaled_linear |
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from benchmarks.common import interleaved, machine
from benchmarks.diffusers_rivals import rivals, starting_scale
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openedm import Heun, Sampler
from openedm.guidance import ClassifierFree
from openedm.interop.diffusers import Scheduler, from_diffusers, process_of
from openedm.levels import LogLinear
from openedm.sampling import RK4

BUDGETS = (6, 8, 12, 20, 35)
MIXTURE_STD = 0.1
LATENTS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def digits() -> Tensor:
    """The digits of scikit-learn, 8 × 8, in [−1, 1]."""
    return torch.tensor(load_digits().images[:, None] / 8 - 1)


class Mixture(nn.Module):
    """The exact output of a model of a mixture of Gaussians around digits, called as models of diffusers are."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.process = process_of(scheduler)
        self.register_buffer("centres", digits()[:300].flatten(1))

    def forward(self, x: Tensor, timestep: Any, return_dict: bool = True) -> tuple[Tensor]:
        """The output at the model's input x and time."""
        times = torch.as_tensor(timestep).double().flatten()[:1]
        sigma = self.process.sigma(times).clamp(max=1e9)
        noisy = x.double().flatten(1) / self.process.input_scale(sigma)
        variance = sigma**2 + MIXTURE_STD**2
        weights = torch.softmax(-torch.cdist(noisy, self.centres).square() / (2 * variance), dim=1)
        denoised = (noisy * MIXTURE_STD**2 + weights @ self.centres * sigma**2) / variance
        c_skip, c_out = self.process.preconditioning.prediction(self.process.sigma_data).denoising(sigma)
        return (((denoised - c_skip * noisy) / c_out).reshape(x.shape),)


@dataclass(frozen=True)
class Problem:
    """A model, its scheduler and the state at which all runs start, as the model sees it."""

    model: Callable[[Tensor, Any], Tensor]
    scheduler: Any
    start: Tensor
    sigma_data: float


def exact(scheduler: Any, count: int) -> Problem:
    """The exact mixture."""
    model = Mixture(scheduler)
    start = torch.randn((count, 1, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(lambda x, t: model(x, t)[0], scheduler, start, 0.5)


def learned(unet: nn.Module, scheduler: Any, images: Tensor, steps: int) -> nn.Module:
    """The network after training on images, with averaged weights."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(unet.parameters(), 2e-3)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    losses = []
    for _ in range(steps):
        y = images[torch.randint(len(images), (64,))]
        noise, times = torch.randn_like(y), torch.randint(1000, (64,))
        loss = (unet(scheduler.add_noise(y, noise, times), times).sample - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update_parameters(unet)
        losses.append(loss.item())
    print(f"{steps} steps of training, loss {np.mean(losses[-100:]):.4f}", flush=True)
    return average.module


def trained(count: int, steps: int, size: int, betas: Mapping[str, Any], weights: Path | None = None) -> Problem:
    """A UNet2DModel that has learned the noise in digits of some size, with averaged weights.

    Weights are read from the folder `weights` if they are there, and written there otherwise.
    """
    channels = (16, 32) if size == 8 else (16, 32, 32)
    blocks = {
        "down_block_types": ("DownBlock2D",) * len(channels),
        "up_block_types": ("UpBlock2D",) * len(channels),
    }
    unet = diffusers.UNet2DModel(
        size, 1, 1, block_out_channels=channels, layers_per_block=1, norm_num_groups=8, **blocks
    )
    scheduler = diffusers.DDPMScheduler(clip_sample=False, **betas)
    images = nn.functional.interpolate(digits().float(), size=(size, size), mode="bilinear")
    kept = None if weights is None else weights / f"digits-{size}-{steps}.pt"
    if kept is not None and kept.exists():
        unet.load_state_dict(torch.load(kept, weights_only=True))
    else:
        unet = learned(unet, scheduler, images, steps)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(unet.state_dict(), kept)
    unet.eval()
    start = torch.randn((count, 1, size, size), generator=torch.Generator().manual_seed(0))
    return Problem(lambda x, t: unet(x, t).sample, scheduler, start, 0.5)


def text_to_image(count: int) -> tuple[Any, dict[str, Any]]:
    """A StableDiffusionPipeline with random weights, and the arguments of its call."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    pipeline = diffusers.StableDiffusionPipeline(
        vae, None, None, unet.eval(), diffusers.DDIMScheduler(**LATENTS, clip_sample=False, steps_offset=1), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    prompt = torch.randn(count, 4, 16, generator=torch.Generator().manual_seed(1))
    return pipeline, {
        "prompt_embeds": prompt,
        "negative_prompt_embeds": torch.zeros_like(prompt),
        "guidance_scale": 5.0,
        "output_type": "latent",
    }


@torch.no_grad()
def sample(problem: Problem, scheduler: Any, evaluations: int) -> Tensor | None:
    """The samples of the loop of an unconditional pipeline, with at most so many evaluations; None if it fails."""
    heun = "Heun" in type(scheduler).__name__
    scheduler.set_timesteps((evaluations + 1) // 2 if heun else evaluations)
    if len(scheduler.timesteps) > evaluations:  # PNDM and the like
        return None
    x = problem.start * scheduler.init_noise_sigma * starting_scale(scheduler)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(problem.model(scaled, t), t, x).prev_sample
    return x.double()


@torch.no_grad()
def reference(problem: Problem) -> tuple[Tensor, float]:
    """The converged solution from the start, and its distance from that with half as many steps."""
    denoiser = from_diffusers(
        nn.Identity(),
        problem.scheduler,
        call=lambda model, x, t, inputs: problem.model(x.to(problem.start), t),
        sigma_data=0.5,
    )
    highest = min(denoiser.sigma_max / (1 + 1e-6), 1e5)
    scale = float(process_of(problem.scheduler).input_scale(torch.tensor(highest, dtype=torch.float64)))
    noise = problem.start.double() / (scale * highest)
    low = max(denoiser.sigma_min * (1 + 1e-6), 1e-3)
    fine, coarse = (
        Sampler(LogLinear(steps, low, highest), solver=RK4()).sample(denoiser, noise=noise) for steps in (200, 100)
    )
    return fine, error(coarse, fine)


def error(samples: Tensor, expected: Tensor) -> float:
    """The median over samples of the root mean square distance."""
    return float((samples - expected).flatten(1).square().mean(1).sqrt().median())


Run = Callable[[Any, int], Tensor | None]


def errors_of_diffusers(run: Run, scheduler: Any, budget: int, expected: Tensor) -> dict[str, float]:
    """The error of each scheduler of diffusers, with all its options, that gives finite samples."""
    errors: dict[str, float] = {}
    for name, theirs in rivals(scheduler).items():
        try:
            samples = run(theirs, budget)
        except Exception:  # A combination of options that it does not have, or that fails inside.
            continue
        if samples is not None and bool(samples.isfinite().all()):
            errors[name] = error(samples, expected)
    return errors


def compare(name: str, run: Run, scheduler: Any, expected: Tensor, sigma_data: float) -> list[dict[str, Any]]:
    """The errors of ours, of the pipeline's own scheduler and of the best of diffusers, at each budget."""
    ours = {
        "Auto": Scheduler.from_config(scheduler, sigma_data=sigma_data),
        "Heun": Scheduler.from_config(scheduler, sampler=Sampler(solver=Heun()), sigma_data=sigma_data),
    }
    rows = []
    for budget in BUDGETS:
        errors = errors_of_diffusers(run, scheduler, budget, expected)
        best = min(errors, key=errors.__getitem__)
        samples = run(ours["Auto"], budget)
        assert samples is not None
        mine = error(samples, expected)
        rows.append(
            {
                "problem": name,
                "evaluations": budget,
                "ours": mine,
                "best": best,
                "best_error": errors[best],
                "ratio": errors[best] / mine,
                "all": errors,
            }
        )
        print(
            f"| {name} | {budget} | {mine:.2e} | {errors[best]:.2e} | {best} | {errors[best] / mine:.2f} |", flush=True
        )
    return rows


def pipeline_rows(count: int) -> tuple[list[dict[str, Any]], float]:
    """The text-to-image pipeline, called as it is; and the distance of two references."""
    pipeline, options = text_to_image(count)
    scheduler = pipeline.scheduler
    noise = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    process = process_of(scheduler)

    def run(theirs: Any, budget: int) -> Tensor | None:
        pipeline.scheduler = theirs
        steps = (budget + 1) // 2 if "Heun" in type(theirs).__name__ else budget
        theirs.set_timesteps(steps)
        latents = noise * starting_scale(theirs)
        return pipeline(**options, num_inference_steps=steps, latents=latents).images.double()

    denoiser = ClassifierFree(from_diffusers(pipeline.unet, scheduler), 5.0, null=torch.zeros(4, 16))
    high = process.sigma_max
    start = noise.double() * ((1 + high**2) ** 0.5 / high)
    fine, coarse = (
        Sampler(LogLinear(steps, process.sigma_min, high), solver=RK4()).sample(
            denoiser, noise=start, condition=options["prompt_embeds"]
        )
        for steps in (160, 80)
    )
    return compare("text to image", run, scheduler, fine, 1.0), error(coarse, fine)


def overhead() -> dict[str, Any]:
    """Microseconds of a step, ours and theirs, on latents 2 × 4 × 64 × 64."""
    x = torch.randn(2, 4, 64, 64)

    def run(scheduler: Any) -> Callable[[], None]:
        def steps() -> None:
            scheduler.set_timesteps(20)
            sample = x
            for t in scheduler.timesteps:
                sample = scheduler.step(x, t, sample).prev_sample

        return steps

    kinds = {
        "ours": Scheduler(),
        "UniPC": diffusers.UniPCMultistepScheduler(),
        "DPMSolverMultistep": diffusers.DPMSolverMultistepScheduler(),
    }
    times = interleaved({name: run(scheduler) for name, scheduler in kinds.items()}, 3.0)
    return {name: time.median / 20 * 1e6 for name, time in times.items()}


def main() -> None:
    """Read options, run every problem, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="samples of each problem")
    parser.add_argument("--steps", type=int, default=1500, help="steps of training of the digits' models")
    parser.add_argument("--weights", type=Path, default=None, help="a folder in which trained weights are kept")
    parser.add_argument("--only", nargs="*", default=None, help="names of problems")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for all numbers")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    cosine = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    problems: dict[str, Callable[[], Problem]] = {
        "mixture": lambda: exact(diffusers.DDPMScheduler(clip_sample=False), options.samples),
        "mixture v": lambda: exact(cosine, options.samples),
        "mixture flow": lambda: exact(flow, options.samples),
        "mixture, latents' betas": lambda: exact(
            diffusers.DDPMScheduler(clip_sample=False, **LATENTS), options.samples
        ),
        "digits": lambda: trained(options.samples, options.steps, 8, {}, options.weights),
        "digits 16 × 16": lambda: trained(options.samples, options.steps, 16, LATENTS, options.weights),
    }
    rows: list[dict[str, Any]] = []
    converged: dict[str, float] = {}
    print("| problem | evaluations | ours | best of diffusers | which | ratio |\n|---|---|---|---|---|---|")
    for name, make in problems.items():
        if options.only is not None and name not in options.only:
            continue
        problem = make()
        expected, converged[name] = reference(problem)
        run: Run = lambda theirs, budget, problem=problem: sample(problem, theirs, budget)  # noqa: E731
        rows += compare(name, run, problem.scheduler, expected, problem.sigma_data)
    if options.only is None or "text to image" in options.only:
        found, converged["text to image"] = pipeline_rows(min(options.samples, 8))
        rows += found
    ratios = np.array([row["ratio"] for row in rows])
    microseconds = overhead()
    print(f"geometric mean of the ratios {np.exp(np.log(ratios).mean()):.2f}, lowest {ratios.min():.2f}")
    print("microseconds a step:", {name: round(value) for name, value in microseconds.items()})
    print("distance of two references:", {name: f"{value:.1e}" for name, value in converged.items()})
    if options.out is not None:
        result = {"machine": machine(("diffusers",)), "rows": rows, "converged": converged, "step_us": microseconds}
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
