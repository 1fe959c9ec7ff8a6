"""Files appear complete or not at all, readable by whom the user's umask lets read them; errors say what helps."""

import errno
import os
import resource
import signal
import stat
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from openedm.data import save_image
from openedm.ground.locks import until_the_end
from openedm.ground.storage import (
    Rows,
    new_folder,
    new_path,
    remove_remains,
    replacing,
    write_array,
    write_arrays,
    write_json,
    write_tensors,
)
from openedm.plots import save_figure

ZEROS = torch.zeros(200_000)
WRITERS = {
    "model.safetensors": lambda path: write_tensors(path, {"a": ZEROS}),
    "report.json": lambda path: write_json(path, ["x" * 800_000]),
    "samples.npz": lambda path: write_arrays(path, {"a": ZEROS.numpy()}),
    "sample.npy": lambda path: write_array(path, ZEROS),
    "grid.png": lambda path: save_image(torch.rand(3, 300, 300) * 2 - 1, path),
}


@contextmanager
def file_size_limit(size):
    """Files cannot grow beyond this, as on a full disk."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_arrays_that_are_written_part_by_part_are_the_file_that_numpy_writes(tmp_path):
    x = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    names = np.array(["é", "b"])
    write_arrays(tmp_path / "a.npz", {"x": Rows(x.shape, (x[i : i + 3] for i in range(0, 7, 3))), "names": names})
    np.savez(tmp_path / "b.npz", x=x, names=names)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("name", WRITERS)
def test_files_have_the_permissions_of_the_umask_whatever_library_writes_them(name, tmp_path, umask):
    WRITERS[name](tmp_path / name)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_is_an_error_that_names_the_file_and_what_was_there_stays(name, tmp_path):
    (path := tmp_path / name).write_text("before")
    with file_size_limit(4096), pytest.raises(OSError, match="another disk") as error:
        WRITERS[name](path)
    assert error.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_text() == "before"


def test_a_folder_that_does_not_fit_on_the_disk_does_not_appear_and_is_named(tmp_path):
    refused = pytest.raises(OSError, match="another disk")
    with file_size_limit(4096), refused as error, new_folder(tmp_path / "c") as new:
        write_tensors(new / "model.safetensors", {"a": ZEROS})
    assert error.value.filename == str(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_named_with_what_helps(number, tmp_path, monkeypatch):
    def refused(*arguments, **more):
        raise OSError(number, os.strerror(number), str(arguments[0]))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(OSError, match="choose a folder that you may write to") as error, replacing(tmp_path / "a"):
        pass
    assert error.value.filename == str(tmp_path / "a")


def test_errors_of_files_that_are_read_meanwhile_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error, replacing(tmp_path / "a"):
        (tmp_path / "source.png").read_bytes()
    assert error.value.filename == str(tmp_path / "source.png")


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.npz.12.tmp", ".b.json.7.tmp", ".a.npz", ".12.tmp", "a.npz.12.tmp", ".own.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".run-12").mkdir()
    with until_the_end():
        new_path("out", tmp_path / "a.npz")
        assert not (tmp_path / ".a.npz.12.tmp").exists()
        assert (tmp_path / ".b.json.7.tmp").exists()
    remove_remains(tmp_path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {".a.npz", ".12.tmp", "a.npz.12.tmp", ".own.tmp", ".run-12"}
    with new_folder(tmp_path / "run"):
        assert not (tmp_path / ".run-12").exists()


def test_a_writer_that_fails_without_a_number_is_told_as_a_full_disk_only_where_it_says_so(tmp_path):
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "a"):
        raise OSError("8 requested and 4 written")
    with pytest.raises(OSError, match="cannot identify"), replacing(tmp_path / "a"):
        raise OSError("cannot identify image file")
    assert np.array(list(tmp_path.iterdir())).size == 0


def test_figures_have_the_permissions_of_the_umask(tmp_path, umask):
    from matplotlib.figure import Figure

    save_figure(Figure(figsize=(1, 1)), tmp_path / "a.svg")
    assert stat.S_IMODE((tmp_path / "a.svg").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([np.zeros((2, 3)), np.zeros((1, 4))], "parts must be float64"),
        ([np.zeros((2, 3)), np.zeros((1, 3), np.float32)], "got float32"),
        ([np.zeros((2, 3))], "parts must have 3 rows in all, got 2"),
    ],
)
def test_parts_that_do_not_make_the_array_are_an_error_and_no_file(parts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_arrays(tmp_path / "a.npz", {"x": Rows((3, 3), parts)})
    assert not list(tmp_path.iterdir())
