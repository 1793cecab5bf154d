"""Decoders and checks for the tests of searches."""

import numpy as np
import pytest
import torch

from captioner.backends.torch import TorchStepper
from captioner.decoding import beam_search as beams
from captioner.decoding import sampling
from captioner.decoding.hypothesis import EnsembleStepper
from captioner.tokenizer import Vocabulary

END = Vocabulary.END


def make_stepper(decoder, memory):
    """At the start of the memory's images; of lists, an ensemble."""
    if isinstance(decoder, list):
        return EnsembleStepper([TorchStepper(*pair) for pair in zip(decoder, memory, strict=True)])
    return TorchStepper(decoder, memory)


def beam_search(decoder, memory, options=None):
    return beams.beam_search(make_stepper(decoder, memory), options)


def greedy_search(decoder, memory, options=None):
    return sampling.greedy_search(make_stepper(decoder, memory), options)


def sample(decoder, memory, options, keys):
    return sampling.sample(make_stepper(decoder, memory), options, keys)


def with_end_bias(decoder, bias):
    """Make sentences end sooner (positive) or later."""
    with torch.no_grad():
        decoder.project.bias[END] += bias
    return decoder


def teacher_forced(decoder, memory, words, ends=True):
    """Log-probabilities of each token of a sentence of one photo, and its maps (T, L)."""
    ids = [Vocabulary.START, *words, END]
    targets = len(words) + ends
    if not targets:
        return [], np.zeros((0, memory.values.shape[1]), np.float32)
    with torch.no_grad():
        result = decoder(memory, torch.tensor([[ids]]), torch.tensor([[targets]]))
    log_probs = result.logits.log_softmax(-1)[range(targets), ids[1 : targets + 1]]
    return log_probs.tolist(), result.attention[0, 0, : len(words)].numpy()


def photo(memory, index):
    return memory.select(torch.tensor([index]))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.words == other.words
        assert one.finished == other.finished
        assert one.score == pytest.approx(other.score, abs=1e-4)
        np.testing.assert_allclose(one.attention, other.attention, rtol=1e-5, atol=1e-5)
