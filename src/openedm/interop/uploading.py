"""Upload a checkpoint to the model hub with a model card, or write the files of its repository into a folder.

What can be refused is refused before the upload: a missing token, a hub that is not reached, a repository with other
files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, get_token, hf_hub_download
from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

from openedm.ground.storage import new_path, read_json
from openedm.interop.hub import CONFIG, REPOSITORY, WEIGHTS, Pretrained
from openedm.training.checkpoints import FORMAT

__all__ = ["upload", "write_repository"]

CARD = "README.md"
OWN_FILES = {".gitattributes", CARD, CONFIG, WEIGHTS}
TRANSPORT = {"httpcore", "httpx", "requests", "urllib3"}
"""Modules whose errors mean that the hub was not reached."""


def write_repository(
    source: str | Path, repository: str, out: str | Path, *, weights: Literal["ema", "raw"] = "ema"
) -> Path:
    """Write the files of a repository into a new folder, as `upload` would send them; returns the folder.

    Args:
        source: a checkpoint, or a run, for its newest checkpoint.
        repository: its id, owner/name, which the example of the model card names.
        out: the folder to create.
        weights: the averaged weights or those of the last step.

    Raises:
        ValueError: there is no checkpoint, the id has another form, or the folder is there already.
    """
    _check_id(repository)
    new_path("out", out, what="a checkpoint")
    denoiser = Pretrained.from_checkpoint(source, weights)
    denoiser.save_pretrained(out, model_card_kwargs={"repository": repository})
    return Path(out)


def upload(
    source: str | Path, repository: str, *, weights: Literal["ema", "raw"] = "ema", private: bool = False
) -> str:
    """Upload a denoiser with a model card to the model hub, as a commit; returns the address of the commit.

    A repository that is not there is made. One that holds a denoiser of openedm gets the new weights and description
    and keeps its card; its history holds the old ones.

    Args:
        source: a checkpoint, or a run, for its newest checkpoint.
        repository: its id, owner/name.
        weights: the averaged weights or those of the last step.
        private: whether a repository that is made can be read by its owner alone.

    Raises:
        ValueError: there is no checkpoint, the id has another form, no token of the hub is known, the repository holds
            other files, or it is public although `private` was asked for.
        PermissionError: the hub refuses the token.
        ConnectionError: the hub cannot be reached, or reports an error.
    """
    _check_id(repository)
    if get_token() is None:
        raise ValueError(
            f"a token of the model hub is needed to write {repository}: log in with `hf auth login`, or set HF_TOKEN"
        )
    denoiser = Pretrained.from_checkpoint(source, weights)
    with _explained(repository):
        there = _files(repository, private=private)
        return str(denoiser.push_to_hub(repository, private=private, ignore_patterns=[CARD] if CARD in there else None))


def _check_id(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"repository must be owner/name, such as someone/digits, got {repository!r}")


def _files(repository: str, *, private: bool) -> set[str]:
    """The files of the repository; none, if it is not there. ValueError if it is no denoiser of openedm."""
    try:
        info = HfApi().model_info(repository)
    except RepositoryNotFoundError:
        return set()
    if private and not info.private:
        raise ValueError(f"private has no effect on {repository}, which is there and is public: leave it out")
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if others := sorted(files - OWN_FILES):
        raise ValueError(f"{repository} holds other files, such as {others[0]}: choose another repository")
    if CONFIG in files:
        found = read_json(Path(hf_hub_download(repository, CONFIG))).get("format")
        if found != FORMAT:
            raise ValueError(
                f"{repository} holds a model of another format: that of its {CONFIG} is {found!r}, and not {FORMAT!r}: "
                "choose another repository"
            )
    return files


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Errors of the hub and of the network in words."""
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise PermissionError(
                f"the model hub refuses to write {repository} with this token ({status}): it must be allowed to write, "
                "and the owner must be you or an organisation of yours"
            ) from error
        raise ConnectionError(f"the model hub reports an error for {repository}: {error}") from error
    except Exception as error:
        if isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in TRANSPORT:
            raise ConnectionError(
                f"the model hub could not be reached to write {repository} ({error}); `--out FOLDER` writes the files "
                "of the repository without it"
            ) from error
        raise
