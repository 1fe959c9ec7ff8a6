import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from openedm.networks import MLP
from openedm.objective import EDM
from openedm.training import Model, find_checkpoint, read_model, save_checkpoint


def rows(printed):
    """The table as a dict: names are up to two spaces or more."""
    return dict(line.split("  ", 1) for line in printed.splitlines() if "  " in line)


def described(result):
    assert result.status == 0
    return {name.strip(): value.strip() for name, value in rows(result.out).items()}


def test_it_tells_what_the_denoiser_is_what_it_was_trained_on_and_how_far(openedm, digits_run):
    folder = find_checkpoint(digits_run)
    facts = described(openedm("info", digits_run))
    weights = load_file(folder / "model.safetensors")
    network = read_model(folder).build().network
    parameters = sum(weights[name].numel() for name, _ in network.named_parameters())
    size = sum(p.stat().st_size for p in folder.iterdir())
    assert facts == {
        "checkpoint": str(folder),
        "network": "DDPMpp(model_channels=8, channel_mult=(1,), channel_mult_emb=4, num_blocks=1, "
        "attn_resolutions=None, dropout=0.1, patch_size=1)",
        "parameters": f"{parameters:,}",
        "preconditioning": "EDM()",
        "sample": "1 × 8 × 8 image in [-1, 1]",
        "classes": "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        "sigma_data": f"{json.loads((folder / 'config.json').read_text())['model']['init_args']['sigma_data']:.6g}",
        "weights": "float32",
        "images seen": "640 of 640",
        "steps": "10, 0 skipped as not finite",
        "objective": str(EDM()),
        "size on disk": f"{size / 2**20:.1f} MiB",
    }


def test_an_earlier_checkpoint_can_be_named(openedm, digits_run):
    facts = described(openedm("info", digits_run / "checkpoints" / "000000000320"))
    assert facts["images seen"] == "320 of 640"
    assert facts["steps"].startswith("5, ")


def test_vectors_without_classes_are_told_as_such(openedm, toy_run):
    facts = described(openedm("info", toy_run))
    assert facts["sample"] == "2"
    assert facts["classes"] == "none"


def test_a_model_without_training_state_is_described_as_far_as_it_goes(openedm, tmp_path):
    model = Model(MLP(4, 1), event_shape=(3,), num_classes=2, images=False)
    save_checkpoint(tmp_path / "a", model, model.build().network.state_dict())
    facts = described(openedm("info", tmp_path / "a"))
    assert facts["classes"] == "2"
    assert facts.keys().isdisjoint({"images seen", "steps", "objective"})


@pytest.mark.parametrize("content", ["{}", '{"images": 1}', '{"options": 3}', "nonsense"])
def test_a_training_state_that_makes_no_sense_is_an_error_that_names_the_file(content, openedm, digits_run, tmp_path):
    copy = shutil.copytree(find_checkpoint(digits_run), tmp_path / "copy")
    (copy / "training.json").write_text(content)
    result = openedm("info", copy)
    assert result.status == 1
    assert str(copy / "training.json") in result.err
    assert result.err.count("\n") == 1


def test_nothing_of_torch_is_left_changed(openedm, toy_run):
    before = torch.get_rng_state()
    described(openedm("info", toy_run))
    assert torch.equal(torch.get_rng_state(), before)
