"""Searches under constraints: exact where all sentences can be listed, and never out of bounds."""

import inspect
import itertools
import math
import typing

import numpy as np
import pytest
import torch
from helpers.searches import (
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

from captioner.api import Captioner
from captioner.decoding.options import (
    WORD_OPTIONS,
    CallArguments,
    DecodingOptions,
    OptionArguments,
    decoding_options,
)
from captioner.errors import ConfigError
from captioner.tokenizer import Vocabulary

END = Vocabulary.END
WORDS = range(len(SPECIALS), 7)  # of the tiny vocabulary


def tiny(seed, photos=2):
    decoder = with_end_bias(make_decoder(7, seed=seed, spread=0.8), 0.5)
    return decoder, decoder.remember(make_grid(photos, seed))


def repeats(words, size, given=0):
    """Whether an n-gram of this size occurs again that ends after the first `given` words."""
    ngrams = list(zip(*(words[start:] for start in range(size)), strict=False))
    return any(
        ngram in ngrams[:place] for place, ngram in enumerate(ngrams) if place + size > given
    )


def is_allowed(words, options):
    return (
        options.min_length <= len(words) <= options.max_length
        and not set(options.banned) & set(words)
        and set(options.required) <= set(words)
        and tuple(words[: len(options.prefix_ids)]) == tuple(options.prefix_ids)
        and not (
            options.no_repeat_ngram
            and repeats(words, options.no_repeat_ngram, len(options.prefix_ids))
        )
        and not any(
            word in words[:place] and word not in options.may_repeat
            for place, word in enumerate(words)
            if options.may_repeat is not None and place >= len(options.prefix_ids)
        )
    )


def all_sentences(decoder, memory, options):
    """Every allowed sentence of one photo with its score, best first."""
    scored = []
    for length in range(options.max_length + 1):
        for words in itertools.product(WORDS, repeat=length):
            if is_allowed(words, options):
                total = sum(teacher_forced(decoder, memory, words)[0])
                scored.append((total / options.divisor(length + 1), list(words)))
    return sorted(scored, reverse=True)


@pytest.mark.parametrize(
    "constraints",
    [
        {"length_penalty": "average"},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2, "min_length": 2},
        {"banned": (0, 1, 3, 5)},
        {"required": (4,)},
        {"required": (6, 4), "length_penalty": 1.0},
        {"required": (4, 5, 6), "no_repeat_ngram": 2},
        {"required": (5,), "banned": (0, 1, 3, 4), "min_length": 3, "length_penalty": "average"},
        {"may_repeat": (5,)},
        {"may_repeat": (), "min_length": 2},
        {"may_repeat": (4,), "required": (4, 6)},
        {"prefix_ids": (5,)},
        {"prefix_ids": (5,), "may_repeat": (6,)},
        {"prefix_ids": (4, 4), "no_repeat_ngram": 1, "length_penalty": "average"},
        {"prefix_ids": (6, 5, 6)},
        {"prefix_ids": (5,), "required": (5, 4), "banned": (0, 1, 3, 6)},
    ],
)
def test_a_full_beam_lists_all_allowed_sentences_in_order(constraints):
    decoder, memory = tiny(seed=len(constraints))
    options = DecodingOptions(beam=108, num_captions=40, max_length=3, **constraints)
    for index, found in enumerate(beam_search(decoder, memory, options)):
        expected = all_sentences(decoder, photo(memory, index), options)
        ended = [h for h in found if h.finished]
        assert [h.words for h in ended] == [words for _, words in expected]
        scores = [score for score, _ in expected]
        assert [h.score for h in ended] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0, "average"])
@pytest.mark.parametrize(
    "constraints",
    [
        {},
        {"required": (9,)},
        {"prefix_ids": (9, 8)},
        {"no_repeat_ngram": 2},
        {"groups": 2, "beam": 8, "num_captions": 8},
    ],
)
def test_stopping_early_changes_nothing(constraints, penalty, monkeypatch):
    decoder = with_end_bias(make_decoder(14, seed=2, spread=1.5), 1.0)
    memory = decoder.remember(make_grid(6, 2))
    asked = {"beam": 4, "num_captions": 2, "length_penalty": penalty, **constraints}
    options = DecodingOptions(max_length=9, **asked)
    alone = [photo(memory, index) for index in range(6)]  # so that nobody waits for another
    early = [beam_search(decoder, one, options)[0] for one in alone]
    monkeypatch.setattr(DecodingOptions, "largest_divisor", lambda self, tokens: 1e9)
    for found, expected in zip(early, beam_search(decoder, memory, options), strict=True):
        ended = [[h.words for h in each if h.finished] for each in (found, expected)]
        assert ended[0] == ended[1]


