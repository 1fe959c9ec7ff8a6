"""`openedm verify`: whether files are as they were written."""

from itertools import groupby
from pathlib import Path

from openedm.ground import verifying
from openedm.ground.storage import new_path, write_json

WORDS = {"as written": "as written", "unknown": "without digest", "damaged": "DAMAGED"}


def verify(path: str, accept: bool = False, out: str | None = None) -> int:
    """Check whether the files of a folder are as they were written; the exit status is 1 if one is damaged.

    Files are compared with the digests (SHA-256) that the commands write: into config.json, training.json,
    manifest.json and settings.json, and into the names of snapshots and simulations. The lines of log.jsonl, which has
    no digest, must be JSON whose images never fall. Nothing is built or executed.

    Args:
        path: a run, checkpoint, posterior, store of simulations, converted data or samples; or one file.
        accept: first write the digests of files that were changed on purpose, as they are now.
        out: also write the findings to this JSON file: the state of each file, and what is wrong with it.
    """
    target = new_path("out", out, (".json",), what="a report")
    for file in verifying.accept(path) if accept else ():
        print(f"accepted {file}")
    findings = list(verifying.verify(path))
    if not findings:
        raise ValueError(f"path must hold files, {path!r} is an empty folder")
    for folder, group in groupby(findings, lambda finding: finding.path.parent if Path(path).is_dir() else path):
        files = list(group)
        counts = {state: sum(file.state == state for file in files) for state in WORDS}
        print(f"{folder}: {', '.join(f'{n} {WORDS[state]}' for state, n in counts.items() if n)}{_unknown(files)}")
        for damage in files:
            if damage.state == "damaged":
                print(f"DAMAGED {damage.path} {damage.problem}")
    damaged = sum(finding.state == "damaged" for finding in findings)
    if target is not None:
        rows = [finding._asdict() | {"path": str(finding.path)} for finding in findings]
        write_json(target, {"path": path, "files": len(findings), "damaged": damaged, "findings": rows})
    if damaged:
        print(f"{damaged} of {len(findings)} files are damaged")
    return int(damaged > 0)


def _unknown(files: list[verifying.Finding]) -> str:
    """The first files of a folder without digest, by name."""
    names = [file.path.name for file in files if file.state == "unknown"]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})" if names else ""
