"""Published networks from pickles: the numbers of a network that was built directly, or a clear error."""

import gzip
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmarks
import numpy as np
import pytest
import torch
from benchmarks.published_files import CALLED, EasyDict, Persistent, modules, published_file, published_modules, weights

from openedm.interop import DamagedFileError, Published, UnsafeFileError, edm_denoiser, read_published, records
from openedm.interop.published import parse_pickle

SMALL = {"img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
SONG = {**SMALL, "model_type": "SongUNet", "label_dim": 3, "augment_dim": 9}
NCSN = {**SONG, "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
NCSN |= {"resample_filter": [1, 3, 3, 1]}
ADM = {**SMALL, "model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1], "channel_mult_emb": 1}
NETWORKS = {"ddpmpp": SONG, "ncsnpp": NCSN, "adm": ADM}
CLASSES: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_data": 0.4},
    "VPPrecond": {"beta_d": 19.0, "M": 100},
    "VEPrecond": {"sigma_max": 50.0},
    "iDDPMPrecond": {"M": 4},
}


def made(class_name: str, network: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    kwargs = {**NETWORKS[network], **CLASSES[class_name]}
    state = weights(kwargs, 2 if class_name == "iDDPMPrecond" else 1)
    if class_name == "iDDPMPrecond":
        state["u"] = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    return kwargs, state


PAIRS = [("EDMPrecond", network) for network in NETWORKS]
PAIRS += [("VPPrecond", "ddpmpp"), ("VEPrecond", "ncsnpp"), ("iDDPMPrecond", "adm")]


@pytest.mark.parametrize(("class_name", "network"), PAIRS)
def test_outputs_are_bit_equal_to_those_of_a_network_built_directly(class_name: str, network: str) -> None:
    kwargs, state = made(class_name, network)
    published = parse_pickle(published_file(class_name, kwargs, state))
    assert (published.class_name, published.network_name) == (class_name, kwargs["model_type"])
    assert published.kwargs == kwargs
    assert published.state_dict.keys() == state.keys()
    assert all(torch.equal(published.state_dict[name], value) for name, value in state.items())
    assert published.dataset_kwargs["max_size"] == 50000
    found, expected = published.denoiser(), edm_denoiser(class_name, kwargs, state)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2]) if kwargs.get("label_dim") else None
    sigma = torch.tensor([0.5, 2.0])
    assert torch.equal(found(x, sigma, labels), expected(x, sigma, labels))
    assert (found.sigma_min, found.sigma_max, found.sigma_data) == (
        expected.sigma_min,
        expected.sigma_max,
        expected.sigma_data,
    )
    assert CALLED == []


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_holds_the_same(protocol: int) -> None:
    kwargs, state = made("EDMPrecond", "ncsnpp")
    content = published_file("EDMPrecond", kwargs, state, protocol=protocol, sigma_min=np.float64(0))
    published = parse_pickle(content)
    assert all(torch.equal(published.state_dict[name], value) for name, value in state.items())
    assert published.kwargs == kwargs


def test_half_precision_networks_are_read_and_not_built() -> None:
    state = {"model.enc.8x8_conv.weight": torch.randn(2, 3).half(), "model.out_gain": torch.ones(()).half()}
    published = parse_pickle(published_file("OtherPrecond", {"img_resolution": 8, "model_type": "UNet"}, state))
    assert all(torch.equal(published.state_dict[name], value) for name, value in state.items())
    assert published.state_dict["model.out_gain"].dtype == torch.float16
    with pytest.raises(
        ValueError, match="class 'OtherPrecond' with network 'UNet' is not supported: networks can be built"
    ):
        published.denoiser()


def test_positional_constructor_arguments_have_their_names() -> None:
    kwargs, state = made("VEPrecond", "ddpmpp")
    rest = {name: kwargs[name] for name in kwargs.keys() - {"img_resolution", "img_channels", "label_dim"}}
    top = modules("VEPrecond", rest, state, model_type="SongUNet")
    top.__dict__["_init_args"] = (8, 1, 3)
    with published_modules():
        content = pickle.dumps({"ema": top}, 4)
    assert parse_pickle(content).kwargs == kwargs


def pickled(**content: Any) -> bytes:
    with published_modules():
        return pickle.dumps(content, 4)


def network(**changes: Any) -> Persistent:
    top = Persistent("EDMPrecond", _init_args=(), _init_kwargs=EasyDict())
    top.register_parameter("weight", torch.nn.Parameter(torch.ones(2)))
    top.__dict__.update(changes)
    return top


def without_persistent_names() -> Persistent:
    top = network()
    top.register_buffer("kept", torch.zeros(1))
    top.register_buffer("transient", torch.zeros(1), persistent=False)
    top.register_buffer("absent", None)
    top._modules["none"] = None
    return top


def test_the_state_dict_has_the_names_of_torchs_own() -> None:
    top = without_persistent_names()
    assert list(parse_pickle(pickled(ema=top)).state_dict) == list(top.state_dict())


def saved(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"ema": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


def two_of_one_name() -> Persistent:
    top, inner = network(), network()
    inner.register_buffer("b", torch.zeros(1))
    top.__dict__.update(_buffers={"a.b": torch.ones(1)}, _modules={"a": inner})
    return top


def in_itself() -> Persistent:
    top = network()
    top.__dict__["_modules"] = {"a": top}
    return top


def doubling() -> Persistent:
    top = network()
    for _ in range(25):
        parent = Persistent("Block")
        parent.__dict__["_modules"] = {"a": top, "b": top}
        top = parent
    top.__dict__.update(_init_args=(), _init_kwargs={})
    return top


def expanded() -> Persistent:
    top = network()
    one = torch.ones(4)
    for index in range(100):
        top.register_buffer(f"b{index}", one)
    return top


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: pickled(net=network()), "but the file has no such entry: it has networks 'net'"),
        (lambda: pickled(ema={"a": 1}), "entry 'ema' must be a network, but got dict: it has no network"),
        (lambda: pickle.dumps([1], 4), "the file must contain a dict with 'ema', got list"),
        (lambda: pickled(G_ema=network(), step=3), "no such entry: it has networks 'G_ema' and other entries 'step'"),
        (lambda: pickled(step=3), "no such entry: it has no network; other entries 'step'"),
        (lambda: pickled(ema=[1], net=network()), "must be a network, but got list: it has networks 'net'"),
        (lambda: gzip.compress(pickled(ema=network())), "got a gzip file: unpack it first"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "got a pointer of Git LFS"),
        (lambda: b"\n <!DOCTYPE html><html></html>", "got an HTML page"),
        (lambda: b"\xef\xbb\xbf<!-- of a proxy -->" + b" " * 100 + b"<html></html>", "got an HTML page"),
        (lambda: saved(_use_new_zipfile_serialization=True), "got a zip archive, as of torch.save"),
        (lambda: saved(_use_new_zipfile_serialization=False), "got a file of torch.save"),
        (lambda: b'{"error": 404}', "got a JSON text"),
        (lambda: b"\x08" + bytes(7) + b"{}", "got safetensors"),
        (lambda: pickled(ema=network()) + b"x", "the file must end with the pickle"),
        (lambda: pickled(ema=network(_init_args=[1] * 20)), "constructor arguments of EDMPrecond must be unique"),
        (lambda: pickled(ema=network(_init_args=(8,), _init_kwargs={"img_resolution": 8})), "must be unique"),
        (lambda: pickled(ema=network(_init_kwargs=3)), "constructor arguments must be a list and a dict"),
        (
            lambda: pickled(ema=network(_init_kwargs={"a": b"x"})),
            "must be plain values, got bytes",
        ),
        (lambda: pickled(ema=network(_init_kwargs={"a": [[1] * 200] * 200})), "must not exceed 10000 values"),
        (
            lambda: pickled(ema=network(_init_kwargs={"a": "x" * 2000})),
            "must be plain values, got str",
        ),
        (lambda: pickled(ema=network(_modules=3)), "_modules of EDMPrecond must be a dict with names, got int"),
        (lambda: pickled(ema=network(_modules={"a": 1})), "a must be a module, got int"),
        (lambda: pickled(ema=network(_buffers={"a": 1})), "a must be a tensor, got int"),
        (lambda: pickled(ema=network(_modules={"a" * 600: None})), "_modules of EDMPrecond must be a dict with names"),
        (lambda: pickled(ema=two_of_one_name()), "a.b must be one tensor, but two have this name"),
        (lambda: pickled(ema=network())[:-40], "incomplete or damaged"),
        (lambda: pickled(ema=in_itself()), "more or deeper modules"),
        (lambda: pickled(ema=doubling()), "more or deeper modules"),
        (lambda: pickled(ema=expanded()), "have more elements than their storages"),
    ],
)
def test_a_file_with_another_content_is_refused_with_a_reason(content: Any, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        parse_pickle(content())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 10**9}, "model_channels must be an integer between 0 and 16384, got 1000000000"),
        ({"model_channels": 8192}, "weights of the network that it describes"),
        ({"num_blocks": 1000}, "num_blocks must fit the file, got 1000 blocks on 2 levels"),
        ({"channel_mult": [1] * 1000}, "channel_mult must be a list of at most 32 integers from 0 to 1024"),
        ({"channel_mult": [1.5]}, "channel_mult must be a list of at most 32 integers"),
        ({"channel_mult": []}, "number of channel_mult"),
        ({"img_resolution": "8"}, "img_resolution must be an integer"),
        ({"img_resolution": True}, "img_resolution must be an integer"),
        ({"dropout": "x"}, "dropout must be a number, got 'x'"),
        ({"sigma_data": float("nan")}, "sigma_data must be a number, got nan"),
        ({"sigma_data": -1.0}, "sigma_data must be finite and > 0"),
        ({"model_type": 3}, "model_type must be a string"),
        ({"model_type": "Other"}, "model_type must be one of"),
        ({"os.system": 1}, r"unknown \['os.system'\]"),
        ({"num_blocks": 2}, "weights of the network that it describes|state_dict does not fit"),
        ({"img_channels": 2}, "weights of the network that it describes|state_dict does not fit"),
    ],
)
def test_arguments_that_do_not_fit_the_file_are_refused_before_anything_large_is_built(
    changes: dict[str, Any], message: str
) -> None:
    kwargs, state = made("EDMPrecond", "ddpmpp")
    with pytest.raises(ValueError, match=message):
        Published("EDMPrecond", {**kwargs, **changes}, state).denoiser()


