"""What else the model might have said: the likeliest words at each place of a sentence."""

import numpy as np
import pytest
import torch
from helpers.searches import beam_search, greedy_search, make_stepper, photo, sample, with_end_bias
from helpers.tiny import make_decoder, make_grid

from captioner.decoding.hypothesis import likeliest, score_words
from captioner.decoding.options import DecodingOptions
from captioner.tokenizer import Vocabulary

NEVER = [Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 4, "num_captions": 4, "prefix_ids": (9,)},
        {"beam": 4, "groups": 2, "num_captions": 3, "banned": (0, 1, 3, 7, 8)},
        {"beam": 3, "required": (11,), "no_repeat_ngram": 1},
        {"beam": 5, "num_captions": 2, "mbr": 5, "min_length": 3},
        {"beam": 1, "max_length": 2},
        {"sample": True, "num_captions": 3, "top_k": 2},
        {"greedy": True},
    ],
)
def test_they_are_the_models_own_whatever_the_search_may_say(options):
    decoder = with_end_bias(make_decoder(16, seed=2, spread=1.5), 1.0)
    with torch.no_grad():
        decoder.project.bias[NEVER] += 3
    memory = decoder.remember(make_grid(5, seed=2))
    greedy = options.pop("greedy", False)
    options = DecodingOptions(**{"max_length": 7, "alternatives": 4, **options})
    if greedy:
        results = [[found] for found in greedy_search(decoder, memory, options)]
    elif options.sample:
        results = sample(decoder, memory, options, range(5))
    else:
        results = beam_search(decoder, memory, options)
    for index, found in enumerate(results):
        for h in found:
            assert len(h.alternatives) == len(h.log_probs)
            expected, _ = score_words(make_stepper(decoder, photo(memory, index)), h.words)
            expected[:, NEVER] = -np.inf
            for row, all_of_them in zip(h.alternatives, expected, strict=False):
                assert [word for word, _ in row] == np.argsort(-all_of_them)[:4].tolist()
                assert [value for _, value in row] == pytest.approx(
                    sorted(all_of_them)[:-5:-1], abs=1e-4
                )


def test_there_are_no_more_than_words():
    rows = likeliest(np.log(np.full((2, 6), 1 / 6)), 9)
    assert [[word for word, _ in row] for row in rows] == [[Vocabulary.END, 4, 5]] * 2


def test_none_are_kept_unless_asked_for():
    decoder = make_decoder(16)
    for (found,) in beam_search(decoder, decoder.remember(make_grid(2)), DecodingOptions(beam=2)):
        assert found.alternatives == []
