"""Samples: every solver × schedule × scaling × churn, the multistep engine's settings, adaptive and automatic samplers.

A setting that the library refuses with a ValueError is recorded as an empty array, so that what is refused is compared,
too.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmarks.recorded.library import (
    BrownianNoise,
    Config,
    Denoiser,
    SeededNoise,
    config,
    fit_levels,
    make,
)
from benchmarks.recorded.problems import (
    IDDPM_TABLE,
    PROBLEMS,
    ROUNDING,
    SEEDS,
    counted,
    plane,
    preconditioned,
    space,
    uniform,
)
from benchmarks.recorded.storage import Named
from benchmarks.recorded.tables import SCALINGS, SCHEDULES, level_rules

LEVELS = config("levels.Karras", num_steps=8, sigma_min=0.02, sigma_max=20.0)
CHURN = config("sampling.Churn", s_churn=3.0, s_min=0.05, s_max=15.0, s_noise=1.01)
SCHEDULE = config("schedules.VP")


def solver(name: str, /, **values: Any) -> Config:
    """The plain data of a solver."""
    return config(f"sampling.{name}", **values)


RUNGE_KUTTA = {
    **{name: solver(name) for name in ("Euler", "Heun", "Midpoint", "Ralston", "RK4")},
    "Alpha-0.7": solver("Alpha", alpha=0.7),
}
MULTISTEP = ("DDIM", "LMS", "DEIS", "IPNDM", "DPMSolver2M", "DPMSolverPP2M", "DPMSolverPP3M", "UniPC", "AdamsBashforth")
SINGLESTEP = {
    **{name: solver(name) for name in ("DPMSolver2S", "DPMSolverPP2S", "DPMSolver3S", "DPMSolverPP3S")},
    "DPMSolver2S-0.7": solver("DPMSolver2S", r=0.7),
    "DPMSolverPP3S-other": solver("DPMSolverPP3S", r1=0.25, r2=0.75),
    "DPMSolverPP2S-network": solver("DPMSolverPP2S", prediction=solver("NetworkPrediction", sigma_data=0.8)),
}
STOCHASTIC = {
    "EulerMaruyama": solver("EulerMaruyama"),
    "EulerMaruyama-0.3": solver("EulerMaruyama", eta=solver("ConstantEta", eta=0.3)),
    "EulerMaruyama-band": solver("EulerMaruyama", eta=solver("BandEta", eta=0.8, low=0.1, high=5.0)),
    "Ancestral": solver("Ancestral"),
    "Ancestral-0.5": solver("Ancestral", eta=0.5),
}
RESTARTS = {"low": 0.1, "high": 1.5, "repeats": 2, "num_steps": 3}


def drawn(denoiser: Denoiser, settings: Config, **arguments: Any) -> Any:
    """Samples of a `Sampler` or `Auto`; None where it is refused."""
    try:
        chosen = make(settings["class_path"].removeprefix("openedm."), **settings["init_args"])
        arguments.setdefault("seeds", SEEDS)
        return chosen.sample(denoiser, **arguments)
    except ValueError:
        return None


def sampler(**settings: Any) -> Config:
    """The plain data of a sampler on `LEVELS`, unless others are given."""
    return config("sampling.Sampler", **{"levels": LEVELS, **settings})


def everywhere(settings: Sequence[tuple[str, Config]]) -> Named:
    """Samples on the two exact problems."""
    for problem, make_denoiser in PROBLEMS.items():
        denoiser = make_denoiser()
        for name, plain in settings:
            yield f"{problem}/{name}", drawn(denoiser, plain)


def runge_kutta() -> Named:
    """Every solver × schedule × scaling × churn, and the reference's last step."""
    settings = []
    for name, method in RUNGE_KUTTA.items():
        for clock, schedule in SCHEDULES.items():
            for scale, scaling in {"own": None, **SCALINGS}.items():
                plain = {"solver": method, "schedule": schedule, "scaling": scaling}
                settings.append((f"{name}/{clock}/{scale}", sampler(**plain)))
                settings.append((f"{name}/{clock}/{scale}/churn", sampler(**plain, churn=CHURN)))
            plain = {"solver": method, "schedule": schedule, "final": "euler"}
            settings.append((f"{name}/{clock}/own/euler", sampler(**plain)))
    yield from everywhere(settings)


