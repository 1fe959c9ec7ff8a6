"""Everything that computes leaves no tensor behind on the host, and computes the same elsewhere as there."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

try:
    from elsewhere import elsewhere
except ImportError as error:  # it is made of torch's private parts
    pytest.skip(f"this torch, {torch.__version__}, has other private parts: {error}", allow_module_level=True)
from accelerated import forget_accelerate
from fitted import TINY, tiny_posterior
from marks import FAR_APART
from openedm import (
    conditioning,
    guidance,
    likelihood,
    measurements,
    networks,
    objective,
    preconditioning,
    sampling,
    schedules,
)
from openedm.data import InMemory
from openedm.denoiser import Denoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.inference.composite import Truncated
from openedm.inference.fitting import fit
from openedm.inference.priors import Box, TorchPrior
from openedm.inference.trained import DenoiserPosterior
from openedm.levels import Karras
from openedm.metrics.c2st import c2st
from openedm.metrics.classifier import train_classifier
from openedm.metrics.evaluate import compare
from openedm.metrics.extractors import ClassifierFeatures
from openedm.metrics.features import extract, image_batches, stream_statistics
from openedm.metrics.frechet import frechet_error
from openedm.metrics.inception_score import inception_score, inception_score_error
from openedm.metrics.kernel import kernel_distance
from openedm.metrics.neighbours import neighbours
from openedm.sampling import Sampler
from openedm.training import Augmentation, HalfLife, Model, Observer, Options, PowerFunction, Trainer, TrainingProgress

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "without_type_checker")

MLP = networks.MLP(width=16, num_blocks=1)
UNET = networks.DDPMpp(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0)
ONE_LEVEL = networks.DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,), dropout=0.0)
IMAGES = InMemory(
    torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.arange(48) % 3, num_classes=3
)
SOLVERS = [
    sampling.Heun(),
    sampling.RK4(),
    sampling.AdamsBashforth(),
    sampling.LMS(),
    sampling.IPNDM(),
    sampling.DEIS(),
    sampling.DPMSolver2M(),
    sampling.DPMSolver3S(),
    sampling.DPMSolverPP3M(),
    sampling.DPMSolverPP2S(),
    sampling.UniPC(),
    sampling.DDIM(),
    sampling.Ancestral(),
    sampling.EulerMaruyama(),
    sampling.Tsit5(),
    sampling.Exponential23(tolerance=0.1),
    sampling.PredictorCorrector(),
    sampling.Restart(),
]


@pytest.fixture
def away() -> Iterator[torch.device]:
    with elsewhere() as device:
        yield device


def denoiser(network: networks.Network = MLP, *, seed: int = 1, **model: Any) -> Preconditioned:
    shape = {"event_shape": (2,), "num_classes": 3} if network is MLP else {"event_shape": (3, 8, 8), "num_classes": 3}
    built = Model(network=network, sigma_data=0.5, **{"preconditioning": preconditioning.EDM(), **shape, **model})
    ready: Preconditioned = built.build(seed).eval()
    for parameter in ready.parameters():  # the last layer starts at 0
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel() + seed))
    return ready


def same(away: torch.device, compute: Callable[[Callable[[Any], Any]], Tensor], tolerance: float = 1e-5) -> None:
    """`compute(move)` gives the same with `move` to the other device as without, but for rounding in another layout."""
    there = compute(lambda value: value.to(away))
    assert there.device == away
    torch.testing.assert_close(there.cpu(), compute(lambda value: value), rtol=tolerance, atol=tolerance)


def test_the_other_device_refuses_what_a_gpu_refuses(away: torch.device) -> None:
    there, here = torch.ones(3, device=away), torch.ones(3)
    with pytest.raises(RuntimeError, match="expected all tensors on elsewhere:0"):
        there + here
    with pytest.raises(RuntimeError, match="expected all tensors on elsewhere:0"):
        here[there.long()] = there
    with pytest.raises(RuntimeError, match="generator on elsewhere:0"):
        torch.randn(3, generator=torch.Generator(away))
    with pytest.raises(RuntimeError, match="generator on cpu"):
        torch.randn(3, generator=torch.Generator(), device=away)
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert float((there + there[torch.tensor([2, 1, 0])] * torch.tensor(2.0)).sum()) == 9


@FAR_APART
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_solvers(away: torch.device, solver: sampling.Solver) -> None:
    sampler = Sampler(levels=Karras(num_steps=4), solver=solver)
    same(away, lambda move: sampler.sample(move(denoiser()), [0, 1], condition=torch.tensor([0, 2])))


@FAR_APART
@pytest.mark.parametrize("source", [sampling.SeededNoise, sampling.BrownianNoise])
def test_noise(away: torch.device, source: Callable[[list[int]], sampling.NoiseSource]) -> None:
    sampler = Sampler(levels=Karras(num_steps=3), churn=sampling.Churn(s_churn=2.0))
    same(away, lambda move: sampler.sample(move(denoiser()), source([0, 1])))


@pytest.mark.parametrize("given_away", [True, False])
def test_given_noise_and_inversion(away: torch.device, given_away: bool) -> None:
    sampler, noise = Sampler(levels=Karras(num_steps=3)), torch.randn(2, 2)
    given = noise.to(away) if given_away else noise
    there = sampler.sample(denoiser().to(away), noise=given)
    assert torch.equal(there.cpu(), sampler.sample(denoiser(), noise=noise))
    back = sampler.invert(denoiser().to(away), given)
    assert torch.equal(back.cpu(), sampler.invert(denoiser(), noise))


@pytest.mark.parametrize("kind", [preconditioning.VP(), preconditioning.VE(), preconditioning.IDDPM()])
def test_preconditionings(away: torch.device, kind: preconditioning.Preconditioning) -> None:
    sampler = Sampler(levels=Karras(num_steps=3))
    same(away, lambda move: sampler.sample(move(denoiser(preconditioning=kind)), [0, 1]))


@pytest.mark.parametrize("ndim", [0, 1])
def test_noise_levels_on_the_device_are_not_waited_for(
    away: torch.device, ndim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(tensor: Tensor) -> None:
        raise RuntimeError("the host waits for a number")

    sigma = torch.tensor([0.5] * ndim or 0.5, dtype=torch.float64)
    there = sigma.to(away)
    for name in ("__bool__", "__float__", "item", "tolist"):
        monkeypatch.setattr(Tensor, name, wait)
    functions: list[Callable[[Tensor], object]] = [
        lambda sigma: preconditioning.EDM().coefficients(sigma, 0.5),
        lambda sigma: objective.EDMWeighting().weight(sigma, 0.5),
        objective.LogNormal().quantile,
        schedules.VP().time,
        guidance.Interval(2.0).at,
    ]
    for function in functions:
        function(there)
        with pytest.raises(RuntimeError, match="the host waits"):
            function(sigma)


@pytest.mark.parametrize(
    "network",
    [
        UNET,
        networks.NCSNpp(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)),
        networks.ADM(model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_networks(away: torch.device, network: networks.Network) -> None:
    x = torch.randn(2, 3, 8, 8)
    same(away, lambda move: move(denoiser(network))(move(x), torch.tensor([0.1, 5.0]), move(torch.tensor([0, 1]))))


@pytest.mark.parametrize(
    "weight",
    [
        2.0,
        guidance.Interval(2.0, 0.2, 3.0),
        guidance.Piecewise((0.1, 1.0, 10.0), (1.0, 2.0, 1.0)),
        torch.tensor([1, 2.0]),
    ],
    ids=["constant", "interval", "piecewise", "per-sample"],
)
@pytest.mark.parametrize("free", [True, False])
def test_guidance(away: torch.device, weight: Any, free: bool) -> None:
    def sample(move: Callable[[Any], Any]) -> Tensor:
        main = move(denoiser())
        guided: Denoiser = (
            guidance.ClassifierFree(main, weight=weight)
            if free
            else guidance.Guided(main, move(denoiser(seed=2)), weight=weight)
        )
        return Sampler(levels=Karras(num_steps=3)).sample(guided, [0, 1], condition=torch.tensor([0, 1]))

    same(away, sample)


@pytest.mark.parametrize("trace", [likelihood.ExactTrace(), likelihood.Hutchinson()])
def test_likelihood(away: torch.device, trace: likelihood.Trace) -> None:
    x = torch.randn(2, 2)
    same(
        away,
        lambda move: (
            likelihood.log_prob(
                move(denoiser()), x, trace=trace, seeds=[0, 1], solver=sampling.Heun(), num_steps=4
            ).log_prob
        ),
    )


@pytest.mark.parametrize("generator_away", [True, False])
def test_a_mixture_draws_whichever_device_the_generator_is_for(away: torch.device, generator_away: bool) -> None:
    mixture = GaussianMixture([0.4, 0.6], [[3.0], [1.0]], [[[1e-4]], [[0.1]]])
    expected = mixture.sample(5, torch.Generator().manual_seed(2))
    generator = torch.Generator(away if generator_away else "cpu").manual_seed(2)
    drawn = mixture.to(away).sample(5, generator)
    assert drawn.device == away
    torch.testing.assert_close(drawn.cpu(), expected)


def test_exact_denoisers(away: torch.device) -> None:
    sampler, data = Sampler(levels=Karras(num_steps=4)), torch.randn(20, 2)
    same(away, lambda move: sampler.sample(move(ExactDataset(data)), [0, 1]))
    same(away, lambda move: sampler.sample(move(GaussianMixture([1.0], [[3.0]], [[[1e-4]]])), [0, 1]))


@pytest.mark.parametrize(
    "operator",
    [measurements.Mask(torch.arange(192).reshape(3, 8, 8) % 3 == 0), measurements.AveragePool(2)],
    ids=["mask", "pool"],
)
@pytest.mark.parametrize("method", [conditioning.MMPS, conditioning.DPS])
def test_measurements(
    away: torch.device, operator: measurements.LinearOperator, method: type[conditioning.Conditioned]
) -> None:
    seen = operator(torch.randn(1, 3, 8, 8))

    def sample(move: Callable[[Any], Any]) -> Tensor:
        measured = measurements.Measurement(copy.deepcopy(operator), seen, 0.1)
        return Sampler(levels=Karras(num_steps=2)).sample(move(method(denoiser(UNET), measured)), [0])

    same(away, sample, tolerance=1e-3)  # conjugate gradients magnify the last digits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"augmentation": Augmentation(p=0.5), "validate_every": 0},
        {"power_average": PowerFunction(), "validate_every": 0},
        {"label_dropout": 0.3, "clip_norm": 1.0, "accumulate": 2, "weight_decay": 0.01, "keep_best": True},
    ],
    ids=["plain", "augmented", "power", "rest"],
)
def test_training(away: torch.device, options: dict[str, Any], tmp_path: Path) -> None:
    here, _ = _trained(None, tmp_path / "here", **options)
    there, trained = _trained(away, tmp_path / "there", **options)
    assert next(trained.parameters()).device == away
    assert len(here) == 4
    assert there == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "goal"),
    [
        (preconditioning.VP(), objective.VP()),
        (preconditioning.VE(), objective.VE()),
        (preconditioning.IDDPM(), objective.IDDPM()),
        (preconditioning.EDM(), objective.EDM2()),
    ],
    ids=lambda choice: type(choice).__name__,
)
def test_objectives(
    away: torch.device, kind: preconditioning.Preconditioning, goal: objective.Objective, tmp_path: Path
) -> None:
    """A run that stops half-way and goes on there takes the steps of one that never stopped, and of one on the CPU."""
    chosen: dict[str, Any] = {"network": ONE_LEVEL, "preconditioning": kind, "objective": goal, "validate_every": 0}
    here, _ = _trained(None, tmp_path / "here", **chosen)
    whole, expected = _trained(away, tmp_path / "whole", **chosen)
    first, _ = _trained(away, tmp_path / "parts", images=16, **chosen)
    rest, found = _trained(away, tmp_path / "parts", resume=True, **chosen)
    assert [*first, *rest] == whole
    assert len(rest) == 2
    assert whole == pytest.approx(here, rel=1e-4)
    for mine, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert mine.device == away
        assert torch.equal(mine.cpu(), other.cpu())


def _trained(
    device: torch.device | None,
    run: Path,
    *,
    network: networks.Network = UNET,
    preconditioning: preconditioning.Preconditioning = preconditioning.EDM(),
    objective: objective.Objective = objective.EDM(),
    images: int = 32,
    validate_every: int = 16,
    resume: bool = False,
    **options: Any,
) -> tuple[list[float], Preconditioned]:
    """The losses of the steps up to `images`, eight images each, and what came of them."""
    losses = Losses()
    accelerator = Accelerator(cpu=True)
    if device is not None:
        accelerator.state.device = device
    chosen = Options(
        images=images,
        batch_size=8,
        epsilon=1e-3,  # of Adam: with 1e-8 it magnifies the rounding of gradients near 0
        rampup=8,
        average=HalfLife(half_life=40),
        validate_every=validate_every,
        validate_samples=16,
        validate_levels=2,
        snapshot_every=0,
        **options,
    )
    model = Model.for_data(IMAGES, network, preconditioning, augment_dim=chosen.augment_dim)
    trainer = Trainer(model, IMAGES, objective, chosen, run=run, observers=[losses], accelerator=accelerator)
    if resume:
        trainer.resume()
    trained = trainer.fit()
    forget_accelerate()
    return losses.seen, trained


class Losses(Observer):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_progress(self, progress: TrainingProgress) -> None:
        self.seen.append(progress.loss)


@pytest.fixture(scope="module")
def two_moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved posterior, fitted where every operation is not checked, which takes a fifth of the time."""
    folder = tmp_path_factory.mktemp("posterior") / "two_moons"
    tiny_posterior("two_moons").save(folder)
    return folder


