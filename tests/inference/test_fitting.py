"""`fit`: what it refuses, what it warns of, and that it comes to the posterior."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fitted import TINY
from openedm.inference import Box, Normal, Settings, Simulations, calibrate, fit, load, simulate
from openedm.inference.forms import Form, Trials, choose_form, choose_size, simplest
from openedm.inference.mixtures import fit_mixture
from openedm.inference.refine import Refinement
from openedm.inference.settings import MixtureOptions
from openedm.networks import ConditionalMLP, SeriesSummary, SetSummary
from openedm.training import Observer

N = 300
THETA = torch.rand(N, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
X = THETA + 0.1 * torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
PRIOR = Box([-1.0, -1.0], [1.0, 1.0], names=("a", "b"))
COUNTED = replace(TINY, emulator=replace(TINY.emulator, structures=("counts",)))
PLAIN = replace(TINY, emulator=None, refinement=None)
SERIES = ConditionalMLP(width=8, num_blocks=1, summary=SeriesSummary())


def simulated(n: int, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """θ ~ N(0, I), x = θ + N(0, ¼ I): the posterior is N(0.8 x, 0.2 I)."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(n, d, generator=generator)
    return theta, theta + 0.5 * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": THETA[:5], "x": X[:5]}, "at least 100 simulations, got 5"),
        ({"theta": THETA[:-1]}, "one row a simulation, got 299 and 300"),
        ({"theta": THETA[:, 0]}, "prior must have as many parameters as theta, 1, got 2"),
        ({"theta": THETA[:, :, None]}, r"theta must have shape \(n, d\), got \(300, 2, 1\)"),
        ({"x": X[0, 0]}, r"x must have shape \(n, \*x_shape\)"),
        ({"theta": (5 * THETA).round(), "prior": None}, "these columns hold few different values: 0, 1"),
        ({"theta": (4 * THETA).round() / 4, "prior": None}, "these columns hold few different values: 0, 1"),
        ({"theta": torch.cat([THETA, THETA[:, :1]], 1), "prior": None}, "linearly dependent, .*: 0, 2; leave one of"),
        (
            {"theta": torch.cat([THETA, 1 - THETA.sum(1, keepdim=True)], 1), "prior": None},
            "dependent, .*: 0, 1, 2; leave",
        ),
        (
            {"theta": torch.cat([THETA[:, :1], THETA[:, 1:].clamp_min(0.5)], 1), "prior": None},
            r"in column 1 one value, 0.5, stands in \d+ of 300 rows, and has no density: fit the rows with it",
        ),
        ({"names": ["a"]}, "names must be 2 different strings, got"),
        ({"theta": 3 * THETA}, "theta must lie in the prior's support, but"),
        ({"theta": THETA * torch.tensor([1.0, 0.0])}, "these columns are constant: 1"),
        ({"x": torch.ones(N, 2)}, "x must vary"),
        ({"prior": Box([0.0], [1.0])}, "prior must have as many parameters as theta, 2, got 1"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"resume": True}, "run must be given to resume"),
        ({"settings": replace(TINY, emulator=MixtureOptions(folds=30))}, "folds must be <= 27, a tenth of the 270"),
        (
            {"x": torch.randn(N, 3, 40, 40), "settings": TINY},
            r"settings.emulator must be None for x of shape \(3, 40, 40\)",
        ),
        (
            {"x": torch.randn(N, 3, 8, 8), "settings": COUNTED},
            r"settings.emulator.structures must hold 'placed' for x of",
        ),
        (
            {"x": torch.randn(N, 3, 8, 8), "settings": replace(TINY, compare=False)},
            r"settings.compare must be True for x of shape \(3, 8, 8\): samples start from a denoiser",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:columns of x")
def test_what_does_not_fit_is_refused_before_any_work(change: dict, message: str, without_type_checker) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**{"theta": THETA, "x": X, "prior": PRIOR, "settings": TINY, **change})


def test_settings_of_another_type_are_refused_before_any_work(without_type_checker) -> None:
    with pytest.raises(TypeError, match="settings must be a Settings or None, got str"):
        fit(THETA, X, PRIOR, settings="quick")
    with pytest.raises(TypeError, match="names must be strings"):
        fit(THETA, X, None, settings=TINY, names="ab")


def test_parameters_that_are_no_draws_of_the_prior_are_warned_of() -> None:
    with pytest.warns(
        UserWarning, match="columns of theta that do not look like draws of the prior: 1; the posterior is"
    ):
        fit(THETA, X, Box([-1.0, -3.0], [1.0, 3.0]), settings=PLAIN)