def log_probs_after(decoder, memory, words):
    """Log-probabilities of the word after a sentence so far of one photo: (V,)."""
    state = decoder.start(memory)
    for word in [Vocabulary.START, *words]:
        step = decoder.step(state, torch.tensor([[word]]), memory)
        state = step.state
    return step.logits[0, 0].log_softmax(-1).tolist()


def textbook_groups(decoder, memory, options):
    """Diverse beam search of one photo with lists; the finished sentences of each group."""
    live = [[(0.0, [])] for _ in range(options.groups)]
    pools = [[] for _ in range(options.groups)]
    for length in range(options.max_length + 1):
        used = []
        for group in range(options.groups):
            candidates = []
            for total, words in live[group]:
                for word, log_prob in enumerate(log_probs_after(decoder, memory, words)):
                    if word not in SPECIALS or (word == END and length >= options.min_length):
                        rank = total + log_prob - options.diversity * used.count(word)
                        candidates.append((rank, total + log_prob, [*words, word]))
            candidates.sort(key=lambda candidate: -candidate[0])
            for _, total, words in candidates[: options.width]:
                if words[-1] == END:
                    pools[group].append((total, words[:-1]))
            going = [(total, words) for _, total, words in candidates if words[-1] != END]
            live[group] = going[: options.width]
            used += [words[-1] for _, words in live[group]]
    return [
        [words for _, words in sorted(pool, key=lambda entry: -entry[0])][: options.width]
        for pool in pools
    ]


