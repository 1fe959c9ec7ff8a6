"""Formulas at given noise levels: levels, schedules, preconditionings, objectives, guidance weights, data."""

import torch
from benchmarks.recorded.library import Config, InMemory, config, make, measure, suggest
from benchmarks.recorded.problems import IDDPM_TABLE, TABLE, uniform
from benchmarks.recorded.storage import Named, numbers_of

SIGMAS = torch.logspace(-3, 2.3, 41, dtype=torch.float64)
SCHEDULES = {
    "EDM": config("schedules.EDM"),
    "VP": config("schedules.VP"),
    "VP-15": config("schedules.VP", beta_d=15.0, beta_min=0.2),
    "VE": config("schedules.VE"),
    "Cosine": config("schedules.Cosine"),
    "RectifiedFlow": config("schedules.RectifiedFlow"),
}
SCALINGS = {
    "no": config("schedules.NoScaling"),
    "vp": config("schedules.VPScaling"),
    "flow": config("schedules.FlowScaling"),
}


def choice(plain: Config):
    """The choice of this plain data."""
    return make(plain["class_path"].removeprefix("openedm."), **plain["init_args"])


def level_rules(num_steps: int) -> dict[str, Config]:
    """Every rule for noise levels, with its defaults and with other values."""
    return {
        "Karras": config("levels.Karras", num_steps=num_steps),
        "Karras-3": config("levels.Karras", num_steps=num_steps, sigma_min=0.01, sigma_max=20.0, rho=3.0),
        "VP": config("levels.VP", num_steps=num_steps),
        "VP-refitted": config("levels.VP", num_steps=num_steps, sigma_min=0.02, sigma_max=40.0, epsilon_s=0.002),
        "VE": config("levels.VE", num_steps=num_steps),
        "LogLinear": config("levels.LogLinear", num_steps=num_steps),
        "Logistic": config("levels.Logistic", num_steps=num_steps),
        "Logistic-warp": config("levels.Logistic", num_steps=num_steps, centre=0.5, spread=1.0, warp=[0.1, -0.05]),
        "IDDPM": config("levels.IDDPM", num_steps=num_steps),
        "IDDPM-table": config("levels.IDDPM", num_steps=num_steps, table=list(IDDPM_TABLE)),
    }


def levels() -> Named:
    """σ_i of every rule, and of its range cut."""
    for num_steps in (1, 2, 3, 8, 18):
        for name, plain in level_rules(num_steps).items():
            yield f"{name}/{num_steps}", choice(plain).sigmas()
            if num_steps > 1:
                yield f"{name}/{num_steps}/within", choice(plain).within(0.05, 10.0).sigmas()
    yield "Explicit", make("levels.Explicit", values=[10.0, 3.0, 0.5, 0.01]).sigmas()


def schedules() -> Named:
    """σ(t), σ̇(t), σ⁻¹ of every schedule and s(σ), s'(σ) of its scaling and of every scaling."""
    times = torch.linspace(0.01, 0.97, 25, dtype=torch.float64)
    for name, plain in SCHEDULES.items():
        schedule = choice(plain)
        yield f"{name}/sigma", schedule.sigma(times)
        yield f"{name}/derivative", schedule.sigma_derivative(times)
        yield f"{name}/time", schedule.time(SIGMAS)
        yield f"{name}/scale", schedule.scaling.scale(SIGMAS)
    for name, plain in SCALINGS.items():
        yield f"{name}/scale", choice(plain).scale(SIGMAS)
        yield f"{name}/scale-derivative", choice(plain).derivative(SIGMAS)


def preconditionings() -> dict[str, Config]:
    """Every preconditioning and adapter."""
    found = {
        "EDM": config("preconditioning.EDM"),
        "VP": config("preconditioning.VP"),
        "VP-other": config("preconditioning.VP", beta_d=15.0, beta_min=0.2, num_levels=500, epsilon_t=1e-4),
        "VE": config("preconditioning.VE", sigma_min=0.01, sigma_max=50.0),
        "IDDPM": config("preconditioning.IDDPM"),
        "IDDPM-60": config("preconditioning.IDDPM", num_levels=60, c_1=0.002, c_2=0.01),
        "IDDPM-table": config("preconditioning.IDDPM", num_levels=len(TABLE), table=list(IDDPM_TABLE)),
    }
    for predicts in ("epsilon", "v", "sample", "velocity"):
        for name, schedule in SCHEDULES.items():
            if predicts == "v" and name not in ("VP", "VP-15", "Cosine"):
                continue
            init = {"predicts": predicts, "schedule": schedule}
            found[f"Adapter/{predicts}/{name}"] = config("preconditioning.Adapter", **init, time_scale=999.0)
            found[f"Adapter/{predicts}/{name}/table"] = config("preconditioning.Adapter", **init, table=list(TABLE))
    return found


