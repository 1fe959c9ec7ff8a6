"""README and the pages of the site: links lead somewhere, code parses, and what takes seconds is followed here.

`make docs-check` follows all blocks, `make docs` executes the tutorials.
"""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from follow import ROOT, Walk, blocks, pages

from openedm.cli.main import COMMANDS, GROUPS

PAGES = [*pages(), ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"]
SITE = [page for page in PAGES if (ROOT / "docs") in page.parents]
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as the site and code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_of_the_site_is_in_one_table_of_contents() -> None:
    listed = ["index"]
    for page in SITE:
        folder = page.parent.relative_to(ROOT / "docs")
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed += [(folder / entry).as_posix() for entry in entries if not entry.startswith("generated/")]
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in SITE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_of_a_page_parses(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [(block.language, block.code) for block in blocks(text)]
    for cell in CELL.findall(text):
        commands = cell.startswith("!")
        code = re.sub("^!" if commands else "^%.*$", "", cell, flags=re.MULTILINE)
        found.append(("sh" if commands else "python", code))
    for language, code in found:
        if language == "python":
            ast.parse(code)
        for line in code.replace("\\\n", " ").splitlines() if language != "python" else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["openedm"]:
                assert words[1] in [*COMMANDS, "--version", "COMMAND"], line
                assert words[1] not in GROUPS or words[2] in GROUPS[words[1]], line


def test_the_page_of_options_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    text = importlib.import_module("option_reference").OptionPage().text()
    assert re.search(r"^\| `--options\.images` \| Number of images .*`1000000`", text, re.MULTILINE)
    assert all(f"\n## openedm {command}\n" in text for command in set(COMMANDS) - set(GROUPS))
    assert text.count("(choice-levels)=") == 1
    assert text.count("](#choice-levels)") >= 1


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("page", ["augmentation", "first-steps/paper", "measurements"])
def test_a_page_can_be_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    took = Walk(ROOT / "docs" / f"{page}.md").run()
    assert any(not block.reason for block, _ in took)


def test_a_block_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```sh\nopenedm --version\nopenedm nonsense\n```\n")
    walk = Walk(page)
    with pytest.raises(Exception, match=r"page\.md:4: (?s:.*)nonsense"):
        walk.run()
    assert walk.outputs[0].startswith("openedm ")


def test_what_cannot_be_made_smaller_is_an_error() -> None:
    with pytest.raises(Exception, match="nothing to make smaller: '1000'"):
        list(blocks("<!-- smaller: 1000 -> 10 -->\n```python\nimages = 2000\n```\n"))


def test_readme_can_be_written_with_absolute_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    host, text = importlib.import_module("code_host"), (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"Repository in \[project.urls\]"):
        host.absolute(text, {"version": "1.2"})
    found = host.absolute(text, {"version": "1.2", "urls": {"Repository": "https://host/project/"}})
    assert "](https://host/project/blob/v1.2/docs/installation.md)" in found
    assert "](https://host/project/raw/v1.2/docs/figures/solvers.png)" in found
    assert not [target for target in re.findall(r"\]\(([^)\s]+)\)", found) if not target.startswith("https://")]
