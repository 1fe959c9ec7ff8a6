import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from openedm.inference.priors import Normal
from openedm.inference.tasks import Task


@pytest.fixture
def examples(monkeypatch, request):
    """The scripts of the folder examples, by name."""
    monkeypatch.syspath_prepend(request.config.rootpath / "examples")
    import influenza
    import lynx_hare
    import studies

    return {"influenza": influenza, "lynx_hare": lynx_hare, "studies": studies}


def draws(task, n=500):
    return task.prior.sample(n, seed=1)


class TestLynxHare:
    def test_a_path_stays_on_its_closed_orbit(self, examples):
        task = examples["lynx_hare"].LynxHare()
        theta = torch.tensor([[0.55, 0.028, 0.8, 0.024, 30.0, 6.0, 0.25]], dtype=torch.float64)
        hares, lynxes = task.log_populations(theta).reshape(2, 21)
        alpha, beta, gamma, delta, *_ = theta[0]
        conserved = delta * hares.exp() - gamma * hares + beta * lynxes.exp() - alpha * lynxes
        assert float(conserved.max() - conserved.min()) < 1e-5
        assert hares[0].exp() == pytest.approx(30)
        assert float(hares.max() - hares.min()) > 1

    def test_its_steps_are_fine_enough(self, examples):
        lynx_hare = examples["lynx_hare"]
        theta = draws(lynx_hare.LynxHare())
        fine = lynx_hare.LynxHare(steps=160).log_populations(theta)
        error = (lynx_hare.LynxHare().log_populations(theta) - fine).abs().max(1).values
        assert float(error.quantile(0.98)) < 0.01

    def test_its_likelihood_is_that_of_its_simulator(self, examples):
        task = examples["lynx_hare"].LynxHare()
        theta = draws(task)
        x = task.simulate(theta, seed=2)
        centre, sigma = task.log_populations(theta).numpy(), theta[:, 6:].double().numpy()
        known = stats.lognorm.logpdf(x.double().numpy(), sigma, scale=np.exp(centre)).sum(1)
        np.testing.assert_allclose(task.log_likelihood(theta, x).numpy(), known, rtol=1e-5)
        unit = (x.double().log().numpy() - centre) / sigma
        assert stats.kstest(unit.ravel(), "norm").pvalue > 0.01

    def test_the_observation_is_hares_then_lynxes(self, examples):
        observed = examples["lynx_hare"].OBSERVED
        assert observed.shape == (42,)
        assert observed[[0, 20, 21, 41]].tolist() == pytest.approx([30, 24.7, 4, 8.6])


class TestInfluenza:
    def test_an_epidemic_grows_by_beta_minus_gamma_and_ends_as_the_final_size_says(self, examples):
        task = examples["influenza"].Influenza()
        infected = task.infected(torch.tensor([[1.0, 0.5, 1e-3, 10.0], [3.0, 1.0, 1.0, 10.0]], dtype=torch.float64))
        growth = infected[0].log().diff()
        assert growth[:8].tolist() == pytest.approx([0.5] * 8, abs=1e-3)
        # I + S − (γ/β) N ln S is conserved: with I at its peak, S is Nγ/β.
        n, beta, gamma = 763.0, 3.0, 1.0
        fine = examples["influenza"].Influenza(steps=160).infected(torch.tensor([[beta, gamma, 1.0, 10.0]]))
        np.testing.assert_allclose(infected[1:].numpy(), fine.numpy(), rtol=1e-4)
        susceptible = n * gamma / beta
        peak = n - susceptible + gamma / beta * n * math.log(susceptible / (n - 1))
        assert float(infected[1].max()) == pytest.approx(peak, rel=0.1)
        assert float(infected[1].max()) < peak

    def test_its_likelihood_is_that_of_its_simulator(self, examples):
        task = examples["influenza"].Influenza()
        theta = draws(task)
        x = task.simulate(theta, seed=2)
        mean, phi = task.infected(theta).numpy(), theta[:, 3:].double().numpy()
        law = stats.nbinom(phi, phi / (phi + mean))
        known = law.logpmf(x.numpy()).sum(1)
        np.testing.assert_allclose(task.log_likelihood(theta, x).numpy(), known, rtol=1e-4, atol=1e-4)
        spread = np.random.default_rng(0).random(x.shape)
        unit = law.cdf(x.numpy() - 1) + spread * law.pmf(x.numpy())
        assert stats.kstest(unit.ravel(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("name", ["influenza", "lynx_hare"])
def test_simulations_depend_on_their_seed_alone(examples, name):
    task = examples["influenza"].Influenza() if name == "influenza" else examples["lynx_hare"].LynxHare()
    theta = draws(task, 20)
    first, again, other = (task.simulate(theta, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@dataclass(frozen=True)
class Line(Task):
    """θ ~ N(0, I₂), x ~ N(θ, ½ I₂): p(θ | x) = N(2x/3, I/3)."""

    name = "line"
    x_shape = (2,)

    @property
    def prior(self):
        return Normal((0.0, 0.0), (1.0, 1.0))

    def _simulate(self, theta, generator):
        return theta + math.sqrt(0.5) * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)

    def _log_likelihood(self, theta, x):
        return -(x - theta).square().sum(-1)


def test_the_markov_chain_finds_a_posterior_in_closed_form(examples):
    studies, x = examples["studies"], torch.tensor([1.5, -0.6])
    chain = studies.markov_chain(Line(), x, studies.Budget(walkers=400, steps=300, burn_in=100))
    assert chain.shape == (200, 400, 2)
    assert studies.r_hat(chain) < 1.1
    unit = (chain - 2 * x / 3) * math.sqrt(3)
    assert unit.mean((0, 1)).abs().max() < 0.03
    assert unit.std((0, 1)).tolist() == pytest.approx([1, 1], abs=0.03)
    assert stats.kstest(unit[::20].flatten().numpy(), "norm").statistic < 0.02


def test_walkers_that_disagree_have_a_large_r_hat(examples):
    noise = torch.randn(100, 8, 1, generator=torch.Generator().manual_seed(0))
    assert examples["studies"].r_hat(noise) < 1.05
    assert examples["studies"].r_hat(noise + torch.arange(8.0)[:, None]) > 1.5


@pytest.mark.slow
def test_one_command_draws_all_figures_and_tells_the_numbers(examples, tmp_path, capsys, without_type_checker):
    examples["influenza"].main(["--out", str(tmp_path), "--quick"])
    names = {"pairs.png", "predictive.png", "calibration.png", "trajectories.png", "summary.json", "table.md"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"posterior"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["name"] for row in summary["parameters"]] == ["beta", "gamma", "I0", "phi"]
    assert "| beta |" in (tmp_path / "table.md").read_text()
    assert "SBC" in capsys.readouterr().out
    again, saved = tmp_path / "again", str(tmp_path / "posterior")
    examples["influenza"].main(["--out", str(again), "--quick", "--posterior", saved])
    assert {path.name for path in again.iterdir()} == names
    assert (again / "table.md").read_text() == (tmp_path / "table.md").read_text()


def test_a_saved_posterior_is_not_written_over_and_must_be_there_to_be_drawn(examples, tmp_path, capsys):
    (tmp_path / "posterior").mkdir()
    with pytest.raises(SystemExit):
        examples["lynx_hare"].main(["--out", str(tmp_path), "--quick"])
    assert "--out must not hold a posterior: draw from it by --posterior" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        examples["lynx_hare"].main(["--out", str(tmp_path), "--quick", "--posterior", str(tmp_path / "none")])
    assert "--posterior must name a folder that an earlier run wrote" in capsys.readouterr().err
