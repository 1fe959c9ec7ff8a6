"""`openedm verify`: a line for each folder, and one for each damaged file."""

import json
import re
import shutil

from safetensors.torch import load_file, save_file

from openedm.training import find_checkpoint


def test_verify_prints_what_is_damaged_and_accepts_what_is_meant(toy_run, openedm, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "run")
    folder = find_checkpoint(run)
    whole = openedm("verify", run)
    assert (whole.status, whole.err) == (0, "")
    assert f"{folder}: 4 as written\n" in whole.out
    weights = folder / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    found = openedm("verify", run, f"--out={tmp_path / 'report.json'}")
    assert (found.status, found.err) == (1, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["path"], report["damaged"], report["files"]) == (str(run), 1, len(report["findings"]))
    [damaged] = [row for row in report["findings"] if row["state"] == "damaged"]
    assert damaged["path"] == str(weights)
    assert damaged["problem"].startswith("was changed since it was written")
    assert f"{folder}: 3 as written, 1 DAMAGED\nDAMAGED {weights} was changed since it was written" in found.out
    assert re.search(r"\n1 of \d+ files are damaged\n$", found.out)
    drawn = openedm("sample", run, tmp_path / "s.npz", "--seeds=0-1")
    assert (drawn.status, drawn.out) == (1, "")
    assert f"{weights} was changed since it was written" in drawn.err
    assert openedm("verify", run, "--accept=true").out.startswith(f"accepted {weights}\naccepted ")
    assert openedm("verify", weights).out == f"{weights}: 1 as written\n"
    assert openedm("sample", run, tmp_path / "s.npz", "--seeds=0-1", "--nfe=3").status == 0
    assert openedm("verify", tmp_path / "no").err.startswith("openedm verify: error: path must be a folder or a file")
