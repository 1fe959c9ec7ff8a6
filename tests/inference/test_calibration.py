import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from gaussian_posteriors import LinearGaussian
from openedm.inference import load, tasks
from openedm.inference.calibration import calibrate
from openedm.inference.export import to_arviz
from openedm.inference.local_checks import local_c2st, predictive_check

TRUTH = LinearGaussian()
WRONG = {"narrow": {"width": 0.7}, "wide": {"width": 1.4}, "shifted": {"shift": 0.4}}


def calibration(posterior=TRUTH, count=400, seed=0, **settings):
    theta, x = TRUTH.joint(count, 10 * seed)
    return calibrate(posterior, theta, x, seed=seed, **{"num_samples": 200, **settings})


def test_the_true_posterior_passes():
    found = calibration(num_density_samples=100)
    assert found.passes(0.01)
    assert found.density_p_value > 0.01
    assert abs(found.tarp_area) < 0.03


def test_p_values_of_the_true_posterior_are_uniform():
    # Of 100 runs a share 0.2 ± 0.04 falls below 0.2; four standard deviations are allowed. Holm's is conservative.
    runs = [calibration(count=100, seed=s, num_samples=60, num_density_samples=60) for s in range(100)]
    for p_values in ([r.tarp_p_value for r in runs], [r.density_p_value for r in runs]):
        assert 0.04 < np.mean(np.array(p_values) < 0.2) < 0.36
    least = np.array([r.sbc_p_values.min() for r in runs])
    assert 0.03 < np.mean(least < 0.2) < 0.36


@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG)
def test_wrong_posteriors_fail_and_tarp_tells_which_way(settings):
    found = calibration(LinearGaussian(**settings), num_density_samples=100)
    assert not found.passes(0.01)
    if "width" in settings:
        assert found.density_p_value < 1e-6
        assert math.copysign(1, found.tarp_area) == math.copysign(1, settings["width"] - 1)


def test_p_values_are_adjusted_by_holm():
    found = calibration(count=100)
    raw = np.sort([kstest(found.sbc[:, i], "uniform").pvalue for i in range(2)])
    assert np.sort(found.sbc_p_values) == pytest.approx([min(1, 2 * raw[0]), min(1, max(2 * raw[0], raw[1]))])


def test_the_summary_names_verdict_and_parameters():
    text = calibration(LinearGaussian(width=0.7, names=["rate", "size"]), num_density_samples=50).summary()
    assert text.startswith("calibration fails (SBC, TARP, HPD) at the 0.01 level, 400 simulations, n = 200")
    assert all(word in text for word in ("SBC   rate: p =", "SBC   size: p =", "TARP  p =", "highest-density"))


def test_every_test_counts_for_the_verdict_and_the_rule_is_stated():
    found = replace(calibration(count=50, num_density_samples=50), density=np.full(50, 0.5))
    assert not found.passes(0.01)
    assert replace(found, density=None).passes(0.01)
    lines = found.summary().splitlines()
    assert lines[0].startswith("calibration fails (HPD) at the 0.01 level")
    assert lines[1].startswith(
        "p >= 0.01 is required of each of 3 tests (SBC, TARP, HPD); a right posterior fails in at"
    )
    assert "at most 2 %" in replace(found, density=None).summary()


