"""Every option of every command, as it is written on the command line and in YAML, made of the commands themselves."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from api_reference import write_if_changed
from markdown_docstrings import arguments, first_paragraph
from openedm.cli.main import COMMANDS, GROUPS
from openedm.cli.parsing import REQUIRED, flat_parameters, options_of
from openedm.cli.plain import arguments_of, is_abstract, is_choice, known_classes, without_none
from openedm.cli.presets import preset_names
from openedm.ground.choices import Choice, class_path

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ABOUT = """# Every option

An option is written in the same way on the command line and in a file of options (`--config FILE`): `--options.images
1000` is

```yaml
options:
  images: 1000
```

A *choice* is one of several classes: `--sampler.levels Karras --sampler.levels.rho 5`, or

```yaml
sampler:
  levels:
    class_path: Karras
    init_args:
      rho: 5
```

Every command has `--config FILE` and `--import MODULE`. Choices of your own are written like those below
([write your own](../write-your-own.md)). This page is made of the commands of this version.
"""


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The commands by name, as in `inference fit`."""
    for name in COMMANDS:
        if name not in GROUPS:
            yield name, getattr(importlib.import_module(f"openedm.cli.{name}"), name)
    for group, names in GROUPS.items():
        for name in names:
            yield f"{group} {name}", getattr(importlib.import_module(f"openedm.cli.{group}.{name}"), name)


def descriptions(command: Callable[..., Any]) -> dict[str, str]:
    """What is said about each option of a command."""
    found = arguments(command.__doc__)
    for cls in flat_parameters(command).values():
        found |= arguments(cls.__doc__)
    return found


class OptionPage:
    """The page; choices are described once, in the order in which commands name them."""

    def __init__(self) -> None:
        self.kinds: list[type[Choice]] = []

    def text(self) -> str:
        parts = [ABOUT]
        for name, command in commands():
            texts = descriptions(command)
            rows = [
                (code(f"--{full}" if default is not REQUIRED else full), about)
                for option, (kind, default, _) in options_of(command).items()
                for full, about in self.rows(option, kind, default, texts.get(option, ""))
            ]
            parts += [f"## openedm {name}", first_paragraph(command.__doc__), table("option", rows)]
        presets = ", ".join(map(code, preset_names()))
        parts.append(f"## Presets\n\n`openedm train RUN --preset NAME` knows {presets}.")
        parts.append("## Choices")
        for kind in self.kinds:  # grows while the choices inside are met
            parts.append(self.choices(kind))
        return "\n\n".join(parts) + "\n"

    def rows(self, option: str, kind: Any, default: Any, text: str) -> Iterator[tuple[str, str]]:
        """An option and what is said about it; of a choice that has one form, its fields."""
        inner = without_none(kind)
        if is_choice(inner) and not is_abstract(inner):
            hints, about = get_type_hints(inner), field_texts(inner)
            for name, field in arguments_of(inner).items():
                value = getattr(default, name) if isinstance(default, inner) else default_of(field)
                yield from self.rows(f"{option}.{name}", hints[name], value, about.get(name, ""))
            return
        if is_abstract(inner) and inner not in self.kinds:
            self.kinds.append(inner)
        text = text[:1].upper() + text[1:]
        yield option, f"{text} *Type:* {self.type_of(kind)}; *default:* {shown_default(default)}."

    def type_of(self, kind: Any) -> str:
        """A type in words; a choice as a link to its classes."""
        inner = without_none(kind)
        if is_abstract(inner):
            return f"[{inner.__name__}](#{anchor(inner)})"
        if get_origin(inner) is Literal:
            return ", ".join(code(each) for each in get_args(inner))
        return code(inspect.formatannotation(inner).replace("typing.", "").replace(" | None", ""))

    def choices(self, kind: type[Choice]) -> str:
        """The classes of a kind, with their options."""
        rows: list[tuple[str, str]] = []
        for cls in known_classes(kind):
            room = class_path(cls).rpartition(".")[0]
            rows.append((f"**{cls.__name__}**", f"{first_paragraph(cls.__doc__)} In {code(room)}."))
            hints, about = get_type_hints(cls), field_texts(cls)
            for name, field in arguments_of(cls).items():
                found = self.rows(name, hints[name], default_of(field), about.get(name, ""))
                rows += [(code(f".{option}"), text) for option, text in found]
        head = f"({anchor(kind)})=\n### {kind.__name__}"
        return "\n\n".join([head, first_paragraph(kind.__doc__), table("class and options", rows)])


def field_texts(cls: type) -> dict[str, str]:
    """What the descriptions of a class and its bases say about its fields."""
    return {name: text for base in reversed(cls.__mro__) for name, text in arguments(base.__doc__).items()}


def anchor(kind: type) -> str:
    return f"choice-{kind.__name__.lower()}"


def default_of(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def shown_default(value: Any) -> str:
    if value is REQUIRED:
        return "*required*"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(repr(value) if isinstance(value, Choice) else value if value != "" else "''")


def code(value: Any) -> str:
    return f"`{value}`"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(title: str, rows: list[tuple[str, str]]) -> str:
    return f"| {title} | |\n|---|---|\n" + "".join(f"| {cell(option)} | {cell(text)} |\n" for option, text in rows)


def write_page(app: "Sphinx") -> None:
    write_if_changed(Path(app.srcdir) / "generated" / "options.md", OptionPage().text())


def setup(app: "Sphinx") -> dict[str, Any]:
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
