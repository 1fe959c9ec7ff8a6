"""Consistency tuning: pairs and targets against closed forms, and runs that resume, with every kind of model."""

import math
from itertools import pairwise

import pytest
import torch

from openedm.data import Digits, InMemory, Pairs
from openedm.denoiser import FunctionDenoiser, Preconditioned
from openedm.exact import GaussianMixture
from openedm.networks import MLP, DDPMpp, EDM2UNet
from openedm.objective import ConsistencyTuning
from openedm.preconditioning import EDM as EDMPreconditioning
from openedm.sampling import Consistency
from openedm.training import HalfLife, Model, Options, Trainer, load_denoiser
from openedm.training.consistency import LowerPoints, evaluate_target, same_dropout
from openedm.training.steps import LossModule, StepNoise

SIGMA = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64)
LOWER = torch.tensor([0.0, 1.5, 39.0], dtype=torch.float64)
GAUSSIAN = GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
WIDE = 1.0  # the variance of GAUSSIAN


class Exact(Preconditioned):
    """f(x; σ) = x √(1/(1 + σ²)), the end of the path through x of unit Gaussian data, with a parameter to train."""

    def __init__(self) -> None:
        super().__init__(MLP(width=4, num_blocks=1).build((2,)), EDMPreconditioning(), 1.0, event_shape=(2,))

    def denoise_standardised(self, x, sigma, condition, **options):
        factor = (WIDE / (WIDE + sigma.square())).sqrt().to(x).reshape(-1, 1)
        return factor * x + 0 * next(self.network.parameters()).sum()


def batch(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator), torch.randn(count, 2, generator=generator)


def test_the_exact_consistency_function_has_no_loss_on_steps_of_the_exact_teacher_as_they_become_short():
    clean, noise = batch()
    losses = []
    for last in (3, 6, 9):
        objective = ConsistencyTuning(pairs="teacher", first=last, last=last, huber=1e-9)
        module = LossModule(Exact(), objective)
        module.lower_points = LowerPoints(objective, FunctionDenoiser(GAUSSIAN.denoise, event_shape=(2,)))
        target_sigma = objective.target_levels(SIGMA, 1.0, 0.0)
        losses.append(float(module(clean, noise, SIGMA, None, target_sigma=target_sigma).weighted.mean()))
    # The error of an Euler step falls with the square of its length, which falls by 8.
    assert losses[1] < losses[0] / 30
    assert losses[2] < losses[1] / 30


def test_pairs_from_data_share_the_noise_and_those_of_a_teacher_are_its_euler_steps():
    clean, noise = batch()
    noisy = clean + SIGMA.float()[:, None] * noise
    from_data = LowerPoints(ConsistencyTuning()).lower(clean, noise, noisy, SIGMA, LOWER, None)
    torch.testing.assert_close(from_data, clean + LOWER.float()[:, None] * noise)
    teacher = FunctionDenoiser(GAUSSIAN.denoise, event_shape=(2,))
    step = LowerPoints(ConsistencyTuning(pairs="teacher"), teacher).lower(clean, noise, noisy, SIGMA, LOWER, None)
    slope = (noisy - GAUSSIAN(noisy, SIGMA)) / SIGMA.float()[:, None]
    torch.testing.assert_close(step, noisy + (LOWER - SIGMA).float()[:, None] * slope)


def test_guidance_is_inside_the_steps_of_the_teacher():
    clean, noise = batch()
    noisy = clean + SIGMA.float()[:, None] * noise

    def denoise(x, sigma, condition):
        return torch.where(condition[:, None] < 0, 0.0, 1.0).expand_as(x)

    teacher = FunctionDenoiser(denoise, event_shape=(2,))
    teacher.num_classes = 2
    step = LowerPoints(ConsistencyTuning(pairs="teacher", guidance=3.0), teacher).lower(
        clean, noise, noisy, SIGMA, LOWER, torch.tensor([0, 1, -1])
    )
    guided = torch.tensor([[3.0], [3.0], [0.0]])  # 1 + (3 − 1) (1 − 0); no guidance without a class
    torch.testing.assert_close(step, guided + (LOWER / SIGMA).float()[:, None] * (noisy - guided))


