"""Pictures through an autoencoder and back: encode, train, sample, evaluate, resume, on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.published_files import edm2_file, edm2_weights
from PIL import Image

from autoencoders import autoencoder, save_autoencoder
from openedm.data import ImageFolder, Latents
from openedm.exploring import Runs, State, run_figures
from openedm.exploring.problems import Budget
from openedm.generation import checkpoint_sampler, open_images
from openedm.ground.choices import from_config
from openedm.levels import Karras
from openedm.sampling import Sampler
from openedm.training import read_model
from picture_files import encode, pixels

UNET = ["--network=DDPMpp", "--network.model_channels=8", "--network.channel_mult=[1]", "--network.num_blocks=1"]
TRAIN = ["--data=Latents", *UNET, "--options.batch_size=4", "--options.validate_every=0", "--tracker=none"]
SHORT = Sampler(Karras(3))
VALUES = ["--extractor=Values", "--num_bootstrap=0", "--num_splits=2"]


@pytest.fixture(scope="module")
def folder(openedm, tmp_path_factory):
    """Twelve pictures of 18×25 in two classes, their latents of 16×24 pixels, and a run on these."""
    root = tmp_path_factory.mktemp("latents")
    for i in range(12):
        path = root / "pictures" / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels(i, (25, 18))))
    vae = save_autoencoder(root / "vae")
    done = openedm("data", "encode", root / "pictures", root / "set", "--vae", vae, "--size=16x24", "--per_shard=5")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("12 latents of 4×8×12, 0.1 MiB in 3 shards; about ")
    assert lines[0].endswith(" MiB of memory for batches of 16 on cpu")
    assert lines[-1] == f"12 latents of 4×8×12 in 2 classes in 3 shards: {root / 'set'}"
    trained = openedm("train", root / "run", *TRAIN, "--data.path", root / "set", "--options.images=8")
    assert trained.status == 0, trained.err
    assert "data     12 latents of 4×8×12 for images of 3×16×24 in 2 classes, sigma_data 0.5000" in trained.out
    return root


def test_the_set_names_its_pictures_and_its_autoencoder(folder):
    manifest = json.loads((folder / "set" / "manifest.json").read_text())
    pictures = from_config(ImageFolder, manifest["images_of"])
    assert pictures == ImageFolder(str(folder / "pictures"), resolution="16x24", channels=3)
    identity = Latents(str(folder / "set")).load().autoencoder
    assert (identity.path, identity.hub, identity.image_shape) == (str(folder / "vae"), False, (3, 16, 24))
    model = read_model(folder / "run" / "checkpoints" / "000000000008")
    assert model.autoencoder == identity
    with torch.no_grad():
        wanted = autoencoder().encode(pictures.load().fetch([3])[0]).latent_dist.mean
    torch.testing.assert_close(Latents(str(folder / "set")).load().pairs([3])[:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_grids_and_samples_are_pictures_that_the_autoencoder_decoded(openedm, folder, tmp_path):
    with Image.open(folder / "run" / "figures" / "samples-000000000008.png") as grid:
        assert (grid.mode, grid.width) == ("RGB", 2 * 24 + 1)
    path = tmp_path / "path.png"
    drawn = openedm("sample", folder / "run", tmp_path / "out", "--seeds=0-2", "--nfe=3", "--trajectory", path)
    assert drawn.status == 0, drawn.err
    with Image.open(path) as figure:
        assert figure.mode.startswith("RGB")
    latents = openedm("sample", folder / "run", tmp_path / "z.npz", "--seeds=0-2", "--nfe=3", "--decode=false")
    assert latents.status == 0, latents.err
    with np.load(tmp_path / "z.npz") as arrays, torch.no_grad():
        z = torch.from_numpy(arrays["samples"]).float()
    with torch.no_grad():
        wanted = autoencoder().decode(z).sample.add(1).mul(127.5).clamp(0, 255)
    for i, image in enumerate(wanted):
        with Image.open(tmp_path / "out" / f"{i:06d}.png") as picture:
            difference = torch.from_numpy(np.array(picture)).permute(2, 0, 1) - image
        assert float(difference.abs().max()) < 0.6
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["autoencoder"] == read_model(folder / "run" / "checkpoints" / "000000000008").autoencoder.digest
    told = openedm("info", folder / "run").out
    assert f"latents of       {folder / 'vae'} (" in told


def test_decoded_samples_are_scored_against_the_pictures(openedm, folder, tmp_path):
    """And so is what the autoencoder makes of the pictures themselves, the floor of every model of its latents."""
    scored = openedm("evaluate", folder / "run", "--num=6", "--nfe=3", *VALUES, "--out", tmp_path / "report.json")
    assert scored.status == 0, scored.err
    assert f"real data: ImageFolder(path={folder / 'pictures'}, resolution=(16, 24), channels=3)" in scored.out
    alone = openedm("evaluate", folder / "set", *VALUES)
    assert alone.status == 0, alone.err
    assert "12 generated to 12 real" in alone.out
    assert f"openedm evaluate {folder / 'set'}" in scored.out
    assert "openedm evaluate" not in alone.out
    few = open_images(folder / "set", num=4)
    assert (few.event_shape, few.count, few.num_classes) == ((3, 16, 24), 4, 2)
    [(x, labels)] = few.batches(range(4))
    assert x.shape == (4, 3, 16, 24)
    assert labels.tolist() == [0, 0, 1, 1]
    refused = openedm("evaluate", folder / "set", "--nfe=3", *VALUES)
    assert "nfe must not be given: the images in samples=" in refused.err


def test_another_autoencoder_is_refused_and_the_same_elsewhere_is_taken(openedm, folder, tmp_path):
    moved, other = shutil.copytree(folder / "vae", tmp_path / "moved"), save_autoencoder(tmp_path / "other", seed=1)
    options = ["--seeds=0-1", "--nfe=3"]
    refused = openedm("sample", folder / "run", tmp_path / "out", *options, "--vae", other)
    assert refused.status == 1
    assert "is another autoencoder" in refused.err
    assert not (tmp_path / "out").exists()
    assert openedm("sample", folder / "run", tmp_path / "out", *options, "--vae", moved).status == 0
    pointless = openedm("sample", folder / "run", tmp_path / "z.npz", "--vae", moved, "--decode=false")
    assert "vae must not be given, as samples are not decoded" in pointless.err
    gone = openedm("train", tmp_path / "run", *TRAIN, "--data.path", folder / "set", "--vae", tmp_path / "gone")
    assert "without them: --options.snapshot_every 0" in gone.err


def test_a_run_of_pictures_or_toys_takes_no_autoencoder(openedm, toy_run, tmp_path):
    refused = openedm("sample", toy_run, tmp_path / "x.npz", "--vae=vae")
    assert "vae must not be given, as samples of this model are no latents" in refused.err
    with pytest.raises(ValueError, match="decode must be true for a model that has no autoencoder"):
        checkpoint_sampler(toy_run, decode=False)


def test_a_run_on_latents_continues(openedm, folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    done = openedm("train", run, "--resume=true", "--options.images=16")
    assert done.status == 0, done.err
    assert "resumed  at 8 images" in done.out


def test_an_encoding_that_was_stopped_continues(openedm, folder, tmp_path, monkeypatch):
    arguments = ["data", "encode", folder / "pictures", tmp_path / "set", "--vae", folder / "vae", "--size=16x24"]
    arguments += ["--per_shard=5", "--batch_size=5"]
    from openedm.data.latent_writer import LatentWriter

    written, write = [], LatentWriter.write

    def stop(self, out, shard, *rest):
        written.append(shard.file)
        if len(written) == 2:
            raise KeyboardInterrupt
        return write(self, out, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(LatentWriter, "write", stop)
        stopped = openedm(*arguments)
    assert stopped.status == 130
    assert "stopped; the same command with --resume true continues" in stopped.out
    assert "resume it (--resume true)" in openedm(*arguments).err
    done = openedm(*arguments, "--resume=true")
    assert done.status == 0, done.err
    assert len(list((tmp_path / "set").glob("*.tar"))) == 3


def test_sources_of_other_kinds_are_encoded_or_refused(openedm, folder, tmp_path):
    encoded = ["data", "encode", "--vae", folder / "vae"]
    assert openedm("data", "convert", folder / "pictures", tmp_path / "shards", "--size=8").status == 0
    assert openedm(*encoded, tmp_path / "shards", tmp_path / "of_shards", "--mirror=true").status == 0
    assert len(Latents(str(tmp_path / "of_shards")).load()) == 24
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), dtype=np.uint8))
    assert openedm(*encoded, tmp_path / "x.npy", tmp_path / "of_arrays").status == 0
    refused = openedm(*encoded, tmp_path / "x.npy", tmp_path / "out", "--size=8")
    assert "size must not be given with a file of arrays" in refused.err
    missing = openedm("data", "encode", folder / "pictures", tmp_path / "out")
    assert "vae must be given" in missing.err
    assert Path(tmp_path / "out").exists() is False


def test_a_published_network_of_edm2_draws_pictures_with_its_autoencoder(openedm, folder, tmp_path):
    """Its samples are standard latents, z·(0.5/s) − m·(0.5/s), and its pixels are in [0, 1]; it goes out as it came."""
    settings = {"img_resolution": 8, "img_channels": 4, "label_dim": 3, "model_channels": 16, "channel_mult": [1, 4]}
    settings |= {"num_blocks": 1, "attn_resolutions": [4], "logvar_channels": 8}
    (tmp_path / "network.pkl").write_bytes(edm2_file(settings, edm2_weights(settings)))
    for out, options in (("plain", []), ("decoded", ["--vae", folder / "vae"])):
        done = openedm("convert", tmp_path / "network.pkl", tmp_path / out, *options)
        assert done.status == 0, done.err
    model = read_model(tmp_path / "decoded")
    assert (model.autoencoder.image_shape, model.autoencoder.pixels) == ((3, 16, 16), "unit")
    for out in ("plain", "decoded"):
        drawn = openedm("sample", tmp_path / out, tmp_path / f"{out}.npz", "--seeds=0-1", "--nfe=3")
        assert drawn.status == 0, drawn.err
    with np.load(tmp_path / "plain.npz") as plain, np.load(tmp_path / "decoded.npz") as decoded:
        m, s = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
        z = torch.from_numpy(plain["samples"]).float() * (2 * s)[:, None, None] + m[:, None, None]
        with torch.no_grad():
            wanted = 2 * autoencoder().decode(z).sample.clamp(0, 1) - 1
        torch.testing.assert_close(torch.from_numpy(decoded["samples"]).float(), wanted, rtol=0, atol=1e-3)
    assert openedm("convert", tmp_path / "decoded", tmp_path / "out.safetensors").status == 0
    assert openedm("convert", tmp_path / "plain", tmp_path / "plain.safetensors").status == 0
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    refused = openedm("convert", tmp_path / "decoded", tmp_path / "x.safetensors", "--vae", folder / "vae")
    assert "vae must not be given with a checkpoint" in refused.err


def test_runs_on_latents_are_compared_by_their_pictures_and_verified(openedm, folder, tmp_path):
    compared = openedm("compare", folder / "run", "--num=4", "--nfe=3", *VALUES, "--out", tmp_path / "report.json")
    assert compared.status == 0, compared.err
    told = openedm("verify", folder / "set")
    assert (told.status, "damaged" in told.out) == (0, False)
    copy = shutil.copytree(folder / "set", tmp_path / "set")
    content = bytearray((copy / "shard-000000.tar").read_bytes())
    content[2000] ^= 1
    (copy / "shard-000000.tar").write_bytes(content)
    assert "DAMAGED" in openedm("verify", copy).out


@pytest.mark.parametrize("view", ["samples", "walk", "levels", "compare"])
def test_the_page_shows_pictures_of_latents(folder, view, monkeypatch):
    shown = []
    grid = run_figures._grid
    monkeypatch.setattr(
        run_figures, "_grid", lambda x, *rest, **given: shown.append(x.shape) or grid(x, *rest, **given)
    )
    runs, state = Runs({"a": str(folder / "run"), "b": str(folder / "run")}), State(view=view, num=2, sampler=SHORT)
    for _, draw in run_figures.figures_of_runs(view).values():
        assert draw(state, runs, Budget()).axes
    assert {tuple(shape[1:]) for shape in shown} == {(3, 16, 24)}


def test_a_pushed_model_says_how_its_samples_are_decoded(openedm, folder, tmp_path):
    assert openedm("push", folder / "run", "owner/name", "--out", tmp_path / "card").status == 0
    text = (tmp_path / "card" / "README.md").read_text()
    assert 'images = denoiser.description.autoencoder.load("FOLDER OR NAME OF THE AUTOENCODER").decode(x)' in text