def named_multistep() -> Named:
    """The published multistep methods, as ODE and as SDE, with and without a corrector; and what they refuse."""
    settings = []
    for name in MULTISTEP:
        settings += [(f"{name}/eta-{eta}", sampler(solver=solver(name, eta=eta))) for eta in (0.0, 0.4, 1.0)]
        settings += [(f"{name}/corrector-{c}", sampler(solver=solver(name, corrector=c))) for c in (0, 2, 3, 4)]
        settings += [(f"{name}/predictor-{p}", sampler(solver=solver(name, predictor=p))) for p in (1, 2, 3, 4)]
        settings.append((f"{name}/churn", sampler(solver=solver(name), churn=CHURN)))
        settings.append((f"{name}/schedule", sampler(solver=solver(name), schedule=SCHEDULE)))
    settings.append(("tAB-DEIS", sampler(solver=solver("DEIS", variable=solver("ScheduleTime", schedule=SCHEDULE)))))
    settings.append(("UniPC-3", sampler(solver=solver("UniPC", predictor=3, corrector=4))))
    yield from everywhere(settings)


PREDICTIONS = {
    "epsilon": solver("EpsilonPrediction"),
    "data": solver("DataPrediction"),
    "velocity": solver("VelocityPrediction", sigma_data=0.7),
    "network": solver("NetworkPrediction", sigma_data=0.7),
}
VARIABLES = {
    "log": solver("LogSigma"),
    "power-1": solver("PowerSigma"),
    "power-7": solver("PowerSigma", rho=7.0),
    "angle": solver("Angle", sigma_data=0.7),
    "angle-2": solver("Angle", sigma_data=0.7, rho=2.0),
    "flow": solver("FlowTime", sigma_data=0.7),
    "vp": solver("ScheduleTime", schedule=SCHEDULE),
    "cosine": solver("ScheduleTime", schedule=config("schedules.Cosine")),
}
RULES = ("exact", "midpoint", "dpm-solver++", "adams-bashforth")


def engine() -> Named:
    """`Multistep`: prediction × variable × rule × orders 1 to 6, exact ones also with a corrector and as an SDE."""
    settings = []
    for quantity, prediction in PREDICTIONS.items():
        for clock, variable in VARIABLES.items():
            for order in range(1, 7):
                plain = {"prediction": prediction, "variable": variable, "predictor": order}
                name = f"{quantity}/{clock}/{order}"
                settings += [
                    (f"{name}/{rule}", sampler(solver=solver("Multistep", **plain, rule=rule))) for rule in RULES
                ]
                corrected = solver("Multistep", **plain, corrector=min(order + 1, 6))
                settings.append((f"{name}/corrected", sampler(solver=corrected)))
                settings.append((f"{name}/sde", sampler(solver=solver("Multistep", **plain, eta=1.0))))
    yield from everywhere(settings)


def singlestep() -> Named:
    """Exponential Runge–Kutta methods and stochastic solvers."""
    yield from everywhere([(name, sampler(solver=plain)) for name, plain in (SINGLESTEP | STOCHASTIC).items()])


def restarts() -> Named:
    """`Restart` around one-step and multistep methods, and predictor–corrector sampling."""
    settings = []
    for name, inner in {**RUNGE_KUTTA, **SINGLESTEP, **{name: solver(name) for name in MULTISTEP}}.items():
        settings.append((f"Restart/{name}", sampler(solver=solver("Restart", solver=inner, **RESTARTS))))
        around = solver("Restart", solver=inner, **RESTARTS)
        settings.append((f"Restart/{name}/curve", sampler(solver=around, schedule=SCHEDULE)))
        settings.append((f"Restart/{name}/churn", sampler(solver=around, churn=CHURN)))
    for name, inner in {**RUNGE_KUTTA, **SINGLESTEP, **STOCHASTIC, "DEIS": solver("DEIS")}.items():
        for corrections in (1, 2):
            plain = solver("PredictorCorrector", predictor=inner, snr=0.2, corrections=corrections)
            settings.append((f"PredictorCorrector/{name}/{corrections}", sampler(solver=plain)))
    yield from everywhere(settings)


