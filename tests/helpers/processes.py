"""Trainings in several processes."""

import json
import os
import subprocess
import sys

import yaml

from captioner.config import to_dict


def start(config, folder, *options):
    """Train with two processes, as a person would."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    restarts = [option for option in options if option.startswith("--max-restarts")]
    rest = [option for option in options if option not in restarts]
    return torchrun(*restarts, "-m", "captioner", "train", path, *rest)


def torchrun(*arguments, alone=True):
    """Start two processes; or what the arguments say, unless `alone`."""
    options = ["--standalone", "--nproc-per-node=2"] if alone else []
    command = ["torch.distributed.run", *options, *map(str, arguments)]
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=900)
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
