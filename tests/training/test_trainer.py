import copy
import math
from dataclasses import replace
from itertools import count

import pytest
import torch

from accelerated import forget_accelerate
from openedm import objective as objectives
from openedm import preconditioning
from openedm.data import Dataset, InMemory
from openedm.ground.seeding import generator
from openedm.networks import MLP
from openedm.objective import EDM, EDM2, LogNormal
from openedm.training import HalfLife, Model, Observer, Options, Trainer, list_checkpoints
from openedm.training.loading import batch_indices
from openedm.training.options import LEVELS, NOISE

CPU = torch.device("cpu")


class Heard(Observer):
    """Records every call."""

    def __init__(self):
        self.progress, self.validations, self.snapshots, self.checkpoints = [], [], [], []
        self.drawn_before = []

    def on_progress(self, progress):
        self.progress.append(progress)

    def on_validation(self, images, loss):
        self.validations.append((images, loss.loss))

    def on_snapshot(self, images, denoiser):
        self.snapshots.append((images, denoiser))

    def on_checkpoint(self, images, path):
        self.checkpoints.append((images, path))
        self.drawn_before.append([n for n, _ in self.snapshots])


class AfterEachStep(Observer):
    def __init__(self, action):
        self.action = action

    def on_progress(self, progress):
        self.action(progress)


class Poisoned(Dataset):
    """Data that are far too large at some fetches, so that the loss of these steps overflows."""

    def __init__(self, clean):
        self.clean, self.bad, self.fetches = clean, set(), count(1)
        self.event_shape, self.num_classes = clean.event_shape, clean.num_classes
        self.class_names, self.kind = clean.class_names, clean.kind

    def __len__(self):
        return len(self.clean)

    def fetch(self, indices):
        x, labels = self.clean.fetch(indices)
        return (1e30 * x if self.bad and next(self.fetches) in self.bad else x), labels


def poisoned(vectors, *bad):
    """Set `bad` after the model has measured the data: fetches count from then on."""
    dataset = Poisoned(vectors)

    def poison(trainer):
        dataset.bad = set(bad)
        return trainer

    return dataset, poison


# One step, against its definition.


def first_batch(run):
    """Clean samples, labels, noise levels and noise of the first step, in float64."""
    options = run.options
    y, labels = run.dataset.fetch(batch_indices(options.seed, len(run.dataset), 0, options.batch_size))
    noise_levels, random = run.objective.noise.for_data(run.model.sigma_data), generator(CPU, options.seed, LEVELS, 0)
    sigma = noise_levels.sample(options.batch_size, random, stratified=run.objective.stratified)
    noise = torch.randn(y.shape, generator=generator(CPU, options.seed, NOISE, 0))
    return y.double(), labels, sigma, noise.double()


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("objective", [EDM(), EDM(stratified=False), EDM2()])
def test_the_loss_and_gradient_of_a_step_are_those_of_the_formula(trainer, objective, accumulate):
    heard = Heard()
    run = trainer(objective=objective, images=16, accumulate=accumulate, observers=[heard])
    y, labels, sigma, noise = first_batch(run)
    denoiser = copy.deepcopy(run.denoiser).double()
    weight = (sigma**2 + run.model.sigma_data**2) / (sigma * run.model.sigma_data) ** 2
    y = run.model.units.standardise(y)
    loss = (weight * (denoiser(y + sigma[:, None] * noise, sigma, labels, standard=True) - y).square().mean(1)).mean()
    gradients = torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)
    squares = sum(g.square().sum().item() for g in gradients if g is not None)
    if objective.learned_uncertainty:  # u = 0 at first: the network's gradient is the same, and that of u joins it.
        u = copy.deepcopy(run._loss_module.uncertainty).double()
        residual = (denoiser(y + sigma[:, None] * noise, sigma, labels, standard=True) - y).square().mean(1).detach()
        values = u(sigma)
        total = (weight * residual / values.exp() + values).mean()
        squares += torch.autograd.grad(total, u.weight)[0].square().sum().item()
    run.fit()
    # float32 against float64: sums of some 10² terms of rounding 6e-8 each.
    assert heard.progress[0].loss == pytest.approx(loss.item(), rel=1e-5)
    assert heard.progress[0].gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_an_edm_network_starts_at_the_loss_of_the_skip_connection_which_is_one_for_centred_data(trainer):
    # E over data of variance σ_d² at every σ; 4096 samples of λ‖·‖²/n, which is χ²₂/2 about: standard error 1/64.
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(1))
    heard = Heard()
    trainer(dataset=InMemory(x), images=4096, batch_size=4096, observers=[heard]).fit()
    assert heard.progress[0].loss == pytest.approx(1, abs=4 / 64)