def test_a_file_is_mapped_and_errors_name_it(tmp_path: Path) -> None:
    kwargs, state = made("EDMPrecond", "ddpmpp")
    path = tmp_path / "network.pkl"
    path.write_bytes(published_file("EDMPrecond", kwargs, state))
    shares: list[float] = []
    published = read_published(path, progress=lambda name, done, *_, **__: shares.append(done))
    assert len(shares) == len(state)
    assert shares[-1] == 1
    assert all(torch.equal(published.state_dict[name], value) for name, value in state.items())
    path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"network.pkl: the file is empty"):
        read_published(path)
    path.write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(UnsafeFileError, match=r"network.pkl: the file names 'os.system'.*, at byte 2") as caught:
        read_published(path)
    assert caught.value.position == 2
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "missing.pkl")
    with pytest.raises(ValueError, match=r"must end in .pkl or .safetensors"):
        read_published(tmp_path / "other.pt")


def test_each_storage_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def read(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return original(*arguments)

    original = records._read_storage
    monkeypatch.setattr(records, "_read_storage", read)
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("torch.load was called"))
    kwargs, state = made("EDMPrecond", "ddpmpp")
    published = parse_pickle(published_file("EDMPrecond", kwargs, state))
    assert count == len(published.state_dict)


def test_fuzzed_files_are_read_or_refused_and_never_run() -> None:
    command = [sys.executable, "-W", "error", "-m", "benchmarks.fuzz_checkpoints", "--cases", "255", "--seed", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(benchmarks.__path__[0]).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("all ")).split()
    cases, read, damaged, unsafe, not_built, other, executed = (int(n) for n in total[1:8])
    assert (cases, other, executed) == (255, 0, 0)
    assert min(read, damaged, unsafe) > 5
    assert read + damaged + unsafe + not_built == cases
