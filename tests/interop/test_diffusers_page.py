"""docs/interop.md: its examples run, on tiny models with random weights."""

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## diffusers\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION.group(1) if SECTION else "", re.DOTALL)


class Pipeline(diffusers.StableDiffusionPipeline):
    """A pipeline whose prompts are random embeddings."""

    def encode_prompt(self, prompt: str, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(len(prompt))
        return torch.randn(1, 3, 6, generator=generator), torch.zeros(1, 3, 6)


def text_to_image() -> Any:
    unet = diffusers.UNet2DConditionModel(
        8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2, sample_size=8)
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(**options, clip_sample=False, steps_offset=1)
    pipeline = Pipeline(vae, None, None, unet.eval(), scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flow_transformer() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 4, "patch_size": 2}
    widths = {"joint_attention_dim": 4096, "caption_projection_dim": 8, "pooled_projection_dim": 2048}
    return diffusers.SD3Transformer2DModel(
        **sizes, **widths, in_channels=4, out_channels=4, pos_embed_max_size=4
    ).eval()


@pytest.mark.filterwarnings("ignore:.*CLIPImageProcessor.*")
def test_the_examples_run() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "pipeline": text_to_image(),
        "transformer": flow_transformer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "embeddings": torch.zeros(1, 77, 4096),
        "pooled": torch.zeros(1, 2048),
    }
    assert len(EXAMPLES) == 5
    with torch.no_grad():
        for example in EXAMPLES:
            exec(example, names)
    assert names["latents"].shape == (2, 4, 8, 8)
    assert names["x"].shape == (1, 4, 4, 4)
    assert len(names["images"]) == 2
