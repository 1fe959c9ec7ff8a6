"""What a run costs: the precision that `openedm train` measures and keeps."""

import json

import yaml

from openedm.training import list_checkpoints, precision

NETWORK = ["--network=MLP", "--network.width=16", "--network.num_blocks=1", "--tracker=none"]
TRAINING = ["--data=Toy", "--data.num_samples=64", *NETWORK, "--options.batch_size=8"]
BRIEF = ["--options.images=16", "--options.validate_every=0", "--options.snapshot_every=0"]


def test_the_command_says_what_was_measured_and_the_run_keeps_the_precision(openedm, tmp_path, monkeypatch):
    times = {False: 1.0, True: 0.5}
    monkeypatch.setattr(precision, "time_run", lambda run, device: times[run.__self__.bf16])
    run = tmp_path / "run"
    result = openedm("train", run, *TRAINING, *BRIEF, "--options.precision=auto")
    assert result.status == 0, result.err
    assert "precision bf16: a pass over 2 samples takes 0.5 s, in fp32 1 s (2.00 ×, at least 1.1 needed)" in result.out
    assert yaml.safe_load((run / "config.yaml").read_text())["options"]["precision"] == "bf16"
    times |= {False: 0.5, True: 1.0}
    for images in (32, 48):
        given = ["--options.precision=auto"] if images == 48 else []
        again = openedm("train", run, "--resume=true", "--tracker=none", f"--options.images={images}", *given)
        assert again.status == 0, again.err
        assert not [line for line in again.out.splitlines() if line.startswith(("precision", "changed"))]
        recorded = json.loads((list_checkpoints(run)[-1] / "training.json").read_text())
        assert recorded["options"]["init_args"]["precision"] == "bf16"
