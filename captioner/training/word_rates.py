"""Word rates: let a trained model use words as often as people do.

Cross-entropy on few images, and self-critical training even more so, make a model prefer words that
are rarely wrong: "standing" takes the place of "leaning", "shirt" that of "jersey". The preference
is one number per word, the bias of the classifier, and can be measured: how many captions of the
model contain the word, and how many references of the same images do. The bias is moved by a share
of the logarithm of their quotient, and the model captions again, a few times over. That is logit
adjustment (Menon et al. 2021), which Honda et al. (2023) brought to captioning; here the prior is
counted on the model's own captions as they are searched. No other weight changes. Function words
are left as they are: moved too, they cost grammar ("a boy in a shorts").

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from captioner.tokenizer import Vocabulary

SMOOTHING = 3.0  # added to every count, so that rare words move little
LARGEST = 2.0  # bound of a word's shift


def count_words(captions: Iterable[Sequence[Sequence[int]]], size: int) -> np.ndarray:
    """Count in how many captions each word occurs: (V,).

    Args:
        captions: For each image one or more captions as word ids, which share a count of one.
        size: V.
    """
    counts = np.zeros(size)
    for of_image in captions:
        for words in of_image:
            counts[list(set(words))] += 1 / len(of_image)
    return counts


def bias_shift(said: np.ndarray, wanted: np.ndarray, kept: Sequence[int] = ()) -> np.ndarray:
    """Return by how much each word's bias is wrong: log(wanted / said), smoothed and bounded.

    Args:
        said: (V,) counts in the model's captions.
        wanted: (V,) counts in the references of the same images.
        kept: Ids of words that are left as they are, besides the special ones and those that nobody
            wants.
    """
    shift = np.log((wanted + SMOOTHING) / (said + SMOOTHING)).clip(-LARGEST, LARGEST)
    shift[wanted == 0] = 0.0
    shift[: len(Vocabulary.SPECIALS)] = 0.0
    shift[list(kept)] = 0.0
    return shift


@torch.no_grad()
def move_bias(classifier: nn.Linear, shift: np.ndarray, share: float) -> None:
    """Add a share of a shift (V,) to the bias of the layer that scores the vocabulary.

    The bias is rounded to fp16, as model files store it: what is measured is what is saved.
    """
    moved = classifier.bias + share * torch.from_numpy(shift).to(classifier.bias.dtype)
    classifier.bias.copy_(moved.half())
