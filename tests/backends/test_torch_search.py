"""A search that stays on the device finds what the search on the host finds."""

import itertools
import logging
import math
from dataclasses import replace

import pytest
import torch
from helpers.searches import (
    END,
    assert_same,
    beam_search,
    greedy_search,
    photo,
    sample,
    teacher_forced,
    with_end_bias,
)
from helpers.tiny import SPECIALS, make_decoder, make_grid

from captioner.backends.torch_search import DeviceSearch, supports
from captioner.decoding.options import DecodingOptions
from captioner.errors import ConfigError

KEYS = [5, 7, 2**64 - 1, 0, 3, 9, 1]


def varied(seed=2, words=16, bias=1.0, **options):
    """A decoder and seven images whose sentences end at different times."""
    decoder = with_end_bias(make_decoder(words, seed=seed, spread=1.2, **options), bias)
    with torch.no_grad():
        return decoder, decoder.remember(make_grid(7, seed))


def assert_all_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
        for a, b in zip(one, other, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.8, "average"])
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_beams_are_those_of_the_host(beam, penalty):
    """Over lengths, numbers of sentences and batches, of which some reuse the tensors of others."""
    decoder, memory = varied(beam)
    search = DeviceSearch(decoder)
    for least, longest, count in [(0, 1, 1), (1, 12, 1), (3, 6, beam)]:
        options = DecodingOptions(
            beam=beam,
            num_captions=count,
            min_length=least,
            max_length=longest,
            length_penalty=penalty,
        )
        for images in (7, 3):
            some = memory.first(images)
            found = search.hypotheses(some, options)
            assert_all_same(found, beam_search(decoder, some, options))


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_a_full_beam_equals_brute_force(penalty):
    decoder = with_end_bias(make_decoder(7, seed=1, spread=0.8), 0.5)
    memory = decoder.remember(make_grid(2, 1))
    sentences = [
        list(words)
        for length in range(1, 4)
        for words in itertools.product(range(len(SPECIALS), 7), repeat=length)
    ]
    options = DecodingOptions(
        beam=27 * 4, num_captions=len(sentences), max_length=3, length_penalty=penalty
    )
    for index, found in enumerate(DeviceSearch(decoder).hypotheses(memory, options)):
        scored = []
        for words in sentences:
            log_probs, _ = teacher_forced(decoder, photo(memory, index), words)
            scored.append((sum(log_probs) / ((5 + len(words) + 1) / 6) ** penalty, words))
        scored.sort(reverse=True)
        assert [h.words for h in found] == [words for _, words in scored]
        assert [h.score for h in found] == pytest.approx([score for score, _ in scored], abs=1e-4)


@pytest.mark.parametrize(
    "attention", [{"kind": "dot"}, {"kind": "multi_head"}, {"smooth": True}, {"mode": "hard"}]
)
def test_every_attention_can_be_searched(attention):
    hidden = 8 if attention.get("kind") == "dot" else 10
    decoder, memory = varied(attention=attention, hidden=hidden, deep_output=True)
    options = DecodingOptions(beam=3, num_captions=3, max_length=8)
    found = DeviceSearch(decoder).hypotheses(memory, options)
    assert_all_same(found, beam_search(decoder, memory, options))


def test_company_changes_nothing():
    decoder, memory = varied()
    search = DeviceSearch(decoder)
    options = DecodingOptions(beam=3, num_captions=3, max_length=12)
    together = search.hypotheses(memory, options)
    assert len({len(found[0].words) for found in together}) > 2
    for index in range(7):
        assert_all_same(search.hypotheses(photo(memory, index), options), [together[index]])


def test_no_beam_finishes():
    decoder, memory = varied(bias=-math.inf)
    options = DecodingOptions(beam=3, num_captions=2, max_length=5, length_penalty=1.0)
    found = DeviceSearch(decoder).hypotheses(memory, options)
    assert_all_same(found, beam_search(decoder, memory, options))
    assert all(not h.finished and len(h.words) == 5 for sentences in found for h in sentences)


@pytest.mark.parametrize("drawing", [{"beam": 3}, {"sample": True, "num_captions": 3}])
def test_words_that_must_not_repeat_are_the_same(drawing):
    decoder, memory = varied(seed=4, bias=-1.0)
    free = DecodingOptions(max_length=12, **drawing)
    options = replace(free, may_repeat=(5, 6))
    found, freely = (
        DeviceSearch(decoder).hypotheses(memory, each, KEYS) for each in (options, free)
    )
    search = sample if options.sample else beam_search
    assert_all_same(found, search(decoder, memory, options, *[KEYS] * options.sample))

    def repeating(hypotheses):
        words = [h.words for sentences in hypotheses for h in sentences]
        return any(one.count(word) > 1 for one in words for word in set(one) - {3, 5, 6})

    assert repeating(freely)
    assert not repeating(found)