def test_simulations_of_the_fit_are_recognised_also_after_saving(two_moons, tmp_path, monkeypatch):
    pytest.importorskip("sbi")
    task = tasks.get("two_moons")
    theta = task.prior.sample(400, seed=1)
    x = task.simulate(theta, seed=2)
    two_moons.save(tmp_path / "posterior")
    posterior = load(tmp_path / "posterior").plain()
    with pytest.warns(UserWarning, match="theta and x hold at least 30 simulations that the posterior was fitted to"):
        found = calibrate(posterior, theta[50:80], x[50:80], num_samples=5)
    assert "not valid: at least 30 of these simulations were used in the fit" in found.summary()
    monkeypatch.setattr("sbi.diagnostics.LC2ST", lambda **given: given["nothing"])  # the test itself is not run
    with pytest.warns(UserWarning, match="hold at least 30 simulations"), pytest.raises(KeyError, match="nothing"):
        local_c2st(posterior, theta[50:80], x[50:80], x[0], num_samples=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrate(posterior, theta[50:80], task.simulate(theta, seed=3)[50:80], num_samples=5).trained_on == 0


def test_equal_seeds_repeat_and_chunks_do_not_matter(monkeypatch):
    once = calibration(count=50)
    monkeypatch.setattr("openedm.inference.calibration.CHUNK_SAMPLES", 2000)
    again = calibration(count=50)
    assert (once.ranks == again.ranks).all()
    assert (once.sbc == again.sbc).all()
    assert (once.tarp == again.tarp).all()
    assert not (calibrate(TRUTH, *TRUTH.joint(50), num_samples=200, seed=1).sbc == once.sbc).any()


def test_ties_are_broken_at_random_so_that_discrete_samples_stay_uniform():
    class Rounded(LinearGaussian):
        def _draw(self, x, n, seeds):
            return super()._draw(x, n, seeds).round()

    theta, x = TRUTH.joint(400)
    found = calibrate(Rounded(), theta.round(), x, num_samples=100)
    assert found.sbc_p_values.min() > 0.01


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": torch.zeros(30, 3)}, ValueError, r"theta must be \(simulations, 2\), got \(30, 3\)"),
        ({"theta": torch.zeros(29, 2)}, ValueError, r"x must be \(29, 3\), got \(30, 3\)"),
        ({"theta": torch.zeros(10, 2)}, ValueError, "the number of simulations must be >= 20"),
        ({"x": torch.full((30, 3), math.nan)}, ValueError, "x must be finite, got NaN or infinities in 30 rows"),
        ({"references": torch.zeros(2, 2)}, ValueError, r"references must be finite and \(30, 2\)"),
        ({"num_samples": 0}, ValueError, "num_samples must be >= 1"),
        ({"num_samples": 9, "num_density_samples": 10}, ValueError, "num_density_samples must be between 0 and 9"),
        ({"num_samples": 9.5}, TypeError, "num_samples must be an integer"),
    ],
)
@pytest.mark.usefixtures("without_type_checker")
def test_bad_arguments_are_named(change, error, message):
    arguments = {"theta": torch.zeros(30, 2), "x": torch.zeros(30, 3), **change}
    with pytest.raises(error, match=message):
        calibrate(TRUTH, **arguments)


def test_predictions_of_the_true_posterior_agree_and_strange_data_do_not():
    _, x = TRUTH.joint(1)
    found = predictive_check(TRUTH, TRUTH.simulate, x[0], num_draws=500)
    assert found.draws.shape == (500, 3)
    assert found.p_values.min() > 0.01
    # Data that no parameter explains: orthogonal to the columns of A, fifty noises long.
    strange = 25 * torch.linalg.svd(TRUTH.matrix).U[:, -1]
    assert predictive_check(TRUTH, TRUTH.simulate, strange, num_draws=500).p_values.min() < 0.01


def test_predictive_statistics_and_failed_draws():
    _, x = TRUTH.joint(1)

    def failing(theta, seed):
        data = TRUTH.simulate(theta, seed)
        data[::2] = math.nan
        return data

    found = predictive_check(TRUTH, failing, x[0], num_draws=100, statistics=lambda data: data.sum(1, keepdim=True))
    assert found.draws.shape == (50, 1)
    assert found.theta.shape == (50, 2)
    assert found.observed == pytest.approx([float(x.sum())], rel=1e-5)
    with pytest.raises(ValueError, match=r"simulator must give \(100, 3\), got \(100, 2\)"):
        predictive_check(TRUTH, lambda theta, seed: theta, x[0], num_draws=100)
    with pytest.raises(ValueError, match="simulator must give finite data"):
        predictive_check(TRUTH, lambda theta, seed: failing(theta, seed) / 0 * 0, x[0], num_draws=100)
    with pytest.raises(ValueError, match=r"x_observed must be one observation \(3,\)"):
        predictive_check(TRUTH, failing, x, num_draws=100)


@pytest.fixture
def sbi():
    return pytest.importorskip("sbi")


@pytest.fixture
def arviz():
    return pytest.importorskip("arviz")


