"""The page without a browser: what it answers to requests. tests/browser/explore.py tries it in one."""

from typing import Any

import pytest

from openedm.cli.arguments import parse_integers
from openedm.exploring import Runs, serve
from openedm.exploring.exact_figures import EXACT
from openedm.exploring.page import Turns, make_app
from openedm.exploring.problems import Budget, Stopped, exact_problem
from openedm.exploring.state import State
from openedm.guidance import Constant

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def page() -> Any:
    return make_app(hosts=["localhost"]).test_client()


def test_the_page_names_its_figures_and_its_controls(page: Any) -> None:
    text = page.get("/?sampler.solver=Euler&num=5").text
    assert all(f'data-name="{name}"' in text for name in EXACT)
    assert '<option value="Euler" selected>' in text
    assert "openedm explore --sampler.solver Euler --num 5" in text
    assert "http://" not in text.replace('"http://www.w3.org', "")
    assert "https://" not in text


def test_wrong_input_is_shown_with_its_reason_and_as_text(page: Any) -> None:
    text = page.get("/?sampler.solver=<script>alert(1)</script>").text
    assert "sampler.solver must be one of" in text
    assert "<script>alert" not in text
    answer = page.get("/state?num=0")
    assert (answer.status_code, answer.mimetype) == (422, "text/plain")
    assert answer.text == "num must be between 1 and 256, got 0"


def test_a_figure_is_a_picture_or_a_reason(page: Any) -> None:
    assert page.get("/figure/level_rule.png?sampler.levels=VE").data[:4] == PNG
    churn = page.get("/figure/errors.png?sampler.churn.s_churn=5")
    assert churn.status_code == 422
    assert "errors are those of deterministic samplers" in churn.text
    assert "label must be a class of two_modes (0 to 1)" in page.get("/figure/paths_1d.png?label=7").text
    assert "figure must be one of paths_1d" in page.get("/figure/other.png").text
    assert page.get("/figure/..%2F..%2Fetc%2Fpasswd").status_code == 404


def test_a_figure_has_the_same_key_only_where_it_is_the_same(page: Any) -> None:
    def keys(query: str) -> dict[str, str]:
        return {name: key for name, _, key in page.get(f"/state?{query}").json["figures"]}

    before, levels, network = keys(""), keys("sampler.levels.num_steps=6"), keys("preconditioning=VE")
    assert {name for name in EXACT if levels[name] == before[name]} == {"loss", "coefficients"}
    assert {name for name in EXACT if network[name] != before[name]} == {"loss", "coefficients"}


def test_another_host_name_is_refused_and_no_other_page_may_show_this_one(page: Any) -> None:
    assert page.get("/", headers={"Host": "evil.example"}).status_code == 400
    headers = page.get("/").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_only_the_newest_request_of_a_page_is_wanted() -> None:
    turns = Turns()
    first = turns.of("a", "1")
    other = turns.of("b", "1")
    assert first()
    second = turns.of("a", "2")
    assert (first(), second(), other()) == (False, True, True)
    for i in range(2 * Turns.MOST):
        turns.of(str(i), "1")
    assert len(turns._newest) <= Turns.MOST


def test_a_figure_nobody_waits_for_and_one_that_takes_too_long_end_early() -> None:
    problem = exact_problem("two_modes").denoiser
    sampler = State().sampler
    with pytest.raises(Stopped):
        sampler.sample(Budget(lambda: False).on(problem), [0])
    budget = Budget(most=10)
    with pytest.raises(ValueError, match="more than 10 evaluations"):
        sampler.sample(budget.on(problem), [0])
    assert budget.count == 11


def test_guidance_is_towards_the_class() -> None:
    plain, guided = (exact_problem("two_modes", 1, Constant(w)).denoiser for w in (1.0, 3.0))
    x = State().sampler.sample(plain, range(8))
    assert (x > 0.5).all()
    assert guided.sigma_data == plain.sigma_data == exact_problem("two_modes").denoiser.sigma_data
    with pytest.raises(ValueError, match="set label"):
        exact_problem("two_modes", None, Constant(3.0))


def test_a_server_answers_on_a_free_port_and_a_port_in_use_is_named() -> None:
    from urllib.request import urlopen

    with serve(Runs(), port=0) as served:
        assert b"openedm explore" in urlopen(served.url, timeout=20).read()
        port = parse_integers("port", served.url.rstrip("/").rpartition(":")[2])[0]
        with pytest.raises(ValueError, match=f"port {port} of host 127.0.0.1 cannot be used"), serve(Runs(), port=port):
            pass
