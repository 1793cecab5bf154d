"""Gradient saliency: the derivative of each word's log-probability, cell by cell."""

import pytest
import torch
from helpers.saliency import KINDS, L, OneCell, grid_of_one_cell
from helpers.tiny import FEATURES, SIDE, make_decoder, make_grid

from captioner.evaluation.saliency import saliency_maps, word_log_probs
from captioner.models.encoder import Grid

WORDS = [5, 7, 4, 8]


def test_finds_the_only_cell_that_matters():
    maps = saliency_maps(OneCell(5), grid_of_one_cell(5), [4, 4])
    assert maps.shape == (2, L)
    assert torch.equal(maps, torch.eye(L)[[5, 5]])


def test_cells_that_speak_against_the_word_do_not_count():
    maps = saliency_maps(OneCell(5, sign=-1.0), grid_of_one_cell(5), [4])
    assert torch.allclose(maps, torch.full((1, L), 1 / L))  # nothing speaks for it: uniform


def test_a_featureless_photo_gives_uniform_maps():
    grid = Grid(torch.ones(1, L, FEATURES), (SIDE, SIDE))
    assert torch.allclose(saliency_maps(make_decoder(), grid, WORDS), torch.tensor(1 / L))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_derivative(kind):
    """Moving one cell a little towards the mean changes the word as the map says."""
    decoder, grid = make_decoder(attention={"kind": kind}), make_grid(1, seed=3)
    mean, step = grid.features.mean(1), 0.02
    slopes = torch.zeros(len(WORDS), L)
    for cell in range(L):
        ends = []
        for sign in (-1, 1):
            features = grid.features.clone()
            features[:, cell] += sign * step * (mean - features[:, cell])
            with torch.no_grad():
                memory = decoder.remember(Grid(features, grid.size))
                ends.append(word_log_probs(decoder, memory, WORDS)[0])
        slopes[:, cell] = (ends[0] - ends[1]) / (2 * step)
    expected = slopes.clamp(min=0)
    expected /= expected.sum(1, keepdim=True)
    found = saliency_maps(decoder, grid, WORDS)
    assert torch.allclose(found.sum(1), torch.ones(len(WORDS)))
    assert torch.allclose(found, expected, atol=5e-3)


def test_a_word_does_not_depend_on_the_words_after_it():
    decoder, grid = make_decoder(), make_grid(1)
    whole, half = (saliency_maps(decoder, grid, words) for words in (WORDS, WORDS[:2]))
    assert torch.allclose(whole[:2], half, atol=1e-6)


def test_leaves_no_trace():
    decoder, grid = make_decoder(), make_grid(1)
    with torch.no_grad():
        saliency_maps(decoder, grid, WORDS)
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert not grid.features.requires_grad
    assert saliency_maps(decoder, grid, []).shape == (0, L)
