import json

import pytest
from benchmarks.published_files import edm2_file, edm2_weights, published_file, weights
from safetensors.torch import load_file

KWARGS = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet", "model_channels": 8, "label_dim": 2}
KWARGS |= {"channel_mult": [1], "num_blocks": 1}
EDM2 = {"img_resolution": 8, "img_channels": 4, "label_dim": 3, "model_channels": 16, "channel_mult": [1, 4]}
EDM2 |= {"num_blocks": 1, "attn_resolutions": [4], "logvar_channels": 8}


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "network.pkl"
    path.write_bytes(published_file("EDMPrecond", KWARGS, weights(KWARGS)))
    return path


def test_a_published_network_becomes_a_checkpoint_that_the_other_commands_open(openedm, pickled, tmp_path):
    done = openedm("convert", pickled, tmp_path / "made")
    assert done.status == 0, done.err
    for line in ("SongUNet", "EDMPrecond", "label_dim", "cifar10-32x32.zip", "0 to inf, sigma_data 0.5"):
        assert line in done.out
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["config.json", "model.safetensors"]
    assert "SongUNet" in openedm("info", tmp_path / "made").out
    drawn = openedm("sample", tmp_path / "made", tmp_path / "x.png", "--format=grid", "--seeds=0-1", "--nfe=4")
    assert drawn.status == 0, drawn.err


def test_a_checkpoint_goes_out_and_comes_back_the_same(openedm, pickled, tmp_path):
    assert openedm("convert", pickled, tmp_path / "made").status == 0
    assert openedm("convert", tmp_path / "made", tmp_path / "out.safetensors").status == 0
    assert json.loads((tmp_path / "out.json").read_text())["class_name"] == "EDMPrecond"
    assert all(name.startswith("model.") for name in load_file(tmp_path / "out.safetensors"))
    assert openedm("convert", tmp_path / "out.safetensors", tmp_path / "again").status == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_published_network_of_edm2_becomes_a_checkpoint_goes_out_and_comes_back_the_same(openedm, tmp_path):
    state = edm2_weights(EDM2)
    (tmp_path / "network.pkl").write_bytes(edm2_file(EDM2, state))
    done = openedm("convert", tmp_path / "network.pkl", tmp_path / "made")
    assert done.status == 0, done.err
    assert "Precond" in done.out
    info = openedm("info", tmp_path / "made").out
    assert "EDM2UNet(model_channels=16" in info
    fixed = [name for name in state if name.endswith(("freqs", "phases"))]
    assert f"{sum(t.numel() for name, t in state.items() if name not in fixed):,}" in info
    assert openedm("convert", tmp_path / "made", tmp_path / "out.safetensors").status == 0
    assert load_file(tmp_path / "out.safetensors").keys() == state.keys()
    assert openedm("convert", tmp_path / "out.safetensors", tmp_path / "again").status == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_checkpoint_keeps_the_range_of_noise_levels_of_a_file(openedm, tmp_path):
    kwargs = {**KWARGS, "sigma_min": 0.01, "sigma_max": 50.0}
    (tmp_path / "a.pkl").write_bytes(published_file("EDMPrecond", kwargs, weights(KWARGS)))
    done = openedm("convert", tmp_path / "a.pkl", tmp_path / "made")
    assert done.status == 0, done.err
    assert "0.01 to 50, sigma_data 0.5" in done.out
    assert "0.01 to 50" in openedm("info", tmp_path / "made").out


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "evil.pkl",
            [],
            "evil.pkl: the file names 'posix.system', which is not part of a published network, at",
        ),
        ("missing.pkl", [], "source must be a file or a checkpoint"),
        ("other.pt", [], "source must end in .pkl or .safetensors"),
        ("evil.pkl", ["--weights=raw"], "weights must be 'ema' for a file"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_line_and_leaves_nothing(openedm, tmp_path, name, arguments, message):
    mark = tmp_path / "mark"
    for file in ("evil.pkl", "other.pt"):
        (tmp_path / file).write_bytes(b"\x80\x04cposix\nsystem\nX\x06\x00\x00\x00touch m\x85R.")
    done = openedm("convert", tmp_path / name, tmp_path / "made", *arguments)
    assert done.status == 1
    assert message in done.err
    assert not (tmp_path / "made").exists()
    assert not mark.exists()


def test_a_checkpoint_gets_no_name_of_a_file(openedm, pickled, tmp_path):
    done = openedm("convert", pickled, tmp_path / "made.safetensors")
    assert (done.status, "out must be a folder for the checkpoint of" in done.err) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["info"], ["sample", "out"]])
def test_commands_for_checkpoints_say_how_a_published_network_becomes_one(openedm, pickled, tmp_path, arguments):
    command, *out = arguments
    done = openedm(command, pickled, *(tmp_path / name for name in out))
    assert done.status == 1
    assert f"of a published network, openedm convert {pickled} FOLDER makes one" in done.err


def test_nothing_is_overwritten(openedm, pickled, tmp_path):
    (tmp_path / "made").mkdir()
    done = openedm("convert", pickled, tmp_path / "made")
    assert (done.status, "exists already" in done.err) == (1, True)
    assert list((tmp_path / "made").iterdir()) == []


def test_text_of_a_file_cannot_command_the_terminal(openedm, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(published_file("EDMPrecond", {**KWARGS, "\x1b[2J": "\x1b]0;x\x07"}, weights(KWARGS)))
    done = openedm("convert", path, tmp_path / "made")
    assert done.status == 1
    assert "\x1b" not in done.out + done.err
