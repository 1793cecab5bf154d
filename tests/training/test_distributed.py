"""Two processes train like one: the same losses, the same weights, and they can be killed."""

import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
import torch.distributed as dist
import yaml
from helpers.processes import finish, log_of, start, torchrun
from helpers.tiny import shake
from helpers.trainings import log_lines, recipe
from pictures import write_pictures

from captioner.checkpoint import load_weights
from captioner.config import to_dict
from captioner.decoding.options import decoding_options
from captioner.errors import CaptionerError, CheckpointError
from captioner.training.distributed import fresh_store, restarted
from captioner.training.trainer import Trainer
from captioner.training.validation import validate

RECIPES = {
    "cross-entropy": {"loss": {"coverage": 0.5, "entropy": 1.0, "entropy_target": 0.3}},
    "others": {"loss": {"objective": "self_critical", "draws": 3}},
    "greedy": {"loss": {"objective": "self_critical", "draws": 2, "baseline": "greedy"}},
}
RECIPES["in-parts"] = {  # batches of 7 images: a process has 4, the other 3, and both have 3 parts
    **RECIPES["cross-entropy"],
    "data": {"batch_size": 8, "limit": 7, "captions_per_image": 3, "mirror": True},
    "optim": {"epochs": 10, "ema": 0.9, "accumulate": 4},
    "validation": {"every": 10},
}
# Trains each recipe of the command line, then lists the threads that are left.
TRAIN_ALL = """
import sys
from pathlib import Path
from captioner.config import load_config
from captioner.cli.train import train

for recipe in sys.argv[1:]:
    train(load_config(recipe))
tasks = Path("/proc/self/task")
names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.exists() else []
assert not [name for name in names if "gloo" in name], names
"""


def close(one, other):
    """Equal but for rounding: gradients of both runs differ by up to 1e-9.

    Adam turns a first gradient of about its epsilon, 1e-8, into a share of a whole step that this
    rounding moves; one weight in a thousand may be such a one.
    """
    assert one.keys() == other.keys()
    unequal = count = 0
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], atol=1e-4, rtol=1e-4, msg=lambda text, name=name: name + text
        )
        unequal += int((~torch.isclose(one[name], other[name], atol=1e-5, rtol=1e-4)).sum())
        count += one[name].numel()
    assert unequal <= count / 1000


def make_recipe(folder, **sections):
    write_pictures(folder, 8, captions=3)
    values = {
        "data": {"batch_size": 4, "captions_per_image": 3, "mirror": True},
        "optim": {"epochs": 5, "ema": 0.9},
        "validation": {"every": 5},
        "log": {"every": 10},
        "model": {"decoder": {"dropout": 0.0}},
        "save_every": 2,
    }
    return recipe(folder, **{**values, **sections})


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The runs of two processes by the name of the recipe, and what they printed.

    All run in one go, because it takes long to start them. That it succeeds also shows that the
    threads of a group end with it: one still busy when Python exits would abort the process.
    """
    folder = tmp_path_factory.mktemp("two")
    paths = []
    for name, sections in RECIPES.items():
        config = make_recipe(folder / name, **sections)
        paths.append(folder / name / "recipe.yaml")
        paths[-1].write_text(yaml.safe_dump(to_dict(config)))
    (folder / "script.py").write_text(TRAIN_ALL)
    return folder, finish(torchrun(folder / "script.py", *paths))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_equal_one(tmp_path, two_processes, name):
    """10 steps, the last of them logged; the batches, the losses and the weights are the same."""
    folder, output = two_processes
    Trainer(make_recipe(tmp_path, **RECIPES[name])).run()
    one, two = log_of(tmp_path), log_of(folder / name)
    assert one[0]["step"] == 10
    assert one[0] == pytest.approx(two[0], abs=1e-4)
    for file in ("last", "best"):
        path = f"run/{file}.safetensors"
        close(load_weights(tmp_path / path), load_weights(folder / name / path))
    scores = [log_lines(root)[-1]["validation"] for root in (tmp_path, folder / name)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    printed = [line for line in output.splitlines() if line.startswith("{")]
    assert len(printed) == len(RECIPES)  # only the first process prints


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_nothing_is_lost(tmp_path):
    """kill -9 one process in the middle of an epoch: torchrun restarts both from the last state."""
    Trainer(make_recipe(tmp_path / "whole", optim={"epochs": 40})).run()
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


def test_the_processes_of_a_restart_find_each_other():
    """The others come first, and find only the prefix of the attempt before."""
    store = dist.HashStore()
    stores = []
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(fresh_store, store, number, 3) for number in (1, 2)]
            done, _ = wait(others, timeout=0.3)
            assert not done
            stores.append([fresh_store(store, 0, 3), *(other.result() for other in others)])
    for attempt, (first, *others) in enumerate(stores):
        first.set("address", str(attempt))
        assert [other.get("address") for other in others] == [str(attempt).encode()] * 2
    assert stores[0][0].get("address") == b"0"


def test_a_first_process_that_does_not_answer_is_an_error():
    store = dist.HashStore()
    store.set("prefix", "of an attempt before")
    with pytest.raises(CaptionerError, match="process 1 of 2: the first one did not answer"):
        fresh_store(store, 1, 2, timeout=0.2)


# One of two machines loses its process once; each machine has its own torchrun.
RESTARTED = """
import os, signal, sys
from pathlib import Path
import torch.distributed as dist
from captioner.training.distributed import gather, process_group, rank

marker = Path(sys.argv[1])
with process_group("cpu"):
    for _ in range(5):
        assert gather(rank()) == [0, 1]
    if rank() == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    assert gather(rank()) == [0, 1]
"""


@pytest.mark.slow
def test_two_machines_restart_together(tmp_path):
    """With torch's own rendezvous the processes try to reach those before them (torch 2.14)."""
    (tmp_path / "script.py").write_text(RESTARTED)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1"]
    options += ["--rdzv-backend=c10d", f"--rdzv-endpoint={address}"]
    script = [tmp_path / "script.py", tmp_path / "marker"]
    machines = [torchrun(*options, *script, alone=False) for _ in range(2)]
    for machine in machines:
        finish(machine)
    assert (tmp_path / "marker").exists()


def test_a_machine_that_counts_no_failure_hears_of_it(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not restarted()
    monkeypatch.setattr("captioner.training.distributed.gather", lambda value: [value, True])
    assert restarted()


def test_validation_puts_captions_to_their_photos(tmp_path, monkeypatch):
    """Three processes share seven photos whose captions differ; the scores are those of one."""
    monkeypatch.setattr("captioner.decoding.options._ENGLISH", 1)  # the pictures have few words
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
    twice = trainer.vocabulary.decode(decoding_options(trainer.vocabulary).may_repeat)
    for words in captions:  # as in captioning, no content word comes twice
        assert all(words.count(word) == 1 for word in set(words) - set(twice))
    monkeypatch.setattr("captioner.training.validation.gather", lambda _: told)
    together, more = validate(*parts)
    assert together == pytest.approx(alone, abs=1e-4)
    torch.testing.assert_close(more.values, sums.values)


def test_machines_that_do_not_share_the_run_folder_are_told(tmp_path, monkeypatch):
    config = make_recipe(tmp_path)
    monkeypatch.setattr("captioner.training.trainer.gather", lambda value: [value, value + 2])
    with pytest.raises(CheckpointError, match="a folder that all machines share"):
        Trainer(config)
