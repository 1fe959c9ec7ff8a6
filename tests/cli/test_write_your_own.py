"""The page "Write your own": all of its code runs, in its order."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "write-your-own.md"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("without_type_checker")
def test_all_code_of_the_page_runs(openedm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    module = "".join(code for language, title, code in blocks if title)
    (tmp_path / "my_parts.py").write_text(module, encoding="utf-8")
    importlib.invalidate_caches()
    names: dict[str, Any] = {"__name__": "page"}
    commands = 0
    try:
        for language, title, code in blocks:
            if language == "python" and not title:
                exec(compile(code, str(PAGE), "exec"), names)
            for line in code.splitlines() if language == "bash" else ():
                result = openedm(*shlex.split(line)[1:])
                assert result.status == 0, (line, result.err)
                commands += 1
    finally:
        sys.modules.pop("my_parts", None)
    assert commands == 8
    assert names["samples"].shape == (4, 2)
    assert names["distance"] > 0