def test_equal_scores_are_found_all_the_same():
    """Which of equal sentences comes first is nobody's promise, but their scores are the same."""
    decoder, memory = varied()
    with torch.no_grad():
        decoder.project.weight.zero_()
        decoder.project.bias.zero_()
    options = DecodingOptions(beam=4, num_captions=4, max_length=4)
    found = DeviceSearch(decoder).hypotheses(memory, options)
    for one, other in zip(found, beam_search(decoder, memory, options), strict=True):
        assert [h.score for h in one] == pytest.approx([h.score for h in other])
        assert len({tuple(h.words) for h in one}) == 4


@pytest.mark.parametrize(
    "drawing",
    [
        {},
        {"temperature": 0.7, "min_length": 4},
        {"top_k": 3},
        {"top_p": 0.8},
        {"top_k": 4, "top_p": 0.7, "temperature": 1.4},
    ],
)
def test_draws_are_those_of_the_host(drawing):
    decoder, memory = varied(words=150)
    search = DeviceSearch(decoder)
    for seed, images in [(0, 7), (1, 3)]:
        options = DecodingOptions(sample=True, num_captions=3, max_length=8, seed=seed, **drawing)
        some, keys = memory.first(images), KEYS[:images]
        expected = sample(decoder, some, options, keys)
        assert_all_same(search.hypotheses(some, options, keys), expected)
        assert_drawn(search.draw(some, options, keys), expected)
    assert len({tuple(h.words) for sentences in expected for h in sentences}) > 5


def test_without_sampling_the_draw_is_greedy():
    decoder, memory = varied()
    options = DecodingOptions(beam=1, max_length=7)
    expected = [[found] for found in greedy_search(decoder, memory, options)]
    assert_drawn(DeviceSearch(decoder).draw(memory, options), expected)
    assert {h.finished for (h,) in expected} == {True, False}


def assert_drawn(drawn, expected):
    """Words with END, then padding; lengths count both."""
    for image, sentences in enumerate(expected):
        for row, h in enumerate(sentences):
            ids = [*h.words, *[END] * h.finished]
            assert drawn.lengths[image, row] == len(ids)
            padding = [0] * (drawn.words.shape[-1] - len(ids))
            assert drawn.words[image, row].tolist() == ids + padding


def test_weights_may_change_in_place():
    decoder, memory = varied()
    search, options = DeviceSearch(decoder), DecodingOptions(beam=2, max_length=6)
    before = search.hypotheses(memory, options)
    with torch.no_grad():
        decoder.project.weight.mul_(-1)
    after = search.hypotheses(memory, options)
    assert_all_same(after, beam_search(decoder, memory, options))
    assert [h.words for (h,) in after] != [h.words for (h,) in before]


def test_mixed_precision_gives_what_it_gives_on_the_host():
    decoder, memory = varied(hidden=32, embedding=32)
    options = DecodingOptions(beam=3, num_captions=3, max_length=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = decoder.remember(make_grid(7, 2))
        found = DeviceSearch(decoder).hypotheses(memory, options)
        assert_all_same(found, beam_search(decoder, memory, options))


def test_options_that_need_the_host():
    assert supports(DecodingOptions(beam=4, num_captions=4, min_length=3, banned=(0, 1, 3, 7)), 16)
    assert supports(DecodingOptions(may_repeat=(5,)), 100)
    for needs_host in (
        DecodingOptions(required=(5,)),
        DecodingOptions(beam=4, groups=2),
        DecodingOptions(no_repeat_ngram=2),
        DecodingOptions(prefix_ids=(5,)),
        DecodingOptions(alternatives=2),
    ):
        assert not supports(needs_host, 100)
    once = DecodingOptions(may_repeat=(), max_length=8)  # all words may be used up
    assert not supports(once, 12)


def test_all_words_banned():
    decoder, memory = varied()
    with pytest.raises(ConfigError, match="every word is banned"):
        DeviceSearch(decoder).hypotheses(memory, DecodingOptions(banned=range(3, 16)))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampled", [False, True])
def test_the_captured_graph_gives_what_single_steps_give(sampled, precision, caplog):
    """The second batch replays a graph; a smaller one, and other weights, replay the same."""
    decoder, _ = varied(words=300, hidden=64, embedding=64)
    decoder.cuda()
    options = DecodingOptions(sample=sampled, num_captions=3, max_length=12)
    search = DeviceSearch(decoder)
    with (
        torch.autocast("cuda", dtype=precision, enabled=precision != torch.float32),
        torch.no_grad(),
    ):
        for turn, images in enumerate((7, 7, 3, 7)):
            if turn == 3:
                decoder.project.bias[END] += 1
            grid = make_grid(images, turn)
            memory = decoder.remember(grid._replace(features=grid.features.cuda()))
            keys = KEYS[:images]
            with caplog.at_level(logging.WARNING):
                found = search.hypotheses(memory, options, keys)
            assert not caplog.records
            single = DeviceSearch(decoder).hypotheses(memory, options, keys)
            assert_all_same(found, single)
            if precision == torch.float32:
                host = sample(decoder, memory, options, keys) if sampled else None
                assert_all_same(found, host or beam_search(decoder, memory, options))
