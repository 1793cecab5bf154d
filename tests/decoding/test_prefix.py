"""Sentences that begin with given words; test_options.py holds them against brute force."""

import pytest
from helpers.searches import (
    assert_same,
    beam_search,
    greedy_search,
    photo,
    sample,
    teacher_forced,
    with_end_bias,
)
from helpers.tiny import make_decoder, make_grid

from captioner.decoding.options import DecodingOptions


def varied():
    decoder = with_end_bias(make_decoder(16, seed=2, spread=1.5), 1.0)
    return decoder, decoder.remember(make_grid(6, seed=2))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("required", [(), (11, 6)])
def test_scores_and_maps_cover_the_prefix(groups, required):
    """They are the model's own, for the given words as for the others."""
    decoder, memory = varied()
    options = DecodingOptions(
        beam=4, groups=groups, num_captions=4, max_length=8, prefix_ids=(9, 6), required=required
    )
    for index, found in enumerate(beam_search(decoder, memory, options)):
        assert len(found) > 1
        for h in found:
            assert h.words[:2] == [9, 6]
            log_probs, maps = teacher_forced(decoder, photo(memory, index), h.words, h.finished)
            assert h.log_probs == pytest.approx(log_probs, abs=1e-4)
            assert h.score == pytest.approx(sum(log_probs), abs=1e-4)
            assert h.attention == pytest.approx(maps, abs=1e-5)


def test_the_first_words_of_a_sentence_lead_to_it_again():
    """In greedy search and sampling, whose next word depends on the words before it alone."""
    decoder, memory = varied()
    drawn = {"sample": True, "top_p": 0.9, "seed": 3}
    for index in range(6):
        one = photo(memory, index)
        (greedy,) = greedy_search(decoder, one, DecodingOptions(max_length=9))
        ((drawn_one,),) = sample(decoder, one, DecodingOptions(max_length=9, **drawn), [5])
        for count in range(len(greedy.words) + 1):
            options = DecodingOptions(max_length=9, prefix_ids=greedy.words[:count])
            assert_same(greedy_search(decoder, one, options), [greedy])
        for count in range(len(drawn_one.words) + 1):
            options = DecodingOptions(max_length=9, prefix_ids=drawn_one.words[:count], **drawn)
            assert_same(sample(decoder, one, options, [5])[0], [drawn_one])


def test_a_full_beam_finds_its_best_sentence_from_each_of_its_beginnings():
    decoder = with_end_bias(make_decoder(7, seed=1, spread=0.8), -0.5)
    memory = decoder.remember(make_grid(1, 1))
    ((best,),) = beam_search(decoder, memory, DecodingOptions(beam=108, max_length=3))
    assert best.words
    for count in range(1, len(best.words) + 1):
        options = DecodingOptions(beam=108, max_length=3, prefix_ids=best.words[:count])
        assert_same(beam_search(decoder, memory, options)[0], [best])


def test_a_prefix_as_long_as_a_sentence_may_be():
    decoder, memory = varied()
    options = DecodingOptions(beam=3, num_captions=2, max_length=2, prefix_ids=(9, 6))
    for found in beam_search(decoder, memory, options):
        assert [h.words for h in found] == [[9, 6]]  # ended or cut, not both


def test_models_together_begin_alike():
    decoders = [make_decoder(16, seed=seed, spread=1.5) for seed in (2, 3)]
    memories = [decoder.remember(make_grid(3, seed=2)) for decoder in decoders]
    options = DecodingOptions(beam=3, max_length=6, prefix_ids=(7, 8))
    for (found,) in beam_search(decoders, memories, options):
        assert found.words[:2] == [7, 8]
        assert len(found.attention) == len(found.words)
