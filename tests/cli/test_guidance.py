"""`openedm sample` with guidance: what is typed is what the library draws, and what cannot take effect is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from openedm.denoiser import Denoiser
from openedm.guidance import ClassifierFree, Constant, Guided, Interval, Piecewise
from openedm.levels import Karras
from openedm.sampling import Sampler
from openedm.training import load_denoiser

STEPS = "--sampler.levels.num_steps=4"
TRAINING = [
    *("--data=Toy", "--data.num_samples=300", "--network=MLP", "--network.width=16", "--network.num_blocks=1"),
    *("--options.images=640", "--options.batch_size=64", "--options.rampup=0", "--options.checkpoint_every=320"),
    *("--options.validate_every=0", "--options.snapshot_every=0", "--tracker=none"),
]
Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def moons_run(openedm: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two moons, a class each, hidden from one sample in five: after 5 and after 10 steps."""
    run = tmp_path_factory.mktemp("runs") / "moons"
    assert openedm("train", run, *TRAINING, "--options.label_dropout=0.2").status == 0
    return run


@pytest.fixture(scope="module")
def sure_run(openedm: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, always told the class."""
    run = tmp_path_factory.mktemp("runs") / "sure"
    assert openedm("train", run, *TRAINING).status == 0
    return run


def early(run: Path) -> Path:
    return run / "checkpoints" / "000000000320"


def drawn(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        samples: np.ndarray = file["samples"]
        return samples


def expected(denoiser: Denoiser) -> np.ndarray:
    labels: Tensor = torch.arange(6) % 2
    return Sampler(Karras(4)).sample(denoiser, range(6), condition=labels).numpy()


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        (["--guidance.weight=2"], Interval(2.0)),
        (["--guidance.weight=2", "--guidance.low=0.1", "--guidance.high=5"], Interval(2.0, 0.1, 5.0)),
        (["--guidance=Constant", "--guidance.weight=3"], Constant(3.0)),
        (
            ["--guidance=Piecewise", "--guidance.sigmas=[0.1,10]", "--guidance.weights=[1,4]"],
            Piecewise((0.1, 10.0), (1.0, 4.0)),
        ),
    ],
)
def test_a_weight_guides_a_class_conditional_model_by_itself(
    options: list[str], weight: Interval, openedm: Run, moons_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.npz"
    result = openedm("sample", moons_run, out, "--format=npz", "--seeds=0-5", STEPS, *options)
    assert result.status == 0
    assert result.out == f"drew 6 samples with 7 guided network evaluations each: {out}\n"
    denoiser = load_denoiser(moons_run)
    np.testing.assert_allclose(drawn(out), expected(ClassifierFree(denoiser, weight)), atol=1e-5)
    assert np.abs(drawn(out) - expected(denoiser)).max() > 1e-3


def test_another_checkpoint_guides_instead_also_one_without_classes(
    openedm: Run, moons_run: Path, toy_run: Path, tmp_path: Path
) -> None:
    for name, guiding in (("early.npz", early(moons_run)), ("toy.npz", toy_run)):
        out = tmp_path / name
        options = [f"--guiding={guiding}", "--guidance.weight=2", "--guidance.high=5"]
        assert openedm("sample", moons_run, out, "--format=npz", "--seeds=0-5", STEPS, *options).status == 0
        guided = Guided(load_denoiser(moons_run), load_denoiser(guiding), Interval(2.0, high=5.0))
        np.testing.assert_allclose(drawn(out), expected(guided), atol=1e-5)


def test_an_unconditional_model_can_be_guided_by_another_checkpoint(
    openedm: Run, toy_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert openedm("train", other, *TRAINING, "--conditional=false", "--options.seed=1").status == 0
    out = tmp_path / "a.npz"
    options = [f"--guiding={other}", "--guidance.weight=1.5"]
    assert openedm("sample", toy_run, out, "--format=npz", "--seeds=0-5", STEPS, *options).status == 0
    guided = Guided(load_denoiser(toy_run), load_denoiser(other), 1.5)
    np.testing.assert_allclose(drawn(out), Sampler(Karras(4)).sample(guided, range(6)).numpy(), atol=1e-5)


def test_samples_with_another_guidance_are_not_mixed_into_a_folder(
    openedm: Run, digits_run: Path, tmp_path: Path
) -> None:
    out, guiding = tmp_path / "out", f"--guiding={early(digits_run)}"
    assert openedm("sample", digits_run, out, "--seeds=0", STEPS, guiding, "--guidance.weight=2").status == 0
    for options in ([], [guiding, "--guidance.weight=3"]):
        result = openedm("sample", digits_run, out, "--seeds=0-1", STEPS, *options)
        assert result.status == 1
        assert "holds samples drawn with other settings" in result.err
    again = openedm("sample", digits_run, out, "--seeds=0-1", STEPS, guiding, "--guidance.weight=2")
    assert "drew 1 samples" in again.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance.weight=-1"], "weight must be >= 0, got -1.0"),
        (["--guidance.low=0.1"], "guidance.weight must be other than 1, which is no guidance, got Interval(weight=1.0"),
        (
            ["--guidance=Constant"],
            "guidance.weight must be other than 1, which is no guidance, got Constant(weight=1.0",
        ),
        (["--guiding={run}"], "guidance.weight must be other than 1"),
        (
            ["--guidance.weight=2", "--guidance.low=100", "--guidance.high=200"],
            "guidance must have another weight than 1 at a noise level of the sampler, from 0.002 to 80, got",
        ),
        (["--guiding={run}", "--guidance.weight=2"], "guiding must have other weights than the checkpoint, got"),
        (["--guiding=nowhere", "--guidance.weight=2"], "nowhere does not exist"),
        (["--guiding={digits}", "--guidance.weight=2"], "of the shape of main's, (2,), got (1, 8, 8)"),
        (["--guidance=Interva", "--guidance.weight=2"], "known: Constant, Interval, Piecewise"),
        (
            ["--guidance=2"],
            "guidance must be one of Constant, Interval, Piecewise, got 2: its options have names, "
            "such as --guidance.weight 2",
        ),
        (
            ["--sampler.churn", "4"],
            "sampler.churn must be given by its options, got 4: its options have names, such "
            "as --sampler.churn.s_churn 4",
        ),
        (["--sampler", "2"], "sampler must be given by its options, got 2: --sampler.help lists its options"),
    ],
)
def test_guidance_that_cannot_take_effect_is_an_error_and_nothing_is_written(
    options: list[str], message: str, openedm: Run, moons_run: Path, digits_run: Path, tmp_path: Path
) -> None:
    named = [option.format(run=moons_run, digits=digits_run) for option in options]
    result = openedm("sample", moons_run, tmp_path / "a.npz", "--format=npz", STEPS, *named)
    assert result.status in (1, 2)
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_know_samples_without_a_class_are_refused(
    openedm: Run, sure_run: Path, toy_run: Path, tmp_path: Path
) -> None:
    for run, message in (
        (toy_run, "guidance must not be given: the model is unconditional; give another checkpoint as guiding"),
        (sure_run, "trained with label_dropout 0: train with --options.label_dropout 0.1, or give another checkpoint"),
    ):
        result = openedm("sample", run, tmp_path / "a.npz", "--format=npz", STEPS, "--guidance.weight=2")
        assert result.status == 1
        assert message in result.err
        assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
