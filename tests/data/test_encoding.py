import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from autoencoders import autoencoder, save_autoencoder
from openedm import Model, Options, Trainer
from openedm.data import Arrays, InMemory, LatentPairs, Latents, Pairs, Shards, Toy, encoding
from openedm.data.autoencoder import open_autoencoder
from openedm.data.dataset import Dataset, fetch_seeded
from openedm.networks import DDPMpp
from openedm.training import Augmentation
from openedm.training.loading import batches
from openedm.units import Units

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 3, 8, 12), dtype=np.uint8))
DATA = InMemory(IMAGES, torch.arange(10) % 2, class_names=("ant", "bee"))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_autoencoder(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def latents(vae: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents of ten images of two classes, in shards of four."""
    out = tmp_path_factory.mktemp("latents") / "set"
    encoding.encode(DATA, out, vae, batch_size=3, per_shard=4)
    return out


def same_files(one: Path, other: Path) -> bool:
    names = [sorted(path.name for path in folder.iterdir() if path.name != ".lock") for folder in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0])


@pytest.mark.parametrize("pixels", ["signed", "unit"])
def test_shards_hold_what_the_autoencoder_makes_of_the_pixels(vae: str, tmp_path: Path, pixels: str) -> None:
    """Black and white are −1 and 1 as diffusers trains autoencoders, or 0 and 1 as EDM2 uses one."""
    encoding.encode(DATA, tmp_path / "set", vae, pixels=pixels, batch_size=4, per_shard=100)
    x = IMAGES.float() / 255
    with torch.no_grad():
        wanted = autoencoder().encode(2 * x - 1 if pixels == "signed" else x).latent_dist
    pairs = Latents(str(tmp_path / "set")).load().pairs(range(10))
    torch.testing.assert_close(pairs, torch.stack([wanted.mean, wanted.std], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pixels", ["signed", "unit"])
def test_decoded_images_are_those_of_the_autoencoder_cut_to_its_pixels(vae: str, pixels: str) -> None:
    codec = open_autoencoder(vae, (3, 8, 12), pixels)
    z = 3 * torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = autoencoder().decode(z).sample
    low = -1 if pixels == "signed" else 0
    assert codec.latent_shape == (4, 4, 6)
    torch.testing.assert_close(codec.decode(z), 2 * (raw.clamp(low, 1) - low) / (1 - low) - 1, rtol=1e-4, atol=1e-5)


def test_large_images_are_decoded_in_parts(vae: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = open_autoencoder(vae, (3, 8, 12))
    z = torch.randn(5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(z)
    monkeypatch.setattr("openedm.data.autoencoder.MAX_PIXELS", 2 * 8 * 12 + 1)
    torch.testing.assert_close(codec.decode(z), whole, rtol=1e-4, atol=1e-5)


def test_measured_units_are_those_of_latents_that_are_drawn(latents: Path) -> None:
    """E[z] = E[mean] and Var[z] = E[std²] + Var[mean], over all images and shards."""
    data = Latents(str(latents)).load()
    mean, std = data.pairs(range(10)).double().unbind(1)
    manifest = json.loads((latents / "manifest.json").read_text())
    stds = (std.square().mean((0, 2, 3)) + mean.var((0, 2, 3), correction=0)).sqrt()
    assert manifest["channel_means"] == pytest.approx(mean.mean((0, 2, 3)).tolist(), abs=1e-9)
    assert manifest["channel_stds"] == pytest.approx(stds.tolist(), rel=1e-9)
    assert data.units == Units.measured(manifest["channel_means"], manifest["channel_stds"])
    drawn = torch.cat([data.units.standardise(data.fetch(range(10))[0]) for _ in range(200)])
    torch.testing.assert_close(drawn.std((0, 2, 3)), torch.full((4,), 0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.02)


def test_the_units_of_edm2_are_those_of_the_paper(vae: str, tmp_path: Path) -> None:
    """z·(0.5/s) − m·(0.5/s); those of a random autoencoder are far from them, which is a warning."""
    with pytest.warns(UserWarning, match="the units of scaling='edm2' do not fit channel 0 of these latents"):
        encoding.encode(DATA, tmp_path / "set", vae, scaling="edm2")
    data = Latents(str(tmp_path / "set")).load()
    m, s = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    z = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted = z * (0.5 / s)[:, None, None] - (m * 0.5 / s)[:, None, None]
    torch.testing.assert_close(data.units.standardise(z), wanted)
    assert data.autoencoder.pixels == "unit"
    model = Model.for_data(data, DDPMpp())
    assert (model.units, model.sigma_data, model.autoencoder) == (data.units, 0.5, data.autoencoder)


def test_latents_are_drawn_anew_around_their_means(latents: Path) -> None:
    data = Latents(str(latents)).load()
    assert data.describe() == "10 latents of 4×4×6 for images of 3×8×12 in 2 classes"
    assert data.class_names == ("ant", "bee")
    (one, labels), (other, _) = data.fetch([7, 2]), data.fetch([7, 2])
    assert labels.tolist() == [1, 0]
    mean, std = data.pairs([7, 2]).unbind(1)
    assert not torch.equal(one, other)
    noise = torch.stack([((data.fetch([7])[0] - mean[0]) / std[0])[0] for _ in range(100)])
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("streaming", [False, True])
def test_large_sets_stay_on_the_disk_and_give_the_same_latents(
    latents: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    small = Latents(str(latents)).load()
    monkeypatch.setattr("openedm.data.latent_shards.MAX_BYTES_IN_MEMORY", 0)
    large = Latents(str(latents), streaming=streaming, window=4, lanes=2).load() if streaming else None
    large = Latents(str(latents)).load() if large is None else large
    assert large._memory is None
    assert (large.chunks is None) != streaming
    seeds = list(range(10))
    assert torch.equal(fetch_seeded(small, seeds, seeds)[0], fetch_seeded(large, seeds, seeds)[0])


@pytest.mark.parametrize("layout", [(2, 1), (1, 3), (3, 2)])
def test_a_latent_of_a_run_depends_on_its_position_alone(latents: Path, layout: tuple[int, int]) -> None:
    """Not on the numbers of processes and rounds, and not on where the run was resumed."""
    data, (processes, rounds) = Latents(str(latents)).load(), layout

    def batch(processes: int, rounds: int, start: int = 0) -> torch.Tensor:
        options = Options(batch_size=6, accumulate=rounds, seed=3)
        loaders = [batches(data, options, start=start, rank=r, processes=processes) for r in range(processes)]
        return torch.cat([next(loader)[0] for _ in range(rounds) for loader in loaders])

    assert torch.equal(batch(processes, rounds), batch(1, 1))
    assert torch.equal(batch(processes, rounds, start=6), batch(1, 1, start=6))
    assert not torch.equal(batch(1, 1, start=0), batch(1, 1, start=60))  # the next pass but one, drawn anew


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_on_latents_resumes_exactly(latents: Path, tmp_path: Path) -> None:
    data = Latents(str(latents)).load()
    options = Options(images=12, batch_size=4, rampup=0, validate_every=0, snapshot_every=0, checkpoint_every=4)
    model = Model.for_data(data, DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1))
    straight = Trainer(model, data, options=options).fit().state_dict()
    first = Trainer(model, data, options=options, run=tmp_path / "run")
    first.fit(lambda: first.state.images >= 4)
    moved = shutil.copytree(latents, tmp_path / "moved")  # with the autoencoder's path of another machine
    second = Trainer(model, Latents(str(moved)).load(), options=options, run=tmp_path / "run")
    second.resume()
    assert all(torch.equal(straight[name], value) for name, value in second.fit().state_dict().items())


class Stop(Exception):
    pass


def test_an_interrupted_encoding_continues_with_the_same_bytes(vae: str, latents: Path, tmp_path: Path) -> None:
    """It stops in the middle of the second shard, and a killed process left a part of it."""
    out = tmp_path / "set"

    def stop(name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        encoding.encode(DATA, out, vae, batch_size=3, per_shard=4, progress=stop)
    assert not (out / "manifest.json").exists()
    with pytest.raises(ValueError, match="is not a complete set of latents"):
        Latents(str(out)).load()
    (out / ".shard-000001.tar.1.tmp").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"resume it \(--resume true\)"):
        encoding.encode(DATA, out, vae, batch_size=3, per_shard=4)
    with pytest.raises(ValueError, match="has an interrupted conversion with other fingerprint"):
        encoding.encode(InMemory(IMAGES.flip(0), torch.arange(10) % 2, class_names=("ant", "bee")), out, vae, **AGAIN)
    other = save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="has an interrupted conversion with other autoencoder"):
        encoding.encode(DATA, out, other, **AGAIN)
    before = (out / "shard-000000.tar").stat().st_mtime_ns
    encoding.encode(DATA, out, vae, **AGAIN)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == before
    assert same_files(out, latents)
    assert encoding.encode(DATA, out, vae, **AGAIN)["latents"] == 10  # finished: it stays as it is
    assert same_files(out, latents)
    with pytest.raises(ValueError, match="already has a set of other images or settings"):
        encoding.encode(DATA, out, vae, **AGAIN | {"mirror": True})
    with pytest.raises(ValueError, match="already has a set: choose another folder"):
        encoding.encode(DATA, out, vae)


AGAIN = {"batch_size": 3, "per_shard": 4, "resume": True}


def test_the_plan_states_the_size_before_anything_is_encoded(vae: str, tmp_path: Path) -> None:
    plans: list[encoding.EncodingPlan] = []
    encoding.encode(DATA, tmp_path / "set", vae, per_shard=4, threads=2, planned=plans.append)
    [plan] = plans
    written = sum(path.stat().st_size for path in (tmp_path / "set").glob("*.tar"))
    assert (plan.latents, plan.latent_shape, plan.shards) == (10, (4, 4, 6), 3)
    assert plan.bytes_on_disk == pytest.approx(written, abs=3 * 10_240)  # archives end with up to 20 empty blocks
    assert plan.describe().startswith("10 latents of 4×4×6, 0.0 MiB in 3 shards; about ")


def test_a_disk_that_is_too_small_is_refused_before_the_work(
    vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openedm.data.encoding.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match=r"needs 0\.0 GiB for 10 latents, but 0\.0 GiB are free there"):
        encoding.encode(DATA, tmp_path / "set", vae)


def test_mirrored_images_are_encoded_as_samples_of_their_own(vae: str, latents: Path, tmp_path: Path) -> None:
    encoding.encode(DATA, tmp_path / "set", vae, mirror=True, batch_size=3, per_shard=4)
    both, data = Latents(str(tmp_path / "set")).load(), Latents(str(latents)).load()
    assert len(both) == 20
    assert both._labels.tolist() == [label for label in data._labels.tolist() for _ in range(2)]
    torch.testing.assert_close(both.pairs(range(0, 20, 2)), data.pairs(range(10)), rtol=1e-5, atol=1e-6)
    mean, _ = open_autoencoder(vae, (3, 8, 12)).encode(DATA.fetch(range(10))[0].flip(-1))
    torch.testing.assert_close(both.pairs(range(1, 20, 2))[:, 0], mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mean, data.pairs(range(10))[:, 0].flip(-1), atol=1e-3)  # so flips cannot come later


def test_vectors_of_floats_stay_with_their_latents(vae: str, tmp_path: Path) -> None:
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    encoding.encode(Pairs(IMAGES, values), tmp_path / "floats", vae, batch_size=4)
    assert torch.equal(Latents(str(tmp_path / "floats")).load().fetch([9, 0])[1], values[[9, 0]])
    encoding.encode(Pairs(IMAGES, values, torch.arange(10) % 2), tmp_path / "both", vae, batch_size=4)
    data = Latents(str(tmp_path / "both")).load()
    assert (data.num_classes, data.condition_shape) == (2, (3,))
    assert torch.equal(data.fetch([9, 0])[1], torch.tensor([[1.0, *values[9]], [0.0, *values[0]]]))


def refused(vae: str, out: Path, data: Dataset = DATA, **options: object) -> str:
    with pytest.raises(ValueError, match=r"must|cannot|not") as caught:
        encoding.encode(data, out, vae, **options)
    assert not out.exists() or not any(path.name == "manifest.json" for path in out.iterdir())
    return str(caught.value)


def test_images_that_do_not_fit_are_refused_before_the_work(vae: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    odd = InMemory(IMAGES[:, :, :7])
    assert "must be multiples of 2, the factor of vae=" in refused(vae, out, odd)
    assert "got 7×12: resize them, for instance to 8x12" in refused(vae, out, odd)
    assert "images must have the 3 channels of vae=" in refused(vae, out, InMemory(IMAGES[:, :1]))
    assert "images must be images in [-1, 1], got 32 vectors" in refused(vae, out, Toy(num_samples=32).load())
    partners = Pairs(IMAGES, IMAGES)
    assert "conditions of images must be vectors of floats or classes" in refused(vae, out, partners)
    floats = Pairs(IMAGES, torch.zeros(10, 1))
    assert "mirror must be false with float conditions" in refused(vae, out, floats, mirror=True)
    assert "pixels must be unit with scaling='edm2'" in refused(vae, out, scaling="edm2", pixels="signed")
    eight = save_autoencoder(tmp_path / "eight", latent_channels=8)
    assert "scaling must be measured for latents of 8 channels" in refused(eight, out, scaling="edm2")


def test_what_is_no_autoencoder_in_safetensors_is_refused(vae: str, tmp_path: Path) -> None:
    """No code of a file runs: pickled weights are not read at all."""
    out, broken = tmp_path / "set", tmp_path / "broken"
    assert "vae must be a folder, or a name on the Hugging Face Hub such as OWNER/NAME" in refused("none", out)
    shutil.copytree(vae, broken)
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | {"_class_name": "VQModel"}))
    assert "its class is 'VQModel', which must be AutoencoderKL" in refused(str(broken), out)
    (broken / "config.json").write_text(json.dumps(settings | {"layers_per_block": 2}))
    assert "cannot be read as an autoencoder of diffusers with safetensors" in refused(str(broken), out)
    (broken / "config.json").write_text(json.dumps(settings))
    (broken / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(autoencoder().state_dict(), broken / "diffusion_pytorch_model.bin")
    assert "cannot be read as an autoencoder of diffusers with safetensors" in refused(str(broken), out)
    bad = autoencoder()
    bad.decoder.conv_in.weight.data[0] = torch.nan
    bad.save_pretrained(tmp_path / "nan")
    assert "has weights that are not finite, in decoder.conv_in.weight" in refused(str(tmp_path / "nan"), out)


def test_an_autoencoder_is_known_by_its_weights_and_settings(vae: str, latents: Path, tmp_path: Path) -> None:
    known = Latents(str(latents)).load().autoencoder
    pipeline = tmp_path / "pipeline"
    save_autoencoder(pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    assert known.load(str(pipeline)).autoencoder is known  # the same weights, elsewhere
    other = save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"is another autoencoder .* than the one that encoded the data"):
        known.load(other)
    assert open_autoencoder(str(pipeline), (3, 8, 12)).autoencoder == known
    assert open_autoencoder(str(pipeline), (3, 8, 12), "unit").autoencoder != known


def test_without_diffusers_the_error_names_the_group(vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("openedm.data.autoencoder.importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'openedm\[latents\]'"):
        encoding.encode(DATA, tmp_path / "set", vae)


def test_a_run_refuses_other_latents_and_flips(latents: Path, tmp_path: Path) -> None:
    data = Latents(str(latents)).load()
    model = Model.for_data(data, DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1))
    other = tmp_path / "other"
    encoding.encode(DATA, other, save_autoencoder(tmp_path / "vae", seed=1))
    with pytest.raises(ValueError, match="dataset must be latents of the model's autoencoder"):
        Trainer(model, Latents(str(other)).load())
    pairs = LatentPairs(torch.zeros(4, 4, 4, 6), torch.ones(4, 4, 4, 6), torch.arange(4) % 2)
    with pytest.raises(ValueError, match="validation must be latents of the autoencoder"):
        Trainer(model, data, validation=pairs)
    flips = Options(augmentation=Augmentation())
    with pytest.raises(ValueError, match="augmentation must be None for latents"):
        Trainer(Model.for_data(data, DDPMpp(), augment_dim=flips.augment_dim), data, options=flips)
    with pytest.raises(ValueError, match="standardise must be true for 10 latents"):
        Model.for_data(data, DDPMpp(), standardise=False)


def test_damaged_and_other_sets_are_refused_by_name(latents: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(latents, tmp_path / "set")
    with pytest.raises(ValueError, match="is not a complete set of shards: its format is 'openedm-latents'"):
        Shards(str(copy)).load()
    with pytest.raises(ValueError, match="log_variance must not be given with a folder of shards"):
        Latents(str(copy), log_variance=True).load()
    with pytest.raises(ValueError, match="streaming must not be given with a file"):
        Latents(str(copy / "index.npz"), streaming=True).load()
    content = bytearray((copy / "shard-000001.tar").read_bytes())
    content[1000] ^= 1
    (copy / "shard-000001.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-000001\.tar, latent 4, was changed since it was written"):
        Latents(str(copy)).load()
    (copy / "shard-000001.tar").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"shard-000001\.tar must have \d+ bytes"):
        Latents(str(copy)).load()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shape"][0] = 2**40
    (copy / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "openedm_sha256"}))
    with pytest.raises(ValueError, match="is not a complete set of latents"):
        Latents(str(copy)).load()


def test_arrays_of_bytes_can_be_encoded(vae: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.numpy())
    found = encoding.encode(Arrays(str(tmp_path / "x.npy")).load(), tmp_path / "set", vae)
    assert (found["latents"], found["num_classes"]) == (10, 0)


def test_a_name_on_the_hub_is_kept_with_its_subfolder(vae: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is a folder here: what is asked of it is the repository and the folder inside, in safetensors alone."""
    from diffusers import AutoencoderKL

    asked: list[tuple[str, str | None, object]] = []
    for method in ("load_config", "from_pretrained"):
        real = getattr(AutoencoderKL, method)

        def local(name, *, subfolder=None, real=real, **options):
            if name != vae:  # from_pretrained reads the settings again
                asked.append((name, subfolder, options.get("use_safetensors")))
            return real(vae, **options)

        monkeypatch.setattr(AutoencoderKL, method, local)
    found = open_autoencoder("owner/pipeline/vae", (3, 8, 12)).autoencoder
    assert asked == [("owner/pipeline", "vae", None), ("owner/pipeline", "vae", True)]
    assert (found.path, found.hub) == ("owner/pipeline/vae", True)
    asked.clear()
    found.load()  # from the Hub again, also where a folder has that name
    assert asked[-1] == ("owner/pipeline", "vae", True)
    assert open_autoencoder("owner/name", (3, 8, 12)).autoencoder == found  # equal wherever it is kept
    assert asked[-1] == ("owner/name", None, True)
