"""Two processes train like one: the same losses, the same weights, and they can be killed."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from pictures import write_pictures
from test_training import recipe

from captioner.checkpoint import load_weights
from captioner.config import to_dict
from captioner.training.loop import Trainer

PLAIN = {"model": {"decoder": {"dropout": 0.0}}, "save_every": 2}
CROSS_ENTROPY = {"loss": {"coverage": 0.5, "entropy": 1.0, "entropy_target": 0.3}}
SELF_CRITICAL = {"loss": {"objective": "self_critical", "draws": 3}}
GREEDY = {"loss": {"objective": "self_critical", "draws": 2, "baseline": "greedy"}}


def start(config, folder, *options):
    """Train with two processes, as a person would."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    restarts = [option for option in options if option.startswith("--max-restarts")]
    rest = [option for option in options if option not in restarts]
    command += [*restarts, "-m", "captioner", "train", str(path), *rest]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def log_of(folder):
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    return [
        {
            k: v
            for k, v in json.loads(line).items()
            if k not in ("seconds", "validation", "attention_sums")
        }
        for line in lines
    ]


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
    "sections", [CROSS_ENTROPY, SELF_CRITICAL, GREEDY], ids=["cross-entropy", "others", "greedy"]
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


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    config = make_recipe(tmp_path, data={"batch_size": 3})
    process = start(config, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "data.batch_size=3 cannot be shared by 2 processes" in output