@pytest.mark.parametrize("diversity", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("seed", [2, 3, 4])
@torch.no_grad()
def test_groups_equal_the_textbook(diversity, seed):
    decoder = with_end_bias(make_decoder(10, seed=seed), 1.5)
    memory = decoder.remember(make_grid(3, seed))
    options = DecodingOptions(beam=6, groups=3, num_captions=6, max_length=6, diversity=diversity)
    for index, found in enumerate(beam_search(decoder, memory, options)):
        pools = textbook_groups(decoder, photo(memory, index), options)
        expected = {tuple(words) for pool in pools for words in pool}
        assert {tuple(h.words) for h in found if h.finished} == expected
        best = {tuple(pool[0]) for pool in pools if pool}
        assert {tuple(h.words) for h in found[: len(best)]} == best
        for h in found:
            total = sum(teacher_forced(decoder, photo(memory, index), h.words, h.finished)[0])
            assert h.score == pytest.approx(total, abs=1e-4)  # the model's own, without λ


def test_groups_say_different_things():
    decoder = with_end_bias(make_decoder(20, seed=3), 0.5)
    memory = decoder.remember(make_grid(8, 3))

    def first_words(**options):
        options = DecodingOptions(beam=4, num_captions=4, max_length=8, **options)
        return sum(
            len({h.words[0] for h in found}) for found in beam_search(decoder, memory, options)
        )

    assert first_words(groups=4, diversity=5.0) > first_words()


def test_what_two_groups_find_comes_once():
    """And no unfinished sentence of a search that stopped early fills its place."""
    decoder = with_end_bias(make_decoder(12, seed=3), 4.0)
    memory = decoder.remember(make_grid(6, 3))
    options = DecodingOptions(beam=2, groups=2, num_captions=2, max_length=9, diversity=0.0)
    alone = DecodingOptions(beam=1, max_length=9)
    expected = [found[0].words for found in beam_search(decoder, memory, alone)]
    for found, words in zip(beam_search(decoder, memory, options), expected, strict=True):
        assert [h.words for h in found] == [words]
        assert found[0].finished


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_combination_breaks_a_promise(data):
    """Whatever is asked: no banned word, repeat, wrong length, NaN or missing result."""
    draw = data.draw
    size = draw(st.integers(6, 9))
    words = list(range(len(SPECIALS), size))
    banned = draw(st.sets(st.sampled_from(words), max_size=len(words) - 1))
    sampled = draw(st.booleans())
    groups = 1 if sampled else draw(st.integers(1, 2))
    width, longest = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    count = draw(st.integers(1, width * groups))
    asked = {
        "beam": width * groups,
        "groups": groups,
        "num_captions": count,
        "max_length": longest,
        "min_length": draw(st.integers(0, longest)),
        "length_penalty": draw(st.sampled_from([0.0, 1.0, -1.0, "average"])),
        "banned": (*SPECIALS[:2], Vocabulary.UNK, *banned),
        "no_repeat_ngram": draw(st.integers(0, 3)),
        "mbr": draw(st.sampled_from([0, max(2, count)])) if width * groups > 1 else 0,
    }
    if sampled:
        asked |= {"sample": True, "temperature": draw(st.sampled_from([1e-300, 0.5, 1.0, 50.0]))}
        asked |= {"top_k": draw(st.integers(0, 4)), "top_p": draw(st.sampled_from([1e-9, 0.6, 1]))}
    free = sorted(set(words) - banned)
    prefix = draw(st.lists(st.sampled_from(free), max_size=min(3, longest)))
    asked["prefix_ids"] = prefix
    if not sampled:
        most = min(3, longest - len(prefix))
        asked["required"] = draw(st.lists(st.sampled_from(free), max_size=most))
    options = DecodingOptions(**asked)
    decoder = with_end_bias(
        make_decoder(size, seed=draw(st.integers(0, 9)), spread=draw(st.sampled_from([0.5, 3.0]))),
        draw(st.sampled_from([-30.0, -1.0, 1.0, 30.0])),
    )
    memory = decoder.remember(make_grid(2))
    if sampled:
        results = sample(decoder, memory, options, [5, 6])
        assert {len(found) for found in results} == {options.candidates}
    else:
        results = beam_search(decoder, memory, options)
        if not options.required:
            results += [[found] for found in greedy_search(decoder, memory, options)]
    for found in results:
        assert 1 <= len(found) <= options.candidates
        for h in found:
            assert h.words or (h.finished and options.min_length == 0)
            assert not {*banned, *SPECIALS} & set(h.words)
            assert math.isfinite(h.score)
            assert len(h.log_probs) == len(h.words) + h.finished
            assert all(math.isfinite(value) for value in h.log_probs)
            assert np.isfinite(h.attention).all()
            assert len(h.attention) == len(h.words) <= longest
            size = options.no_repeat_ngram
            assert not (size and repeats(h.words, size, len(prefix)))
            assert h.words[: len(prefix)] == prefix
            if h.finished:
                assert is_allowed(h.words, options)
            elif len(h.words) < longest:  # nothing was allowed to follow
                dead = [*h.words, None]
                for word in set(words) - banned:
                    dead[-1] = word
                    assert repeats(dead, size, len(prefix))
            elif not size:
                assert set(options.required) <= set(h.words)


def test_what_is_cut_has_the_required_words_too():
    decoder = with_end_bias(make_decoder(9, seed=1, spread=3.0), -30.0)
    memory = decoder.remember(make_grid(8, 1))
    for required in ((4,), (5, 8)):
        options = DecodingOptions(beam=4, num_captions=4, max_length=4, required=required)
        for found in beam_search(decoder, memory, options):
            assert not any(h.finished for h in found)
            assert all(set(required) <= set(h.words) for h in found)


def test_a_sentence_that_gets_stuck_is_kept():
    """Three words that must not repeat cannot make four: the best attempt, flagged."""
    decoder, memory = tiny(seed=0)
    options = DecodingOptions(beam=3, min_length=4, max_length=6, no_repeat_ngram=1)
    for groups in (1, 3):
        grouped = DecodingOptions(
            beam=3, groups=groups, min_length=4, max_length=6, no_repeat_ngram=1
        )
        for (found,) in beam_search(decoder, memory, grouped):
            assert sorted(found.words) == [4, 5, 6]
            assert not found.finished
    for found in greedy_search(decoder, memory, options):
        assert sorted(found.words) == [4, 5, 6]
        assert not found.finished


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beam": 0}, "beam"),
        ({"min_length": 5, "max_length": 4}, "above max_length"),
        ({"required": (4, 5), "max_length": 1}, "do not fit"),
        ({"prefix_ids": (4, 5), "max_length": 1}, "2 words of the prefix do not fit"),
        ({"prefix_ids": (4,), "required": (4, 5), "max_length": 1}, "1 required .* the prefix"),
        ({"prefix_ids": (4,), "banned": (0, 1, 3, 4)}, "banned and in the prefix"),
        ({"prefix_ids": (4, END)}, "special token"),
        ({"required": (4,), "banned": (0, 1, 3, 4)}, "banned and required"),
        ({"required": (4,), "sample": True}, "beam search"),
        ({"groups": 2, "sample": True}, "beam search"),
        ({"beam": 3, "groups": 2}, "multiple"),
        ({"temperature": 0.5}, "add sample"),
        ({"temperature": 0.0, "sample": True}, "temperature"),
        ({"top_p": 1.5, "sample": True}, "top_p"),
        ({"length_penalty": math.nan}, "length_penalty"),
        ({"length_penalty": "mean"}, "length_penalty"),
        ({"mbr": 1}, "mbr"),
        ({"beam": 3, "mbr": 9}, "beam 9"),
        ({"banned": (0, 1, 2, 3)}, "END"),
    ],
)
def test_contradictions_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        DecodingOptions(**wrong)


