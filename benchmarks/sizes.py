"""How large the package is and how much a reader meets: lines, choices, public names, long functions, by room.

    python -m benchmarks.sizes [SOURCE] [--before OTHER_SOURCE] [--out sizes.json]

SOURCE is a folder with a package `openedm` (default `src`); with `--before` two versions stand side by side. Files
are parsed, not imported. A choice is a class below `Choice`; a public name is what a room offers, a module or package
directly below openedm; a bare tensor is an argument annotated `Tensor` without a shape.
"""

import argparse
import ast
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.common import machine, write_json

LONG = 60
"""Lines of a function body above which it is counted as long."""


@dataclass
class Size:
    """What a room holds.

    Attributes:
        lines: of all its files, with comments and docstrings.
        files: how many.
        choices: classes below `Choice`, abstract ones too.
        public: names that the room offers, those of `__all__` where there is one.
        longest: lines of the longest body of a function.
        long: functions with bodies of more than 60 lines.
        bare: tensor arguments without a shape.
    """

    lines: int = 0
    files: int = 0
    choices: int = 0
    public: int = 0
    longest: int = 0
    long: int = 0
    bare: int = 0

    def __add__(self, other: "Size") -> "Size":
        values = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Size(**{**values, "longest": max(self.longest, other.longest)})


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions of a file, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """The lines of its body, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def bare_tensors(function: Function) -> int:
    """How many of its arguments are annotated `Tensor` or `Tensor | None`."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    texts = [ast.unparse(a.annotation) for a in arguments if a.annotation is not None]
    return sum(text in ("Tensor", "Tensor | None", "torch.Tensor") for text in texts)


def classes(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """The names of the bases of every class, by its name (of equal names, together)."""
    found: dict[str, set[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2].partition("[")[0] for base in node.bases}
                found.setdefault(node.name, set()).update(bases)
    return found


def below(bases: dict[str, set[str]], top: str) -> set[str]:
    """The names of the classes below `top`."""
    chosen = {top}
    while new := {name for name, parents in bases.items() if parents & chosen} - chosen:
        chosen |= new
    return chosen - {top}


def exported(path: Path, tree: ast.Module) -> int:
    """How many names a room offers: of a stub, of a literal `__all__`, or else what it defines without underscore."""
    if path.with_suffix(".pyi").exists():
        stub = ast.parse(path.with_suffix(".pyi").read_text(encoding="utf-8"))
        return sum(len(node.names) for node in stub.body if isinstance(node, ast.ImportFrom))
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "__all__"
            and isinstance(node.value, ast.List)
        ):
            return len(node.value.elts)
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return sum(not name.startswith("_") for name in defined)


def sizes(source: Path) -> dict[str, Size]:
    """The size of every room of the package in a folder."""
    package = source / "openedm"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    choices = below(classes(trees), "Choice")
    rooms: dict[str, Size] = {}
    for path, tree in trees.items():
        parts = path.relative_to(package).with_suffix("").parts
        is_room = len(parts) == 1 or parts[1:] == ("__init__",)
        lengths = [length(f) for f in functions(tree)]
        size = Size(
            lines=texts[path].count("\n"),
            files=1,
            choices=sum(isinstance(n, ast.ClassDef) and n.name in choices for n in ast.walk(tree)),
            public=exported(path, tree) if is_room else 0,
            longest=max(lengths, default=0),
            long=sum(n > LONG for n in lengths),
            bare=sum(map(bare_tensors, functions(tree))),
        )
        rooms[parts[0]] = rooms.get(parts[0], Size()) + size
    return rooms


def show(now: dict[str, Size], before: dict[str, Size]) -> None:
    """Print a row a room; two numbers `before → now` where there are two."""
    names = [f.name for f in fields(Size)]
    print("room".ljust(16), *(name.rjust(14) for name in names))
    for room in [*sorted(now.keys() | before.keys()), "total"]:
        new, old = (sum(v.values(), Size()) if room == "total" else v.get(room, Size()) for v in (now, before))
        cells = [
            f"{getattr(old, name)} → {getattr(new, name)}" if before else str(getattr(new, name)) for name in names
        ]
        print(room.ljust(16), *(cell.rjust(14) for cell in cells))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=Path("src"))
    parser.add_argument("--before", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    now = sizes(arguments.source)
    before = {} if arguments.before is None else sizes(arguments.before)
    show(now, before)
    if arguments.out is not None:
        content = {"machine": machine(), "now": now, "before": before}
        plain = {
            k: {room: asdict(size) for room, size in v.items()} if k != "machine" else v for k, v in content.items()
        }
        write_json(arguments.out, plain)


if __name__ == "__main__":
    main()
