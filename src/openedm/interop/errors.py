"""Why a file from elsewhere was not read."""


class UnreadableFileError(ValueError):
    """A file that cannot be read as data.

    Attributes:
        problem: what is wrong with it.
        position: the byte at which that was found; None where the whole file is meant.
    """

    def __init__(self, problem: str, position: int | None = None) -> None:
        super().__init__(problem if position is None else f"{problem}, at byte {position}")
        self.problem = problem
        self.position = position


class UnsafeFileError(UnreadableFileError):
    """The file asks for something to be run, or for something that only code could want."""


class DamagedFileError(UnreadableFileError):
    """The file is incomplete, contradicts itself, or holds more than such a file may."""