def test_tables_are_taken_as_arrays() -> None:
    class Table:
        """As those of pandas."""

        def __init__(self, values: torch.Tensor) -> None:
            self.values = values.numpy()
            self.values.flags.writeable = False

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return self.values

    expected = fit(THETA, X, PRIOR, settings=PLAIN)
    found = fit(Table(THETA.clone()), Table(X.clone()), PRIOR, settings=PLAIN)
    assert torch.equal(found.sample(Table(X[0].clone()), 5), expected.sample(X[0], 5))


def test_an_observation_far_from_all_simulations_is_warned_of_however_far() -> None:
    posterior = fit(THETA, X, PRIOR, settings=TINY)
    for size in (30.0, 1e30):
        with pytest.warns(UserWarning, match="x is far from all simulations, .* posterior.verdict"):
            samples = posterior.sample(torch.tensor([size, -size]), 20)
        assert bool(samples.isfinite().all())
        assert posterior.verdict(torch.tensor([size, -size])).advice == "model does not fit"


def test_numbers_that_are_not_finite_far_from_all_simulations_are_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    posterior = fit(THETA, X, PRIOR, settings=TINY).plain()

    def failing(*args: object, **kwargs: object) -> torch.Tensor:
        raise FloatingPointError("the denoiser is not finite; check its weights")

    monkeypatch.setattr(type(posterior.flow), "samples", failing)
    monkeypatch.setattr(type(posterior.flow), "log_prob", failing)
    far = torch.tensor([1e5, -1e5])
    with (
        pytest.warns(UserWarning, match="x is far"),
        pytest.raises(FloatingPointError, match=r"^x is far from all simulations, \d.* in the units"),
    ):
        posterior.sample(far, 5)
    with pytest.raises(FloatingPointError, match=r"^x is far from all simulations, \d.* in the units"):
        posterior.log_prob(THETA[:1], far)
    assert posterior.verdict(far).advice == "model does not fit"
    with pytest.raises(FloatingPointError, match="check its weights"):
        posterior.sample(X[0], 5)


def test_noise_with_long_tails_is_found_and_gaussian_noise_is_not_taken_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1000, 1, generator=generator)
    normal, chi = (
        torch.randn(1000, 4, generator=generator),
        torch.randn(1000, 4, 2, generator=generator).square().sum(2),
    )
    options = replace(TINY.emulator, structures=("constant", "heavy"), pilot_steps=100, steps=100, learning_rate=1e-2)
    for noise, expected in ((normal * (2 / chi).sqrt(), "heavy"), (normal, "constant")):
        y = u * torch.tensor([1.0, -1.0, 0.5, 2.0]) + 0.3 * noise
        y = y / y.std(0)
        assert choose_form([(y, 0.0)], u, options, heavy=True).structure == expected
    assert choose_form([(y, 0.0)], u, options).structure == "constant"


@pytest.mark.parametrize("n", [100, 119, 149, 199, 200, 1111, 5000])
def test_the_rule_leaves_ten_simulations_a_fold(n: int) -> None:
    rule = Settings.of(n, 2, (2,))
    assert rule.emulator is not None
    assert 10 * rule.emulator.folds <= n - min(round(n * rule.held_out), n // 2)


def test_simulations_hold_data_and_prior() -> None:
    together = fit(Simulations.of(THETA, X, PRIOR), settings=PLAIN)
    assert together.prior == PRIOR
    assert torch.equal(together.sample(X[0], 5), fit(THETA, X, PRIOR, settings=PLAIN).sample(X[0], 5))
    with pytest.raises(ValueError, match="x must not be given beside Simulations"):
        fit(Simulations.of(THETA, X), X)
    with pytest.raises(TypeError, match="x must be given, or Simulations"):
        fit(THETA)


def test_simulations_that_are_not_finite_are_named_or_dropped() -> None:
    x = X.clone()
    x[7, 0], x[11, 1] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"2 of 300 simulations are not: 7, 11; fit\(…, on_nonfinite='drop'\) leaves"):
        fit(THETA, x, PRIOR, settings=PLAIN)
    with pytest.warns(
        UserWarning, match=r"2 of 300 simulations are left out, because theta or x is not finite.* 7, 11$"
    ):
        report = fit(THETA, x, PRIOR, settings=PLAIN, on_nonfinite="drop").report
    assert (report["simulations"], report["left out, not finite"]) == (298, 2)


