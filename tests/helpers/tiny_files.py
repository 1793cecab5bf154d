"""A model file and photos small enough for tests of whole commands."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from captioner.checkpoint import Header, save_checkpoint
from captioner.cli import main as cli
from captioner.image.transforms import Preprocess
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary
from helpers.tiny import MODEL, shake

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "the", "grass", "red", "blue", "ball", "two"]


def save_model(path, words=WORDS):
    """A random model of these words, whose captions differ from photo to photo."""
    torch.manual_seed(3)
    vocabulary = Vocabulary.build([words], min_count=1)
    network = CaptionModel(MODEL, len(vocabulary))
    shake(network.decoder, 0.5)
    for lateral in network.encoder.laterals:
        shake(lateral, 5.0)
    header = Header(
        config=MODEL,
        vocabulary=vocabulary,
        preprocess=Preprocess(size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        record={"training_photos": 7, "validation": {"cider": 0.5}},
    )
    save_checkpoint(path, header, network.state_dict())
    return path


def make_photos(folder, count):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 48)).save(folder / f"{number:02}.png")


def environment():
    """For a captioner in a process of its own: as many threads, so the same digits."""
    root = str(Path(cli.__file__).parents[2])
    threads = str(torch.get_num_threads())
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": threads}
