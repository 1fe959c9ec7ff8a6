"""`openedm push`, with a hub that is made up."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

from openedm import MLP, Model
from openedm.interop import Pretrained
from openedm.interop import uploading as uploads
from openedm.training import load_denoiser, save_checkpoint


class Hub:
    """A hub with one repository: its files, and what was pushed to it."""

    def __init__(self, monkeypatch, tmp_path):
        self.files, self.private, self.pushed, self.error = None, False, {}, None
        self.folder = tmp_path
        monkeypatch.setattr(uploads, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", lambda **options: self)
        monkeypatch.setattr(uploads, "get_token", lambda: "a token")
        monkeypatch.setattr(uploads, "hf_hub_download", lambda repository, name: str(tmp_path / name))

    def model_info(self, repository):
        if self.error is not None:
            raise self.error
        if self.files is None:
            raise RepositoryNotFoundError(
                "not found", response=SimpleNamespace(status_code=404, headers={}, request=None)
            )
        siblings = [SimpleNamespace(rfilename=name) for name in self.files]
        return SimpleNamespace(private=self.private, siblings=siblings)

    def create_repo(self, repo_id, private=None, **options):
        self.pushed["private"] = private
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=None, **options):
        names = {path.name for path in Path(folder_path).iterdir() if path.name[0] != "."}
        self.pushed["files"] = sorted(names - set(ignore_patterns or ()))
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return Hub(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    model = Model(network=MLP(width=4, num_blocks=1), event_shape=(2,), images=False)
    save_checkpoint(folder, model, model.build().network.state_dict())
    return folder


def refused(result):
    assert (result.status, result.err.count("\n"), result.out) == (1, 1, ""), result
    return result.err


def test_a_denoiser_is_pushed_to_a_repository_that_is_made_with_a_card(openedm, checkpoint, hub):
    result = openedm("push", checkpoint, "someone/moons", "--private", "true")
    assert (result.status, result.out) == (0, "pushed to https://hub/someone/moons/commit/1\n"), result.err
    assert hub.pushed == {"private": True, "files": ["README.md", "config.json", "model.safetensors"]}


def test_a_repository_of_openedm_gets_a_new_commit_and_keeps_its_card(openedm, checkpoint, hub):
    hub.files = [".gitattributes", "README.md", "config.json", "model.safetensors"]
    (hub.folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    result = openedm("push", checkpoint, "someone/moons")
    assert result.status == 0, result.err
    assert hub.pushed["files"] == ["config.json", "model.safetensors"]


def test_a_folder_is_written_without_the_hub(openedm, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "HfApi", None)
    monkeypatch.setattr(uploads, "get_token", None)
    out = tmp_path / "out"
    result = openedm("push", checkpoint, "someone/moons", "--out", out)
    assert (result.status, result.out) == (0, f"wrote README.md, config.json, model.safetensors: {out}\n"), result.err
    assert 'from_pretrained("someone/moons")' in (out / "README.md").read_text(encoding="utf-8")
    pushed, original = Pretrained.from_pretrained(out), load_denoiser(checkpoint)
    x = torch.ones(3, 2)
    assert torch.equal(pushed(x, torch.tensor(1.0)), original(x, torch.tensor(1.0)))
    assert "exists" in refused(openedm("push", checkpoint, "someone/moons", "--out", out))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["moons"], "repository must be owner/name, such as someone/digits, got 'moons'"),
        (["../moons"], "repository must be owner/name"),
        (["someone/moons", "--out=x", "--private=true"], "private has no effect with out"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(openedm, checkpoint, hub, more, words):
    assert words in refused(openedm("push", checkpoint, *more))
    assert hub.pushed == {}


def test_a_repository_that_holds_something_else_is_left_alone(openedm, checkpoint, hub):
    hub.files = ["config.json", "pytorch_model.bin"]
    assert "someone/moons holds other files, such as pytorch_model.bin" in refused(
        openedm("push", checkpoint, "someone/moons")
    )
    hub.files = ["config.json", "model.safetensors"]
    (hub.folder / "config.json").write_text(json.dumps({"format": "unet"}))
    assert "a model of another format: that of its config.json is 'unet'" in refused(
        openedm("push", checkpoint, "someone/moons")
    )
    hub.files = []
    assert "private has no effect on someone/moons, which is there and is public" in refused(
        openedm("push", checkpoint, "someone/moons", "--private", "true")
    )
    assert hub.pushed == {}


def test_no_token_no_network_and_a_refusal_are_told_apart(openedm, checkpoint, hub, monkeypatch):
    answer = SimpleNamespace(status_code=403, headers={}, request=None)
    hub.error = HfHubHTTPError("403 Client Error", response=answer)
    assert "refuses to write someone/moons with this token (403)" in refused(
        openedm("push", checkpoint, "someone/moons")
    )
    answer.status_code = 500
    assert "the model hub reports an error for someone/moons: " in refused(openedm("push", checkpoint, "someone/moons"))
    hub.error = ConnectionError("no route")
    assert "the model hub could not be reached to write someone/moons (no route); `--out FOLDER`" in refused(
        openedm("push", checkpoint, "someone/moons")
    )
    monkeypatch.setattr(uploads, "get_token", lambda: None)
    assert "a token of the model hub is needed to write someone/moons: log in" in refused(
        openedm("push", checkpoint, "someone/moons")
    )
    assert hub.pushed == {}