def test_simulations_without_a_result_are_counted() -> None:
    def simulator(theta: torch.Tensor) -> torch.Tensor:
        return theta if float(theta[0]) < 0.9 else theta[:1]  # of another shape

    simulations = simulate(simulator, PRIOR, N)
    failed = len(simulations.failures)
    assert 0 < failed < 50
    with pytest.warns(
        UserWarning, match=rf"{failed} of 300 simulations gave no result .* the first: simulation \d+ .* got \(1,\)"
    ):
        report = fit(simulations, settings=PLAIN).report
    assert (report["simulations"], report["left out, without a result"]) == (N - failed, failed)


def test_constant_and_duplicated_columns_are_named_and_left_out() -> None:
    x = torch.cat([X, torch.ones(N, 1), X[:, :1]], 1)
    with (
        pytest.warns(UserWarning, match="constant are left out: 2"),
        pytest.warns(UserWarning, match=r"equal others are left out: 3 \(as 0\)"),
    ):
        posterior = fit(THETA, x, PRIOR, settings=PLAIN)
    assert posterior.parts.data.keep == (0, 1)
    assert posterior.x_shape == (4,)


def test_samples_lie_in_the_prior_s_support_and_densities_integrate_to_one() -> None:
    posterior = fit(THETA, X, PRIOR, settings=PLAIN)
    samples = posterior.sample(torch.tensor([0.95, -0.95]), 500)
    assert bool((samples.abs() < 1).all())
    axis = torch.linspace(-1, 1, 62)[1:-1]
    density = posterior.log_prob(torch.cartesian_prod(axis, axis), torch.tensor([0.2, 0.1])).exp()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.05)
    assert posterior.names == ("a", "b")


