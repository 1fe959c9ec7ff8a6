"""NaN never comes out as a sample, a density or a weight, and integers are never computed as integers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import openedm
from openedm import interop, sampling
from openedm.ground.tensors import all_finite
from openedm.ground.verifying import accept
from openedm.likelihood import Likelihood
from openedm.training import load_denoiser, save_checkpoint

pytestmark = pytest.mark.usefixtures("without_type_checker")

X = torch.arange(16.0).reshape(8, 2) / 16
MODEL = openedm.Model(network=openedm.MLP(width=8, num_blocks=1), event_shape=(2,), images=False)


def denoiser(below: float = 1.0, value: float = torch.nan) -> openedm.FunctionDenoiser:
    """Shrinks, except for the last sample of a batch at the levels below `below`, which becomes `value`."""

    def function(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        denoised = x / (1 + sigma.to(x).reshape(-1, 1) ** 2)
        if float(sigma.max()) < below:
            denoised[-1] = value
        return denoised

    return openedm.FunctionDenoiser(function, (2,))


SAMPLERS = {
    "planned": openedm.Sampler(),
    "multistep": openedm.Auto(nfe=12),
    "adaptive": openedm.Auto(tolerance=1e-2),
    "churned": openedm.Sampler(churn=openedm.Churn(10.0)),
    "ancestral": openedm.Sampler(solver=sampling.Ancestral()),
    "predictor-corrector": openedm.Sampler(solver=sampling.PredictorCorrector()),
    "restart": openedm.Sampler(solver=sampling.Restart()),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_that_are_not_finite_are_an_error_with_sample_seed_and_level(sampler: Any, value: float) -> None:
    with pytest.raises(FloatingPointError, match=r"sample 2 \(seed 9\).* sigma = (1\.\d+|1|0\.\d+)\b.*help|info"):
        sampler.sample(denoiser(value=value), seeds=[4, 6, 9])


@pytest.mark.parametrize("source", [sampling.SeededNoise, sampling.BrownianNoise])
def test_sources_of_noise_name_their_seeds(source: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"1 of 2 samples .* sample 1 \(seed 8\): .* sigma = "):
        SAMPLERS["churned"].sample(denoiser(), source([3, 8]))


def test_a_run_that_succeeds_evaluates_the_denoiser_no_more_often_than_it_says() -> None:
    calls = 0

    def count(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return x / (1 + sigma**2)

    sampler = openedm.Auto(nfe=12).choose(shrink := openedm.FunctionDenoiser(count, (2,)))
    before = calls
    sampler.sample(shrink, seeds=[0])
    assert calls - before <= 13  # one more for the mean


NOT_FINITE: dict[str, Callable[[], object]] = {
    "noise": lambda: openedm.Sampler().sample(denoiser(), noise=X / 0),
    "x to invert": lambda: openedm.Sampler().invert(denoiser(0), X * torch.nan),
    "inverted": lambda: openedm.Sampler().invert(denoiser(), X),
    "x of a density": lambda: openedm.log_prob(denoiser(0), X / 0),
    "density": lambda: openedm.log_prob(denoiser(), X),
    "density by fixed steps": lambda: Likelihood(solver=openedm.Heun(), num_steps=9).log_prob(denoiser(), X),
    "encoded": lambda: Likelihood(solver=openedm.Heun(), num_steps=9).encode(denoiser(), X),
    "decoded": lambda: Likelihood(solver=openedm.Heun(), num_steps=9).decode(denoiser(), X),
    "fitted": lambda: sampling.fit_levels(denoiser(), openedm.Sampler()),
    "batches": lambda: list(sampling.sample_batches(openedm.Sampler(), denoiser(), range(4))),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_is_not_finite_neither_goes_in_nor_comes_out(name: str) -> None:
    with pytest.raises((FloatingPointError, ValueError), match=r"finite|NaN"):
        NOT_FINITE[name]()


INTEGERS = {
    "noise": lambda x: openedm.Sampler().sample(denoiser(0), noise=x),
    "x to invert": lambda x: openedm.Sampler().invert(denoiser(0), x),
    "x of a density": lambda x: openedm.log_prob(denoiser(0), x),
    "noise to decode": lambda x: Likelihood().decode(denoiser(0), x),
    "x to denoise": lambda x: denoiser(0)(x, 1.0),
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_integers_are_refused_with_the_right_call(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"floating-point numbers, got .*\.float\(\)"):
        INTEGERS[name](X.to(dtype))


@pytest.mark.parametrize(
    "seeds", [range(3), (0, 1, 2), np.arange(3), torch.arange(3), [np.int64(0), torch.tensor(1), 2**32 + 2]], ids=str
)
def test_seeds_are_integers_of_any_kind_taken_modulo_two_to_the_32(seeds: Any) -> None:
    expected = openedm.Sampler().sample(denoiser(0), seeds=[0, 1, 2])
    assert torch.equal(openedm.Sampler().sample(denoiser(0), seeds=seeds), expected)
    assert expected.dtype == torch.float64


@pytest.mark.parametrize("seeds", [[1.0], np.array([0.5]), [True], torch.tensor([True]), [None], "12", {1, 2}], ids=str)
def test_seeds_that_are_not_integers_are_refused(seeds: Any) -> None:
    with pytest.raises(TypeError, match=r"seeds must be integers"):
        openedm.Sampler().sample(denoiser(0), seeds=seeds)


def test_the_same_seed_twice_gives_the_same_sample_twice() -> None:
    first, second = openedm.Sampler(churn=openedm.Churn(10.0)).sample(denoiser(0), seeds=[5, 5])
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_finite_is_right_where_a_sum_overflows(dtype: torch.dtype) -> None:
    large = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(large)
    assert all_finite(torch.cat([large, -large]))
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not all_finite(torch.cat([large, torch.tensor([bad], dtype=dtype)]))
    assert not all_finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))


# Weights.


def checkpoint(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Path, str]:
    """A checkpoint with one changed tensor, and the tensor's name."""
    save_checkpoint(folder, MODEL, MODEL.build(0).network.state_dict())
    tensors = load_file(folder / "model.safetensors")
    name = sorted(n for n, t in tensors.items() if t.ndim == 2)[0]
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors")
    accept(folder)
    return folder, name


