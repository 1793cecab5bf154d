"""Turn training checkpoints into a model to ship: half-precision weights, the best one's header.

Several checkpoints that descend from one are averaged, weight by weight (a "model soup", Wortsman
et al. 2022). Used by scripts/train_flickr8k.sh.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from captioner.checkpoint import load_weights, read_header, save_checkpoint


def average(files: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of the weights; counters and the like are the first file's."""
    first, *others = (load_weights(file) for file in files)
    for name, value in first.items():
        if value.is_floating_point():
            values = [value.float(), *(other[name].float() for other in others)]
            equal = torch.stack([each == values[0] for each in values]).all(0)
            # Equal weights stay as they are, to the sign of a zero: a frozen CNN keeps its hash.
            first[name] = torch.where(equal, values[0], torch.stack(values).mean(0))
    return first


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="what training wrote; best first")
    parser.add_argument("target", type=Path, help="the model file to write")
    arguments = parser.parse_args()
    header = read_header(arguments.checkpoints[0])
    if len(arguments.checkpoints) > 1:
        epochs = [read_header(file).record["epoch"] for file in arguments.checkpoints]
        header = dataclasses.replace(header, record={**header.record, "averaged_epochs": epochs})
    save_checkpoint(arguments.target, header, average(arguments.checkpoints), half=True)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")