def test_a_seed_gives_the_same_posterior() -> None:
    settings = replace(TINY, members=1, compare=False)
    first, second = (fit(THETA, X, PRIOR, settings=settings, seed=3).sample(torch.zeros(2), 20) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("prior", [None, Normal([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])], ids=["none", "normal"])
def test_a_linear_gaussian_posterior_is_found(prior, without_type_checker) -> None:
    theta, x = simulated(1000)
    settings = replace(
        TINY,
        drawn_network=ConditionalMLP(width=32, num_blocks=1),
        members=1,
        images=30_000,
        pool=20_000,
        compare=False,
        refinement=None,
        emulator=MixtureOptions(members=2, components=(1,), width=16, num_blocks=1, steps=100, pilot_steps=20),
    )
    posterior = fit(theta, x, prior, settings=settings)
    observed = torch.tensor([1.0, -0.5, 0.0])
    samples = posterior.sample(observed, 4000)
    std = math.sqrt(0.2)
    # 900 simulations tell the regression's mean to about std · √(4/900) = 0.07 std.
    torch.testing.assert_close(samples.mean(0), 0.8 * observed, atol=0.25 * std, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.full((3,), std), atol=0.12 * std, rtol=0)
    if prior is not None:
        exact = torch.distributions.Normal(0.8 * observed, std).log_prob(samples[:20]).sum(1).double()
        assert float((posterior.log_prob(samples[:20], observed) - exact).abs().mean()) < 0.35
        emulated = posterior.with_refinement(Refinement(num_steps=10))
        assert emulated.refined
        torch.testing.assert_close(
            emulated.sample(observed, 2000).std(0), torch.full((3,), std), atol=0.1 * std, rtol=0
        )
        torch.testing.assert_close(emulated.map(observed, num_draws=32), 0.8 * observed, atol=0.25 * std, rtol=0)


def test_least_squares_are_a_candidate_where_a_regression_does_well(tmp_path) -> None:
    """θ ~ N(0, I), x = A θ + N(0, ¼ I), 540 simulations: means err by √(6 / 540) = 0.1 standard deviations."""
    generator = torch.Generator().manual_seed(0)
    a = torch.eye(6) + torch.randn(6, 6, generator=generator) / 6**0.5
    theta = torch.randn(600, 6, generator=generator)
    x = theta @ a.T + 0.5 * torch.randn(600, 6, generator=generator)
    settings = replace(TINY, bases=("linear",), members=1, judged=16, refinement=None)
    posterior = fit(theta, x, Normal([0.0] * 6, [1.0] * 6), settings=settings)
    assert posterior.report["chosen"] in ("simulations, least squares", "simulations, linear")  # hardly trained
    assert "simulations, least squares" in posterior.report["held_out_log_prob"]
    covariance = (torch.eye(6) + 4 * a.T @ a).inverse()
    samples = posterior.sample(x[0], 5000)
    error = (samples.mean(0) - 4 * x[0] @ a @ covariance) / covariance.diagonal().sqrt()
    assert float(error.abs().max()) < 0.4
    assert float((samples.T.cov() - covariance).norm() / covariance.norm()) < 0.25
    posterior.save(tmp_path / "posterior")
    torch.testing.assert_close(load(tmp_path / "posterior").sample(x[0], 5), samples[:5])


class Columns(nn.Module):
    """An embedding of one's own, of five numbers."""

    def __init__(self, condition_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(condition_shape), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    "embedding", [Columns, Columns((2,)), lambda: Columns((2,))], ids=["class", "module", "function"]
)
def test_an_embedding_of_ones_own_is_trained_with_the_denoiser(embedding, monkeypatch, tmp_path) -> None:
    rule = Settings.of
    monkeypatch.setattr(Settings, "of", lambda *sizes: replace(rule(*sizes), passes=2))
    posterior = fit(THETA, X, PRIOR, embedding=embedding)
    summary = posterior.parts.denoiser.network.summary
    assert isinstance(summary[0], Columns)
    if isinstance(embedding, Columns):
        assert not torch.equal(summary[0].layer.weight, embedding.layer.weight)  # a copy was trained
    samples = posterior.sample(X[0], 5)
    posterior.save(tmp_path / "posterior")
    if isinstance(embedding, type):
        assert torch.equal(load(tmp_path / "posterior").sample(X[0], 5), samples)


def test_several_kinds_of_data_are_learned_from_at_once(monkeypatch, tmp_path, without_type_checker) -> None:
    rule = Settings.of
    narrow = {"width": 32, "num_blocks": 1}
    monkeypatch.setattr(
        Settings,
        "of",
        lambda *sizes: replace(r := rule(*sizes), passes=20, judged=8, network=replace(r.network, **narrow)),
    )
    generator = torch.Generator().manual_seed(0)
    image = THETA[:, :1, None, None].expand(-1, 1, 8, 8) + torch.randn(N, 1, 8, 8, generator=generator)
    x = {"image": image, "series": torch.randn(N, 2, 9, generator=generator), "number": X[:, 1]}
    posterior = fit(THETA, x, PRIOR)
    assert posterior.report["data"] == "several kinds at once: image (1, 8, 8), series (2, 9), number (1,)"
    one = {"number": X[0, 1], "image": image[0], "series": x["series"][0]}
    samples = posterior.sample(one, 200)
    assert torch.equal(posterior.sample({name: values[:1] for name, values in x.items()}, 200)[0], samples)
    other = posterior.sample({**one, "number": X[0, 1] - 0.5}, 200)  # each kind has its effect
    assert (
        float((other - samples).mean(0)[1])
        < -0.15
        < 0.15
        < float((posterior.sample({**one, "image": image[0] + 0.5}, 200) - samples).mean(0)[0])
    )
    assert posterior.log_prob(samples[:3], one).shape == (3,)
    assert posterior.verdict(one).likeness is not None
    with pytest.warns(UserWarning, match="hold at least 20 simulations that the posterior was fitted to"):
        calibrate(posterior, THETA[:20], {name: values[:20] for name, values in x.items()}, num_samples=2)
    posterior.save(tmp_path / "posterior")
    assert torch.equal(load(tmp_path / "posterior").sample(one, 200), samples)
    with pytest.raises(ValueError, match="x must hold image, series, number, got number"):
        posterior.sample({"number": X[0, 1]}, 2)
    with pytest.raises(
        ValueError, match=r"x must be a mapping {'image': \(1, 8, 8\), .* all 83 numbers .*, got \(1, 8, 8\)"
    ):
        posterior.sample(image[0], 2)
    with pytest.raises(ValueError, match=r"x\['series'\] must be one observation \(2, 9\) or several .* got \(9,\)"):
        posterior.sample({**one, "series": torch.zeros(9)}, 2)
    with pytest.raises(ValueError, match="as many observations of each name, got image"):
        posterior.sample({**one, "series": x["series"]}, 2)
    with pytest.raises(TypeError, match="to which the posterior was fitted, got a mapping"):
        fit(THETA, X, PRIOR, settings=PLAIN).sample({"x": X[0]}, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({}, "x must hold at least one kind of data, got an empty mapping"),
        ({"image": torch.zeros(N, 1, 2, 3, 4)}, r"x\['image'\] must hold vectors"),
        ({"a": X, "b": X[:10]}, r"as many observations of each name, got a \(300,\), b \(10,\)"),
        ({"a": X, "b": torch.full((N, 2), torch.nan)}, "must be finite"),
        ({"a": torch.ones(N, 2), "b": torch.zeros(N)}, "x must vary, but all its columns are constant"),
    ],
)
def test_mappings_that_do_not_fit_are_refused(x, message, without_type_checker) -> None:
    with pytest.raises(ValueError, match=message):
        fit(THETA, x, PRIOR)


