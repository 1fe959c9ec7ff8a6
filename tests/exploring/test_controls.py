"""Every control of the page without a browser: the request that page.js makes when it is changed, and the answer."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from openedm.exploring import Runs
from openedm.exploring.page import make_app
from small_runs import save_digits_run

SLIDERS = re.compile(r"^(num|seed|seed_to|.*\.(num_steps|rho|s_churn|s_noise|weight))$")
"""Names that must be sliders wherever they are."""


class Form(HTMLParser):
    """The controls of a page: the present value of each name, what can be selected, and the ranges of sliders."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.options: dict[str, list[str]] = {}
        self.ranges: dict[str, tuple[str, str, str]] = {}
        self._select = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if tag == "select":
            self._select, self.options[found["name"]] = found["name"], []
        elif tag == "option":
            self.options[self._select].append(found["value"])
            if "selected" in found or self._select not in self.values:  # a browser shows the first where none is
                self.values[self._select] = found["value"]
        elif tag == "input" and "data-for" in found:
            self.ranges[found["data-for"]] = (found["min"], found["max"], found["value"])
        elif tag == "input":
            self.values[found["name"]] = found["value"]

    def changed(self, name: str, text: str) -> dict[str, str]:
        """What page.js sends: all values, without those inside a choice whose class has changed."""
        inside = f"{name}." if name in self.options else "\n"
        return {key: value for key, value in self.values.items() if not key.startswith(inside)} | {name: text}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    return make_app(Runs({name: str(save_digits_run(folder / name, i)) for i, name in enumerate("ab")})).test_client()


@pytest.mark.parametrize("view", ["exact", "walk", "compare"])  # the others have controls of these
def test_every_control_leads_to_a_state_that_shows_it(page: Any, view: str) -> None:
    form = Form(page.get(f"/?view={view}").text)
    assert {name for name in form.values if SLIDERS.match(name)} <= set(form.ranges)
    for name, (low, high, value) in form.ranges.items():
        assert float(low) < float(high)
        assert value == form.values[name]
    wanted = {
        name: [option for option in options if option != form.values[name] and not option.startswith("tests.")]
        for name, options in form.options.items()
    }  # without the classes of other tests
    wanted |= {name: [low, high] for name, (low, high, _) in form.ranges.items()}
    for name, texts in wanted.items():
        for text in texts:
            query = form.changed(name, text)
            if name == "sampler.churn.s_noise":
                query["sampler.churn.s_churn"] = "10"  # without churn s_noise has no effect, and is refused
            answer = page.get("/state", query_string=query)
            assert answer.status_code == 200, f"{name}={text}: {answer.text}"
            shown = Form(answer.json["panel"])
            assert shown.values[name] == text
            if text not in (form.values[name], "exact"):  # not the default
                assert f"--{name} " in answer.json["command"]
                assert f"{name}=" in answer.json["query"]


@pytest.mark.parametrize("view", ["exact", "walk"])
def test_wrong_text_in_every_field_is_answered_with_its_reason(page: Any, view: str) -> None:
    form = Form(page.get(f"/?view={view}").text)
    for name in form.values:
        answer = page.get("/state", query_string=form.changed(name, "many"))
        if name in ("run", "against"):  # whether there is such a run is said where it is drawn
            continue
        assert (answer.status_code, answer.mimetype) == (422, "text/plain"), name
        assert name.rpartition(".")[2] in answer.text
        assert "'many'" in answer.text
