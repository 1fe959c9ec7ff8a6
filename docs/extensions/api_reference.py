"""The API reference: one page a room, of the docstrings, which are Markdown with sections as in `Args:`."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import openedm
from markdown_docstrings import first_paragraph, markdown

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MODULE_PREFIXES = re.compile(r"\b(?:jaxtyping|collections\.abc|typing|torch|numpy|pathlib|types)\.(?=[A-Za-z])")


def rooms() -> list[ModuleType]:
    """The modules that `import openedm` offers, by name."""
    named = (getattr(openedm, name) for name in sorted(openedm.__all__))
    return [room for room in named if inspect.ismodule(room)]


def homes() -> dict[tuple[str, str], str]:
    """Where each public class or function is described, by the module that defines it and its name."""
    found = {}
    for room in rooms():
        for name in room.__all__:
            thing = getattr(room, name)
            module = getattr(thing, "__module__", None) or ""
            if (module + ".").startswith(room.__name__ + ".") and hasattr(thing, "__qualname__"):
                found[module, thing.__qualname__] = f"{room.__name__}.{name}"
    return found


class Page:
    """The description of a room."""

    def __init__(self, room: ModuleType, homes: dict[tuple[str, str], str]) -> None:
        self.room, self.homes = room, homes

    def text(self) -> str:
        """The page in Markdown."""
        parts = [f"# openedm.{self.short}", f"```{{py:module}} {self.room.__name__}\n```", markdown(self.room.__doc__)]
        names = sorted(self.room.__all__, key=lambda name: (name.upper() == name, name.lower()))
        parts += [self.describe(name) for name in names]
        return "\n\n".join(parts) + "\n"

    @property
    def short(self) -> str:
        return self.room.__name__.removeprefix("openedm.")

    def describe(self, name: str) -> str:
        thing = getattr(self.room, name)
        here = f"{self.room.__name__}.{name}"
        key = (getattr(thing, "__module__", ""), getattr(thing, "__qualname__", ""))
        if inspect.ismodule(thing):
            return f"## {name}\n\nThe module `{thing.__name__}`.\n\n{markdown(thing.__doc__)}"
        if self.homes.get(key, here) != here:
            return f"## {name}\n\nIs {{py:obj}}`{self.homes[key]}`."
        if inspect.isclass(thing):
            return f"## {name}\n\n" + self.of_class(name, thing)
        if callable(thing) and hasattr(thing, "__qualname__"):
            text = markdown(inspect.getdoc(thing))
            return f"## {name}\n\n" + directive("function", name + self.signature(thing), text)
        return f"## {name}\n\n" + directive("data", name, markdown(self.comment_on(name)))

    def of_class(self, name: str, cls: type) -> str:
        bases = [self.homes.get((base.__module__, base.__qualname__)) for base in cls.__bases__]
        listed = ", ".join(f"{{py:obj}}`~{base}`" for base in bases if base)
        own = inspect.getdoc(cls) if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") else ""
        body = [f"Bases: {listed}" if listed else "", markdown(own)]
        body += [self.of_member(*member, cls) for member in self.members(cls)]
        return directive("class", name + self.signature(cls), "\n\n".join(filter(None, body)), ticks=6)

    def members(self, cls: type) -> Iterator[tuple[str, Any]]:
        """Public methods and properties with a description: the class's own, and those of bases that have no page."""
        seen: set[str] = set()
        for base in cls.__mro__:
            public = (base.__module__, base.__qualname__) in self.homes
            foreign = not base.__module__.startswith("openedm.") or base.__module__.startswith("openedm.ground.")
            if foreign or (public and base is not cls):
                continue
            for name, member in vars(base).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                named = not name.startswith("_") and name not in seen
                if named and inspect.isfunction(inspect.unwrap(function)) and function.__doc__:
                    seen.add(name)
                    yield name, member

    def of_member(self, name: str, member: Any, cls: type) -> str:
        if isinstance(member, property):
            hint = inspect.signature(member.fget).return_annotation
            shown = self.shown(inspect.formatannotation(hint)) if hint is not inspect.Signature.empty else ""
            options = f":type: {shown}\n" if shown else ""
            return directive("property", name, markdown(inspect.getdoc(member)), options=options, ticks=5)
        kind = {classmethod: ":classmethod:\n", staticmethod: ":staticmethod:\n"}.get(type(member), "")
        signature = self.signature(getattr(cls, name), bound=not isinstance(member, classmethod | staticmethod))
        return directive("method", name + signature, markdown(inspect.getdoc(member)), options=kind, ticks=5)

    def signature(self, thing: Any, *, bound: bool = False) -> str:
        try:
            found = inspect.signature(thing)
        except (TypeError, ValueError):
            return ""
        if bound:
            found = found.replace(parameters=list(found.parameters.values())[1:])
        if inspect.isclass(thing):
            found = found.replace(return_annotation=inspect.Signature.empty)
        return self.shown(str(found))

    def shown(self, text: str) -> str:
        """Names of modules as a reader writes them, and defaults that are no expressions as dots."""
        text = MODULE_PREFIXES.sub("", text)
        text = re.sub(r"<class '([^']*)'>", r"\1", text)
        text = re.sub(r"<[^<>]*>", "...", text)
        text = re.sub(r"(: |-> )'([\w. |\[\]]+)'", lambda found: found[1] + self.qualified(found[2]), text)
        return re.sub(r"\bopenedm(?:\.\w+)*\.(\w+)", lambda found: self.public(found[0]), text)

    def qualified(self, annotation: str) -> str:
        """An annotation that the source has as a string: names of this room in full."""
        inside = {name: f"{self.room.__name__}.{name}" for name in self.room.__all__}
        return re.sub(r"\w+", lambda found: inside.get(found[0], found[0]), annotation)

    def public(self, path: str) -> str:
        module, _, name = path.rpartition(".")
        return self.homes.get((module, name), name)

    def comment_on(self, name: str) -> str:
        """What the source says about a constant."""
        from sphinx.pycode import ModuleAnalyzer

        thing = getattr(self.room, name)
        for module in [self.room.__name__, *sorted(m for m in _modules() if m.startswith(self.room.__name__ + "."))]:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            if ("", name) in analyzer.attr_docs:
                return "\n".join(analyzer.attr_docs["", name])
        return "" if len(repr(thing)) > 100 else f"`{self.shown(repr(thing))}`"


