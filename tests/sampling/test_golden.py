"""The sampler reproduces a reference implementation's runs to 1e-9 times the sensitivity of each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import golden_arrays, golden_json, golden_marks
from openedm import levels, schedules
from openedm.denoiser import Condition, Denoiser
from openedm.exact import GaussianMixture
from openedm.preconditioning import IDDPM
from openedm.sampling import Alpha, Churn, Euler, Sampler, SeededNoise

pytestmark = [*golden_marks, pytest.mark.usefixtures("without_type_checker")]  # which takes longer than the arithmetic
INDEX = golden_json("sampler.json")
ENTRIES = INDEX.get("entries", [])
FROM_TABLE = [
    e
    for e in ENTRIES
    if e["kwargs"].get("discretization") == "iddpm" and e["net"] == "free" and e["noise"] == "zeros"
    if set(e["kwargs"]) <= {"num_steps", "solver", "discretization", "schedule", "scaling"}
    if e["kwargs"]["schedule"] != "vp"  # refitted to the range, which differs with the table
]
CHURN = ("S_churn", "S_min", "S_max", "S_noise")
REFUSED = INDEX.get("nan_cases", {}).get("names", [])


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return golden_arrays("sampler.npz")


def mixture() -> GaussianMixture:
    gmm = INDEX["gmm"]
    return GaussianMixture(gmm["weights"], gmm["means"], gmm["covs"])


class Limited(Denoiser):
    """The reference's wrapped denoisers: a range of noise levels, perhaps a table of them; records what it is asked."""

    def __init__(self, kind: str, table: tuple[float, ...]) -> None:
        super().__init__()
        self.exact = mixture()
        self.event_shape = (2,)
        self.sigma_min, self.sigma_max = {
            "free": (0.0, float("inf")),
            "clamp": (0.02, 50.0),
            "table": (table[-2], table[0]),
        }[kind]
        self.rounding = IDDPM(table=table) if kind == "table" else None
        self.asked: list[float] = []
        self.seen: list[Tensor] = []

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return sigma if self.rounding is None else self.rounding.round_sigma(sigma)

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition, **options: Any) -> Tensor:
        self.asked.append(float(sigma))
        self.seen.append(x)
        return self.exact.denoise(x, sigma, condition)


class Recorded:
    """Noise that was drawn elsewhere, one array a step; steps without churn draw none."""

    def __init__(self, noise: list[Tensor]) -> None:
        self.noise = iter(noise)

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        return next(self.noise)