@pytest.mark.parametrize("objective", [EDM(), EDM2()])
def test_the_loss_that_observers_get_is_the_weighted_one_without_the_uncertainty(trainer, objective):
    heard, weighted, totals = Heard(), [], []
    run = trainer(objective=objective, observers=[heard], accumulate=2, learning_rate=0.1, rampup=0)
    run._loss_module.register_forward_hook(lambda _, inputs, loss: weighted.append(loss.weighted.mean().item()))
    run._loss_module.register_forward_hook(lambda _, inputs, loss: totals.append(loss.total.mean().item()))
    run.fit()
    means = [(a + b) / 2 for a, b in zip(weighted[::2], weighted[1::2], strict=True)]
    assert [p.loss for p in heard.progress] == pytest.approx(means, rel=1e-5)
    assert (weighted[2:] == totals[2:]) is not objective.learned_uncertainty


def test_the_steps_are_those_of_adam(trainer):
    run = trainer(learning_rate=0.02, rampup=64, beta_1=0.8, beta_2=0.95, epsilon=1e-3)
    weights = [p.detach().double().clone() for p in run._loss_module.parameters()]
    means, squares = ([torch.zeros_like(w) for w in weights] for _ in range(2))

    def step(progress):
        n, rate = progress.step, 0.02 * min(16 * progress.step / 64, 1)
        for w, m, v, p in zip(weights, means, squares, run._loss_module.parameters(), strict=True):
            g = p.grad.double()
            m.lerp_(g, 1 - 0.8)
            v.lerp_(g.square(), 1 - 0.95)
            w -= rate * (m / (1 - 0.8**n)) / ((v / (1 - 0.95**n)).sqrt() + 1e-3)

    run.observers = (AfterEachStep(step),)
    run.fit()
    for w, p in zip(weights, run._loss_module.parameters(), strict=True):
        # 8 steps of at most 0.02, each rounded to a relative 1e-6 or so, and the rounding of the weights themselves.
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulating_gradients_takes_the_same_steps(trainer, accumulate):
    whole, parts = Heard(), Heard()
    one = trainer(observers=[whole], label_dropout=0.3)
    many = trainer(observers=[parts], label_dropout=0.3, accumulate=accumulate)
    one.fit()
    many.fit()
    for a, b in zip(whole.progress, parts.progress, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-4)
    for a, b in zip(one.denoiser.parameters(), many.denoiser.parameters(), strict=True):
        # 8 steps of at most lr = 1e-3 each; Adam's g/√v carries the relative rounding of g, except where g ≈ 0.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_dropout_is_on_in_training_and_off_in_the_average(everything_on):
    run = everything_on()
    modes = []
    run.denoiser.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    assert run.fit().training is False
    assert set(modes) == {True}


# Steps that are not finite.


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(
    trainer, vectors, state_of, differences, tmp_path
):
    dataset, poison = poisoned(vectors, 3, 6, 7)
    states, heard = [], Heard()
    run = poison(trainer(dataset=dataset, objective=EDM2(), clip_norm=1.0, observers=[heard]))
    run.observers += (AfterEachStep(lambda _: states.append(state_of(run))),)
    run.fit()
    counts = {"images", "step", "skipped", "skipped_in_a_row"}
    for i in range(1, 8):
        changed = set(differences(states[i], states[i - 1])) - counts
        assert bool(changed) == (i + 1 not in {3, 6, 7})
    assert [p.skipped for p in heard.progress] == [0, 0, 1, 1, 1, 2, 3, 3]
    assert [math.isfinite(p.loss) for p in heard.progress] == [i not in {3, 6, 7} for i in range(1, 9)]
    assert [p.images for p in heard.progress] == [16 * i for i in range(1, 9)]


