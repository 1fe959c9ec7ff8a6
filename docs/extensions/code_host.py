"""Links that work on a code host work on the site, too, where files outside `docs/` are pages of the site.

A package index shows README without the repository. `python docs/extensions/code_host.py` prints it with absolute
links, to the address that `Repository` of `[project.urls]` in pyproject.toml names: the one line that sets it.
"""

import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "docs/index.md",
    "CHANGELOG.md": "docs/project/changelog.md",
    "CONTRIBUTING.md": "docs/project/contributing.md",
    "SECURITY.md": "docs/project/security.md",
    "benchmarks/README.md": "docs/project/benchmarks.md",
}
"""The pages that show files outside `docs/`; paths from the root of the repository."""

INCLUDE = re.compile(r"^```\{include\} (\S+)\n```\n", re.MULTILINE)
NAME = re.compile(r"(?<![`\]}])`(openedm(?:\.\w+){2,3})`(?!`)")
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)#\s]+)")


def prepare(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Put included files in their place, and let all links lead to pages."""
    page = f"docs/{docname}.md"
    included = INCLUDE.sub(lambda found: read(posixpath.join(posixpath.dirname(page), found[1]), page), source[0])
    source[0] = link_names(relink(included, page, page))


def link_names(text: str) -> str:
    """The text with names of the API, outside of blocks of code, as links to the reference."""
    parts = re.split(r"(^```[^{].*?^```$|^```\n.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = (NAME.sub(r"{py:obj}`\1`", part) for part in parts[::2])
    return "".join(parts)


def read(file: str, page: str) -> str:
    """The text of a file of the repository as a part of a page."""
    file = posixpath.normpath(file)
    return relink((ROOT / file).read_text(encoding="utf-8"), file, page)


def relink(text: str, file: str, page: str) -> str:
    """The text of a file with links that are relative to a page."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), found[1]))
        return f"]({posixpath.relpath(PAGES.get(target, target), posixpath.dirname(page))}"

    return LINK.sub(link, text)


def absolute(text: str, project: dict[str, Any]) -> str:
    """The text of README with links to the repository of a project, at the tag of its version; figures as files.

    Args:
        text: of README.
        project: the table of that name in pyproject.toml.

    Raises:
        ValueError: the project has no address.
    """
    address = project.get("urls", {}).get("Repository", "").rstrip("/")
    if not address:
        raise ValueError("pyproject.toml must name the address of the project: Repository in [project.urls]")

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1].endswith(".png") else "blob"
        return f"]({address}/{kind}/v{project['version']}/{posixpath.normpath(found[1])}"

    return LINK.sub(link, text)


def setup(app: "Sphinx") -> dict[str, Any]:
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    sys.stdout.write(absolute((ROOT / "README.md").read_text(encoding="utf-8"), content["project"]))
