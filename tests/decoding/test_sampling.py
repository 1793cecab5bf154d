"""Sampling draws what it should, the same for a photo in any batch; models decode together."""

import math

import numpy as np
import pytest
import torch
from helpers.searches import (
    assert_same,
    beam_search,
    greedy_search,
    photo,
    sample,
    teacher_forced,
    with_end_bias,
)
from helpers.tiny import SPECIALS, make_decoder, make_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.decoding.mbr import mbr_order
from captioner.decoding.options import DecodingOptions
from captioner.decoding.sampling import draw, truncate
from captioner.models.attention import Memory


def varied(words=16):
    decoder = with_end_bias(make_decoder(words, seed=2, spread=1.0), 0.5)
    return decoder, decoder.remember(make_grid(6, seed=2))


def test_a_photo_gets_the_same_samples_in_any_company():
    decoder, memory = varied()
    options = DecodingOptions(sample=True, num_captions=3, max_length=8, seed=4)
    keys = [101, 7, 2**64 - 1, 0, 55, 9]
    together = sample(decoder, memory, options, keys)
    assert len({tuple(h.words) for found in together for h in found}) > 10
    order = [4, 2, 0]
    some = sample(decoder, memory.select(torch.tensor(order)), options, [keys[i] for i in order])
    for place, index in enumerate(order):
        assert_same(some[place], together[index])
        alone = sample(decoder, photo(memory, index), options, [keys[index]])
        assert_same(alone[0], together[index])
    other = DecodingOptions(sample=True, num_captions=3, max_length=8, seed=5)
    differing = sample(decoder, memory, other, keys)
    assert [h.words for f in differing for h in f] != [h.words for f in together for h in f]


def test_photos_that_the_model_takes_for_equal_have_draws_of_their_own():
    decoder, memory = varied()
    same = memory.select(torch.tensor([0] * 4))
    options = DecodingOptions(sample=True, num_captions=4, max_length=8)
    found = [[h.words for h in one] for one in sample(decoder, same, options, [1, 2, 3, 1])]
    assert found[0] == found[3]
    assert found[0] != found[1] != found[2] != found[0]


def test_sample_scores_are_the_models_own():
    decoder, memory = varied()
    options = DecodingOptions(sample=True, temperature=0.5, top_k=3, length_penalty="average")
    for index, (h,) in enumerate(sample(decoder, memory, options, range(6))):
        log_probs, maps = teacher_forced(decoder, photo(memory, index), h.words, h.finished)
        assert h.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert h.score == pytest.approx(sum(log_probs) / len(log_probs), abs=1e-4)
        torch.testing.assert_close(h.attention, maps)


@pytest.mark.parametrize("limit", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}])
def test_sampling_the_likeliest_word_is_greedy(limit):
    decoder, memory = varied()
    greedy = greedy_search(decoder, memory, DecodingOptions(max_length=7))
    options = DecodingOptions(sample=True, max_length=7, **limit)
    for found, expected in zip(sample(decoder, memory, options, range(6)), greedy, strict=True):
        assert_same(found, [expected])


