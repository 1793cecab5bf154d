"""Decoders and checks for the tests of searches."""

import pytest
import torch

from captioner.tokenizer import Vocabulary

END = Vocabulary.END


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
        return [], torch.zeros(0, memory.values.shape[1])
    with torch.no_grad():
        result = decoder(memory, torch.tensor([[ids]]), torch.tensor([[targets]]))
    log_probs = result.logits.log_softmax(-1)[range(targets), ids[1 : targets + 1]]
    return log_probs.tolist(), result.attention[0, 0, : len(words)]


def photo(memory, index):
    return memory.select(torch.tensor([index]))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.words == other.words
        assert one.finished == other.finished
        assert one.score == pytest.approx(other.score, abs=1e-4)
        torch.testing.assert_close(one.attention, other.attention)