def test_a_gradient_that_is_not_finite_is_skipped_too_though_the_loss_is(trainer, state_of, differences):
    heard, states = Heard(), []
    run = trainer(observers=[heard], images=48)
    run.observers += (AfterEachStep(lambda _: states.append(state_of(run))),)
    backward = count(1)
    run.denoiser.network.layer_in.weight.register_hook(lambda g: g * math.nan if next(backward) == 2 else None)
    run.fit()
    assert [p.skipped for p in heard.progress] == [0, 1, 1]
    assert math.isfinite(heard.progress[1].loss)
    assert set(differences(states[1], states[0])) == {"images", "step", "skipped", "skipped_in_a_row"}
    assert all(torch.isfinite(p).all() for p in run.denoiser.parameters())


def test_training_gives_up_after_as_many_bad_steps_in_a_row_as_its_patience(trainer, vectors):
    dataset, poison = poisoned(vectors, 2, 3, 5, 6, 7)
    heard = Heard()
    run = poison(trainer(dataset=dataset, patience=3, observers=[heard]))
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*images seen: 112.*lower learning_rate"):
        run.fit()
    assert len(heard.progress) == 6
    assert run.state.skipped == 5


def test_bad_steps_in_a_row_are_counted_across_an_interruption(trainer, vectors, tmp_path):
    dataset, poison = poisoned(vectors, 3, 4)
    poison(trainer(dataset=dataset, run=tmp_path, images=64)).fit()
    dataset, poison = poisoned(vectors, 1)
    run = poison(trainer(dataset=dataset, run=tmp_path))
    run.resume()
    assert run.state.skipped == 2
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        run.fit()


# Clipping.


def test_the_gradient_is_scaled_down_to_the_norm_asked_for_and_reported_as_it_was(trainer):
    whole, clipped, norms, gradients = Heard(), Heard(), [], []
    limit = 0.05

    def gradient(run):
        return torch.cat([p.grad.flatten() for p in run._loss_module.parameters() if p.grad is not None])

    free = trainer(observers=[whole], images=16)
    free.fit()
    run = trainer(observers=[clipped], clip_norm=limit)
    run.observers += (
        AfterEachStep(lambda _: norms.append(gradient(run).norm().item())),
        AfterEachStep(lambda _: gradients.append(gradient(run).clone())),
    )
    run.fit()
    assert clipped.progress[0].gradient_norm == whole.progress[0].gradient_norm > limit
    assert all(p.gradient_norm > limit for p in clipped.progress)
    # g · c/(‖g‖ + 1e-6): below the limit by 1e-6/‖g‖ at most, and rounding.
    assert norms == [pytest.approx(limit, rel=1e-4)] * 8
    torch.testing.assert_close(gradients[0], gradient(free) * limit / whole.progress[0].gradient_norm)


def test_a_gradient_below_the_limit_is_left_as_it_is(trainer, state_of, differences):
    free, wide = trainer(), trainer(clip_norm=1e6)
    free.fit()
    wide.fit()
    assert differences(state_of(free), state_of(wide)) == []


# Labels.


def seen_labels(run):
    """What the denoiser is conditioned on, step by step."""
    found = []
    run.denoiser.register_forward_pre_hook(lambda _, arguments: found.append(arguments[2]))
    run.fit()
    return found


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_labels_are_hidden_as_minus_one_with_the_probability_asked_for_and_else_are_the_samples_own(
    trainer, vectors, probability
):
    run = trainer(images=1920, batch_size=192, label_dropout=probability)
    seen = torch.cat(seen_labels(run))
    own = vectors.fetch(batch_indices(0, len(vectors), 0, 1920))[1]
    hidden = seen == -1
    assert torch.equal(seen[~hidden], own[~hidden])
    error = math.sqrt(probability * (1 - probability) / 1920)
    assert hidden.double().mean().item() == pytest.approx(probability, abs=4 * error)
    if probability == 0.3:  # Other samples in every step: batches of 192 with equal patterns have probability 0.
        assert len({tuple(row) for row in hidden.view(10, 192).tolist()}) == 10


def test_an_unconditional_model_trains_on_labelled_data_without_labels(trainer):
    assert seen_labels(trainer(conditional=False)) == [None] * 8


def test_hiding_labels_that_are_not_there_is_an_error(trainer):
    with pytest.raises(ValueError, match=r"label_dropout must be 0 without classes or conditions, got 0\.1"):
        trainer(conditional=False, label_dropout=0.1)


# When things happen.


