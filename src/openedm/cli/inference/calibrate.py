"""`openedm inference calibrate`: test a posterior by SBC and TARP on simulations that were not fitted."""

import torch

from openedm.cli.inference.arguments import simulations_of, task_of
from openedm.ground import checks
from openedm.ground.storage import new_path
from openedm.inference import calibration, simulation
from openedm.inference.benchmark import FRESH
from openedm.inference.trained import DenoiserPosterior
from openedm.plots import calibration_plot, save_figure


def calibrate(
    posterior: str,
    task: str | None = None,
    simulations: str | None = None,
    num: int = 300,
    num_samples: int = 500,
    num_density_samples: int = 0,
    level: float = 0.01,
    seed: int = 0,
    plain: bool = False,
    figure: str | None = None,
    device: str = "cpu",
) -> None:
    """Test a posterior by SBC and TARP on simulations that were not fitted.

    Prints p-values: of the ranks of each true parameter among posterior samples (simulation-based calibration), and of
    the coverage of regions around random points (TARP).

    Args:
        posterior: the folder that `openedm inference fit` made.
        task: the benchmark task that it is of: fresh simulations are drawn.
        simulations: or simulations that took no part in the fit: a store made with another seed, or an npz file with
            the arrays theta and x.
        num: how many simulations at most, and at least 20; those with NaN or infinities are left out.
        num_samples: posterior samples for each.
        num_density_samples: how many of them have their density computed, for the coverage of highest-density regions;
            0 leaves these out.
        level: of the verdict.
        seed: of the samples and fresh simulations.
        plain: leave refinement out.
        figure: also draw the tests, into this .png, .pdf or .svg file.
        device: where to compute, cpu or cuda.
    """
    drawing = new_path("figure", figure, [".png", ".pdf", ".svg"])
    checks.between("level", level, 0.0, 1.0)
    checks.at_least("num", num, 20)
    if (task is None) == (simulations is None):
        raise ValueError("either task or simulations must be given")
    loaded = DenoiserPosterior.load(posterior, device)
    fitted, known = loaded.plain() if plain else loaded, task_of(task)
    if known is not None:
        if (known.dim, known.x_shape) != (fitted.dim, fitted.x_shape):
            raise ValueError(f"task {task!r} has {known.dim} parameters and x {known.x_shape}, the posterior others")
        found = simulation.simulate(known.simulate, known.prior, num, seed=FRESH + seed, batched=True)
        theta, x = found.theta, found.x
    else:
        found = simulations_of(str(simulations))
        finite = torch.cat([found.theta.flatten(1), found.x.flatten(1)], 1).isfinite().all(1)
        theta, x = found.theta[finite][:num], found.x[finite][:num]
    tests = calibration.calibrate(
        fitted, theta, x, num_samples=num_samples, num_density_samples=num_density_samples, seed=seed
    )
    print(tests.summary(level))
    if drawing is not None:
        save_figure(calibration_plot(tests.sbc, tests.tarp, tests.density, names=tests.names), drawing)
        print(f"figure: {drawing}")
