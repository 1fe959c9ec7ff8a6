"""One writer at a time: who holds a lock is said, and a lock that nobody holds blocks nobody."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from openedm.ground import locks
from openedm.ground.locks import LOCK, hold_file, locked_file, locked_folder, until_the_end


@pytest.fixture
def elsewhere():
    """Runs a function in another thread, which shares no locks with this one, and returns what it raised."""

    def run(function):
        raised = []

        def call():
            try:
                function()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return raised[0] if raised else None

    return run


def enter(lock):
    with lock:
        pass


def test_a_second_writer_is_refused_and_told_who_the_first_one_is(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/openedm", "train", "a run"])
    with locked_folder(tmp_path / "run", "out"):
        error = elsewhere(lambda: enter(locked_folder(tmp_path / "run", "out")))
    assert isinstance(error, ValueError)
    host = locks.socket.gethostname()
    assert str(error).startswith(f"out={tmp_path / 'run'} is being written by process {os.getpid()} on {host} since 20")
    assert str(error).endswith(" UTC (openedm train 'a run'): wait for it, stop it, or choose another name")
    assert elsewhere(lambda: enter(locked_folder(tmp_path / "run"))) is None


def test_files_and_folders_beside_each_other_have_locks_of_their_own(tmp_path, elsewhere):
    with locked_file(tmp_path / "a.npz"):
        assert elsewhere(lambda: enter(locked_file(tmp_path / "b.npz"))) is None
        assert elsewhere(lambda: enter(locked_folder(tmp_path))) is None
        assert "is being written" in str(elsewhere(lambda: enter(locked_file(tmp_path / "." / "a.npz"))))


def test_a_lock_leaves_nothing_behind_not_even_the_folders_that_it_made(tmp_path):
    with locked_folder(tmp_path / "a" / "b"):
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [LOCK]
    with pytest.raises(KeyboardInterrupt), locked_file(tmp_path / "c" / "report.json"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "a"):
        (tmp_path / "a" / "file").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]


def test_the_lock_of_a_killed_process_blocks_nobody_and_its_description_is_not_believed(tmp_path, elsewhere):
    process = subprocess.run([sys.executable, "-c", ""], check=True)  # a number of no process any more
    dead = {"openedm_lock": 1, "host": locks.socket.gethostname(), "process": 2**22 + 1, "started": "", "command": "x"}
    assert process.returncode == 0
    (tmp_path / LOCK).write_text(json.dumps(dead))
    assert locks._holder(os.open(tmp_path / LOCK, os.O_RDONLY)) == "another process"
    with locked_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_command_holds_its_locks_until_it_ends_and_functions_that_it_calls_take_them_again(tmp_path, elsewhere):
    path = tmp_path / "report.json"
    assert not hold_file(path)  # in no command
    with until_the_end():
        assert hold_file(path)
        with locked_file(path):
            pass
        assert "is being written" in str(elsewhere(lambda: enter(locked_file(path))))
    assert list(tmp_path.iterdir()) == []


def test_processes_of_a_launcher_share_the_lock_of_the_first_one(tmp_path, elsewhere, monkeypatch):
    with locked_folder(tmp_path):
        monkeypatch.setenv("RANK", "1")
        assert elsewhere(lambda: enter(locked_folder(tmp_path))) is None
        assert (tmp_path / LOCK).exists()
        monkeypatch.setenv("RANK", "0")
        assert "is being written" in str(elsewhere(lambda: enter(locked_folder(tmp_path))))


def test_other_files_in_place_of_a_lock_are_left_alone(tmp_path):
    (tmp_path / "own").write_text("own")
    (tmp_path / LOCK).symlink_to(tmp_path / "own")
    with pytest.raises(OSError, match="symbolic link"), locked_folder(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).write_text("own")
    with pytest.raises(ValueError, match="is not a lock file of openedm"), locked_folder(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(ValueError, match="is not a lock file of openedm"), locked_folder(tmp_path):
        pass


def test_where_a_file_system_has_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(locks.errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks: a second command that writes there is not refused"):
        enter(locked_folder(tmp_path))


def test_a_forked_process_does_not_keep_the_lock_of_a_parent_that_has_ended(tmp_path, elsewhere):
    with locked_folder(tmp_path):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            with os.fdopen(writer, "w") as file:
                file.write(str(len(locks._open)))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            assert file.read() == "0"
        os.waitpid(child, 0)
        assert "is being written" in str(elsewhere(lambda: enter(locked_folder(tmp_path))))


def test_a_removed_lock_file_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    opened, paths = locks._opened, []

    def racing(path: Path, what: str) -> int:
        descriptor = opened(path, what)
        if not paths:
            path.unlink()  # as by the holder that ends between the two calls
        paths.append(path)
        return descriptor

    monkeypatch.setattr(locks, "_opened", racing)
    enter(locked_folder(tmp_path))
    assert len(paths) == 2


def test_a_process_that_has_just_taken_a_lock_gets_time_to_say_who_it_is(tmp_path):
    (path := tmp_path / LOCK).touch()
    taken, waiting = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.flock(taken, fcntl.LOCK_EX)
    timer = threading.Timer(0.03, locks._describe_holder, (taken,))
    timer.start()
    with pytest.raises(ValueError, match=f"x is being written by process {os.getpid()} on "):
        locks._is_locked(waiting, path, "x")
    timer.join()
    os.close(taken)
    os.close(waiting)