def test_the_target_at_the_boundary_is_the_sample_itself_and_has_no_gradient():
    clean, _ = batch()
    model = Preconditioned(MLP(width=4, num_blocks=1).build((2,)), EDMPreconditioning(), event_shape=(2,))
    target = evaluate_target(model, clean, LOWER, None)
    assert torch.equal(target[0], clean[0])
    assert torch.equal(target[1:], model(clean[1:], LOWER[1:]).detach())
    assert not target.requires_grad


def test_both_evaluations_of_a_pair_have_one_dropout_mask():
    torch.manual_seed(0)
    drop, ones = torch.nn.Dropout(0.5), torch.ones(64)
    with same_dropout(torch.device("cpu")):
        first = drop(ones)
    assert torch.equal(first, drop(ones))
    assert not torch.equal(first, drop(ones))


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_levels_of_a_pair_come_closer_from_stage_to_stage_in_units_of_the_data(sigma_data):
    objective = ConsistencyTuning(q=3.0, first=1, last=4)
    sigma = SIGMA * sigma_data / 0.5
    gaps = []
    for progress, exponent in ((0.0, 1), (0.26, 2), (0.74, 3), (1.0, 4)):
        assert objective.exponent(progress) == exponent
        m = 1 + 8 / (1 + SIGMA.exp())
        wanted = sigma * (1 - m / 3**exponent).clamp(min=0)
        torch.testing.assert_close(objective.target_levels(sigma, sigma_data, progress), wanted)
        gaps.append(sigma - wanted)
    assert all(bool((b < a).all()) for a, b in pairwise(gaps))


def test_a_first_stage_of_0_trains_a_denoiser():
    lower = ConsistencyTuning(first=0).target_levels(SIGMA, 0.5, 0.0)
    assert torch.equal(lower, torch.zeros(3, dtype=torch.float64))


