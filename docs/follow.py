"""Follow the pages: run every command and every Python block of README and docs, and fail on any error.

Tutorials are not among them: building the site executes them.

    python docs/follow.py [PAGE …]

A page is followed from top to bottom, in an empty folder and one namespace. Comments above a block say what the page
does not show:

    <!-- before: CODE -->          Python code that makes what a reader has at hand, such as photos or a simulator
    <!-- smaller: OLD -> NEW -->   lengths that are replaced, so that following takes seconds; several, one a line,
                                  with SMALL for the options of a short run
    <!-- not followed: REASON -->  the block is not run
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?P<comments>(?:^<!--.*?-->\n)*)"
    r"^```(?P<language>python|sh|bash)(?P<title>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SMALL_RUN = (
    "--network DDPMpp --network.model_channels 8 --network.channel_mult [1] --network.num_blocks 1 --options.images 64 "
    "--options.batch_size 32 --options.validate_every 0 --options.snapshot_every 0 --tracker none"
)
"""What SMALL stands for in comments: options of a run of seconds."""
COMMENT = re.compile(r"<!-- (before|smaller|not followed):(.*?)-->", re.DOTALL)


class Block(NamedTuple):
    """A block of code of a page, with what its comments say."""

    line: int
    language: str
    title: str
    code: str
    before: str
    reason: str
    """Why it is not followed; empty if it is."""


class Failure(Exception):
    """A block of a page cannot be followed."""


def blocks(text: str) -> Iterator[Block]:
    """The blocks of Python and of commands of a page."""
    for found in BLOCK.finditer(text):
        code, before, reason = found["code"], "", ""
        for kind, words in COMMENT.findall(found["comments"]):
            if kind == "before":
                before += words.strip() + "\n"
            elif kind == "not followed":
                reason = " ".join(words.split())
            else:
                code = smaller(code, words)
        title = found["title"].strip() if "title=" in found["title"] else ""
        yield Block(text[: found.start("code")].count("\n") + 1, found["language"], title, code, before, reason)


def smaller(code: str, words: str) -> str:
    """The code with lengths replaced.

    Raises:
        Failure: what is to be replaced is not in the code.
    """
    for line in filter(str.strip, words.split("\n")):
        old, _, new = (part.strip() for part in line.partition("->"))
        if old not in code:
            raise Failure(f"nothing to make smaller: {old!r} is not in {code!r}")
        code = code.replace(old, new.replace("SMALL", SMALL_RUN))
    return code


class Walk:
    """A walk through a page, in the present folder."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.names: dict[str, Any] = {"__name__": "page"}
        self.outputs: list[str] = []
        """What each command printed."""
        self.modules: dict[str, str] = {}

    def run(self) -> list[tuple[Block, float]]:
        """Follow all blocks; each with its seconds.

        Raises:
            Failure: a block fails; the message names page and line.
        """
        found, took = list(blocks(self.page.read_text(encoding="utf-8"))), []
        for block in found:
            if block.title:
                name = block.title.removeprefix("title=")
                self.modules[name] = self.modules.get(name, "") + block.code
        for name, code in self.modules.items():
            Path(name).write_text(code, encoding="utf-8")
        importlib.invalidate_caches()
        for block in found:
            start = time.perf_counter()
            if not block.reason and not block.title:
                self.step(block)
            took.append((block, time.perf_counter() - start))
        return took

    def step(self, block: Block) -> None:
        try:
            if block.before:
                self.execute(block.before, block)
            if block.language == "python":
                self.execute(block.code, block)
            else:
                for line in block.code.replace("\\\n", " ").splitlines():
                    self.command(line)
        except (Exception, SystemExit) as error:
            place = f"{self.page.name}:{block.line}"
            raise Failure(f"{place}: {''.join(traceback.format_exception(error, limit=-3))}") from error

    def execute(self, code: str, block: Block) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * block.line + code, self.page.name, "exec"), self.names)

    def command(self, line: str) -> None:
        """Run a command: of openedm in this process, any other in a shell."""
        words = shlex.split(line, comments=True)
        if not words:
            return
        if words[0] != "openedm":
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(line, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
            output, status = done.stdout + done.stderr, done.returncode
        else:
            from openedm.cli.main import main

            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                status = main(words[1:])
            output = printed.getvalue()
        if status:
            raise Failure(f"{line}\nended with status {status}:\n{output[-2000:]}")
        self.outputs.append(output)


def pages() -> list[Path]:
    """README and the pages of the site."""
    made = {"_build", "generated"}
    docs = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not made & set(page.relative_to(ROOT).parts)]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *docs]


def main(arguments: Sequence[str]) -> int:
    """Follow pages, all by default, and print what each took and what was not followed."""
    chosen = [Path(name).resolve() for name in arguments] or pages()
    failed, here = 0, Path.cwd()
    for page in chosen:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
            try:
                took = Walk(page).run()
            except Failure as failure:
                failed += 1
                print(f"FAILED {failure}", flush=True)
            else:
                report(page, took)
            finally:
                os.chdir(here)
                sys.path.remove(folder)
                for name, module in list(sys.modules.items()):
                    if str(getattr(module, "__file__", None) or "").startswith(folder):
                        del sys.modules[name]
    print(f"{len(chosen) - failed} pages followed, {failed} failed")
    return min(failed, 1)


def report(page: Path, took: list[tuple[Block, float]]) -> None:
    """One line for a page, and one for each block that was not followed."""
    if not took:
        return
    seconds = sum(time for _, time in took)
    print(f"{page.relative_to(ROOT)}: {len(took)} blocks, {seconds:.1f} s", flush=True)
    for block, _ in took:
        if block.reason:
            print(f"  line {block.line} not followed: {block.reason}")


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(sys.argv[1:]))
