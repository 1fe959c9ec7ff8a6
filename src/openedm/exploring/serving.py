"""The page's server on this machine: threads of werkzeug, without a log of requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from openedm.exploring.run_figures import Runs
from openedm.exploring.state import State
from openedm.ground import checks

__all__ = ["Served", "serve"]

EVERYWHERE = ("0.0.0.0", "::", "")


class Served(NamedTuple):
    """A page that is served.

    Attributes:
        url: where.
        thread: that answers.
    """

    url: str
    thread: threading.Thread

    def wait(self) -> None:
        """Wait until it is no longer served."""
        self.thread.join()


@contextmanager
def serve(runs: Runs, host: str = "127.0.0.1", port: int = 8765, start: State = State()) -> Iterator[Served]:
    """Serve the page in the block.

    Args:
        runs: the runs that it may sample from.
        host: the address to listen on.
        port: the port; 0 means any that is free.
        start: the state of a URL without options.

    Raises:
        ImportError: Flask is not installed.
        ValueError: the port is out of its range, or it or the address cannot be used.
    """
    from werkzeug.serving import WSGIRequestHandler, make_server

    from openedm.exploring.page import make_app

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    checks.integer("port", port, 0, 65535)
    app = make_app(runs, None if host in EVERYWHERE else [host, "localhost", "127.0.0.1"], start)
    try:
        server = make_server(host, port, app, threaded=True, request_handler=Quiet)
    except (OSError, SystemExit) as error:
        raise ValueError(
            f"port {port} of host {host} cannot be used: choose another, or 0 for any that is free"
        ) from error
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Served(f"http://{'127.0.0.1' if host in EVERYWHERE else host}:{server.server_port}/", thread)
    finally:
        server.shutdown()
        server.server_close()