def adaptive_solvers() -> Iterator[tuple[str, Config]]:
    """The adaptive pairs at some tolerances, with their options."""
    for tolerance in (1e-2, 1e-4):
        for name in ("DormandPrince", "Tsit5", "Exponential23"):
            yield f"{name}/{tolerance}", solver(name, tolerance=tolerance)
        for clock in ("log", "power-7", "flow"):
            yield f"Tsit5/{clock}/{tolerance}", solver("Tsit5", tolerance=tolerance, variable=VARIABLES[clock])
        data = solver("Exponential23", tolerance=tolerance, prediction=PREDICTIONS["data"])
        yield f"Exponential23/data/{tolerance}", data
    yield "DormandPrince/max_nfe", solver("DormandPrince", max_nfe=12)
    yield "Tsit5/first_step", solver("Tsit5", first_step=0.05)


def adaptive() -> Named:
    """Samples of adaptive solvers, and the rows of every evaluation that they made."""
    for problem, make_denoiser in PROBLEMS.items():
        for name, plain in adaptive_solvers():
            denoiser, rows = counted(make_denoiser())
            yield f"{problem}/{name}", drawn(denoiser, sampler(solver=plain))
            yield f"{problem}/{name}/rows", rows


def automatic() -> Named:
    """`Auto` at budgets in each range of its rule, and at tolerances; levels fitted to a denoiser."""
    for problem, make_denoiser in PROBLEMS.items():
        denoiser = make_denoiser()
        for nfe in (3, 5, 9, 10, 12, 15, 16, 20, 27, 28, 32, 40):
            yield f"{problem}/nfe-{nfe}", drawn(denoiser, config("sampling.Auto", nfe=nfe))
        ranged = config("sampling.Auto", nfe=12, sigma_min=0.01, sigma_max=30.0)
        yield f"{problem}/range", drawn(denoiser, ranged)
        for tolerance in (1e-1, 1e-3):
            counting, rows = counted(denoiser)
            plain = config("sampling.Auto", nfe=None, tolerance=tolerance)
            yield f"{problem}/tolerance-{tolerance}", drawn(counting, plain)
            yield f"{problem}/tolerance-{tolerance}/rows", rows


def fitted() -> Named:
    """Levels fitted to a denoiser and a solver."""
    for name in ("DPMSolverPP2M", "Heun"):
        start = make("sampling.Sampler", solver=solver(name), levels={**LEVELS, "init_args": {"num_steps": 6}})
        found = fit_levels(plane(), start, seeds=range(6), iterations=2)
        yield f"{name}/levels", found.sampler.levels.sigmas()
        yield f"{name}/errors", [found.error, found.error_before, found.evaluations]
    for nfe in (6, 10):
        found = make("sampling.Auto", nfe=nfe).fit(space(), seeds=range(4))
        yield f"Auto-{nfe}/levels", found.sampler.levels.sigmas()
        yield f"Auto-{nfe}/errors", [found.error, found.error_before, found.evaluations]
        yield f"Auto-{nfe}/samples", found.sampler.sample(space(), SEEDS)


SOME = {
    "Heun": solver("Heun"),
    "DPMSolverPP2M": solver("DPMSolverPP2M"),
    "UniPC": solver("UniPC"),
    "DPMSolver3S": solver("DPMSolver3S"),
    "Ancestral": solver("Ancestral"),
    "Restart": solver("Restart", **RESTARTS),
}


def other_levels() -> Named:
    """Some solvers on every rule for levels, at several numbers of steps."""
    settings = []
    for num_steps in (1, 2, 3, 11):
        rules = level_rules(num_steps)
        settings += [
            (f"{name}/{rule}/{num_steps}", sampler(solver=plain, levels=rules[rule]))
            for name, plain in SOME.items()
            for rule in rules
        ]
    explicit = config("levels.Explicit", values=[15.0, 4.0, 1.0, 0.3, 0.05])
    settings += [(f"{name}/Explicit", sampler(solver=plain, levels=explicit)) for name, plain in SOME.items()]
    yield from everywhere(settings)


