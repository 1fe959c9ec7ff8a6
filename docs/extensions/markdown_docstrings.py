"""Docstrings as Markdown for MyST: `Args:`, `Raises:` and the like become lists, examples become blocks of code."""

import inspect
import re

SECTIONS = {"Args": "Arguments", "Arguments": "Arguments", "Returns": "Returns", "Yields": "Yields", "Raises": "Raises"}


def markdown(docstring: str | None) -> str:
    """A docstring in the Markdown of MyST."""
    text = inspect.cleandoc(docstring or "")
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n(?=[ ]+\S)", text, flags=re.MULTILINE)
    parts[::2] = map(escape_indices, parts[::2])
    shown = [fence_examples(parts[0])]
    for title, rest in zip(parts[1::2], parts[2::2], strict=True):
        inside, after = split_indented(rest)
        shown += [f"**{SECTIONS[title]}**", as_list(inside), fence_examples(after)]
    return "\n\n".join(part.strip("\n") for part in shown if part.strip())


def escape_indices(text: str) -> str:
    """The indices of formulas, as in x_{i+1}, so that Markdown does not take two of them for emphasis."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = (part.replace("_{", r"\_{") for part in parts[::2])
    return "".join(parts)


def split_indented(text: str) -> tuple[str, str]:
    """The indented lines at the start of a text, and what follows."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return inspect.cleandoc("\n" + "\n".join(lines[:end])), "\n".join(lines[end:])


def as_list(text: str) -> str:
    """`name: text` entries, whose later lines are indented, as a list."""
    entries: list[str] = []
    for line in text.split("\n"):
        if entries and (not line or line.startswith(" ")):
            entries[-1] += f"\n{'  ' + line.strip() if line else ''}"
        else:
            entries.append(line)
    shown = []
    for entry in entries:
        name, colon, rest = entry.partition(": ")
        named = bool(colon) and re.fullmatch(r"\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*", name)
        shown.append(f"- `{name}`: {rest}" if named else f"- {entry}")
    return "\n".join(shown)


def fence_examples(text: str) -> str:
    """Lines of `>>>` with what they print as blocks of code."""
    return re.sub(r"^(>>> (?:.+\n?)+)", lambda found: f"```pycon\n{found[1].rstrip()}\n```\n", text, flags=re.MULTILINE)


def first_paragraph(docstring: str | None) -> str:
    """The text before the first empty line, on one line."""
    return " ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split())


def arguments(docstring: str | None) -> dict[str, str]:
    """What the section `Args:` says about each argument, on one line each."""
    text = inspect.cleandoc(docstring or "")
    found = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    if found is None:
        return {}
    entries = re.split(r"^(?=\w)", inspect.cleandoc("\n" + found[1]), flags=re.MULTILINE)
    pairs = (entry.partition(":") for entry in entries if ":" in entry)
    return {name.strip(): " ".join(rest.split()) for name, _, rest in pairs}