def test_an_embedding_in_the_settings_gets_the_columns_as_they_were_given(without_type_checker) -> None:
    x = torch.cat([torch.randn(N, 6, generator=torch.Generator().manual_seed(0)), torch.ones(N, 1)], 1)  # exchangeable
    network = ConditionalMLP(width=8, num_blocks=1, summary=Columns((7,)))
    posterior = fit(THETA, x, PRIOR, settings=replace(PLAIN, network=network, members=1))
    assert posterior.parts.data.keep == tuple(range(7))
    assert not posterior.parts.data.exchangeable


def test_an_embedding_beside_settings_or_of_another_type_is_refused(without_type_checker) -> None:
    with pytest.raises(ValueError, match="embedding and settings are mutually exclusive"):
        fit(THETA, X, PRIOR, embedding=Columns, settings=PLAIN)
    with pytest.raises(TypeError, match=r"embedding must be an nn.Module, its class, .* got int"):
        fit(THETA, X, PRIOR, embedding=3)


def test_sets_of_different_sizes_are_learned_from(without_type_checker) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(600, 1, generator=generator)
    x = theta[:, None] + torch.randn(600, 5, 1, generator=generator)
    network = ConditionalMLP(width=16, num_blocks=1, summary=SetSummary(width=16))
    posterior = fit(theta, x, settings=replace(PLAIN, network=network, images=20_000, passes=40, members=1))
    low, high = (posterior.sample(torch.full((5, 1), value), 300).mean() for value in (-1.0, 1.0))
    assert float(high - low) > 1.0  # The exact posterior means are ±5/6.


