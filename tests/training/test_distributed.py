"""Two processes train like one: the same losses, the same weights, and they can be killed."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from helpers.pictures import write_pictures
from helpers.processes import finish, log_of, start, torchrun
from helpers.tiny import shake
from helpers.trainings import recipe

from captioner.checkpoint import load_weights
from captioner.config import to_dict
from captioner.errors import CheckpointError
from captioner.training.distributed import fresh_store, restarted
from captioner.training.trainer import Trainer
from captioner.training.validation import validate

PLAIN = {"model": {"decoder": {"dropout": 0.0}}, "save_every": 2}
CROSS_ENTROPY = {"loss": {"coverage": 0.5, "entropy": 1.0, "entropy_target": 0.3}}
SELF_CRITICAL = {"loss": {"objective": "self_critical", "draws": 3}}
GREEDY = {"loss": {"objective": "self_critical", "draws": 2, "baseline": "greedy"}}
IN_PARTS = {  # batches of 7 photos: a process has 4, the other 3, and there are 3 parts in both
    **CROSS_ENTROPY,
    "data": {"batch_size": 8, "limit": 7, "captions_per_image": 3, "mirror": True},
    "optim": {"epochs": 20, "ema": 0.9, "accumulate": 4},
    "validation": {"every": 20},
}


def close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4, msg=name)


def make_recipe(folder, **sections):
    write_pictures(folder, 8, captions=3)
    values = {
        "data": {"batch_size": 4, "captions_per_image": 3, "mirror": True},
        "optim": {"epochs": 10, "ema": 0.9},
        "validation": {"every": 10},
    }
    return recipe(folder, **{**values, **PLAIN, **sections})


@pytest.mark.parametrize(
    "sections",
    [CROSS_ENTROPY, SELF_CRITICAL, GREEDY, IN_PARTS],
    ids=["cross-entropy", "others", "greedy", "in-parts"],
)
def test_two_processes_equal_one(tmp_path, sections):
    """20 steps, the last of them logged; the batches, the losses and the weights are the same."""
    config = make_recipe(tmp_path / "one", **sections)
    Trainer(config).run()
    output = finish(start(make_recipe(tmp_path / "two", **sections), tmp_path / "two"))
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert one[0]["step"] == 20
    assert one[0] == pytest.approx(two[0], abs=1e-4)
    for name in ("last", "best"):
        files = [load_weights(tmp_path / n / "run" / f"{name}.safetensors") for n in ("one", "two")]
        close(*files)
    scores = [
        json.loads((tmp_path / n / "run" / "log.jsonl").read_text().splitlines()[-1])["validation"]
        for n in ("one", "two")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    printed = [line for line in output.splitlines() if line.startswith("{")]
    assert len(printed) == 1  # one process speaks


def test_a_killed_process_is_started_again_and_nothing_is_lost(tmp_path):
    """kill -9 one process in the middle of an epoch: torchrun restarts both from the last state."""
    whole = make_recipe(tmp_path / "whole", optim={"epochs": 40})
    finish(start(whole, tmp_path / "whole"))
    config = make_recipe(tmp_path / "killed", optim={"epochs": 40})
    process = start(config, tmp_path / "killed", "--max-restarts=1")
    state = tmp_path / "killed" / "run" / "last" / "previous.pt"
    while not state.exists():
        assert process.poll() is None, process.communicate()
    workers = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.splitlines()
    victim = next(line for line in workers if "captioner" in line and "train" in line)
    os.kill(int(victim.split()[0]), signal.SIGKILL)
    finish(process)
    files = [
        load_weights(tmp_path / name / "run" / "last.safetensors") for name in ("whole", "killed")
    ]
    close(*files)
    steps = [line["step"] for line in log_of(tmp_path / "killed")]
    assert steps == [line["step"] for line in log_of(tmp_path / "whole")]


THREADS = """
import sys
from pathlib import Path
from captioner.config import load_config
from captioner.cli.train import train

train(load_config(sys.argv[1]))
names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
assert not [name for name in names if "gloo" in name], names
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to list threads")
def test_the_threads_of_the_group_end_with_it(tmp_path):
    """One that is still busy with a tensor when Python exits aborts the process."""
    config = make_recipe(tmp_path, optim={"epochs": 1}, validation={"every": 1})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (tmp_path / "script.py").write_text(THREADS)
    finish(torchrun(tmp_path / "script.py", tmp_path / "recipe.yaml"))


def test_the_processes_of_a_restart_meet_each_other_and_not_the_dead():
    """The second process comes first, and finds but the corner of the attempt before."""
    store = dist.HashStore()
    corners = []
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(fresh_store, store, number, 3) for number in (1, 2)]
            done, _ = wait(others, timeout=0.3)
            assert not done
            corners.append([fresh_store(store, 0, 3), *(other.result() for other in others)])
    for attempt, (first, *others) in enumerate(corners):
        first.set("address", str(attempt))
        assert [other.get("address") for other in others] == [str(attempt).encode()] * 2
    assert corners[0][0].get("address") == b"0"


def test_a_machine_that_counts_no_failure_hears_of_it(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not restarted()
    monkeypatch.setattr("captioner.training.distributed.gather", lambda value: [value, True])
    assert restarted()


def test_validation_puts_captions_to_their_photos(tmp_path, monkeypatch):
    """Three processes share seven photos whose captions differ; the scores are those of one."""
    write_pictures(tmp_path, 7)
    config = recipe(tmp_path, validation={"beam": 1})
    trainer = Trainer(config)
    shake(trainer.model.decoder, 0.5)
    for lateral in trainer.model.encoder.laterals:
        shake(lateral, 5.0)
    trainer.model.eval()
    parts = (trainer.model, trainer.vocabulary, trainer.data, config, trainer.device)
    alone, sums = validate(*parts)
    told = []

    def tell(value):
        told.append(value)
        raise InterruptedError("the others have to come first")

    monkeypatch.setattr("captioner.training.validation.world_size", lambda: 3)
    monkeypatch.setattr("captioner.training.validation.gather", tell)
    for number in (0, 1, 2):
        monkeypatch.setattr("captioner.training.validation.rank", lambda number=number: number)
        with pytest.raises(InterruptedError):
            validate(*parts)
    captions = {tuple(words) for part, *_ in told for words in part}
    assert len(captions) > 3
    monkeypatch.setattr("captioner.training.validation.gather", lambda _: told)
    together, more = validate(*parts)
    assert together == pytest.approx(alone, abs=1e-4)
    torch.testing.assert_close(more.values, sums.values)


def test_machines_that_do_not_share_the_run_folder_are_told(tmp_path, monkeypatch):
    config = make_recipe(tmp_path)
    monkeypatch.setattr("captioner.training.trainer.gather", lambda value: [value, value + 2])
    with pytest.raises(CheckpointError, match="a folder that all machines share"):
        Trainer(config)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    config = make_recipe(tmp_path, data={"batch_size": 3})
    process = start(config, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "data.batch_size=3 cannot be shared by 2 processes" in output
