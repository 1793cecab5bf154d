"""The deletion check: what deleting cells does, and what is counted."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.saliency import KINDS, L, OneCell, grid_of_one_cell
from helpers.tiny import SIDE, make_decoder, make_grid

from captioner.evaluation.faithfulness import (
    FaithfulnessMeasure,
    by_weight,
    deleted_log_probs,
    first_cells,
    from_centre,
    memory_with_mean,
)
from captioner.evaluation.saliency import saliency_maps, word_log_probs
from captioner.models.encoder import Grid

WORDS = [5, 7, 4, 8]


def log_probs(decoder, grid, deleted, words=WORDS):
    return deleted_log_probs(decoder, memory_with_mean(decoder, grid), deleted, words)


def intact(decoder, grid):
    return word_log_probs(decoder, decoder.remember(grid), WORDS)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("options", [{}, {"gate": "channel", "deep_output": True}])
def test_deleting_is_replacing_by_the_mean_feature(kind, smooth, options):
    attention = {"kind": kind, "see_word": True, "smooth": smooth}
    decoder, grid = make_decoder(attention=attention, **options), make_grid(1)
    deleted = np.random.default_rng(0).random((40, L)) < 0.4  # more than go through at a time
    found = log_probs(decoder, grid, deleted)
    assert found.shape == (40, len(WORDS))
    mean = grid.features.mean(1, keepdim=True)
    for row, cells in zip(found, torch.from_numpy(deleted), strict=True):
        damaged = torch.where(cells[None, :, None], mean, grid.features)
        with torch.no_grad():
            expected = intact(decoder, Grid(damaged, grid.size))
        assert torch.allclose(row, expected, atol=1e-5)


def test_deleting_none_and_all():
    decoder, grid = make_decoder(), make_grid(1)
    none, every = log_probs(decoder, grid, np.array([[False] * L, [True] * L]))
    with torch.no_grad():
        assert torch.allclose(none, intact(decoder, grid), atol=1e-6)
        mean = grid.features.mean(1, keepdim=True).expand(-1, L, -1)
        plain = intact(decoder, Grid(mean, grid.size))
    assert torch.allclose(every, plain, atol=1e-6)
    assert not torch.allclose(none, every, atol=1e-2)


def test_first_cells():
    order = np.array([3, 1, 0, 2, 4, 5, 6, 7, 8, 9])
    chosen = first_cells(order, [0, 0.01, 0.2, 0.5, 1])
    assert chosen.sum(1).tolist() == [0, 1, 2, 5, 10]  # at least one, unless none is asked for
    assert np.flatnonzero(chosen[2]).tolist() == [1, 3]
    assert all(np.all(less <= more) for less, more in pairwise(chosen))


def test_orders():
    random = np.random.default_rng(0)
    assert by_weight(np.array([[0.1, 0.4], [0.2, 0.3]]), random).tolist() == [1, 3, 2, 0]
    ties = {tuple(by_weight(np.ones(4), random)) for _ in range(200)}
    assert len(ties) > 12  # of 24: equal cells have no fixed order
    order = from_centre((3, 3), random)
    assert order[0] == 4
    assert set(order[1:5]) == {1, 3, 5, 7}
    assert set(from_centre((2, 4), random)[:4]) == {1, 2, 5, 6}


def one_cell_report(shown, words=("dog",), **options):
    """The check of a stand-in whose word depends on cell 5, with a map that shows `shown`."""
    decoder, grid = OneCell(5), grid_of_one_cell(5, height=6.0)
    measure = FaithfulnessMeasure(decoder, **options)
    ids = [4] * len(words)
    attention = np.eye(L)[[shown] * len(words)]
    for _ in range(3):
        saliency = saliency_maps(decoder, grid, ids).numpy()
        measure.add(grid, ids, words, attention, saliency)
    return measure.report(samples=50)


def test_a_true_map_beats_all_and_a_false_one_none():
    true, false = (one_cell_report(shown).groups["all"] for shown in (5, 0))
    assert true.drops["attention"] == pytest.approx(true.drops["saliency"])
    assert true.drops["attention"][0] > 0.1  # its first cell is the one
    assert true.gains["random"] > 0.05
    assert true.gain_intervals["random"][0] > 0
    assert true.gains["saliency"] == pytest.approx(0)
    assert true.above_random == 1
    assert false.drops["attention"][0] == pytest.approx(0, abs=1e-6)
    assert false.gains["saliency"] < -0.05


def test_random_is_the_mean_over_draws():
    """Of L cells one matters: at a share s, that is among them in s of the draws."""
    curve = one_cell_report(5, shares=(1 / L, 4 / L, 1.0), draws=400).groups["all"]
    full = curve.drops["attention"][0]
    assert curve.drops["random"] == pytest.approx([full / L, 4 * full / L, full], abs=0.05 * full)
    assert curve.drops["centre"][0] == pytest.approx(0, abs=1e-6)  # cell 4 is the centre
    assert curve.drops["centre"][2] == pytest.approx(full)


def test_only_content_words_count():
    report = one_cell_report(5, words=("a", "red", "dog", "with", "two", "dogs", "running"))
    counts = {name: curve.words for name, curve in report.groups.items()}
    assert counts == {"all": 15, "object": 6, "colour": 3, "number": 3, "other": 3}
    assert report.images == 3
    empty = one_cell_report(5, words=("a", "of"))
    assert empty.groups == {}
    assert "no content word" in empty.table()
    assert one_cell_report(5, words=()).groups == {}
    nothing = FaithfulnessMeasure(OneCell(5)).report()
    assert (nothing.images, nothing.groups) == (0, {})


def test_report():
    decoder = make_decoder(words=12)
    measures = [FaithfulnessMeasure(decoder, seed=4) for _ in range(2)]
    words = ("a", "dog", "runs", "fast")
    for measure in measures:
        for photo in range(4):
            grid = make_grid(1, seed=photo)
            with torch.no_grad():
                maps = decoder(
                    decoder.remember(grid),
                    torch.tensor([[[1, *WORDS]]]),
                    torch.tensor([[len(WORDS)]]),
                ).attention[0, 0]
            saliency = saliency_maps(decoder, grid, WORDS).numpy()
            measure.add(grid, WORDS, words, maps.reshape(-1, SIDE, SIDE).numpy(), saliency)
    first, second = (measure.report(samples=100) for measure in measures)
    assert first == second  # the same seed, the same draws
    curve = first.groups["all"]
    assert curve.words == 12
    assert curve.areas["attention"] == pytest.approx(np.mean(curve.drops["attention"]))
    for name, (low, high) in curve.area_intervals.items():
        assert low <= curve.areas[name] <= high
    for name in ("saliency", "centre", "random"):
        difference = curve.areas["attention"] - curve.areas[name]
        assert curve.gains[name] == pytest.approx(difference)
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert plain["groups"]["all"]["words"] == 12
    assert plain["bootstrap"]["samples"] == 100
    lines = first.table().splitlines()
    assert len({len(line) for line in lines[1:9]}) == 1  # the columns stand under each other
