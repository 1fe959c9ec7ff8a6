"""`openedm inference calibrate`: test a posterior by SBC and TARP on simulations that were not fitted."""

from openedm.cli.inference.arguments import (
    FEWEST_TESTED,
    PosteriorOptions,
    load_posterior,
    simulations_of,
    task_of,
    usable,
)
from openedm.cli.parsing import Flat
from openedm.ground import checks
from openedm.ground.storage import new_path, replace_nonfinite, write_json
from openedm.inference import calibration, simulation
from openedm.inference.benchmark import FRESH
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
    figure: str | None = None,
    out: str | None = None,
    device: str = "cpu",
    options: Flat[PosteriorOptions] = PosteriorOptions(),
) -> None:
    """Test a posterior by SBC and TARP on simulations that were not fitted.

    Prints p-values: of the ranks of each true parameter among posterior samples (simulation-based calibration), and of
    the coverage of regions around random points (TARP).

    Args:
        posterior: the folder that `openedm inference fit` wrote.
        task: the benchmark task of the posterior, for new simulations.
        simulations: or simulations that were not used in the fit: a store with another seed, or an npz file with the
            arrays theta and x (or x_NAME for each kind of data).
        num: largest number of simulations, at least 20; those that the posterior does not take are left out
            (NaN that do not mark absent members or values, infinities).
        num_samples: number of posterior samples for each.
        num_density_samples: number of posterior samples whose density is computed, for the coverage of highest-density
            regions; 0 for none.
        level: significance level of the tests.
        seed: seed of the samples and new simulations.
        figure: also plot the tests to this .png, .pdf or .svg file.
        out: a JSON file for the p-values.
        device: cpu or cuda.
        options: how posterior samples are drawn.
    """
    drawing, target = new_path("figure", figure, [".png", ".pdf", ".svg"]), new_path("out", out, [".json"])
    checks.between("level", level, 0.0, 1.0)
    checks.at_least("num", num, FEWEST_TESTED)
    checks.at_least("num_samples", num_samples, 1)
    checks.between("num_density_samples", num_density_samples, 0, num_samples)
    checks.at_least("seed", seed, 0)
    if (task is None) == (simulations is None):
        raise ValueError("either task or simulations must be given")
    fitted, known = load_posterior(posterior, device, options), task_of(task)
    if known is not None:
        if (known.dim, known.x_shape) != (fitted.dim, fitted.x_shape):
            raise ValueError(
                f"task must fit the posterior, with {fitted.dim} parameters and x {fitted.x_shape}, got {task!r} with "
                f"{known.dim} and {known.x_shape}"
            )
        found = simulation.simulate(known.simulate, known.prior, num, seed=FRESH + seed, batched=True)
    else:
        found = usable(fitted, simulations_of(str(simulations))).first(num)
    tests = calibration.calibrate(
        fitted, found.theta, found.x, num_samples=num_samples, num_density_samples=num_density_samples, seed=seed
    )
    print(tests.summary(level))
    if drawing is not None:
        save_figure(calibration_plot(tests.sbc, tests.tarp, tests.density, names=tests.names), drawing)
        print(f"figure: {drawing}")
    if target is not None:
        numbers = {
            "passes": tests.passes(level),
            "level": level,
            "simulations": len(tests.tarp),
            "num_samples": num_samples,
            "trained_on": tests.trained_on,
            "p_values": tests.p_values,
            "sbc_p_values": dict(zip(tests.names, tests.sbc_p_values.tolist(), strict=True)),
            "tarp_area": tests.tarp_area,
        }
        write_json(target, replace_nonfinite(numbers))
        print(f"all numbers: {target}")