def one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.cat([torch.full_like(t[:1], value), t[1:]])


BAD_WEIGHTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "NaN": (one(torch.nan), r"holds \d+ NaN of \d+ numbers"),
    "infinity": (one(-torch.inf), r"holds \d+ infinite of \d+ numbers"),
    "integers": (lambda t: t.long(), r"holds torch\.int64 instead of torch\.float32"),
    "truth values": (lambda t: t > 0, r"holds torch\.bool instead of torch\.float32"),
    "complex numbers": (lambda t: t.to(torch.complex64), r"holds torch\.complex64 instead of torch\.float32"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_are_not_finite_real_numbers_are_refused_by_file_and_name(kind: str, tmp_path: Path) -> None:
    change, problem = BAD_WEIGHTS[kind]
    folder, name = checkpoint(tmp_path / "checkpoint", change)
    for load in (load_denoiser, interop.Pretrained.from_pretrained):
        with pytest.raises(ValueError, match=rf"{re.escape(str(folder))}.*{re.escape(name)} {problem}"):
            load(folder)


def test_weights_of_half_precision_are_accepted(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path / "checkpoint", lambda t: t.half())
    assert load_denoiser(folder)(X, 1.0).isfinite().all()


def test_infinity_in_a_buffer_that_has_it_by_construction_is_loaded(tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    openedm.training.checkpoints.load_weights(Masked(), Masked().state_dict(), tmp_path)


# Descriptions.

BAD_JSON = {
    "empty": ("", "it is empty"),
    "nested": ("[" * 100_000, "it is nested too deeply"),
    "a list": ("[1]", "must hold a JSON object, got list"),
    "half a file": ('{"format": ', "cannot be read as JSON"),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_descriptions_that_cannot_be_read_are_named(kind: str, tmp_path: Path) -> None:
    text, problem = BAD_JSON[kind]
    folder, _ = checkpoint(tmp_path / "checkpoint", lambda t: t)
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(folder / 'config.json'))} .*{problem}"):
        load_denoiser(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("network", None), ("network", 5), ("network", {"class_path": "MLP", "init_args": 3}), ("sigma_data", 1e300)],
)
def test_descriptions_of_other_kinds_are_errors_that_name_the_file(name: str, value: Any, tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path / "checkpoint", lambda t: t)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["init_args"][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    accept(folder)
    with pytest.raises(ValueError, match=re.escape(str(folder / "config.json"))):
        load_denoiser(folder)


def test_a_validation_loss_that_is_not_finite_is_a_warning() -> None:
    loss = openedm.training.Validation(
        openedm.data.InMemory(X), openedm.objective.EDM(), sigma_data=0.5, device=torch.device("cpu"), levels=2
    )
    with pytest.warns(RuntimeWarning, match=r"the validation loss is nan, from sigma = "):
        loss.measure(denoiser(torch.inf))
