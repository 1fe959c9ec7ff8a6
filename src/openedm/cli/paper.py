"""`openedm paper`: the figures and tables of the paper that a laptop makes."""

from functools import partial
from pathlib import Path

from openedm.cli.folders import figures_to_write
from openedm.plots import save_figure
from openedm.plots.paper import FIGURES, check_names, find_name, paper_figures, table_1


def paper(out: str | None = None, figures: str = "all", seed: int = 0, overwrite: bool = False) -> None:
    """Print Table 1 of Karras et al. 2022 and draw figures after the paper's, on data whose best denoiser is known.

    schedules.png: σ(t) and the time steps of VP, VE and EDM. trajectories.png: paths under the three schedules, as
    Figure 3. errors.png: error against evaluations by design choice, as Figure 2. preconditioning.png: c_skip, c_out,
    c_in over σ. loss.png: the loss at each σ, as Figure 5. churn.png: where noise helps, as Figure 4, with a network
    that is trained for it in seconds. Prints the numbers behind each.

    Args:
        out: the folder for the figures, runs/paper by default; not with figures none, which writes nothing.
        figures: their names, separated by commas, such as errors,churn; or all, or none for the table alone.
        seed: seed of the noise and of the training.
        overwrite: replace figures of an earlier run in the folder.
    """
    if out is not None and (meant := find_name(out)) is not None and not Path(out).is_dir():
        what = "Table 1, which is printed with any figures and without" if meant == "none" else "a figure"
        raise ValueError(f"out must be the folder for the figures, got the name of {what}: write --figures {meant}")
    listed = {"all": list(FIGURES), "none": []}
    names = check_names(listed.get(figures, [name.strip() for name in figures.split(",")]))
    if not names and (out is not None or overwrite):
        given = "overwrite" if out is None else "out"
        raise ValueError(f"{given} has no effect with figures none, which prints the table alone: leave one out")
    print(table_1())
    files = {name: f"{name}.png" for name in names}
    if not files:
        return
    folder = figures_to_write(Path("runs/paper" if out is None else out), list(files.values()), overwrite=overwrite)
    for name in names:
        print(f"\n{name}", flush=True)
        (figure,) = paper_figures([name], seed=seed, log=partial(print, flush=True)).values()
        save_figure(figure, folder / files[name])
        print(f"wrote {folder / files[name]}")
