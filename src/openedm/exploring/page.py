"""The page: a form of the state, the figures that follow from it, and the lines that open the same state again.

Requests read: none of them changes a file or the process. A request names a state and one of the figures; each is
answered in a thread of its own, and a figure that its page no longer waits for is given up.
"""

import dataclasses
import hashlib
import io
import threading
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, jsonify, render_template, request
from matplotlib.figure import Figure

from openedm.exploring.controls import controls_of
from openedm.exploring.exact_figures import EXACT, USED
from openedm.exploring.links import command_line, from_query, python_lines, query_of, sample_line
from openedm.exploring.problems import Budget, Stopped
from openedm.exploring.run_figures import Runs, figures_of_runs
from openedm.exploring.state import State

__all__ = ["make_app"]

VIEWS = {
    "exact": "Exact denoisers",
    "samples": "Samples",
    "walk": "Walk between seeds",
    "levels": "Denoised at every level",
    "compare": "Compare two runs",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
WRONG = (ArithmeticError, LookupError, TypeError, ValueError)
"""What the library raises for a state that does not fit."""
PIXELS_PER_INCH = 110


def make_app(runs: Runs = Runs(), hosts: list[str] | None = None, start: State = State()) -> Flask:
    """The page as a WSGI application.

    Args:
        runs: the runs that it may sample from.
        hosts: the host names by which it may be asked, so that a page elsewhere cannot read it under a name of its own;
            None means any.
        start: the state of a URL without options.
    """
    app = Flask(__name__)
    app.config["TRUSTED_HOSTS"] = hosts
    turns, exact = Turns(), threading.Lock()

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    def page() -> str:
        state, error = start, None
        try:
            state = _state(start)
        except WRONG as wrong:
            error = str(wrong)
        return render_template("page.html", error=error, query=query_of(state), **_shown(state, runs))

    @app.get("/state")
    def described() -> Any:
        state = _state(start)
        shown = _shown(state, runs)
        panel = render_template("panel.html", **shown)
        links = {name: shown[name] for name in ("command", "sample", "python")}
        return jsonify(query=query_of(state), panel=panel, figures=shown["figures"], view=state.view, **links)

    @app.get("/figure/<name>.png")
    def picture(name: str) -> Response:
        state = _state(start)
        wanted = turns.of(request.args.get("_page", ""), request.args.get("_turn", "0"))
        budget = Budget(wanted)

        def drawn() -> Figure:
            if state.view == "exact":
                return _known(EXACT, name)(state, budget)
            return _known(figures_of_runs(state.view), name)(state, runs, budget)

        with exact if state.view == "exact" else runs.lock:
            if not wanted():
                raise Stopped
            figure = drawn()
            if not wanted():
                raise Stopped
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=PIXELS_PER_INCH, facecolor="white")
        return Response(file.getvalue(), mimetype="image/png")

    def refuse(error: Exception) -> tuple[str, int, dict[str, str]]:
        return str(error), 422, {"Content-Type": "text/plain; charset=utf-8"}

    for kind in WRONG:
        app.register_error_handler(kind, refuse)
    app.register_error_handler(Stopped, lambda error: ("", 409))
    return app


class Turns:
    """The newest turn of each page: requests of older ones are not wanted any more."""

    MOST = 1000

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, page: str, turn: str) -> Callable[[], bool]:
        """Note a request, and return the question whether it is of the newest turn of its page.

        Args:
            page: a name that the page gave itself; without one, a request is always wanted.
            turn: the number of the state that the page shows, counted by it.
        """
        name, number = page[:40], int(turn) if turn.isdecimal() and len(turn) < 16 else 0
        if not name:
            return lambda: True
        with self._lock:
            self._newest[name] = max(number, self._newest.pop(name, 0))
            while len(self._newest) > self.MOST:
                del self._newest[next(iter(self._newest))]
        return lambda: self._newest.get(name, 0) <= number


def _state(start: State) -> State:
    """The state that the present request names."""
    query = [(name, text) for name, text in request.args.items(multi=True) if not name.startswith("_")]
    return from_query(query) if query else start


def _known(figures: Mapping[str, tuple[str, Callable[..., Figure]]], name: str) -> Callable[..., Figure]:
    if name not in figures:
        raise ValueError(f"figure must be one of {', '.join(figures)}, got {name!r}")
    return figures[name][1]


def _shown(state: State, runs: Runs) -> dict[str, Any]:
    """What the templates show."""
    figures = EXACT if state.view == "exact" else figures_of_runs(state.view)
    names = list(runs.paths)
    named = {"run": state.run or "".join(names[:1]), "against": state.against or "".join(names[1:2])}
    chosen = runs.paths.get(state.run or "", next(iter(runs.paths.values()), ""))
    possible = ["exact", *(["samples", "walk", "levels"] if names else []), *(["compare"] if len(names) > 1 else [])]
    return {
        "state": state,
        "views": {view: VIEWS[view] for view in possible},
        "groups": controls_of(state, names),
        "figures": [(name, title.format(**named), _key(state, name)) for name, (title, _) in figures.items()],
        "command": command_line(state, list(runs.paths.values())),
        "sample": sample_line(state, chosen) if state.view in ("samples", "compare") else "",
        "python": python_lines(state, runs.paths),
    }


def _key(state: State, figure: str) -> str:
    """A text that is the same for states in which a figure is the same."""
    used = USED[figure] if state.view == "exact" else [field.name for field in dataclasses.fields(state)]
    values = [getattr(state, name) for name in used]
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
