"""`openedm explore`: a page in the browser where design choices and trained runs are tried."""

import importlib.util
import webbrowser

from openedm.cli.gathering import Positional
from openedm.cli.parsing import Flat
from openedm.comparing import short_names
from openedm.exploring import Runs, State, serve
from openedm.exploring.links import query_of
from openedm.training import make_accelerator


def explore(
    runs: Positional = [],  # noqa: B006  # it is not changed
    host: str = "127.0.0.1",
    port: int = 8765,
    browser: bool = False,
    state: Flat[State] = State(),
) -> None:
    """Open a page where design choices are changed and their effect is seen at once.

    Without a run: paths in one and two dimensions, error against evaluations, curvature, levels, loss and
    preconditioning, for toy data whose best denoiser is known. With runs: samples, a walk between seeds, the denoised
    sample at every level, two runs on the same noise. The page shows a URL, a command line and lines of Python for the
    state that it is in. Nothing is loaded from the network.

    Args:
        runs: run or checkpoint folders to sample from; the page can open no others.
        host: the address to listen on; by default only this machine reaches the page.
        port: the port; 0 means any that is free.
        browser: also open the page in the browser.
        state: the state that the page opens in.
    """
    if importlib.util.find_spec("flask") is None:
        raise ImportError("openedm explore requires Flask: pip install 'openedm[app]'")
    opened = Runs(dict(zip(short_names(runs), runs, strict=True)), make_accelerator().device)
    with serve(opened, host, port, state) as page:
        url = f"{page.url}?{query_of(state)}".removesuffix("?")
        print(f"{url}\n(end with Ctrl-C)", flush=True)
        if browser:
            webbrowser.open(url)
        page.wait()
