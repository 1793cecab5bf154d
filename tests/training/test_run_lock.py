"""A run folder belongs to one run at a time, however the one before it ended."""

import contextlib
import threading

import pytest
import yaml
from helpers.processes import finish, log_of, start
from helpers.trainings import recipe
from pictures import write_pictures

from captioner.cli import main as cli
from captioner.cli.train import train
from captioner.config import to_dict
from captioner.errors import CaptionerError
from captioner.training import run_state
from captioner.training.run_state import exclusive_run_dir
from captioner.training.trainer import Trainer
from captioner.utils.files import LockHeldError, exclusive_lock


def is_free(folder):
    try:
        with exclusive_lock(folder / ".lock"):
            return True
    except LockHeldError:
        return False


@pytest.fixture
def config(tmp_path):
    write_pictures(tmp_path, 8)
    return recipe(tmp_path, data={"workers": 1}, save_every=2)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_state, "LOCK_TIMEOUT", 0.3)


def test_a_second_run_is_refused_and_touches_nothing(config, tmp_path, impatient, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_dict(config)))
    run = tmp_path / "run"
    with exclusive_run_dir(run):
        for options in ([], ["--resume"]):
            assert cli.main(["train", str(tmp_path / "recipe.yaml"), *options]) == 2
            assert f"another run trains into {run}: wait until it ends" in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [".lock"]
    assert train(config) == 0


def test_a_run_gives_its_folder_back_though_its_loader_lives(config, tmp_path, monkeypatch):
    """Workers inherit the open file; a run that ends must not leave its lock with them."""
    kept = []

    class Kept(Trainer):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            kept.append(self)  # with its workers

    monkeypatch.setattr("captioner.cli.train.Trainer", Kept)
    assert train(config) == 0
    assert kept
    assert is_free(tmp_path / "run")


def test_a_run_that_fails_gives_its_folder_back(config, tmp_path):
    useless = recipe(tmp_path, data={"min_count": 1000})
    with pytest.raises(CaptionerError, match="min_count") as kept:
        train(useless)
    assert is_free(tmp_path / "run"), kept


def test_whoever_waits_sees_what_the_one_before_left(config, tmp_path):
    """A fresh run that waited for another must not overwrite it."""
    run = tmp_path / "run"
    before = contextlib.ExitStack()
    before.enter_context(exclusive_run_dir(run))

    def end():
        (run / "last").mkdir()
        (run / "last" / "state.pt").write_bytes(b"")
        before.close()

    timer = threading.Timer(0.5, end)
    timer.start()
    with pytest.raises(CaptionerError, match="holds a run already"):
        train(config)
    timer.join()


def test_a_disk_that_knows_no_locks_is_no_hindrance(config, monkeypatch):
    def refuse(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_state, "exclusive_lock", refuse)
    assert train(config) == 0


@pytest.mark.slow
def test_two_processes_share_a_run_and_wait_together(tmp_path):
    """All of them read the state that the run before left, not the one they found."""
    write_pictures(tmp_path, 8)
    config = recipe(tmp_path, data={"batch_size": 4}, save_every=1)
    run = tmp_path / "run"
    with exclusive_run_dir(run):
        process = start(config, tmp_path)
        for line in process.stdout:
            if "waiting for the run" in line:
                break
        assert [path.name for path in run.iterdir()] == [".lock"]
    finish(process)
    assert log_of(tmp_path)
