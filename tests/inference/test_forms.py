"""Counts and curves as forms of a learned likelihood: chosen where they are, kept in files, refined by."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openedm.inference import Refinement, fit, load
from openedm.inference.forms import Form, Trials, choose_curve, choose_form, choose_reach, simplest
from openedm.inference.mixtures import fit_mixture
from openedm.inference.settings import MixtureOptions, Settings
from openedm.networks.mixtures import ConditionalMixture
from openedm.networks.mlp import ConditionalMLP
from openedm.networks.placed import PlacedMixture
from openedm.networks.structured import StructuredMixture

OPTIONS = MixtureOptions(
    members=1,
    components=(1,),
    structures=("scaled", "counts", "totals"),
    width=8,
    num_blocks=1,
    pilot_steps=60,
    steps=240,
    learning_rate=1e-2,
    curves=True,
)
U = torch.linspace(-1.7, 1.7, 600)[torch.randperm(600, generator=torch.Generator().manual_seed(0)), None]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def counted(scale: float = 1.0) -> torch.Tensor:
    """Six columns of Poisson counts, from some tenths on."""
    return torch.poisson(scale * (U * torch.linspace(-1, 1, 6)).exp(), generator=torch.Generator().manual_seed(2))


def forms_of(counts: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
    """Standardised, with the determinant of that, and as they are."""
    kept = counts + torch.rand(counts.shape, generator=torch.Generator().manual_seed(3)) - 0.5
    return [((kept - kept.mean(0)) / kept.std(0), -float(kept.std(0).log().sum())), (kept, 0.0)]


def test_counts_are_learned_as_counts() -> None:
    assert choose_form(forms_of(counted()), U, OPTIONS, counts=True) == Form(1, "counts", 1)
    bits = (noise(600, 6) < U * torch.linspace(-1, 1, 6)).float()
    assert choose_form(forms_of(bits), U, OPTIONS, counts=True) == Form(1, "counts", 1)


def test_counts_of_a_total_are_learned_as_such() -> None:
    shares = torch.sigmoid(2 * U * torch.linspace(-1, 1, 6) + 0.5)
    counts = torch.binomial(torch.full_like(shares, 30.0), shares, generator=torch.Generator().manual_seed(5))
    assert choose_form(forms_of(counts), U, OPTIONS, counts=True) == Form(1, "totals", 1)


def test_what_few_rows_decide_is_not_taken_for_equal() -> None:
    best = torch.zeros(100)
    assert simplest([best - 0.1 * noise(100).abs(), best]) == 1
    assert simplest([torch.tensor([0.95, -1.05]).repeat(50), best]) == 0
    assert simplest([torch.where(torch.arange(100) == 0, -900.0, best + 0.01), best]) == 1  # 9 ± 9
    assert simplest([torch.full((100,), -torch.inf), torch.full((100,), -torch.inf)]) == 0


def test_counts_whose_spread_is_a_parameter_are_learned_as_such() -> None:
    size = (2 * U).exp()
    rates = torch._standard_gamma(size.expand(600, 6), torch.Generator().manual_seed(8)) / size * torch.arange(4, 10)
    counts = torch.poisson(rates, generator=torch.Generator().manual_seed(9))
    options = replace(OPTIONS, structures=("scaled", "counts", "totals", "dispersed_counts"))
    assert choose_form(forms_of(counts), U, options, counts=True) == Form(1, "dispersed_counts", 1)


def test_draws_that_are_counts_are_learned_as_draws_of_counts() -> None:
    rates = (2 * U).exp().expand(600, 6)
    options = replace(OPTIONS, structures=("independent", "independent_counts"))
    for draws in (torch.poisson(rates, generator=torch.Generator().manual_seed(6)), (noise(600, 6) < U).float()):
        form = choose_form(forms_of(draws), U, options, exchangeable=True, counts=True)
        assert (form.number, form.structure) == (1, "independent_counts")
    assert choose_form(forms_of(noise(600, 6))[:1], U, options, exchangeable=True).structure == "independent"


def test_integers_that_are_far_from_counts_are_not() -> None:
    values = (1000 + 3 * U * torch.linspace(-1, 1, 6) + noise(600, 6)).round()
    assert choose_form(forms_of(values), U, OPTIONS, counts=True).structure != "counts"
    assert choose_form(forms_of(counted()), U, replace(OPTIONS, structures=("constant",)), counts=True).number == 0


def spectrum(columns: int) -> torch.Tensor:
    """Counts around a peak that moves with the parameter."""
    places = torch.linspace(-1, 1, columns)
    rates = 20 * torch.exp(-0.5 * ((places - 0.5 * U) / 0.15).square()) + 0.5
    return torch.poisson(rates, generator=torch.Generator().manual_seed(4))


def test_counts_are_a_curve_where_that_is_clearly_better() -> None:
    plain, trials = Form(0, "counts", 1), {}
    longer = replace(OPTIONS, pilot_steps=200, steps=800, learning_rate=4e-3)
    assert choose_curve(spectrum(24), U, longer, plain, trials=trials) == plain._replace(curve=True)
    assert len(trials) == 2
    for y, options, form in (
        (spectrum(24), replace(OPTIONS, curves=False), plain),
        (spectrum(24), OPTIONS, Form(0, "constant", 1)),
        (spectrum(24), OPTIONS, Form(0, "counts", 2)),
    ):
        assert choose_curve(y, U, options, form, trials={}) == form


def test_a_spectrum_of_counts_is_fitted_saved_and_sampled(tmp_path: Path) -> None:
    x = spectrum(10)
    emulator = replace(OPTIONS, structures=("counts",), pilot_steps=30, steps=120)
    network, refinement = ConditionalMLP(width=8, num_blocks=1), Refinement(num_steps=4, num_pilots=16)
    settings = Settings(
        network=network, images=2000, passes=2, judged=4, pool=500, emulator=emulator, refinement=refinement
    )
    posterior = fit(U, x, (-1.7, 1.7), settings=settings, progress=False)
    assert posterior.report["emulated"]["noise"] == "counts"
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    observed = x[:2]
    torch.testing.assert_close(again.sample(observed, 20, seed=3), posterior.sample(observed, 20, seed=3))
    torch.testing.assert_close(again.log_prob(U[:2], x[0]), posterior.log_prob(U[:2], x[0]))


def test_draws_that_are_counts_are_fitted_saved_and_sampled(tmp_path: Path) -> None:
    x = torch.poisson((1 + U).exp().expand(600, 12), generator=torch.Generator().manual_seed(6))
    posterior = fit(U, x, (-1.7, 1.7), settings=tiny(structures=("independent", "independent_counts")), progress=False)
    assert posterior.report["emulated"]["noise"] == "independent_counts"
    posterior.save(tmp_path / "kept")
    again, observed = load(tmp_path / "kept"), x[:2]
    torch.testing.assert_close(again.sample(observed, 20, seed=3), posterior.sample(observed, 20, seed=3))
    with pytest.warns(UserWarning, match="x must hold counts, as all simulations did, got"):
        posterior.parts.emulated(x[:1] + 0.25)


def tiny(structures: tuple[str, ...] = ("counts",), **others: object) -> Settings:
    """A rule whose fit takes seconds."""
    emulator = replace(OPTIONS, structures=structures, pilot_steps=20, steps=60)
    network, refinement = ConditionalMLP(width=8, num_blocks=1), Refinement(num_steps=4, num_pilots=16)
    sizes = {"images": 1000, "passes": 1, "judged": 4, "pool": 300, **others}
    return Settings(network=network, emulator=emulator, refinement=refinement, **sizes)  # type: ignore[arg-type]


def test_large_counts_are_not_cut_off_and_what_is_no_count_warns() -> None:
    x = torch.poisson(1e6 * (0.3 * U * torch.linspace(-1, 1, 3)).exp(), generator=torch.Generator().manual_seed(4))
    posterior = fit(U, x, (-1.7, 1.7), settings=tiny(), progress=False)
    assert posterior.report["emulated"]["noise"] == "counts"
    torch.testing.assert_close(posterior.parts.emulated(x[:5]), x[:5])
    for wrong in (x[:1] + 0.25, x[:1] - 2e6):
        with pytest.warns(UserWarning, match="x must hold counts, as all simulations did, got"):
            posterior.parts.emulated(wrong)


def test_a_count_above_the_total_of_all_simulations_warns() -> None:
    trials = (noise(20, 600, 3) < U * torch.linspace(0.5, 1, 3)).float().sum(0)
    posterior = fit(U, trials, (-1.7, 1.7), settings=tiny(structures=("totals",)), progress=False)
    assert posterior.report["emulated"]["noise"] == "totals"
    torch.testing.assert_close(posterior.parts.emulated(trials[:5]), trials[:5])
    with pytest.warns(UserWarning, match=r"counts of a total, .* to be 2\d in column 1, got 40: it is taken as"):
        posterior.parts.emulated(torch.tensor([[10.0, 40.0, 10.0]]))


def test_many_columns_with_values_that_recur_are_modelled_and_a_few_among_others_summarised() -> None:
    x = (U * torch.linspace(-1, 1, 70) + noise(600, 70)).clamp(min=0)
    settings = tiny(structures=("full", "atoms"))
    assert fit(U, x, (-1.7, 1.7), settings=settings, progress=False).report["emulated"]["noise"] == "atoms"
    x[:, 30:] += noise(600, 70)[:, 30:]
    assert fit(U, x, (-1.7, 1.7), settings=settings, progress=False).report["emulated"]["noise"] == "full"


def test_a_likelihood_whose_gradients_are_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def undefined(self: ConditionalMixture, y: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        zero = outputs.sum((-1, -2)) * 0
        return zero + zero.sqrt()  # its gradient is 0 times infinity

    monkeypatch.setattr(StructuredMixture, "_density", undefined)
    with pytest.raises(FloatingPointError, match=r"likelihood of 'scaled' cannot be learned: 60 of 60 steps were not"):
        fit_mixture(noise(600, 2), U, replace(OPTIONS, steps=60), 1, structure="scaled")


def test_many_columns_of_bits_are_modelled_and_other_columns_summarised() -> None:
    bits = (noise(600, 70) < U * torch.linspace(-1, 1, 70)).float()
    found = fit(U, bits, (-1.7, 1.7), settings=tiny(), progress=False).report["emulated"]
    assert (found["noise"], found["columns"]) == ("counts", ["identity"] * 70)
    other = fit(U, bits + 0.1 * noise(600, 70), (-1.7, 1.7), settings=tiny(), progress=False).report["emulated"]
    assert (other["noise"], other["columns"]) == ("full", None)


@pytest.mark.parametrize(
    ("structures", "kind"), [(("constant",), StructuredMixture), (("constant", "placed"), PlacedMixture)]
)
def test_a_likelihood_of_many_columns_is_fitted_saved_and_refines(
    tmp_path: Path, structures: tuple[str, ...], kind: type[ConditionalMixture]
) -> None:
    size = (1 + U / 2).expand(600, 80)  # noise that "placed" alone makes a function of θ
    x = (-20 * (torch.linspace(-1, 1, 80) - U / 2).square()).exp() + 0.1 * size * noise(600, 80)
    settings = tiny(structures=structures)
    posterior = fit(U, x, (-1.7, 1.7), settings=settings, progress=False)
    assert isinstance(posterior.parts.emulator, kind)
    assert posterior.parts.data.reduction is None
    assert posterior.parts.refinement is not None
    posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior")
    torch.testing.assert_close(again.sample(x[0], 20), posterior.sample(x[0], 20), rtol=0, atol=0)
    alone = fit(U, x, None, settings=settings, progress=False)  # its likelihood could not refine samples
    assert alone.report["emulated"]["columns"] is None


@pytest.mark.parametrize(("columns", "curves"), [(7, False), (8, True), (1024, True), (1025, False)])
def test_curves_are_tried_of_eight_to_a_thousand_columns(columns: int, curves: bool) -> None:
    rule = Settings.of(1000, 2, (columns,))
    assert rule.emulator is not None
    assert rule.emulator.curves == curves
    many = Settings.of(50_000, 2, (columns,)).emulator
    assert many is not None
    assert not many.curves


PLACES = torch.linspace(-1, 1, 80)


def process() -> torch.Tensor:
    """A process in 80 columns, of which each depends on the two before it."""
    steps = noise(80, 600, 1)
    values = [steps[0], steps[1]]
    for step in steps[2:]:
        values.append(0.9 * values[-1] - 0.5 * values[-2] + 0.5 * step)
    return torch.cat(values, 1)


@pytest.mark.parametrize(
    ("x", "reach"),
    [
        (U * (7 * PLACES).cos() + noise(600, 80), 0),
        (U * PLACES + process(), 4),
        (U * PLACES + noise(600, 80) + 3 * noise(600, 1), None),
    ],
    ids=["independent", "process", "common"],
)
def test_noise_of_many_columns_reaches_as_far_as_it_must(x: torch.Tensor, reach: int | None) -> None:
    y, options = (x - x.mean(0)) / x.std(0), replace(OPTIONS, structures=("constant",))
    trials: Trials = {}
    found = choose_form([(y, 0.0)], U, options, trials=trials)
    assert found == Form(0, "constant", 1, reach=4)
    assert choose_reach(y, U, options, found, trials=trials).reach == reach
    narrow = y[:, ::16]
    assert choose_reach(narrow, U, options, found, trials={}) == found


def test_many_columns_with_a_peak_that_moves_are_a_curve() -> None:
    x = 3 * (-20 * (PLACES - U / 2).square()).exp() + 0.3 * noise(600, 80)
    form, y = Form(0, "constant", 1, reach=0), (x - x.mean(0)) / x.std(0)
    assert choose_curve(y, U, OPTIONS, form, trials={}).curve
    shuffled = y[:, torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert not choose_curve(shuffled, U, OPTIONS, form, trials={}).curve
    assert choose_curve(y[:, :64], U, OPTIONS, form, trials={}) == form