def due(every, batch, images):
    """The numbers of images at which something due every so many images happens, the end included."""
    reached = range(batch, images + batch, batch)
    return [n for n in reached if every and (n >= images or any(m % every == 0 for m in range(n - batch + 1, n + 1)))]


@pytest.mark.parametrize(
    ("batch", "images", "checkpoint", "validate", "snapshot"),
    [(16, 128, 32, 48, 128), (7, 50, 10, 7, 3), (16, 100, 1000, 0, 0), (64, 65, 1, 40, 100)],
)
def test_checkpoints_validations_and_snapshots_come_when_due_and_at_the_end(
    trainer, tmp_path, batch, images, checkpoint, validate, snapshot
):
    heard = Heard()
    run = trainer(
        batch_size=batch,
        images=images,
        checkpoint_every=checkpoint,
        validate_every=validate,
        snapshot_every=snapshot,
        keep=0,
        run=tmp_path,
        observers=[heard],
    )
    run.fit()
    assert [n for n, _ in heard.checkpoints] == due(checkpoint, batch, images)
    assert [path for _, path in heard.checkpoints] == list_checkpoints(tmp_path)
    assert [n for n, _ in heard.validations] == due(validate, batch, images)
    assert [n for n, _ in heard.snapshots] == due(snapshot, batch, images)
    # A run that is killed goes on after its checkpoint: what else is due is done before.
    for (n, _), drawn in zip(heard.checkpoints, heard.drawn_before, strict=True):
        assert drawn == [at for at in due(snapshot, batch, images) if at <= n]
    assert all(denoiser is run.average and not denoiser.training for _, denoiser in heard.snapshots)
    assert run.state.images == math.ceil(images / batch) * batch


def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_after_that_step_and_nothing_else(trainer, tmp_path):
    heard = Heard()
    steps = count(1)
    run = trainer(run=tmp_path, observers=[heard], validate_every=1, snapshot_every=1)
    run.fit(lambda: next(steps) == 3)
    assert [n for n, _ in heard.checkpoints] == [48]
    assert [n for n, _ in heard.validations] == [n for n, _ in heard.snapshots] == [16, 32]
    assert len(heard.progress) == 3


def test_watching_a_run_does_not_change_it(everything_on, state_of, differences, tmp_path):
    class Meddler(Observer):
        """Draws global random numbers and runs the average whenever it is called."""

        def on_progress(self, progress):
            torch.rand(progress.step)

        def on_snapshot(self, images, denoiser):
            torch.manual_seed(images)
            denoiser(torch.randn(2, 1, 8, 8), 1.0, torch.tensor([0, 1]))

        on_validation = on_checkpoint = lambda self, images, _: torch.rand(images)

    alone = everything_on(validate_every=0, snapshot_every=0, images=64)
    alone.fit()
    watched = everything_on(
        validate_every=16, snapshot_every=16, checkpoint_every=16, images=64, run=tmp_path, observers=[Meddler()]
    )
    watched.fit()
    assert differences(state_of(watched), state_of(alone)) == []


def test_the_global_random_state_neither_enters_a_run_nor_leaves_it_changed(everything_on, state_of, differences):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = everything_on(images=32)
        run.fit()
        states.append(state_of(run))
        assert torch.equal(torch.get_rng_state(), before)
    assert differences(*states) == []


def test_the_seed_enters_the_weights_and_every_step(trainer):
    curves = []
    for seed in (0, 1):
        heard = Heard()
        trainer(seed=seed, observers=[heard]).fit()
        curves.append([p.loss for p in heard.progress])
    assert all(a != b for a, b in zip(*curves, strict=True))


# Precision.


def test_bf16_runs_the_network_in_bfloat16_keeps_the_weights_in_float32_and_learns(trainer):
    x = 3 + 0.5 * torch.randn(512, 2, generator=torch.Generator().manual_seed(3))
    heard, seen = Heard(), set()
    run = trainer(
        dataset=InMemory(x),
        standardise=False,
        precision="bf16",
        images=6400,
        batch_size=64,
        learning_rate=1e-2,
        rampup=0,
        observers=[heard],
    )
    run.denoiser.network.layer_in.register_forward_hook(lambda *arguments: seen.add(arguments[2].dtype))
    run.fit()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in run.denoiser.parameters()} == {torch.float32}
    assert {t.dtype for s in run.optimizer.state.values() for t in s.values()} == {torch.float32}
    # The loss of the exact denoiser is 1; untrained, the mean μ = 3 adds μ²σ²/(s²(σ²+s²)), 13 on average over p(σ).
    assert heard.progress[0].loss == pytest.approx(14, rel=0.15)
    assert sum(p.loss for p in heard.progress[-20:]) / 20 < 1.5


