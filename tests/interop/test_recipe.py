"""Every network of the design space against the same arithmetic written out a second time."""

import math
from itertools import product

import pytest
import torch

from golden import golden_arrays, golden_json, needs_golden
from interop.recipe import evaluate
from openedm.interop import edm_network, published_names
from openedm.interop.arguments import DEFAULTS

INDEX = {e["name"]: e for e in golden_json("networks/index.json").get("entries", [])}
SMALL = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 5,
    "augment_dim": 4,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": (1, 2, 1),
    "num_blocks": 2,
    "attn_resolutions": (4,),
}
ADM = {**SMALL, "model_type": "DhariwalUNet", "num_blocks": 1}


@needs_golden
@pytest.mark.parametrize("name", INDEX)
def test_the_recipe_is_the_reference(name):
    kwargs, arrays = INDEX[name]["kwargs"], golden_arrays(f"networks/{INDEX[name]['file']}")
    tensors = {key: torch.from_numpy(value).double() for key, value in arrays.items()}
    weights = {key.removeprefix("sd/model."): value for key, value in tensors.items() if key.startswith("sd/")}
    labels, augment = tensors.get("class_labels"), tensors.get("augment_labels")
    options = {**DEFAULTS[kwargs["model_type"]], **kwargs}
    out = evaluate(weights, options, tensors["x_in"], tensors["c_noise"], labels, augment)
    torch.testing.assert_close(out, tensors["F"], rtol=1e-4, atol=1e-4 * tensors["F"].std().item())


@pytest.mark.parametrize(
    "options",
    [
        *(
            {**SMALL, "encoder_type": encoder, "decoder_type": decoder, "resample_filter": taps}
            for encoder, decoder, taps in product(
                ["standard", "skip", "residual"], ["standard", "skip"], [(1, 1), (1, 3, 3, 1)]
            )
        ),
        {**SMALL, "embedding_type": "fourier", "channel_mult_noise": 2, "channel_mult_emb": 1},
        {**SMALL, "channel_mult_noise": 3, "attn_resolutions": (8, 2)},
        # Filters of odd length run at sizes that stay odd only: 9, 5, 3, named 9, 4, 2.
        {**SMALL, "img_resolution": 9, "resample_filter": (1, 2, 1), "encoder_type": "residual"},
        {**SMALL, "img_resolution": 9, "resample_filter": (1, 2, 3), "encoder_type": "skip", "decoder_type": "skip"},
        {**SMALL, "img_resolution": 17, "resample_filter": (1, 4, 6, 4, 1)},
        {**ADM, "model_channels": 16, "channel_mult": (1, 2), "attn_resolutions": (8, 4)},
        {**ADM, "model_channels": 32, "channel_mult": (1, 2, 1), "attn_resolutions": (4, 2)},
        {**ADM, "model_channels": 64, "channel_mult": (1, 2), "channel_mult_emb": 2},
        {**ADM, "model_channels": 32, "channel_mult": (1, 2, 5), "attn_resolutions": (4, 2)},
    ],
    ids=lambda options: "-".join(str(value) for name, value in options.items() if SMALL.get(name) != value),
)
def test_a_network_with_any_weights_is_what_the_recipe_makes_of_them(options):
    generator = torch.Generator().manual_seed(0)
    options = {**DEFAULTS[options["model_type"]], **options}
    network = edm_network(options, out_channels=4).double().eval()
    for weight in network.parameters():
        scale = 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5
        weight.data = scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    names = published_names(network)
    weights = {names[own]: value for own, value in network.state_dict().items()}
    if "map_noise.freqs" in weights:
        weights["map_noise.freqs"] = weights["map_noise.freqs"] / (2 * math.pi)
    size = options["img_resolution"]
    x = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    c_noise = torch.tensor([-0.5, 3.0], dtype=torch.float64)
    onehot = torch.eye(5, dtype=torch.float64)[[1, 4]]
    augment = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = network(x, c_noise, onehot, augment), evaluate(weights, options, x, c_noise, onehot, augment)
    # The network's own positional frequencies are rounded to float32.
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * expected.std().item())