def coefficients() -> Named:
    """c_skip, c_out, c_in, c_noise, the range and the rounding of every preconditioning."""
    for name, plain in preconditionings().items():
        chosen = choice(plain)
        for sigma_data in (0.5, 1.7):
            parts = chosen.coefficients(SIGMAS, sigma_data)
            for part, value in zip(("c_skip", "c_out", "c_in", "c_noise"), parts, strict=True):
                yield f"{name}/{sigma_data}/{part}", value
        yield f"{name}/rounded", chosen.round_sigma(SIGMAS)
        yield f"{name}/range", [chosen.sigma_min, chosen.sigma_max]
        yield f"{name}/outputs", chosen.outputs_per_channel


def objectives() -> Named:
    """Quantiles and draws of every p(σ), and λ(σ) of every weighting."""
    u = torch.linspace(0.001, 0.999, 33, dtype=torch.float64)
    noises = {
        "LogNormal": config("objective.LogNormal", p_mean=-0.8, p_std=1.1),
        "UniformTime": config("objective.UniformTime"),
        "UniformTime-flow": config("objective.UniformTime", schedule=SCHEDULES["RectifiedFlow"], t_max=0.99),
        "LogUniform": config("objective.LogUniform"),
        "UniformTable": config("objective.UniformTable"),
        "UniformTable-own": config("objective.UniformTable", table=list(IDDPM_TABLE)),
    }
    for name, plain in noises.items():
        yield f"{name}/quantile", choice(plain).quantile(u)
        for stratified in (False, True):
            generator = torch.Generator().manual_seed(5)
            yield f"{name}/draws/{stratified}", choice(plain).sample(16, generator, stratified=stratified)
    for name in ("EDMWeighting", "InverseVariance"):
        yield f"{name}/weight", make(f"objective.{name}").weight(SIGMAS, 0.5)
    for name in ("EDM", "VP", "VE", "IDDPM", "EDM2"):
        chosen = make(f"objective.{name}")
        yield f"{name}/quantile", chosen.noise.quantile(u)
        yield f"{name}/weight", chosen.weighting.weight(SIGMAS, 0.5)


def guidance_weights() -> Named:
    """w(σ) of every kind."""
    yield "Constant", make("guidance.Constant", weight=2.5).at(SIGMAS)
    yield "Interval", make("guidance.Interval", weight=2.0, low=0.1, high=5.0).at(SIGMAS)
    yield "Piecewise", make("guidance.Piecewise", sigmas=[0.1, 1.0, 10.0], weights=[1.0, 3.0, 2.0]).at(SIGMAS)


TOYS = ("two_modes", "three_modes", "eight_gaussians", "two_moons", "spiral", "checkerboard", "pinwheel", "rings")


def data() -> Named:
    """Toy data, the digits, their mean and standard deviation, and the noise levels suggested for them."""
    for name in TOYS:
        dataset = make("data.Toy", name=name, num_samples=40, seed=3).load()
        x, labels = dataset.fetch(torch.arange(40))
        yield f"{name}/x", x
        yield f"{name}/labels", labels
        yield f"{name}/measured", [measure(dataset).mean, measure(dataset).std]
    digits = make("data.Digits", split="test").load()
    yield "digits/x", digits.fetch(torch.arange(4))[0]
    yield "digits/measured", [measure(digits).mean, measure(digits).std]
    moons = make("data.Toy", name="two_moons", num_samples=600).load()
    yield from numbers_of("suggest/two_moons", suggest(moons, levels=8).to_dict())
    bounded = InMemory((uniform(300, 1, 4, 4, seed=6) * 127).round().float() / 127)
    yield from numbers_of("suggest/images", suggest(bounded, levels=8).to_dict())
