"""The methods that are compared, and the environment of each."""

import sys
from dataclasses import dataclass
from pathlib import Path

OURS = "openedm"

FOLDER = Path("benchmarks")


@dataclass(frozen=True)
class Method:
    """A way to a posterior.

    Attributes:
        name: on the command line.
        title: in tables.
        module: which trains it.
        environment: the folder of its virtual environment; None for the one that runs the comparison.
    """

    name: str
    title: str
    module: str
    environment: str | None = None

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        if self.environment is None:
            return Path(sys.executable)
        return (FOLDER / self.environment / "bin" / "python").absolute()


METHODS = {
    method.name: method
    for method in (
        Method(OURS, "openedm", "benchmarks.inference.ours"),
        Method("npe", "sbi NPE", "benchmarks.inference.peers.sbi", ".venv-sbi"),
        Method("npse", "sbi NPSE", "benchmarks.inference.peers.sbi", ".venv-sbi"),
        Method("fmpe", "sbi FMPE", "benchmarks.inference.peers.sbi", ".venv-sbi"),
        Method("gensbi", "GenSBI EDM, MLP", "benchmarks.inference.peers.gensbi", ".venv-gensbi"),
        Method("gensbi-flux1", "GenSBI EDM, Flux1", "benchmarks.inference.peers.gensbi", ".venv-gensbi"),
    )
}

DEFAULT = (OURS, "npe", "npse", "fmpe", "gensbi")
"""All but those that no CPU trains in minutes."""
