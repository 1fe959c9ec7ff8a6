"""`openedm push`: upload a denoiser to the model hub, with a model card."""

from typing import Literal

from openedm.interop import upload, write_repository


def push(
    source: str, repository: str, weights: Literal["ema", "raw"] = "ema", private: bool = False, out: str | None = None
) -> None:
    """Upload a denoiser to the model hub of Hugging Face, with a model card.

    The repository gets config.json, model.safetensors and README.md, the card, with a program that draws samples; all
    of them can be read without running code from them. `Pretrained.from_pretrained("owner/name")` loads it. A
    repository that holds a denoiser of openedm already gets a new commit and keeps its card; any other is left alone.

    Args:
        source: a run folder, for its newest checkpoint, or a checkpoint folder.
        repository: the id of the repository, owner/name.
        weights: the weights that are uploaded: ema, the averaged weights, or raw, those of the last step.
        private: make a new repository that its owner alone can read.
        out: write the files of the repository into this new folder instead, and ask nothing of the hub.
    """
    if out is not None and private:
        raise ValueError("private has no effect with out, which writes a folder and no repository: leave one out")
    if out is not None:
        folder = write_repository(source, repository, out, weights=weights)
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        print(f"wrote {', '.join(names)}: {folder}")
        return
    print(f"pushed to {upload(source, repository, weights=weights, private=private)}")