def test_bf16_leaves_the_uncertainty_in_float32(trainer):
    seen = set()
    run = trainer(objective=EDM2(), precision="bf16", images=16)
    run._loss_module.uncertainty.register_forward_hook(lambda *arguments: seen.add(arguments[2].dtype))
    run.fit()
    assert seen == {torch.float32}


def test_fp32_runs_the_network_in_float32(trainer):
    seen = set()
    run = trainer(images=16)
    run.denoiser.network.layer_in.register_forward_hook(lambda *arguments: seen.add(arguments[2].dtype))
    run.fit()
    assert seen == {torch.float32}


# Learned uncertainty.


def test_the_learned_uncertainty_settles_where_every_level_contributes_equally(vectors, without_type_checker):
    objective = EDM2(noise=LogNormal(p_mean=-0.4, p_std=1.0))
    # With σ_data too small by far, λ leaves the loss uneven: there is something to even out.
    model = replace(Model.for_data(vectors, MLP(width=32, num_blocks=1), standardise=False), sigma_data=0.25)
    options = Options(images=256 * 300, batch_size=256, learning_rate=1e-2, rampup=0, average=HalfLife(2560))
    run = Trainer(model, vectors, objective, options)
    run.fit()
    # Stationary in the weights of u: E[(1 − L/e^u) feature] = 0; most easily seen for parts of p(σ).
    sigma = objective.noise.sample(8192, torch.Generator().manual_seed(5), stratified=True).sort().values
    y, labels = vectors.fetch(torch.arange(8192) % len(vectors))
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        loss = run._loss_module(y, noise, sigma, labels).weighted
        shares = (loss / run._loss_module.uncertainty(sigma).exp()).view(4, -1).mean(1)
    assert loss.view(4, -1).mean(1).max() > 2 * loss.view(4, -1).mean(1).min()
    assert shares.tolist() == [pytest.approx(1, abs=0.2)] * 4


# What cannot be trained.


def test_what_does_not_fit_is_refused_before_any_step(trainer, vectors, tmp_path):
    model = trainer().model
    with pytest.raises(ValueError, match=r"dataset must have samples of shape \(2,\), got \(3,\)"):
        Trainer(model, InMemory(torch.zeros(4, 3), torch.arange(4) % 3))
    with pytest.raises(ValueError, match=r"validation must have samples of shape \(2,\), got \(1,\)"):
        Trainer(model, vectors, validation=InMemory(torch.zeros(4, 1), torch.arange(4) % 3))
    with pytest.raises(ValueError, match="dataset must have 3 classes, got 0"):
        Trainer(model, InMemory(torch.zeros(4, 2)))
    with pytest.raises(ValueError, match="batch_size must be a multiple of processes × accumulate = 3, got 16"):
        trainer(accumulate=3)
    trainer(run=tmp_path, images=16).fit()
    with pytest.raises(ValueError, match=r"already has checkpoints: call resume\(\) first, or choose another folder"):
        trainer(run=tmp_path).fit()


def test_saving_or_resuming_without_a_run_folder_is_an_error(trainer):
    with pytest.raises(ValueError, match="run must be given to save"):
        trainer().save()
    with pytest.raises(ValueError, match="path must be given to resume"):
        trainer().resume()


def test_environment_variables_of_accelerate_do_not_change_the_steps(trainer, state_of, differences, monkeypatch):
    plain = trainer()
    plain.fit()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    forget_accelerate()
    other = trainer()
    other.fit()
    assert differences(state_of(plain), state_of(other)) == []


def test_an_objective_that_trains_outside_the_range_of_the_preconditioning_is_refused(vectors):
    model = Model.for_data(vectors, MLP(8, 1), preconditioning.VE(sigma_max=10.0))
    with pytest.raises(ValueError, match=r"objective: 27% of the noise levels of LogUniform.*\[0.02, 10\]"):
        Trainer(model, vectors, objectives.VE())
    Trainer(Model.for_data(vectors, MLP(8, 1), preconditioning.VE()), vectors, objectives.VE())