def test_options_that_do_not_fit_the_vocabulary_are_refused():
    decoder, memory = tiny(seed=0)
    for wrong in ({"banned": range(3, 7)}, {"required": (7,)}, {"prefix_ids": (4, 7)}):
        with pytest.raises(ConfigError):
            beam_search(decoder, memory, DecodingOptions(**wrong))


def test_words_become_ids():
    vocabulary = Vocabulary.build([["dog", "dogs", "cat", "red"]], min_count=1)
    options = decoding_options(vocabulary, ban=["Dog", "zebra"], require=["cat", "cat"], beam=5)
    assert [vocabulary.words[i] for i in options.required] == ["cat"]
    assert [vocabulary.words[i] for i in options.banned] == ["<pad>", "<start>", "<unk>", "dog"]
    assert options.beam == 5
    begun = decoding_options(vocabulary, prefix=" Red  DOGS.").prefix_ids
    assert [vocabulary.words[i] for i in begun] == ["red", "dogs"]
    for wrong, message in [
        ({"require": ["dgo"]}, "'dgo'; near: dog"),
        ({"require": ["red dog"]}, "not one word"),
        ({"require": ["cat"], "ban": ["cat"]}, "banned and required"),
        ({"ban": "dog"}, "lists of words"),
        ({"prefix": "red dgo"}, "the word 'dgo' of the prefix; near: dog"),
        ({"prefix": "red dog", "ban": ["red"]}, "'red' is banned and in the prefix"),
        ({"prefix": ["red"]}, "one text"),
        ({"prefix": "."}, "no words"),
    ]:
        with pytest.raises(ConfigError, match=message):
            decoding_options(vocabulary, **wrong)


def test_editors_know_every_option():
    known = typing.get_type_hints(OptionArguments)
    words = {name: known.pop(name) for name in WORD_OPTIONS}
    assert known == typing.get_type_hints(DecodingOptions)
    assert words.keys() <= inspect.signature(decoding_options).parameters.keys()
    more = typing.get_type_hints(CallArguments).keys() - known.keys() - words.keys()
    assert more < inspect.signature(Captioner.stream).parameters.keys()


def test_words_of_english_do_not_repeat_unless_they_may():
    """By default, for function words and for vocabularies of other languages they may."""
    english = "a an the this that these in on at to from by for is are was of with and or"
    english += " his her its their it he she they two up down out over near while who"
    vocabulary = Vocabulary((*Vocabulary.SPECIALS, *english.split(), "shirt", "blue"))
    may = decoding_options(vocabulary).may_repeat
    assert may is not None
    assert {"a", "the", "with"} <= {vocabulary.words[id] for id in may}
    assert not {"shirt", "blue"} & {vocabulary.words[id] for id in may}
    assert decoding_options(vocabulary, repeat_words=True).may_repeat is None
    german = Vocabulary((*Vocabulary.SPECIALS, "ein", "in", "an", "hund", "der", "was"))
    assert decoding_options(german).may_repeat is None
