import sys

import pytest

from openedm.ground import progress
from openedm.ground.progress import reported, showing


class Kernel:
    kernel = object()


class IPython:
    shell = None

    def get_ipython(self):
        return self.shell


def test_a_terminal_is_watched_and_a_file_is_not(monkeypatch):
    assert not progress.is_watched()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress.is_watched()


def test_a_notebook_is_watched_and_ipython_in_a_pipe_is_not(monkeypatch):
    ipython = IPython()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not progress.is_watched()
    ipython.shell = object()
    assert not progress.is_watched()
    ipython.shell = Kernel()
    assert progress.is_watched()


@pytest.mark.parametrize(
    ("wanted", "watched", "here", "shown"),
    [
        (None, True, True, True),
        (None, False, True, False),
        (True, False, True, True),
        (False, True, True, False),
        (None, True, False, False),
        (True, True, False, False),
    ],
)
def test_bars_are_shown_where_a_person_looks_unless_the_caller_says_otherwise(
    monkeypatch, capsys, wanted, watched, here, shown
):
    monkeypatch.setattr(progress, "is_watched", lambda: watched)
    with showing(wanted, here=here) as show:
        show("images", 1, 2)
    assert ("images" in capsys.readouterr().err) is shown


def test_a_function_is_called_in_place_of_a_bar(capsys):
    calls = []
    with showing(lambda *state, **counts: calls.append(state), here=False) as show:
        assert list(reported("ab", "letters", 2, show)) == ["a", "b"]
    assert calls == [("letters", 1, 2), ("letters", 2, 2)]
    assert capsys.readouterr() == ("", "")
