"""Signals end a run: after the step that it computes, or at once where nothing would be lost."""

import os
import signal
import threading
import time

import pytest
from helpers.trainings import Interrupt, recipe
from pictures import write_pictures

from captioner.data import dataset
from captioner.training import stopping
from captioner.training.trainer import Trainer


@pytest.fixture
def trainer(tmp_path):
    write_pictures(tmp_path, 4)
    return Trainer(recipe(tmp_path, optim={"epochs": 2}))


def signal_later(number=signal.SIGTERM):
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()


def wait_for_ever(*_):
    threading.Event().wait()


def test_before_the_first_step_a_run_ends_at_once(trainer, tmp_path):
    """The loader may hang, and there is nothing to save."""
    trainer.loader = iter(wait_for_ever, None)
    signal_later()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not (tmp_path / "run" / "last").exists()


def test_a_run_that_makes_no_progress_ends_after_one_signal(trainer, monkeypatch, caplog):
    monkeypatch.setattr(stopping, "_GRACE", 0.3)
    step = trainer._train_step

    def hang(batch):
        if trainer.step == 0:
            return step(batch)
        trainer.signals.slowest_step = 0.0  # a slow machine is no slow step
        signal_later()
        wait_for_ever()

    trainer._train_step = hang
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.step == 1
    assert "no step finished" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_a_load_that_stalls(tmp_path, monkeypatch, workers):
    """Such as a file on a server that does not answer: what was trained so far is saved."""
    write_pictures(tmp_path, 4)
    stalled = tmp_path / "stalled"
    trainer = Trainer(
        recipe(tmp_path, optim={"epochs": 2}, data={"cache": None, "workers": workers})
    )
    read, step = dataset.open_image, trainer._train_step

    def open_image(*arguments, **options):
        if stalled.exists():
            (tmp_path / "reached").touch()
            wait_for_ever()
        return read(*arguments, **options)

    def train_step(batch):
        result = step(batch)
        stalled.touch()
        threading.Thread(target=signal_when_reached).start()
        return result

    def signal_when_reached():
        while not (tmp_path / "reached").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(dataset, "open_image", open_image)
    trainer._train_step = train_step
    trainer._validate = lambda epoch: None
    trainer.run()
    stalled.unlink()
    assert 1 <= trainer.step < trainer.total_steps
    assert Trainer(trainer.config, resume=True).step == trainer.step


def test_a_validation_is_not_waited_for(trainer, tmp_path):
    """The state before it is saved: the validation runs again."""

    def hang(_epoch):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for_ever()

    trainer._validate = hang
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = Trainer(trainer.config, resume=True)
    assert resumed.step == trainer.step == 1


def test_the_log_is_closed_however_training_ends(trainer):
    """What TensorBoard has not written yet would be lost: those steps do not run again."""
    closed = []
    trainer.log.close = lambda: closed.append(trainer.step)
    Interrupt(trainer, 1)
    trainer.run()
    assert closed == [2]