@pytest.mark.usefixtures("sbi")
class TestWithSbi:
    """The real package takes the posterior as it is, and finds what is found here."""

    def test_ranks_are_those_of_run_sbc(self):
        from sbi.diagnostics import check_sbc, run_sbc

        theta, x = TRUTH.joint(100)
        ranks, averaged = run_sbc(theta, x, TRUTH, num_posterior_samples=100, show_progress_bar=False)
        assert (ranks.numpy() == calibrate(TRUTH, theta, x, num_samples=100).ranks).all()
        assert averaged.shape == theta.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            checked = check_sbc(ranks, theta, averaged, num_posterior_samples=100)
        assert float(checked["ks_pvals"].min()) > 0.005

    def test_coverage_of_highest_density_regions_is_that_of_run_sbc(self):
        from sbi.diagnostics import run_sbc

        theta, x = TRUTH.joint(100)
        ranks, _ = run_sbc(
            theta, x, TRUTH, num_posterior_samples=100, reduce_fns=TRUTH.log_prob, show_progress_bar=False
        )
        ours = calibrate(TRUTH, theta, x, num_samples=100, num_density_samples=100).density
        # u = (r + v)/(n + 1) of the samples of higher density: n − sbi's rank.
        assert (np.floor(ours * 101).astype(int) == 100 - ranks[:, 0].numpy()).all()

    def test_one_by_one_sampling_of_sbi_is_answered(self):
        from sbi.diagnostics import run_sbc

        theta, x = TRUTH.joint(100)
        with torch.random.fork_rng(devices=[]):
            ranks, _ = run_sbc(
                theta, x, TRUTH, num_posterior_samples=100, show_progress_bar=False, use_batched_sampling=False
            )
        assert ranks.shape == (100, 2)

    def test_coverage_is_that_of_run_tarp(self):
        from sbi.diagnostics import check_tarp, run_tarp

        theta, x = TRUTH.joint(200)
        scale = theta.std(0)
        references = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        # sbi divides by the range of theta where this library divides by the standard deviation.
        coverage, alpha = run_tarp(
            theta,
            x,
            TRUTH,
            references=references,
            num_posterior_samples=100,
            distance=lambda a, b: ((a - b) / scale).norm(dim=-1),
            z_score_theta=False,
            show_progress_bar=False,
        )
        ours = calibrate(TRUTH, theta, x, num_samples=100, references=references)
        curve = np.searchsorted(np.sort(ours.tarp), alpha.numpy(), side="right") / 200
        assert np.abs(curve - coverage.numpy()).max() < 0.05
        assert abs(check_tarp(coverage, alpha)[0] - ours.tarp_area) < 0.02

    @pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
    def test_pairplot_draws_samples(self):
        import matplotlib.pyplot as plt
        from sbi.analysis import pairplot

        _, x = TRUTH.joint(1)
        posterior = LinearGaussian(names=["rate", "size"]).set_default_x(x[0])
        figure, axes = pairplot(posterior.sample((50,)), labels=list(posterior.names))
        assert axes.shape == (2, 2)
        plt.close(figure)

    def test_the_local_test_tells_a_shifted_posterior_from_the_true_one(self):
        theta, x = TRUTH.joint(300)
        state, numbers = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        true = local_c2st(TRUTH, theta, x, x[0], num_samples=200, num_trials=9)
        shifted = local_c2st(LinearGaussian(shift=3.0), theta, x, x[0], num_samples=200, num_trials=9)
        assert true.p_value > 0.1
        assert shifted.p_value == 0.1
        assert shifted.statistic > 2 * max(true.statistic, shifted.null.max())
        assert true.null.shape == (9,)
        assert torch.random.get_rng_state().equal(state)
        assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002


@pytest.mark.usefixtures("arviz")
@pytest.mark.filterwarnings("ignore:\nArviZ is undergoing:FutureWarning")
class TestWithArviz:
    def test_the_export_has_the_groups_and_arviz_finds_the_samples_independent(self, arviz):
        posterior = LinearGaussian(names=["rate", "size"])
        _, x = TRUTH.joint(1)
        data = to_arviz(posterior, x[0], 250, num_chains=2, simulator=posterior.simulate)
        samples = posterior.sample(x[0], 500)
        assert dict(data.posterior.sizes) == {"chain": 2, "draw": 250}
        assert data.posterior["size"].values.ravel() == pytest.approx(samples[:, 1].numpy())
        assert data.observed_data["x"].values == pytest.approx(x[0].numpy())
        assert data.posterior_predictive["x"].shape == (2, 250, 3)
        assert set(data.prior.data_vars) == {"rate", "size"}
        table = arviz.summary(data)
        assert table["r_hat"].max() < 1.05
        assert table["ess_bulk"].min() > 250

    @pytest.mark.parametrize("make", [list, np.array])
    def test_an_observation_may_be_a_list_or_an_array(self, make):
        x = [0.5, -1.0, 2.0]
        data, expected = to_arviz(TRUTH, make(x), 5), to_arviz(TRUTH, torch.tensor(x), 5)
        assert data.posterior.equals(expected.posterior)
        assert data.observed_data["x"].values.tolist() == x

    def test_bad_exports_are_refused(self):
        _, x = TRUTH.joint(1)
        with pytest.raises(ValueError, match="num_chains must be >= 1"):
            to_arviz(TRUTH, x[0], num_chains=0)
        with pytest.raises(ValueError, match=r"x_observed must be one observation \(3,\)"):
            to_arviz(TRUTH, x)
        with pytest.raises(ValueError, match=r"names of parameters .*, got \['chain', 'draw'\]"):
            to_arviz(LinearGaussian(names=["draw", "chain"]), x[0])
        with pytest.raises(ValueError, match="simulator must give finite data, got 39 draws that are not"):
            to_arviz(TRUTH, x[0], 10, simulator=lambda theta, seed: torch.ones(40, 3) / torch.eye(40)[:, :1])


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("sbi.diagnostics", lambda theta, x: local_c2st(TRUTH, theta, x, x[0])),
        ("arviz", lambda theta, x: to_arviz(TRUTH, x[0])),
    ],
)
def test_missing_packages_are_named_with_what_installs_them(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'openedm\[sbi\]'"):
        call(*TRUTH.joint(30))
