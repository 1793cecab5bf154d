"""Whole files and locks."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from captioner.errors import CaptionerError
from captioner.utils.files import LockHeldError, exclusive_lock, replacing, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, sync):
    path = tmp_path / "new" / ("n" * 255)
    with replacing(path, sync=sync) as temporary:
        temporary.write_text("old")
        assert not path.exists()

    with contextlib.suppress(ZeroDivisionError), replacing(path, sync=sync) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert names(path.parent) == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="file modes")
def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CaptionerError, match=r"cannot write .*folder: "):
        write_atomically(tmp_path / "folder", b"")
    assert names(tmp_path) == ["folder"]


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path):
    path = tmp_path / ".lock"
    waited = []
    with exclusive_lock(path):
        with pytest.raises(LockHeldError), exclusive_lock(path):
            pass
        wait = {"timeout": 0.1, "on_wait": lambda: waited.append("waiting")}
        with pytest.raises(LockHeldError), exclusive_lock(path, **wait):
            pass
        thread = threading.Thread(target=lambda: waited.append(_hold(path)))
        thread.start()
    thread.join()
    assert waited == ["waiting", "held"]
    with exclusive_lock(path):
        pass
    assert names(tmp_path) == []


def _hold(path):
    with exclusive_lock(path, timeout=-1):
        return "held"


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_killed_process_holds_nothing(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import os, signal, sys; from captioner.utils.files import exclusive_lock\n"
        "with exclusive_lock(sys.argv[1]):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.exists()
    with exclusive_lock(path):
        pass
    assert not path.exists()
