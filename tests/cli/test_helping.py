"""Help is printed from a file, which says what the code says, without importing torch."""

import contextlib
import json
import shlex
import subprocess
import sys

import pytest

from openedm.cli import describing, helping
from openedm.cli.examples import COMMON, EXAMPLES
from openedm.cli.main import COMMANDS, GROUPS, main
from openedm.cli.parsing import parse
from openedm.ground.choices import class_path

PATHS = [name for name in COMMANDS if name not in GROUPS] + [f"{g} {name}" for g in GROUPS for name in GROUPS[g]]


@pytest.fixture(scope="module")
def descriptions():
    return helping.read_descriptions()


def test_the_file_says_what_the_code_says(descriptions):
    made = json.loads(json.dumps(describing.describe_all(PATHS)))
    assert made == descriptions, "run: python -m openedm.cli.describing"


def test_no_page_of_help_imports_torch():
    asked = [[*path.split(), "--help"] for path in PATHS]
    asked += [["sample", "--sampler.levels.help", "Karras"], ["train", "--data.help"], ["--completion", "bash"]]
    code = f"import sys; from openedm.cli.main import main; print([main(a) for a in {asked}], file=sys.stderr)"
    code += "; sys.exit([name for name in ('torch', 'numpy', 'jsonargparse') if name in sys.modules] or 0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.strip()) == (0, str([0] * len(asked)))


@pytest.mark.parametrize("path", PATHS)
def test_a_page_begins_with_examples_and_describes_every_option(path, descriptions):
    command, classes = descriptions["commands"][path], descriptions["classes"]
    page = helping.page_of_command(path, command, classes)
    assert page.startswith(f"usage: openedm {path} ")
    assert len(page.partition("\n\n")[0].splitlines()) == 1
    assert "<class" not in page
    assert page.index("examples:") < page.index("options:")
    for line in EXAMPLES[path]:
        assert f"\n  {line}\n" in page
    for name, option in command["options"].items():
        assert option["text"] or option["choice"], name
        if option.get("positional"):
            assert f"[{name.upper()} …]" in page.partition("\n")[0]
        elif "choice" not in option and not option.get("required"):
            assert f"\n  --{name} " in page
    for cls in classes.values():
        assert all(field["text"] for field in cls.get("fields", {}).values()), cls["name"]


@pytest.mark.parametrize("path", list(COMMON))
def test_common_options_exist_and_are_shown_once_and_first(path, descriptions):
    page = helping.page_of_command(path, descriptions["commands"][path], descriptions["classes"])
    places = [page.index(f"\n  --{name} ") for name in COMMON[path]]
    assert places == sorted(places)
    assert all(page.count(f"\n  --{name} ") == 1 for name in COMMON[path])
    others = [i for i in (page.find("\nmore options:"), page.find("\nhelp and files of options:")) if i > 0]
    assert max(places) < min(others)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_the_options_of_examples_can_be_read(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    path = next(path for path in sorted(PATHS, key=len, reverse=True) if arguments[: len(path.split())] == path.split())
    with contextlib.suppress(FileNotFoundError):  # data that are not there
        parse(f"{program} {path}", describing.find_command(path), arguments[len(path.split()) :])


@pytest.mark.parametrize("path", PATHS)
def test_a_choice_is_described_alike_from_the_file_and_from_the_code(path, descriptions, capsys, monkeypatch):
    known, own = describing.known_classes, descriptions["classes"]
    monkeypatch.setattr(  # without those that other tests define or import
        describing, "known_classes", lambda kind: [c for c in known(kind) if class_path(c) in own]
    )
    for name, option in descriptions["commands"][path]["options"].items():
        members = descriptions["classes"][option["choice"]].get("classes") if "choice" in option else None
        if not members:
            continue
        for asked in ([f"--{name}.help"], [f"--{name}.help", descriptions["classes"][members[-1]]["name"]]):
            page = helping.help_for(path, asked)
            with pytest.raises(SystemExit):
                parse(f"openedm {path}", describing.find_command(path), asked)
            assert page == capsys.readouterr().out


def choices_of(options, classes, before=""):
    """The names of all options that are choices, and of those inside the classes that they are by default."""
    for name, option in options.items():
        if "choice" in option:
            yield before + name, classes[option["choice"]]
            selected = helping._selected(option["choice"], option.get("default"), "", classes)
            yield from choices_of(classes[selected]["fields"] if selected else {}, classes, f"{before}{name}.")


@pytest.mark.parametrize("path", PATHS)
def test_every_choice_of_every_command_lists_its_classes_and_describes_each(path, descriptions):
    classes = descriptions["classes"]
    for name, choice in choices_of(descriptions["commands"][path]["options"], classes):
        page = helping.help_for(path, [f"--{name}.help"])
        if "classes" not in choice:  # a choice that comes in one form shows its options at once
            assert all(f"  --{name}.{field}" in page for field in choice["fields"])
            continue
        first, *rows, last = page.splitlines()
        assert first == f"--{name} is one of"
        assert last == f"--{name}.help CLASS describes one of them."
        names = [classes[member]["name"] for member in choice["classes"]]
        assert [row.split()[0] for row in rows] == names
        for each in names:
            assert helping.help_for(path, [f"--{name}.help", each]).startswith(f"usage: --{name} {each} ")


def test_the_class_that_is_typed_is_the_one_whose_options_are_shown():
    assert "--network.patch_size" in helping.help_for("train", ["--help"])
    page = helping.help_for("train", ["run", "--network", "DiT", "--help"])
    assert "--network.model_channels" not in page
    assert "(of DiT" in page
    page = helping.help_for("train", ["--sampler.solver=Multistep", "--sampler.solver.variable.help"])
    assert page.startswith("--sampler.solver.variable is one of")


@pytest.mark.parametrize("asked", [["--help", "--import", "mine"], ["--data.help", "Mine"], ["--out", "help"]])
def test_what_depends_on_modules_of_the_user_is_left_to_the_code(asked):
    assert helping.help_for("train", asked) is None


def test_completion_is_a_script_of_the_shell(capsys):
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    typed = (
        'COMP_WORDS=(openedm train x --options.precision ""); COMP_CWORD=4; _shtab_openedm; echo "${COMPREPLY[@]}"; '
        'COMP_WORDS=(openedm data ""); COMP_CWORD=2; _shtab_openedm; echo "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(["bash", "-c", f"{script}\n{typed}"], capture_output=True, text=True, check=True)
    precision, sub_commands = ended.stdout.splitlines()
    assert precision == "fp32 bf16 auto"
    assert "convert" in sub_commands
    assert main(["--completion", "nonsense"]) == 2
    assert "must be followed by one of bash, zsh, tcsh" in capsys.readouterr().err