def _modules() -> list[str]:
    import sys

    return [name for name, module in sys.modules.items() if name.startswith("openedm.") and module is not None]


def directive(kind: str, argument: str, body: str, *, options: str = "", ticks: int = 4) -> str:
    """A directive of Sphinx's Python domain; its fence is longer than those inside."""
    fence = "`" * ticks
    return f"{fence}{{py:{kind}}} {' '.join(argument.split())}\n{options}\n{body}\n{fence}"


def index() -> str:
    """The page that lists the rooms and the names at the top level."""
    names = [room.__name__.partition(".")[2] for room in rooms()]
    about_rooms = [first_paragraph(room.__doc__) for room in rooms()]
    rows = "\n".join(
        f"| [`openedm.{name}`](api-{name}.md) | {text} |" for name, text in zip(names, about_rooms, strict=True)
    )
    where = homes()
    top = [name for name in sorted(openedm.__all__) if not inspect.ismodule(getattr(openedm, name))]
    links = []
    for name in top:
        thing = getattr(openedm, name)
        links.append(f"{{py:obj}}`~{where[thing.__module__, thing.__qualname__]}`")
    pages = "\n".join(f"api-{name}" for name in names)
    about = textwrap.dedent("""\
        Names are described in the room of their design choice. Shapes are part of the types:
        `Float[Tensor, 'batch *event']` is a tensor of floating point with one row a sample, of any shape each.
        What is not listed here is private.
        """)
    return (
        f"# API reference\n\n{about}\n| room | |\n|---|---|\n{rows}\n\n## At the top level\n\n"
        f"`import openedm` also offers these names: {', '.join(links)}.\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def write_pages(app: "Sphinx") -> None:
    """Write the pages into `generated/`, those that changed."""
    folder = Path(app.srcdir) / "generated"
    where = homes()
    pages = {f"api-{room.__name__.partition('.')[2]}.md": Page(room, where).text() for room in rooms()}
    for name, text in {"api.md": index(), **pages}.items():
        write_if_changed(folder / name, text)


def write_if_changed(file: Path, text: str) -> None:
    """Keep the time of a file that is as it should be, so that Sphinx does not read it again."""
    file.parent.mkdir(exist_ok=True)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def setup(app: "Sphinx") -> dict[str, Any]:
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