def test_first_words_are_drawn_by_their_probability():
    """4,000 samples of one photo: frequencies within five standard errors, by brute force."""
    decoder, memory = varied(words=9)
    one, count = photo(memory, 0), 4000
    options = DecodingOptions(sample=True, num_captions=count, max_length=1, temperature=1.5)
    (found,) = sample(decoder, one, options, [3])
    with torch.no_grad():
        logits = decoder.step(decoder.start(one), torch.tensor([[1]]), one).logits[0, 0]
    logits[list(SPECIALS)] = -math.inf
    for word, p in enumerate((logits / 1.5).softmax(-1).tolist()):
        share = sum(h.words == [word] for h in found) / count
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / count)


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(
        st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=8
    ),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([1e-9, 0.3, 0.8, 1.0]),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
)
def test_truncation_keeps_the_fewest_likeliest_words(logits, top_k, top_p, temperature):
    options = DecodingOptions(sample=True, top_k=top_k, top_p=top_p, temperature=temperature)
    if max(logits) == -math.inf:
        assert not truncate(np.full((1, 1, 4), -math.inf), options).any()
        return
    log_probs = torch.tensor([[logits]]).log_softmax(-1)
    weights = torch.from_numpy(truncate(log_probs.numpy(), options))[0, 0]
    plain = (log_probs[0, 0].double() / temperature).softmax(-1)
    kept = weights > 0
    assert kept.any()
    torch.testing.assert_close(weights[kept] / weights[kept].sum(), plain[kept] / plain[kept].sum())
    assert plain[kept].min() >= plain[~kept].max() if (~kept).any() else True
    assert not top_k or kept.sum() <= top_k
    ordered = plain.sort(descending=True).values[: top_k or None]
    mass = ordered.cumsum(-1) / ordered.sum()
    needed = int((mass < top_p).sum()) + 1 if top_p < 1 else 8  # fewest of this probability
    assert abs(int(kept.sum()) - min(needed, int((ordered > 0).sum()))) <= (top_p in (0.3, 0.8))


def test_draws_never_hit_an_impossible_word():
    weights = np.array([[[0.0, 0.5, 0.0, 0.5, 0.0]]])
    for number, word in [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 1e-16, 3)]:
        assert draw(weights, np.array([[number]])).item() == word


def test_two_equal_models_are_one():
    decoder, memory = varied()
    options = DecodingOptions(beam=3, num_captions=3, max_length=8)
    twice = beam_search([decoder, decoder], [memory, memory], options)
    for found, expected in zip(twice, beam_search(decoder, memory, options), strict=True):
        assert_same(found, expected)


def test_an_ensemble_averages_probabilities_and_maps():
    """Scores are those of the mean of the models' probabilities, each told the sentence."""
    decoders = [with_end_bias(make_decoder(12, seed=seed), 0.5) for seed in (1, 2)]
    memories = [decoder.remember(make_grid(4, 3)) for decoder in decoders]
    options = DecodingOptions(beam=3, max_length=6, no_repeat_ngram=2)
    both = beam_search(decoders, memories, options)
    both += [[found] for found in greedy_search(decoders, memories, options)]
    both += sample(decoders, memories, DecodingOptions(sample=True, max_length=6), range(4))
    for index, (h,) in enumerate(both):
        told = [
            teacher_forced(decoder, photo(memory, index % 4), h.words, h.finished)
            for decoder, memory in zip(decoders, memories, strict=True)
        ]
        mean = [
            math.log((math.exp(a) + math.exp(b)) / 2)
            for a, b in zip(told[0][0], told[1][0], strict=True)
        ]
        assert h.log_probs == pytest.approx(mean, abs=1e-4)
        torch.testing.assert_close(h.attention, (told[0][1] + told[1][1]) / 2)


def test_models_of_other_grids_keep_the_first_ones_maps():
    decoders = [with_end_bias(make_decoder(12, seed=seed), 0.5) for seed in (1, 2)]
    grid = make_grid(2, 3)
    first = decoders[0].remember(grid)
    second = decoders[1].remember(grid._replace(features=grid.features[:, :4], size=(2, 2)))
    assert isinstance(second, Memory)
    for (h,) in beam_search(decoders, [first, second], DecodingOptions(beam=2, max_length=5)):
        assert h.attention.shape == (len(h.words), 9)
        assert h.attention.sum(-1) == pytest.approx(1, abs=1e-5)


TEXTS = ("a cat sits on grass", "a dog runs on grass", "a dog runs on the grass")


def test_consensus_takes_what_most_say():
    sentences = [line.split() for line in TEXTS]
    assert mbr_order(sentences, [1, 1, 1])[0] == 1
    assert mbr_order(sentences, [100, 1, 1])[0] == 0
    assert mbr_order([["a", "b"]] * 3, [1, 1, 1]) == [0, 1, 2]
