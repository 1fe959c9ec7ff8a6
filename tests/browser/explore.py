"""`openedm explore` in a real browser, headless Chromium; `make app-check` runs it.

OPENEDM_BROWSER names the browser, by default the first Chromium or Chrome on the path; OPENEDM_SHOTS a folder where the
pictures of docs/explore.md are written, too; OPENEDM_RUNS two runs, separated by a colon, instead of two with random
weights.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from openedm.comparing import short_names
from openedm.exploring import Runs, serve
from small_runs import save_digits_run

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SHOTS = os.environ.get("OPENEDM_SHOTS")
SECONDS = 120_000
"""Milliseconds to wait for figures, on a busy machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("OPENEDM_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"none of {', '.join(BROWSERS)} is on the path: name the browser by OPENEDM_BROWSER"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    """A page on which any error of its own, and any request to another address, fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.on("request", lambda request: wrong.append(request.url) if not _is_local(request.url) else None)
    page.set_default_timeout(SECONDS)
    yield page
    context.close()
    assert wrong == []


def _is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).hostname == "127.0.0.1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, with two runs."""
    given, folder = os.environ.get("OPENEDM_RUNS"), tmp_path_factory.mktemp("runs")
    paths = given.split(":") if given else [str(save_digits_run(folder / name, i)) for i, name in enumerate("ab")]
    with serve(Runs(dict(zip(short_names(paths), paths, strict=True))), port=0) as served:
        yield served.url


def opened(page: Page, url: str) -> None:
    """Open a page, and wait for its figures."""
    page.goto(url)
    settled(page)


def settled(page: Page) -> None:
    """Wait until the figures of the newest state are there."""
    page.wait_for_selector("body[data-shown]:not([data-busy])", timeout=SECONDS)


def pixels(page: Page, figure: str) -> str:
    """The picture of a figure, as text."""
    expect(page.locator(f'figure[data-name="{figure}"] .reason')).to_be_hidden()
    code = """image => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      canvas.getContext("2d").drawImage(image, 0, 0);
      return canvas.toDataURL();
    }"""
    return str(page.locator(f'figure[data-name="{figure}"] img').evaluate(code))


def slide(page: Page, name: str, value: float) -> None:
    """Move the slider of an option."""
    page.locator(f'input[data-for="{name}"]').fill(str(value))
    settled(page)


def query(page: Page) -> dict[str, list[str]]:
    """The options in the address."""
    return parse_qs(urlsplit(page.url).query)


def shot(page: Page, name: str, *, full: bool = True) -> None:
    """A picture for the documents, if they are wanted."""
    if SHOTS:
        page.mouse.move(0, 0)
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=full)


def test_the_page_shows_its_figures_and_loads_nothing_from_elsewhere(page: Page, site: str) -> None:
    opened(page, site)
    pictures = page.locator("figure img")
    assert pictures.count() == 7
    assert all(pictures.nth(i).evaluate("image => image.naturalWidth") > 300 for i in range(7))
    expect(page.locator("#error")).to_be_hidden()


def test_a_slider_changes_the_figures_the_address_and_the_lines_to_copy(page: Page, site: str) -> None:
    opened(page, site)
    before = pixels(page, "paths_1d"), pixels(page, "coefficients")
    slide(page, "sampler.levels.num_steps", 6)
    after = pixels(page, "paths_1d"), pixels(page, "coefficients")
    assert after[0] != before[0]
    assert after[1] == before[1]  # levels do not change the preconditioning
    assert query(page) == {"sampler.levels.num_steps": ["6"]}
    expect(page.locator("#command")).to_contain_text("--sampler.levels.num_steps 6")
    expect(page.locator("#python")).to_contain_text("levels.Karras(num_steps=6)")
    slide(page, "sampler.levels.num_steps", 18)
    assert pixels(page, "paths_1d") == before[0]


def test_another_class_brings_its_options(page: Page, site: str) -> None:
    opened(page, site)
    page.locator('select[name="sampler.solver"]').select_option("Restart")
    settled(page)
    assert page.locator('input[name="sampler.solver.repeats"]').input_value() == "2"
    page.locator('select[name="sampler.schedule"]').select_option("VP")
    settled(page)
    assert query(page) == {"sampler.solver": ["Restart"], "sampler.schedule": ["VP"]}


def test_wrong_input_shows_its_reason_until_it_is_right(page: Page, site: str) -> None:
    opened(page, site)
    steps = page.locator('input[name="sampler.levels.num_steps"]')
    steps.fill("many")
    settled(page)
    expect(page.locator("#error")).to_have_text("num_steps must be an integer, got 'many'")
    shot(page, "explore-error", full=False)
    steps.fill("12")
    settled(page)
    expect(page.locator("#error")).to_be_hidden()
    slide(page, "sampler.churn.s_churn", 10)
    reason = page.locator('figure[data-name="errors"] .reason')
    expect(reason).to_contain_text("errors are those of deterministic samplers")
    expect(page.locator('figure[data-name="paths_1d"] img')).to_be_visible()


def test_an_address_restores_its_state(page: Page, site: str) -> None:
    address = f"{site}?sampler.levels=VE&sampler.solver=Euler&sampler.schedule=VP&label=1&guidance.weight=2&num=9"
    opened(page, address)
    assert page.locator('select[name="sampler.levels"]').input_value() == "VE"
    assert page.locator('select[name="sampler.solver"]').input_value() == "Euler"
    assert page.locator('input[name="label"]').input_value() == "1"
    assert page.locator('input[data-for="guidance.weight"]').input_value() == "2"
    digest, copied = pixels(page, "paths_2d"), page.locator("#url").inner_text()
    opened(page, copied)
    assert pixels(page, "paths_2d") == digest
    opened(page, f"{site}?sampler.solver=Hoin")
    expect(page.locator("#error")).to_contain_text("got 'Hoin'")


def test_figures_for_the_documents(page: Page, site: str) -> None:
    opened(page, f"{site}?sampler.solver=Euler&sampler.schedule=VP&sampler.levels=VP&preconditioning=VP&objective=VP")
    assert pixels(page, "loss")
    shot(page, "explore-exact")


def test_a_run_is_sampled_walked_through_and_compared(page: Page, site: str) -> None:
    opened(page, f"{site}?view=samples&sampler.levels.num_steps=8&num=16")
    first = pixels(page, "samples")
    slide(page, "seed", 5)
    assert pixels(page, "samples") != first
    expect(page.locator("#sample")).to_contain_text(re.compile(r"openedm sample .* --seeds 5-20"))
    shot(page, "explore-samples")
    three = ["samples", "other_samples", "compared"]
    for view, figures in (("walk", ["walk"]), ("levels", ["levels"]), ("compare", three)):
        page.locator('select[name="view"]').select_option(view)
        settled(page)
        assert [box.get_attribute("data-name") for box in page.locator("figure").all()] == figures
        assert len({pixels(page, figure) for figure in figures}) == len(figures)
        shot(page, f"explore-{view}")


def test_the_newest_of_many_changes_is_shown(page: Page, site: str) -> None:
    opened(page, site)
    for steps in (3, 4, 5, 6, 7):
        page.locator('input[data-for="sampler.levels.num_steps"]').fill(str(steps))
    settled(page)
    shown = pixels(page, "paths_1d")
    opened(page, f"{site}?sampler.levels.num_steps=7")
    assert pixels(page, "paths_1d") == shown