def inversions() -> Named:
    """The noise of given points, by every deterministic solver."""
    x = uniform(3, 2, seed=7)
    for name, plain in {**RUNGE_KUTTA, **SINGLESTEP, **{name: solver(name) for name in MULTISTEP}}.items():
        yield name, make("sampling.Sampler", solver=plain, levels=LEVELS).invert(plane(), x)
    for clock, schedule in SCHEDULES.items():
        chosen = make("sampling.Sampler", solver=solver("Heun"), levels=LEVELS, schedule=schedule)
        yield f"Heun/{clock}", chosen.invert(plane(), x)
    for name in ("DormandPrince", "Exponential23"):
        yield name, make("sampling.Sampler", solver=solver(name), levels=LEVELS).invert(plane(), x)


def paths() -> Named:
    """Every state on the way, and samples of which the noise follows Brownian paths."""
    for name, plain in {
        **SOME,
        "DormandPrince": solver("DormandPrince"),
        "EulerMaruyama": solver("EulerMaruyama"),
    }.items():
        curve = {"schedule": SCHEDULE} if name in ("Heun", "Restart") else {}
        states = list(make("sampling.Sampler", solver=plain, levels=LEVELS, **curve).steps(plane(), SEEDS[:1]))
        yield f"{name}/numbers", [[s.index, s.time, s.sigma, s.scale] for s in states]
        yield f"{name}/x", torch.stack([s.x for s in states])
        yield f"{name}/denoised", torch.stack([s.denoised for s in states])
    brownian = {**STOCHASTIC, "SDE": solver("DPMSolverPP2M", eta=1.0), "Restart": solver("Restart", **RESTARTS)}
    brownian["PredictorCorrector"] = solver("PredictorCorrector")
    for name, plain in brownian.items():
        yield f"brownian/{name}", drawn(plane(), sampler(solver=plain), seeds=BrownianNoise(SEEDS))
    yield "brownian/churn", drawn(plane(), sampler(churn=CHURN), seeds=BrownianNoise(SEEDS))
    noise = BrownianNoise(SEEDS)
    yield "brownian/draw", noise.draw((5,))
    yield (
        "brownian/step_noise",
        torch.stack([noise.step_noise(a, b, (5,)) for a, b in ((80.0, 3.0), (3.0, 0.1), (0.1, 0))]),
    )
    yield "brownian/increment", noise.increment(0.123, 0.77, (5,))
    seeded = SeededNoise(SEEDS)
    yield "seeded/draws", torch.stack([seeded.draw((2, 3)) for _ in range(3)])


def rounded() -> Named:
    """Samples of denoisers that know a table of levels, or a range of their own."""
    table = config("levels.IDDPM", num_steps=9, table=list(IDDPM_TABLE))
    methods = {**SOME, "RK4": solver("RK4"), "DormandPrince": solver("DormandPrince"), "LMS": solver("LMS")}
    for kind in ROUNDING:
        denoiser = preconditioned(kind)
        for name, plain in methods.items():
            yield f"{kind}/{name}", drawn(denoiser, sampler(solver=plain))
            yield f"{kind}/{name}/table", drawn(denoiser, sampler(solver=plain, levels=table))
        yield f"{kind}/churn", drawn(denoiser, sampler(churn=CHURN))
        yield f"{kind}/VP", drawn(denoiser, sampler(schedule=SCHEDULE))
        for nfe in (6, 12, 20, 40):
            yield f"{kind}/Auto-{nfe}", drawn(denoiser, config("sampling.Auto", nfe=nfe))
        yield f"{kind}/Auto-tolerance", drawn(denoiser, config("sampling.Auto", nfe=None, tolerance=1e-2))
        yield f"{kind}/range", [denoiser.sigma_min, denoiser.sigma_max]


def counts() -> Named:
    """The evaluations and the order that samplers state."""
    methods = {**RUNGE_KUTTA, **SINGLESTEP, **STOCHASTIC, **{name: solver(name) for name in MULTISTEP}}
    methods |= {"Restart": solver("Restart", **RESTARTS), "PredictorCorrector": solver("PredictorCorrector")}
    methods |= {"DormandPrince": solver("DormandPrince")}
    for name, plain in methods.items():
        chosen = make("sampling.Sampler", solver=plain, levels=LEVELS)
        yield f"{name}/nfe", chosen.nfe
        yield f"{name}/order", chosen.solver.order
        yield f"{name}/stochastic", chosen.stochastic