def test_posterior(two_moons: Path, away: torch.device) -> None:
    x = torch.zeros(2)

    def load(move: Callable[[Any], Any]) -> DenoiserPosterior:
        return DenoiserPosterior.load(two_moons, move(torch.zeros(1)).device)

    same(away, lambda move: load(move).sample(x, 20, seed=1))
    same(away, lambda move: load(move).log_prob(torch.tensor([[0.1, 0.2]]), x))


@pytest.fixture(scope="module")
def truncated() -> DenoiserPosterior:
    prior = Truncated(Box([0.1, 0.1], [2.0, 2.0]), [0.2, 0.2], [1.5, 1.5])
    theta = prior.sample(400, seed=1)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
    return fit(theta, theta + 0.3 * noise, prior, settings=replace(TINY, members=1))


@pytest.mark.parametrize("kind", ["truncated", "gamma"])
def test_priors_are_asked_on_the_host(
    truncated: DenoiserPosterior, away: torch.device, kind: str, tmp_path: Path
) -> None:
    gamma = TorchPrior(torch.distributions.Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])))
    refined = truncated.with_refinement(TINY.refinement)
    refined.prior = truncated.prior if kind == "truncated" else gamma
    refined.save(tmp_path / "posterior")
    x = torch.ones(2)
    posterior = DenoiserPosterior.load(tmp_path / "posterior", away)
    assert posterior.parts.refinement is not None
    samples = posterior.sample(x, 20, seed=1)
    assert samples.device == away
    assert posterior.log_prob(samples, x).isfinite().all()


def test_metrics(away: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=generator), torch.randn(60, 4, generator=generator) + 0.1
    p = x.softmax(1)
    measures: list[Callable[[Callable[[Tensor], Tensor]], Any]] = [
        lambda move: frechet_error(move(x), move(y)),
        lambda move: kernel_distance(move(x), move(y)),
        lambda move: neighbours(move(x), move(y)).precision,
        lambda move: inception_score(move(p)),
        lambda move: inception_score_error(move(p)),
        lambda move: c2st(move(x), move(y), max_epochs=2),
    ]
    for measure in measures:
        assert measure(lambda t: t.to(away)) == measure(lambda t: t)


def test_evaluation(away: torch.device) -> None:
    classifier = train_classifier(IMAGES, seed=0, epochs=1, width=4, dim=8, device=away)
    network = ClassifierFeatures(classifier)
    there = extract(network, image_batches(IMAGES))
    stream_statistics(network, image_batches(IMAGES))
    reports = [compare(there, there, device=device, num_bootstrap=3) for device in (away, torch.device("cpu"))]
    assert reports[0] == reports[1]
