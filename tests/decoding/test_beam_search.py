"""Beam search: exact where it can be checked exhaustively, and the same in any company."""

import itertools
import math

import pytest
import torch
from helpers.searches import (
    END,
    assert_same,
    beam_search,
    greedy_search,
    photo,
    teacher_forced,
    with_end_bias,
)
from helpers.tiny import SPECIALS, make_decoder, make_grid

from captioner.backends.torch import TorchStepper
from captioner.decoding.options import DecodingOptions
from captioner.errors import ConfigError
from captioner.models.attention import Memory
from captioner.models.decoder import State, StepOutput
from captioner.tokenizer import Vocabulary

BANNED = (Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK)


@pytest.mark.parametrize("min_length", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(seed, min_length):
    decoder = make_decoder(20, seed=seed)
    memory = decoder.remember(make_grid(8, seed))
    options = DecodingOptions(beam=1, max_length=9, min_length=min_length)
    greedy = greedy_search(decoder, memory, options)
    for (found,), expected in zip(beam_search(decoder, memory, options), greedy, strict=True):
        assert_same([found], [expected])
        assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
        assert len(found.words) >= min_length


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0, -1.0])
@pytest.mark.parametrize("min_length", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_full_beam_equals_brute_force(seed, min_length, penalty):
    """A beam as wide as the whole tree: all sentences of three words in the order of their score.

    At most 3 words: 1 + 3 + 9 + 27 sentences, and 27·4 continuations at the last step.
    """
    decoder = with_end_bias(make_decoder(7, seed=seed, spread=0.8), 0.5)
    memory = decoder.remember(make_grid(2, seed))
    sentences = [
        list(words)
        for length in range(min_length, 4)
        for words in itertools.product(range(len(SPECIALS), 7), repeat=length)
    ]
    options = DecodingOptions(
        beam=27 * 4,
        num_captions=len(sentences),
        max_length=3,
        min_length=min_length,
        length_penalty=penalty,
    )
    for index, found in enumerate(beam_search(decoder, memory, options)):
        scored = []
        for words in sentences:
            log_probs, _ = teacher_forced(decoder, photo(memory, index), words)
            scored.append((sum(log_probs) / ((5 + len(words) + 1) / 6) ** penalty, words))
        scored.sort(reverse=True)
        assert [h.words for h in found] == [words for _, words in scored]
        assert [h.score for h in found] == pytest.approx([score for score, _ in scored], abs=1e-4)
        assert all(h.finished for h in found)


def textbook_beam(decoder, memory, options):
    """Beam search of one photo with lists, one hypothesis at a time, never stopping early."""
    width = options.beam
    live, pool = [(0.0, [])], []
    for length in range(options.max_length + 1):
        candidates = []
        for total, words in live:
            state = decoder.start(memory)
            for word in [Vocabulary.START, *words]:
                step = decoder.step(state, torch.tensor([[word]]), memory)
                state = step.state
            for word, log_prob in enumerate(step.logits[0, 0].log_softmax(-1).tolist()):
                allowed = word != END or length >= options.min_length
                if word not in options.banned and allowed:
                    candidates.append((total + log_prob, [*words, word]))
        candidates.sort(key=lambda candidate: -candidate[0])
        for total, words in candidates[:width]:
            if words[-1] == END:
                pool.append((total / ((5 + length + 1) / 6) ** options.length_penalty, words[:-1]))
        if length < options.max_length:
            live = [(total, words) for total, words in candidates if words[-1] != END][:width]
    pool = sorted(pool, key=lambda entry: -entry[0])[:width]
    unfinished = [
        (total / ((5 + options.max_length) / 6) ** options.length_penalty, words)
        for total, words in live
    ]
    ended = [words for _, words in pool]
    found = [(*entry, True) for entry in pool]
    found += [(*entry, False) for entry in unfinished if entry[1] not in ended]
    return found[: options.num_captions]


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_narrow_beam_equals_the_textbook(seed, width, penalty):
    """Pruning, the pool of finished sentences and the early stop lose nothing."""
    decoder = with_end_bias(make_decoder(10, seed=seed), 0.7)
    memory = decoder.remember(make_grid(4, seed))
    for num_captions in (1, width):
        options = DecodingOptions(
            beam=width, num_captions=num_captions, max_length=6, length_penalty=penalty
        )
        for index, found in enumerate(beam_search(decoder, memory, options)):
            expected = textbook_beam(decoder, photo(memory, index), options)
            assert [(h.words, h.finished) for h in found] == [entry[1:] for entry in expected]
            scores = [entry[0] for entry in expected]
            assert [h.score for h in found] == pytest.approx(scores, abs=1e-4)


class Bigrams:
    """A decoder that only knows how likely one word follows another."""

    def __init__(self, following, words=9):
        probabilities = torch.full((words, words), 1e-6)
        for word, choices in following.items():
            for choice, probability in choices.items():
                probabilities[word, choice] = probability
        self.logits = probabilities.log()

    def start(self, memory, rows):
        return State(*torch.zeros(2, len(memory.values), rows, 1))

    def step(self, state, words, memory):
        maps = torch.full((*words.shape, memory.values.shape[1]), 1 / 9)
        return StepOutput(self.logits[words], maps, state)


@pytest.mark.parametrize(
    ("penalty", "short", "long", "expected"),
    [
        (3.0, 0.4, 0.2, [4, 5, 6, 7]),  # five tokens later the unlikely beginning has paid off
        (0.0, 0.4, 0.2, []),
        (-1.0, 0.15, 0.5, [4, 5, 6, 7]),  # here each further token costs, but not that much
        (-1.0, 0.4, 0.5, []),
    ],
)
def test_the_early_stop_waits_for_what_can_still_win(penalty, short, long, expected):
    first = {END: short, 4: long, Vocabulary.UNK: 1 - short - long}
    decoder = Bigrams({Vocabulary.START: first, 4: {5: 1}, 5: {6: 1}, 6: {7: 1}, 7: {END: 1}})
    grid = make_grid(1)
    options = DecodingOptions(beam=2, min_length=0, max_length=24, length_penalty=penalty)
    ((found,),) = beam_search(decoder, Memory(grid.features, grid.features, grid.size), options)
    assert found.words == expected
    score = math.log(long if expected else short) / ((5 + len(expected) + 1) / 6) ** penalty
    assert found.score == pytest.approx(score, abs=1e-3)


def varied():
    """A decoder and photos whose sentences end at different times."""
    decoder = with_end_bias(make_decoder(16, seed=2, spread=1.5), 2.0)
    return decoder, decoder.remember(make_grid(9, seed=2))


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_company_changes_nothing(beam, monkeypatch):
    """A photo alone, in a batch, in any order: the same sentences, maps and scores."""
    decoder, memory = varied()
    left = []
    keep = TorchStepper.keep
    monkeypatch.setattr(
        TorchStepper, "keep", lambda self, stay: (left.append(1), keep(self, stay))[1]
    )
    options = DecodingOptions(beam=beam, num_captions=beam, max_length=12)
    together = beam_search(decoder, memory, options)
    assert left, "no photo left the batch early: the test tests nothing"
    assert len({len(found[0].words) for found in together}) > 2
    for index in range(9):
        assert_same(beam_search(decoder, photo(memory, index), options)[0], together[index])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = beam_search(decoder, memory.select(order), options)
    for place, index in enumerate(order.tolist()):
        assert_same(shuffled[place], together[index])
    twice = beam_search(decoder, memory.select(torch.tensor([3, 3, 5])), options)
    assert_same(twice[0], together[3])
    assert_same(twice[1], together[3])


def test_company_changes_nothing_for_greedy():
    decoder, memory = varied()
    options = DecodingOptions(max_length=12)
    together = greedy_search(decoder, memory, options)
    assert len({len(found.words) for found in together}) > 1
    for index in range(9):
        assert_same(
            greedy_search(decoder, photo(memory, index), DecodingOptions(max_length=12)),
            [together[index]],
        )


@pytest.mark.parametrize("num_captions", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_no_beam_finishes(num_captions, penalty):
    decoder = with_end_bias(make_decoder(12), -math.inf)
    memory = decoder.remember(make_grid(3))
    options = DecodingOptions(
        beam=3, num_captions=num_captions, max_length=5, length_penalty=penalty
    )
    for index, found in enumerate(beam_search(decoder, memory, options)):
        assert len(found) == num_captions
        for hypothesis in found:
            assert not hypothesis.finished
            assert len(hypothesis.words) == len(hypothesis.log_probs) == 5
            assert END not in hypothesis.words
            assert hypothesis.attention.shape == (5, 9)
            log_probs, _ = teacher_forced(
                decoder, photo(memory, index), hypothesis.words, ends=False
            )
            expected = sum(log_probs) / (10 / 6) ** penalty
            assert hypothesis.score == pytest.approx(expected, abs=1e-4)
        scores = [hypothesis.score for hypothesis in found]
        assert scores == sorted(scores, reverse=True)
    for hypothesis in greedy_search(decoder, memory, DecodingOptions(max_length=5)):
        assert not hypothesis.finished
        assert len(hypothesis.words) == len(hypothesis.log_probs) == len(hypothesis.attention) == 5


def test_too_few_finish():
    """Finished sentences come first, the best unfinished ones fill up; none comes twice."""
    decoder, memory = varied()
    with_end_bias(decoder, -1.0)
    options = DecodingOptions(beam=6, num_captions=6, max_length=5)
    mixed = 0
    for found in beam_search(decoder, memory, options):
        assert 1 <= len(found) <= 6
        flags = [hypothesis.finished for hypothesis in found]
        assert flags == sorted(flags, reverse=True)
        assert len({tuple(hypothesis.words) for hypothesis in found}) == len(found)
        mixed += 0 < sum(flags) < len(flags)
    assert mixed > 2


@pytest.mark.parametrize("search", ["beam", "greedy"])
def test_specials_are_never_produced(search):
    decoder = make_decoder(12)
    with torch.no_grad():
        decoder.project.bias[list(BANNED)] += 50
    memory = decoder.remember(make_grid(4))
    if search == "greedy":
        found = greedy_search(decoder, memory, DecodingOptions(max_length=8))
    else:
        options = DecodingOptions(beam=3, num_captions=3, max_length=8)
        found = [h for hypotheses in beam_search(decoder, memory, options) for h in hypotheses]
    assert found
    for hypothesis in found:
        assert not {*BANNED, END} & set(hypothesis.words)
        assert all(math.isfinite(log_prob) for log_prob in hypothesis.log_probs)


def test_more_words_can_be_banned_and_unk_allowed():
    decoder = make_decoder(12)
    with torch.no_grad():
        decoder.project.bias[7] += 5
        decoder.project.bias[Vocabulary.UNK] += 5
    memory = decoder.remember(make_grid(4))
    words = {
        word
        for banned in [(Vocabulary.PAD, Vocabulary.START, 7)]
        for (found,) in beam_search(decoder, memory, DecodingOptions(banned=banned, max_length=6))
        for word in found.words
    }
    assert Vocabulary.UNK in words
    assert 7 not in words


@pytest.mark.parametrize("penalty", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["additive", "multi_head"])
def test_scores_and_maps_are_those_of_the_sentence(kind, penalty):
    """What the search says of a sentence is what the model says of it when told the words."""
    decoder = with_end_bias(
        make_decoder(16, spread=0.7, attention={"kind": kind}, deep_output=True), 0.4
    )
    memory = decoder.remember(make_grid(6))
    options = DecodingOptions(beam=4, num_captions=4, max_length=8, length_penalty=penalty)
    for index, found in enumerate(beam_search(decoder, memory, options)):
        assert len({tuple(h.words) for h in found}) == len(found)
        scores = [h.score for h in found if h.finished]
        assert scores == sorted(scores, reverse=True)
        for h in found:
            log_probs, maps = teacher_forced(decoder, photo(memory, index), h.words, h.finished)
            assert h.log_probs == pytest.approx(log_probs, abs=1e-4)
            tokens = len(h.words) + h.finished
            assert h.score == pytest.approx(
                sum(log_probs) / ((5 + tokens) / 6) ** penalty, abs=1e-4
            )
            torch.testing.assert_close(h.attention, maps)


def test_length_penalty_makes_sentences_longer():
    decoder, memory = varied()

    def mean_length(penalty):
        options = DecodingOptions(beam=4, max_length=12, length_penalty=penalty)
        return sum(len(found[0].words) for found in beam_search(decoder, memory, options)) / 9

    assert mean_length(-2.0) < mean_length(4.0)


def test_more_captions_than_beams_are_refused():
    with pytest.raises(ConfigError, match="need beam 9"):
        DecodingOptions(beam=2, num_captions=9)


def test_memory_is_left_alone():
    decoder, memory = varied()
    before = Memory(memory.values.clone(), memory.keys.clone(), memory.size)
    beam_search(decoder, memory, DecodingOptions(beam=3))
    assert torch.equal(memory.values, before.values)
    assert torch.equal(memory.keys, before.keys)