def test_vectors_are_learned_from_by_one_thread_and_series_by_all() -> None:
    class Threads(Observer):
        def on_progress(self, progress) -> None:
            seen.append(torch.get_num_threads())

    before, settings = torch.get_num_threads(), replace(PLAIN, members=1)
    series = torch.cat([X, -X, X], 1)[:, None]
    try:
        torch.set_num_threads(2)
        seen: list[int] = []
        fit(THETA, X, PRIOR, settings=settings, observers=[Threads()])
        assert set(seen) == {1}
        seen = []
        fit(THETA, series, PRIOR, settings=replace(settings, network=SERIES), observers=[Threads()])
        assert set(seen) == {2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_interrupted_fit_is_resumed_to_the_same_posterior(tmp_path) -> None:
    class Stop(Observer):
        def on_progress(self, progress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

    whole = fit(THETA, X, PRIOR, settings=PLAIN)
    with pytest.raises(KeyboardInterrupt):
        fit(THETA, X, PRIOR, settings=PLAIN, run=tmp_path, observers=[Stop()])
    assert PLAIN.members > 1
    (tmp_path / "simulations-1").mkdir()  # a kill came before the first checkpoint of the next member
    resumed = fit(THETA, X, PRIOR, settings=PLAIN, run=tmp_path, resume=True)
    assert torch.equal(whole.sample(torch.zeros(2), 20), resumed.sample(torch.zeros(2), 20))


def test_more_parameters_than_have_an_exact_trace_are_judged_with_probes_of_the_observation() -> None:
    theta, x = simulated(150, 130)
    posterior = fit(theta, x, settings=replace(PLAIN, members=1, judged=2))
    assert math.isfinite(posterior.report["held_out_log_prob"]["simulations"])
    both = posterior.log_prob(theta[:2, None], x[:2])[:, 0]
    torch.testing.assert_close(posterior.log_prob(theta[1], x[1]), both[1])


def test_the_rule_depends_on_counts_and_shapes_alone() -> None:
    assert Settings.of(10_000, 2, (3,)).emulator is not None
    assert Settings.of(10_000, 2, (3, 8, 8)).emulator.structures == ("placed", "placed_heavy")
    assert Settings.of(10_000, 2, (1, 32, 32)).emulator.structures == ("placed", "placed_heavy")
    assert Settings.of(10_000, 2, (1, 33, 33)).emulator is None
    assert Settings.of(10_000, 2, (6, 2), "members").emulator is None
    assert Settings.of(100_000, 5, (8,)).emulator.width > Settings.of(10_000, 5, (8,)).emulator.width
    assert Settings.of(1000, 5, (8,)).held_out == pytest.approx(0.1)
    assert Settings.of(100_000, 5, (8,)).held_out == pytest.approx(0.02)
    with pytest.raises(ValueError, match="nothing would be trained"):
        Settings(emulator=None, compare=False)


def test_counts_keep_their_root_for_the_emulator() -> None:
    rate = torch.rand(400, 1, generator=torch.Generator().manual_seed(0)) * 60 + 1
    x = torch.poisson(rate.expand(400, 2), generator=torch.Generator().manual_seed(1))
    posterior = fit(rate, x, Box([1.0], [61.0]), settings=replace(TINY, members=1, compare=False))
    assert posterior.parts.data.counts == (True, True)
    assert posterior.parts.data.columns.kinds == ("root", "root")


SHAPES = [(1, (1,)), (2, (10,)), (5, (1000,)), (20, (10,)), (50, (10,))]
SHAPES += [(2, (1, 16, 16)), (2, (1, 30)), (2, (2, 4, 4, 4))]


@pytest.mark.parametrize(
    ("dim", "x_shape", "prior"),
    [(*shape, True) for shape in SHAPES] + [(2, (10,), False), (2, (1, 16, 16), False)],
    ids=str,
)
def test_each_size_walks_its_whole_path(dim: int, x_shape: tuple[int, ...], prior: bool, without_type_checker) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(120, dim, generator=generator)
    x = theta[:, :1].reshape(120, *[1] * len(x_shape)) + torch.randn(120, *x_shape, generator=generator)
    rule = Settings.of(120, dim, x_shape)
    network = TINY.network if len(x_shape) == 1 else ConditionalMLP(width=8, num_blocks=1, summary=rule.network.summary)
    emulator = None if rule.emulator is None else replace(TINY.emulator, structures=rule.emulator.structures)
    settings = replace(TINY, network=network, emulator=emulator, bases=rule.bases, judged=3, images=512)
    posterior = fit(theta, x, Box([0.0] * dim, [1.0] * dim) if prior else None, settings=settings)
    assert posterior.sample(x[0], 3).shape == (3, dim)
    assert math.isfinite(float(posterior.log_prob(theta[0], x[0])))
    assert ("emulated" in posterior.report) == (prior or len(x_shape) == 1)
    assert {"chosen", "verdict", "skipped"} <= posterior.report.keys()


def columns_of_kind(kind: str, rows: int) -> torch.Tensor:
    """Ten columns that θ, a row number's share, has to do with."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.linspace(0.1, 1.0, rows)[:, None]
    normal = torch.randn(rows, 10, generator=generator)
    if kind == "process":
        x = [normal[:, 0]]
        for column in normal.T[1:]:
            x.append(0.9 * theta[:, 0] * x[-1] + column)
        return torch.stack(x, 1)
    counts = torch.poisson((20 * theta).expand(rows, 10), generator=generator)
    trend = torch.arange(1, 11) * theta
    return {
        "counts": torch.poisson(3 * trend, generator=generator),
        "counts of one sum": torch.nn.functional.one_hot(torch.multinomial(trend, 20, True, generator=generator), 10)
        .sum(1)
        .float(),
        "counts of one distribution": counts,
        "zeros and ones": (normal < theta * torch.linspace(-1, 1, 10)).float(),
        "long tails": trend + 0.1 * torch.tan(1.5 * (2 * torch.rand(rows, 10, generator=generator) - 1)),
        "one distribution": normal * theta,
        "curves": trend + 0.1 * normal,
        "limits": (trend + normal).clamp(max=4),
        "zeros of one distribution": torch.where(normal < theta, 0.0, normal),
    }[kind]


KINDS = (
    "counts",
    "counts of one distribution",
    "zeros and ones",
    "long tails",
    "one distribution",
    "process",
    "curves",
    "limits",
    "zeros of one distribution",
)


@pytest.mark.parametrize(
    ("kind", "many"), [*((kind, True) for kind in KINDS), ("counts", False), ("curves", False)], ids=str
)
def test_each_kind_of_columns_walks_the_trials_of_each_number_of_simulations(kind: str, many: bool) -> None:
    x, theta = columns_of_kind(kind, 150), torch.linspace(0.1, 1.0, 150)[:, None]
    rule = Settings.of(10_000 if many else 1000, 1, (10,)).emulator
    small = {name: getattr(TINY.emulator, name) for name in ("members", "width", "num_blocks", "steps", "pilot_steps")}
    emulator = replace(rule, **small, larger=((12, 1),), folds=4, batch_size=64)
    posterior = fit(theta, x, Box([0.1], [1.0]), settings=replace(TINY, emulator=emulator, judged=3, images=512))
    assert posterior.report["emulated"]["noise"] in rule.structures
    assert posterior.sample(x[0], 3).shape == (3, 1)
    assert math.isfinite(float(posterior.log_prob(theta[0], x[0])))


def test_one_number_a_simulation_needs_no_second_axis() -> None:
    theta = torch.rand(200, generator=torch.Generator().manual_seed(0))
    x = theta + 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    posterior = fit(theta, x, Box([0.0], [1.0]), settings=replace(PLAIN, judged=2))
    one = posterior.sample(0.3, 5)
    assert one.shape == (5, 1)
    torch.testing.assert_close(posterior.sample([0.3, 0.6], 5)[0], one)
    assert posterior.log_prob(theta[:4], 0.3).shape == (4,)
    assert Simulations.of(theta, x).x.shape == (200, 1)
    with pytest.warns(UserWarning, match="that the posterior was fitted to"):
        assert calibrate(posterior, theta[:20], x[:20], num_samples=2).ranks.shape == (20, 1)


def test_the_size_of_the_emulator_is_chosen_by_the_held_out_likelihood() -> None:
    u = torch.linspace(-1.5, 1.5, 600)[:, None]
    y = torch.sin(4 * u) + 0.05 * torch.randn(600, 1, generator=torch.Generator().manual_seed(0))
    options = MixtureOptions(width=2, num_blocks=1, larger=((32, 1),), steps=160, pilot_steps=40, batch_size=128)
    options, form = replace(options, learning_rate=1e-2), Form(0, "constant", 1)
    assert choose_size(y, u, options, form).width == 32
    assert choose_size(y, u, replace(options, width=32, larger=((2, 1),)), form).width == 32
    assert choose_size(y, u, replace(options, larger=()), form).width == 2
    with pytest.raises(ValueError, match=r"larger\[0\] must be >= 1, got 0"):
        MixtureOptions(larger=((64, 0),))


def test_kinds_of_noise_are_tried_with_each_size() -> None:
    """A small network learns no mean that bends so, and noise that grows with θ hides what it misses."""
    u = torch.linspace(-1.5, 1.5, 900)[:, None]
    bends = torch.cat([torch.sin(6 * u), torch.sin(6 * u).square() * (u > 0)], 1)
    y = bends + 0.05 * torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    options = MixtureOptions(
        components=(1,),
        structures=("scaled", "constant"),
        width=2,
        num_blocks=1,
        larger=((32, 2),),
        larger_trials=True,
        steps=600,
        pilot_steps=75,
        batch_size=128,
        learning_rate=1e-2,
    )
    trials: Trials = {}
    form = choose_form([(y, 0.0)], u, options, trials=trials)
    assert form.structure == "constant"
    assert choose_size(y, u, options, form, trials=trials).width == 32
    small = {key for key in trials if key[1].width == 2}
    assert all(key[1].steps < 600 for key in small if key[0] == form)  # it is far behind after half of them
    assert choose_form([(y, 0.0)], u, replace(options, larger_trials=False)).structure == "scaled"


def test_larger_networks_are_tried_only_where_they_learn_the_mean_better() -> None:
    u = torch.linspace(-1.5, 1.5, 900)[:, None]
    noise = 0.05 * torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    options = MixtureOptions(
        components=(1, 2), width=2, num_blocks=1, larger=((32, 2),), larger_trials=True, steps=120, pilot_steps=120
    )
    options = replace(options, structures=("full", "constant"), batch_size=128, learning_rate=1e-2)
    bends = torch.cat([torch.sin(6 * u), torch.sin(6 * u).square() * (u > 0)], 1)
    for y, widths in ((u.expand(-1, 2) + noise, {2}), (bends + noise, {32})):
        trials: Trials = {}
        choose_form([(y, 0.0)], u, options, trials=trials)
        tried = {form: {size.width for known, size in trials if known == form} for form, _ in trials}
        assert tried[Form(0, "constant", 1)] == {2, 32}  # by which the sizes of the others are chosen
        assert tried[Form(0, "full", 1)] == widths
        assert tried[Form(0, "full", 2)] == {2}


def test_what_was_tried_for_the_form_is_not_tried_again_for_the_size() -> None:
    u = torch.linspace(-1.5, 1.5, 300)[:, None]
    y = u.expand(-1, 2) + 0.1 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    options = MixtureOptions(width=2, num_blocks=1, larger=((4, 1),), steps=8, pilot_steps=2, batch_size=64)
    trials: Trials = {}
    form = choose_form([(y, 0.0)], u, options, trials=trials)
    before = dict(trials)
    assert (form, replace(options, members=1)) in before  # several kinds of noise fit, so that all steps were taken
    chosen = choose_size(y, u, options, form, trials=trials)
    assert set(trials) - set(before) == {(form, replace(options, members=1, width=4))}
    assert chosen == choose_size(y, u, options, form)


def test_of_kinds_of_noise_that_cannot_be_told_apart_the_simplest_is_taken() -> None:
    rows = torch.randn(900, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(900, generator=torch.Generator().manual_seed(1))
    noise = (noise - noise.mean()) / noise.std()
    assert simplest([rows, rows + 0.02 + noise, rows - 1]) == 0  # .02 better, standard error .033
    assert simplest([rows, rows + 0.05 + noise, rows - 1]) == 1
    assert simplest([rows - 1, rows - 0.01, rows + 0.001 * noise]) == 2
    nowhere = torch.full((900,), -math.inf)
    assert simplest([nowhere, rows]) == 1
    assert simplest([nowhere, nowhere]) == 0


def test_trials_are_compared_on_the_rows_that_each_was_held_out_from() -> None:
    u = torch.linspace(-1.5, 1.5, 300)[:, None]
    y = u.expand(-1, 2) + 0.1 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    options, trials = MixtureOptions(width=2, num_blocks=1, steps=8, pilot_steps=2, batch_size=64), Trials()
    choose_form([(y, 0.0)], u, options, trials=trials, seed=3)
    assert len(trials) > 4
    for (form, tried), rows in trials.items():
        again = fit_mixture(y, u, tried, form.components, structure=form.structure, seed=3)
        assert rows.shape == (30,)
        assert float(rows.mean()) == pytest.approx(again.log_prob, abs=1e-5)


def test_images_without_a_density_are_learned_by_the_denoiser_alone(monkeypatch) -> None:
    def fails(*values: object, **others: object) -> None:
        raise FloatingPointError("the likelihood of held-out rows is not finite: [nan]")

    monkeypatch.setattr("openedm.inference.emulator.fit_mixture", fails)
    network = ConditionalMLP(width=8, num_blocks=1, summary=SeriesSummary(width=8, num_blocks=1))
    posterior = fit(THETA, X[:, None], PRIOR, settings=replace(TINY, network=network))
    assert posterior.report["skipped"]["emulator"] == "the likelihood of held-out rows is not finite: [nan]"
    assert not posterior.refined
    with pytest.raises(FloatingPointError, match="not finite"):
        fit(THETA, X, PRIOR, settings=TINY)


def test_a_likelihood_of_series_refines_samples_and_is_kept(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(700, 2, generator=generator)
    times = torch.linspace(0, 6, 30)
    x = (times * (1 + theta[:, :1]) + 2 * theta[:, 1:]).sin() + 0.3 * torch.randn(700, 30, generator=generator)
    rule = Settings.of(700, 2, (1, 30))
    network = ConditionalMLP(width=16, num_blocks=1, summary=SeriesSummary(width=8, num_blocks=1))
    emulator = replace(rule.emulator, members=2, width=32, num_blocks=1, steps=500)
    few = Refinement(num_steps=25, num_pilots=64, max_steps=50, density_steps=True)
    settings = replace(rule, network=network, emulator=emulator, passes=2, judged=8, refinement=few)
    posterior = fit(theta, x[:, None], Box([0.0, 0.0], [1.0, 1.0]), settings=settings)
    assert posterior.refined
    assert posterior.report["emulated"]["noise"] == "placed"
    axes = torch.linspace(0, 1, 101).double()
    grid = torch.cartesian_prod(axes, axes)
    mean = (times.double() * (1 + grid[:, :1]) + 2 * grid[:, 1:]).sin()
    weight = (-0.5 * ((x[0].double() - mean) / 0.3).square().sum(1)).softmax(0)[:, None]
    exact = (weight * grid).sum(0)
    width = (weight * (grid - exact).square()).sum(0).sqrt()
    samples = posterior.sample(x[0, None], 500)
    assert ((samples.double().mean(0) - exact).abs() < 0.5 * width).all()
    assert ((samples.double().std(0) / width - 1).abs() < 0.3).all()
    posterior.save(tmp_path / "series")
    assert torch.equal(load(tmp_path / "series").sample(x[0, None], 500), samples)
    both = torch.stack([x[0, None], x[0, None]])
    assert float(posterior.repeated(2).sample(both, 100).std(0)[0]) < 0.85 * float(samples.std(0)[0])
