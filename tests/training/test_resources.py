"""Memory and time before the work: what is measured, how batches are split, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from openedm import objective as objectives
from openedm.data import Digits, InMemory, Toy
from openedm.ground.memory import available_memory, explain_out_of_memory
from openedm.networks import MLP, DDPMpp, EDM2UNet
from openedm.training import Model, Options, Trainer, resources
from openedm.training.recipes import budget_of, choose_recipe, label_dropout_for
from openedm.training.resources import Cost, format_bytes, format_seconds, measure_cost, plan_accumulation
from openedm.training.steps import LossModule

SMALL = DDPMpp(model_channels=16, channel_mult=(1, 2), num_blocks=1)


def loss_module(model: Model) -> LossModule:
    return LossModule(model.build(), objectives.EDM()).train()


def test_a_sample_costs_what_its_saved_tensors_need_and_four_times_as_much_at_twice_the_resolution() -> None:
    costs = []
    for size in (16, 32):
        model = Model(network=SMALL, event_shape=(3, size, size))
        costs.append(measure_cost(loss_module(model), model, Options(batch_size=2)))
    assert costs[1].sample == pytest.approx(4 * costs[0].sample, rel=0.25)
    # Some tens of activations of 16 channels at full resolution, in float32.
    assert 10 < costs[0].sample / (16 * 16 * 16 * 4) < 200
    assert all(cost.seconds > 0 for cost in costs)


def test_measuring_leaves_weights_gradients_and_random_numbers_alone() -> None:
    model = Model(network=SMALL, event_shape=(1, 8, 8))
    module = loss_module(model)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    measure_cost(module, model, Options(batch_size=2))
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("available", "accumulate"), [(10**9, 1), (70_000, 2), (10_000, 8), (2_500, 64)], ids=["all", "half", "8", "one"]
)
def test_the_fewest_rounds_that_fit_are_chosen(available: int, accumulate: int) -> None:
    cost = Cost(fixed=1_000, sample=1_000, seconds=1.0)
    plan = plan_accumulation(cost, Options(batch_size=128), 2, available)
    assert (plan.accumulate, plan.samples) == (accumulate, 64 // accumulate)
    assert plan.bytes <= 0.9 * available


def test_what_does_not_fit_is_refused_with_the_option_to_change() -> None:
    cost = Cost(fixed=1_000, sample=1_000, seconds=1.0)
    with pytest.raises(MemoryError, match=r"one sample at a time needs 2 kB, .* lower network.model_channels"):
        plan_accumulation(cost, Options(batch_size=128), 1, 2_000)
    with pytest.raises(MemoryError, match=r"accumulate=2 needs 65 kB .* take at least 4"):
        plan_accumulation(cost, Options(batch_size=128, accumulate=2), 1, 40_000)


def test_training_in_chosen_rounds_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits().load()
    options = Options(images=32, batch_size=16, validate_every=0, snapshot_every=0)
    model = Model.for_data(data, SMALL)
    monkeypatch.setattr(resources, "SMALL", 0)
    whole = Trainer(model, data, options=options)
    expected = whole.fit()
    assert whole.options.accumulate == 1
    trainer = Trainer(model, data, options=options)
    cost = trainer.plan().cost
    trainer.options = options
    needed = cost.bytes(4)
    monkeypatch.setattr("openedm.training.resources.available_on", lambda device: int(needed / 0.89))
    found = trainer.fit()
    assert trainer.options.accumulate == 4
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_keeps_the_rounds_that_were_chosen(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits().load()
    options = Options(images=32, batch_size=16, accumulate=None, validate_every=0, snapshot_every=0)
    model = Model.for_data(data, SMALL)
    first = Trainer(model, data, options=replace(options, images=16, accumulate=4), run=tmp_path)
    first.fit()
    again = Trainer(model, data, options=options, run=tmp_path)
    again.resume()
    assert again.options.accumulate == 4


def test_memory_that_runs_out_later_says_what_to_lower() -> None:
    with (
        pytest.raises(MemoryError, match=r"out of memory: lower options.batch_size"),
        explain_out_of_memory("lower options.batch_size"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("nothing"):
        raise RuntimeError("shape")
    assert 0 < available_memory() < 2**50


def test_numbers_are_written_with_their_units() -> None:
    assert [format_bytes(n) for n in (5, 1.5e3, 2.04e9, 3e12)] == ["5 B", "1.5 kB", "2.04 GB", "3 TB"]
    assert [format_seconds(s) for s in (5, 61, 7900, 90000)] == ["5 s", "1 min 1 s", "2 h 11 min", "1 d 1 h"]


@pytest.mark.parametrize(
    ("data", "network"),
    [
        (Toy(num_samples=64).load(), MLP),
        (Digits().load(), DDPMpp),
        (InMemory(torch.randn(8, 2, 40)), DDPMpp),
        (InMemory(torch.randn(8, 1, 4, 6, 4)), DDPMpp),
    ],
    ids=["vectors", "images", "series", "volumes"],
)
def test_a_budget_chooses_network_batch_and_length_for_any_shape(data, network, monkeypatch) -> None:
    monkeypatch.setattr("openedm.training.recipes.LADDER", ((8, 1),))
    monkeypatch.setattr(resources, "TIMED_SECONDS", 0.05)
    recipe = choose_recipe("cpu-hour", data, torch.device("cpu"))
    assert isinstance(recipe.network, network)
    options = recipe.options
    assert options.images >= options.batch_size >= 1
    if network is DDPMpp:
        assert recipe.seconds == pytest.approx(0.96 * 3600, rel=0.06)
    assert recipe.settings()["options.images"] == options.images
    Model.for_data(data, recipe.network).build()


def fix_costs(monkeypatch: pytest.MonkeyPatch, seconds: float, evaluation: float = 0.0) -> None:
    """Networks that cost `seconds` a sample and channel in training, without a measurement."""

    def cost(network, dataset, device, objective, base):
        augmenting = 1.5 if base.augmentation else 1.0
        return Cost(10, 10, augmenting * network.model_channels * seconds, evaluation)

    monkeypatch.setattr("openedm.training.recipes._measure", cost)
    monkeypatch.setattr("openedm.training.recipes._precision", lambda *rest: "fp32")


def test_a_slower_machine_gets_a_smaller_network_and_a_given_network_is_kept(monkeypatch) -> None:
    data = Digits().load()
    monkeypatch.setattr("openedm.training.recipes.MIN_IMAGES", 100_000)
    widths = {}
    for factor in (1, 4):
        fix_costs(monkeypatch, factor * 2e-4)
        widths[factor] = choose_recipe("cpu-hour", data, torch.device("cpu")).network.model_channels
    assert widths[1] > widths[4] >= 16
    assert choose_recipe("cpu-hour", data, torch.device("cpu"), network=SMALL).network == SMALL


@pytest.mark.parametrize(("evaluation", "times"), [(1e-4, (20, 10)), (3e-2, (1, 2)), (1.0, (1, 1))])
def test_validation_and_grids_take_a_tenth_of_the_time_and_are_counted(monkeypatch, evaluation, times) -> None:
    fix_costs(monkeypatch, 1e-4, evaluation)
    recipe = choose_recipe("cpu-hour", Digits().load(), torch.device("cpu"))
    options = recipe.options
    assert (options.images / options.validate_every, options.images / options.snapshot_every) == pytest.approx(times)
    if evaluation < 1:
        assert 0.9 * 3600 < recipe.seconds < 3600
    taken = options.evaluations(len(Digits().load()), recipe.grid_evaluations)
    assert taken == times[0] * 256 * 12 + times[1] * recipe.grid_evaluations
    assert options.evaluations(2, 100, images_seen=options.images // 2) == sum(
        math.ceil(n / 2) * each for n, each in zip(times, (24, 100), strict=True)
    )


@pytest.mark.parametrize(("images", "times"), [(30_000, (5, 2)), (2_000_000, (5, 6)), (30_000_000, (20, 10))])
def test_a_run_of_given_length_is_measured_in_proportion_to_it(monkeypatch, images, times) -> None:
    monkeypatch.setattr("openedm.training.recipes.LADDER", ((16, 1),))
    fix_costs(monkeypatch, 1e-4 / 16, 1e-3)
    options = Options(images=images)
    chosen = choose_recipe("cpu-hour", Digits().load(), torch.device("cpu"), base=options, keep=["images"]).options
    assert chosen.images == images
    assert (images // chosen.validate_every, round(images / chosen.snapshot_every)) == times


def test_images_that_are_seen_often_are_transformed_at_a_cost_and_few_images_are_batches(monkeypatch) -> None:
    fix_costs(monkeypatch, 2e-4)
    few, many = (InMemory(torch.rand(n, 3, 16, 16) * 2 - 1, kind="images") for n in (20, 4000))
    rare, often = (choose_recipe("cpu-hour", data, torch.device("cpu")) for data in (many, few))
    assert rare.options.augmentation is None
    assert often.options.augmentation is not None
    assert often.settings()["options.augmentation.p"] == often.options.augmentation.p
    assert often.options.images < 0.7 * rare.options.images
    assert (rare.options.batch_size, often.options.batch_size) == (32, 20)
    kept = choose_recipe("cpu-hour", few, torch.device("cpu"), keep=["augmentation", "batch_size"])
    assert (kept.options.augmentation, kept.options.batch_size) == (None, Options().batch_size)


def test_a_given_network_of_fixed_magnitudes_has_its_own_rates(monkeypatch) -> None:
    fix_costs(monkeypatch, 2e-4)
    data, network = Digits().load(), EDM2UNet(8, (1,), 1, head_channels=8)
    options = choose_recipe("cpu-hour", data, torch.device("cpu"), network=network).options
    assert (options.learning_rate, options.schedule) == (0.01, "inverse_sqrt")
    assert options.decay_after == options.images // 4
    kept = choose_recipe("cpu-hour", data, torch.device("cpu"), network=network, keep=["schedule", "learning_rate"])
    assert (kept.options.learning_rate, kept.options.schedule, kept.options.decay_after) == (1e-3, "constant", None)
    assert choose_recipe("cpu-hour", data, torch.device("cpu"), network=SMALL).options.decay_after is None


def test_larger_images_are_taken_in_blocks_on_the_host_and_classes_are_left_out_at_times(monkeypatch) -> None:
    fix_costs(monkeypatch, 2e-4)
    for side, patch, levels in ((16, 1, 3), (28, 2, 3), (32, 2, 3), (64, 4, 3)):
        data = InMemory(torch.zeros(64, 3, side, side), kind="images")
        network = choose_recipe("cpu-hour", data, torch.device("cpu")).network
        assert isinstance(network, DDPMpp)
        assert (network.patch_size, len(network.channel_mult)) == (patch, levels)
    assert label_dropout_for(Digits().load()) == 0.1
    assert label_dropout_for(InMemory(torch.zeros(8, 1, 4, 4), kind="images")) == 0
    assert label_dropout_for(Toy(num_samples=8).load()) == 0


def test_times_are_those_of_warm_repeats_with_the_step_of_the_optimiser(monkeypatch) -> None:
    calls = iter([5.0, 4.0, 0.4, 0.2, 0.3, 0.1])
    monkeypatch.setattr(resources, "time_run", lambda run, device: next(calls))
    assert resources._fastest(lambda: None, torch.device("cpu")) == 4.0  # too long for more than one repeat
    assert resources._fastest(lambda: None, torch.device("cpu")) == 0.1
    model = Model(network=SMALL, event_shape=(1, 8, 8))
    monkeypatch.undo()
    few, many = (measure_cost(loss_module(model), model, Options(batch_size=n)).seconds for n in (1, 16))
    assert few > many > 0


def test_a_slow_first_pass_does_not_keep_the_measured_batch_small(monkeypatch) -> None:
    counts: list[int] = []

    def scripted(run, device) -> float:
        measured = getattr(run, "__self__", None)
        if not isinstance(measured, resources.Pass):
            return 0.0  # the optimiser's step
        counts.append(len(measured.clean))
        return 0.9 if len(counts) == 1 else 0.015 + 0.001 * counts[-1]

    monkeypatch.setattr(resources, "time_run", scripted)
    model = Model(network=SMALL, event_shape=(1, 8, 8))
    cost = measure_cost(loss_module(model), model, Options(batch_size=64))
    assert cost.seconds == pytest.approx((0.015 + 0.064) / 64)
    assert counts[-1] == 64


def test_a_budget_for_another_machine_is_refused() -> None:
    assert budget_of(torch.device("cpu")) == "cpu-hour"
    with pytest.raises(ValueError, match="budget='gpu-8gb' needs a device of type 'cuda', got 'cpu'"):
        choose_recipe("gpu-8gb", Toy(num_samples=8).load(), torch.device("cpu"))
    assert math.isfinite(available_memory())