def sampler_of(kwargs: dict[str, Any], kind: str, arrays: dict[str, np.ndarray]) -> Sampler:
    """The reference's arguments as an openedm sampler. The reference refits VP's betas to the range of the levels."""
    steps = kwargs["num_steps"]
    ends = {k: kwargs[k] for k in ("sigma_min", "sigma_max") if k in kwargs}
    start = {k: kwargs[k] for k in ("epsilon_s",) if k in kwargs}
    table = tuple(arrays["iddpm_u_table_ref_M4000" if kwargs.get("M") == 4000 else "iddpm_u_table_ref"].tolist())
    discretisation = kwargs.get("discretization", "edm")
    rule: levels.Levels = {
        "edm": lambda: levels.Karras(steps, **ends, rho=float(kwargs.get("rho", 7))),
        "vp": lambda: levels.VP(steps, **ends, **start),
        "ve": lambda: levels.VE(steps, **ends),
        "iddpm": lambda: levels.IDDPM(steps, **ends, table=table),
    }[discretisation]()
    limits = Limited(kind, table)
    rule = rule.within(limits.sigma_min, limits.sigma_max)
    schedule: schedules.Schedule = {
        "vp": lambda: schedules.VP.fit(*rule.ends, **start),
        "ve": schedules.VE,
        "linear": schedules.EDM,
    }[kwargs.get("schedule", "linear")]()
    return Sampler(
        levels=rule,
        schedule=schedule,
        scaling=schedules.VPScaling() if kwargs.get("scaling") == "vp" else schedules.NoScaling(),
        solver=Euler() if kwargs.get("solver") == "euler" else Alpha(float(kwargs.get("alpha", 1))),
        churn=Churn(**{n.lower(): float(kwargs[n]) for n in CHURN if n in kwargs})
        if kwargs.get("S_churn")
        else Churn(),
        final="euler",
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=[e["name"] for e in ENTRIES])
def test_the_run_equals_the_reference(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    name, kind = entry["name"], entry["net"]
    sampler = sampler_of(entry["kwargs"], kind, arrays)
    denoiser = Limited(kind, tuple(arrays["iddpm_u_table_ref"].tolist()))
    source = None
    if entry["noise"] != "zeros":
        drawn = torch.from_numpy(arrays[f"{name}/noise"])
        source = Recorded(
            [n for n, step in zip(drawn, sampler.plan(denoiser).steps, strict=True) if step.before is not None]
        )
    x = sampler.sample(denoiser, source, noise=torch.from_numpy(arrays["latents"]))
    tolerance = 1e-9 * max(1.0, entry["sensitivity"])
    assert len(denoiser.asked) == entry["nfe"] == sampler.nfe
    np.testing.assert_allclose(denoiser.asked, arrays[f"{name}/sigma_evals"], rtol=1e-9)
    times = [step.time for step in sampler.plan(denoiser).steps]
    np.testing.assert_allclose([*times, 0.0], arrays[f"{name}/t_steps"], rtol=1e-9, atol=1e-12)
    assert np.abs(x.numpy() - arrays[f"{name}/x_final"]).max() <= tolerance
    if "x_evals" in entry["has"]:
        np.testing.assert_allclose(torch.stack(denoiser.seen).numpy(), arrays[f"{name}/x_evals"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", REFUSED)
def test_an_overshooting_alpha_is_refused_where_the_reference_returns_nan(
    name: str, arrays: dict[str, np.ndarray]
) -> None:
    choices, options = name.removeprefix("abl/").split("/")
    solver, discretization, schedule, scaling = choices.split("-")
    steps, alpha = options.removeprefix("N").split("_alpha")
    kwargs = {
        "num_steps": int(steps),
        "solver": solver,
        "discretization": discretization,
        "schedule": schedule,
        "scaling": scaling,
        "alpha": float(alpha),
    }
    sampler = sampler_of(kwargs, "free", arrays)
    with pytest.raises(ValueError, match=r"alpha <= 1"):
        sampler.sample(mixture(), noise=torch.from_numpy(arrays["latents"]))


def test_the_exact_denoiser_equals_the_reference(arrays: dict[str, np.ndarray]) -> None:
    for sigma, expected in zip(arrays["denoiser/sigma"], arrays["denoiser/D"], strict=True):
        x = torch.from_numpy(arrays["denoiser/x"]) * max(float(sigma), 1.0)
        np.testing.assert_allclose(mixture()(x, float(sigma)).numpy(), expected, rtol=1e-11, atol=1e-13)


def test_the_table_of_iddpm_is_exact(arrays: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(levels.iddpm_table(), arrays["iddpm_u_table_exact"], rtol=1e-12)


@pytest.mark.parametrize("entry", FROM_TABLE, ids=[e["name"] for e in FROM_TABLE])
def test_the_exact_table_stays_close_to_the_reference(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    sampler = sampler_of(entry["kwargs"], "free", arrays)
    exact = replace(sampler, levels=levels.IDDPM(entry["kwargs"]["num_steps"]))
    denoiser = Limited("free", tuple(arrays["iddpm_u_table_ref"].tolist()))  # starts from 0, as the reference does
    x = exact.sample(denoiser, noise=torch.from_numpy(arrays["latents"]))
    assert np.abs(x.numpy() - arrays[f"{entry['name']}/x_final"]).max() <= 1e-4 * max(1.0, entry["sensitivity"])


def test_the_noise_of_a_seed_is_the_references(arrays: dict[str, np.ndarray]) -> None:
    noise = SeededNoise(INDEX["stacked_rng_seeds"]).draw((2, 3))
    np.testing.assert_array_equal(noise.numpy(), arrays["stacked_rng/randn_first"])
