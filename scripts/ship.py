"""Turn a training checkpoint into a model to ship: half-precision weights, the same header.

Used by scripts/train_flickr8k.sh.
"""

import argparse
from pathlib import Path

from captioner.checkpoint import load_weights, read_header, save_checkpoint

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="what training wrote")
    parser.add_argument("target", type=Path, help="the model file to write")
    arguments = parser.parse_args()
    weights = load_weights(arguments.checkpoint)
    save_checkpoint(arguments.target, read_header(arguments.checkpoint), weights, half=True)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")