def test_the_distance_is_a_norm_far_above_c_and_half_its_square_below():
    objective = ConsistencyTuning(huber=0.1)
    a = torch.tensor([[3.0, 4.0], [0.003, 0.004]], dtype=torch.float64)
    norms = a.square().mean(1).sqrt()
    distance = objective.distance(a, torch.zeros_like(a), 0.5)
    torch.testing.assert_close(distance, (norms.square() + 0.01).sqrt() - 0.1)
    torch.testing.assert_close(distance[1], norms[1].square() / 0.2, rtol=1e-3, atol=0)
    # In data of twice the width all differences are twice as large.
    torch.testing.assert_close(objective.distance(2 * a, torch.zeros_like(a), 1.0), 2 * distance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 2.0}, "guidance must be 1 with pairs='data', got 2.0"),
        ({"learned_uncertainty": True}, "learned_uncertainty must be False"),
        ({"q": 1.0}, "q must be > 1, got 1.0"),
        ({"first": 5, "last": 4}, "last must be"),
        ({"huber": 0.0}, "huber must be finite and > 0"),
        ({"last": 50}, "q \\*\\* last must be < 1e12"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConsistencyTuning(**options)


def tuned(trainer, **arguments):
    chosen = {"objective": ConsistencyTuning(first=4), "label_dropout": 0.2} | arguments
    return trainer(**chosen)


def with_init(trainer, init, objective, **options):
    chosen = Options(images=128, batch_size=16, rampup=64, average=HalfLife(half_life=40), **options)
    return Trainer(trainer.model, trainer.dataset, objective, chosen, init=init)


GUIDED = ConsistencyTuning(pairs="teacher", guidance=2.0, first=3)


def test_a_run_with_a_teacher_resumes_bit_for_bit_without_the_teacher_at_hand(trainer, tmp_path, state_of, differences):
    teacher = trainer(images=64, label_dropout=0.2).fit()
    plain = trainer()

    def make(run=None):
        options = Options(
            images=128, batch_size=16, rampup=64, average=HalfLife(half_life=40), label_dropout=0.2, checkpoint_every=64
        )
        init = None if run is not None and (run / "checkpoints").exists() else teacher
        return Trainer(plain.model, plain.dataset, GUIDED, options, run=run, init=init)

    straight = make()
    straight.fit()
    stopped = make(tmp_path / "run")
    stopped.fit(lambda: stopped.state.images >= 64)
    resumed = make(tmp_path / "run")
    resumed.resume()
    resumed.fit()
    assert differences(state_of(straight), state_of(resumed)) == []


def test_what_is_trained_is_a_consistency_model_in_python_and_in_its_checkpoint(trainer, tmp_path):
    run = tuned(trainer, run=tmp_path / "run", network=MLP(width=8, num_blocks=1))
    denoiser = run.fit()
    assert denoiser.consistency
    assert load_denoiser(tmp_path / "run").consistency
    assert not trainer().model.consistency


def test_a_teacher_is_required_and_must_be_a_denoiser(trainer):
    with pytest.raises(ValueError, match="init must be given with pairs='teacher'"):
        trainer(objective=ConsistencyTuning(pairs="teacher")).fit()
    function = tuned(trainer, images=16).fit()
    with pytest.raises(ValueError, match="init must be a denoiser with pairs='teacher', got a consistency function"):
        with_init(trainer(), function, ConsistencyTuning(pairs="teacher")).fit()


def test_options_without_effect_are_refused(trainer):
    with pytest.raises(ValueError, match="keep_best must be False and stop_after 0 with ConsistencyTuning"):
        tuned(trainer, keep_best=True)
    with pytest.raises(ValueError, match="compile must be False with ConsistencyTuning"):
        tuned(trainer, compile=True)
    with pytest.raises(ValueError, match=r"objective.guidance must be 1 for a model without classes"):
        trainer(objective=GUIDED, conditional=False)


def test_the_number_of_images_cannot_change_in_a_run_as_its_stages_would(trainer, tmp_path):
    tuned(trainer, run=tmp_path / "run", images=32).fit()
    longer = tuned(trainer, run=tmp_path / "run", images=64)
    with pytest.raises(ValueError, match=r"options.images was 32, is 64"):
        longer.resume()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_weights_get_gradients_after_an_evaluation_without(trainer, precision):
    run = tuned(trainer, precision=precision, images=64)  # the last layer starts at zero
    run.fit()
    moments = run.optimizer.state_dict()["state"]
    assert sum(bool((m["exp_avg"] != 0).any()) for m in moments.values()) >= len(moments) - 2


@pytest.mark.parametrize(
    ("network", "dataset"),
    [
        (DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, dropout=0.2), Digits("test")),
        (EDM2UNet(model_channels=16, channel_mult=(1,), num_blocks=1, head_channels=16), Digits("test")),
        (MLP(width=8, num_blocks=1), Pairs(torch.randn(32, 3), torch.randn(32, 2))),
    ],
)
def test_images_vectors_and_conditions_are_tuned_and_drawn(trainer, network, dataset):
    dataset = dataset.load() if isinstance(dataset, Digits) else dataset
    run = trainer(dataset=dataset, network=network, objective=ConsistencyTuning(first=3), images=16, validate_every=16)
    function = run.fit()
    condition = dataset.fetch([0, 1])[1]
    x = Consistency(2).sample(function, seeds=[3, 4], condition=condition)
    alone = Consistency(2).sample(function, seeds=[4], condition=condition[1:])
    assert x.shape == (2, *dataset.event_shape)
    torch.testing.assert_close(alone[0], x[1])


def test_two_processes_would_draw_the_levels_of_one(trainer):
    run = tuned(trainer)
    noise = StepNoise.draw(run.model, run.objective, run.options, 5, torch.device("cpu"))
    assert noise.target_sigma is not None
    assert bool((noise.target_sigma < noise.sigma).all())
    parts = [noise.of(slice(i, i + 8)) for i in (0, 8)]
    assert torch.equal(torch.cat([part["target_sigma"] for part in parts]), noise.target_sigma)


def test_a_model_trained_on_data_alone_jumps_to_the_end_of_the_exact_path_and_not_to_the_mean():
    data = InMemory(torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)))
    options = Options(
        images=60_000,
        batch_size=128,
        learning_rate=1e-2,
        rampup=2048,
        schedule="cosine",
        clip_norm=1.0,
        average=HalfLife(half_life=2000.0),
        validate_every=0,
        snapshot_every=0,
    )
    objective = ConsistencyTuning(first=0, last=4)
    function = Trainer(Model.for_data(data, MLP(width=32, num_blocks=1)), data, objective, options).fit()
    noise = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    x = Consistency(1).sample(function, seeds=range(41), noise=noise)
    everything = data.fetch(range(4096))[0]
    # Of Gaussian data f(m + σ n; σ) = m + n s/√(1 + (s/σ)²), with σ = 80 and s = 0.5 in standard units.
    wanted = everything.mean() + everything.std() * noise * 80 / math.sqrt(80**2 + 0.5**2)
    assert float((x - wanted).square().mean().sqrt()) < 0.3  # of the mean, it is 1.2
