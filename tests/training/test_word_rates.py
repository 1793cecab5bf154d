"""Word rates: counts, and a classifier that says words as often as it is asked to."""

import numpy as np
import pytest
import torch
from torch import nn

from captioner.tokenizer import Vocabulary
from captioner.training.word_rates import LARGEST, bias_shift, count_words, move_bias

FIRST = len(Vocabulary.SPECIALS)
SIZE = FIRST + 4


def test_a_word_counts_once_a_caption_and_references_share_one_count():
    dog, red = FIRST, FIRST + 1
    counts = count_words([[[dog, red, dog]], [[dog], [red], [red], []]], SIZE)
    assert counts[dog] == 1 + 1 / 4
    assert counts[red] == 1 + 2 / 4
    assert counts.sum() == counts[dog] + counts[red]


def test_a_classifier_gets_the_rates_that_are_wanted():
    """Moved by the whole shift, what it would draw is distributed like what is wanted."""
    captions = 1e9  # so many that smoothing does not matter
    wanted = np.array([0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    classifier = nn.Linear(2, SIZE)
    hidden = torch.tensor([0.3, -0.7])

    def rates():
        return classifier(hidden)[FIRST:].softmax(0).detach().double().numpy()

    def counts(shares):
        return captions * np.concatenate((np.zeros(FIRST), shares))

    assert abs(rates() - wanted).max() > 0.05
    move_bias(classifier, bias_shift(counts(rates()), counts(wanted)), 1.0)
    np.testing.assert_allclose(rates(), wanted, atol=1e-3)  # the bias is rounded to fp16


def test_rare_words_move_little_and_none_moves_far():
    said = np.array([0.0] * FIRST + [7.0, 0.0, 0.0, 1e6])
    wanted = np.array([50.0] * FIRST + [0.0, 1.0, 1e6, 5.0])
    shift = bias_shift(said, wanted)
    assert not shift[: FIRST + 1].any()  # special words, and one that nobody wants
    assert shift[FIRST + 1] == pytest.approx(np.log(4 / 3))
    assert shift[FIRST + 2] == LARGEST
    assert shift[FIRST + 3] == -LARGEST
    kept = bias_shift(said, wanted, kept=[FIRST + 3])
    assert kept[FIRST + 3] == 0
    np.testing.assert_array_equal(kept[:-1], shift[:-1])
