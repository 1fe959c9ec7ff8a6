"""The page on one's own pictures and arrays: all of its code runs, in its order."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("without_type_checker")
def test_all_code_of_the_page_runs(openedm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    outputs = []
    for language, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), names)
        for line in code.splitlines() if language == "bash" else ():
            small = ["--network.channel_mult=[1]", "--network.num_blocks=1"] if " train " in line else []
            result = openedm(*shlex.split(line)[1:], *small)
            assert result.status == 0, (line, result.err)
            outputs.append(result.out)
    assert len(outputs) == 7
    assert "24 images of 3×16×24 in 2 classes" in outputs[0]
    assert names["own"].event_shape == (1, 8, 8)
