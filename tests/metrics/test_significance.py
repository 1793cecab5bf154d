"""Intervals and paired tests against brute force: captions scored again, swaps enumerated."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import DataError
from captioner.metrics import significance as statistics
from captioner.metrics.bleu import bleu
from captioner.metrics.cider import DocumentFrequency, cider_d
from captioner.metrics.coco_caption import score_tokens
from captioner.metrics.rouge import rouge_l
from captioner.metrics.significance import (
    ScoreTable,
    bootstrap_intervals,
    compare_tables,
    metrics_of_sums,
)

CAPTION = st.lists(st.sampled_from("abcd"), max_size=6)
PHOTO = st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3))
PHOTOS = st.lists(PHOTO, min_size=2, max_size=6)


def random_photos(count, seed):
    """Candidates of three systems, and references, of random words."""
    rng = np.random.default_rng(seed)

    def caption():
        return list(rng.choice(list("abcdefgh"), rng.integers(3, 9)))

    references = [[caption() for _ in range(3)] for _ in range(count)]
    good = [[*refs[0][:4], *caption()[:1]] for refs in references]
    return good, [caption() for _ in range(count)], references


def table(candidates, references):
    return ScoreTable.of(score_tokens(candidates, references))


@given(PHOTOS, st.data())
def test_scores_of_any_resample_follow_from_its_sums(photos, data):
    candidates, references = zip(*photos, strict=True)
    draw = data.draw(st.lists(st.integers(0, len(photos) - 1), min_size=1, max_size=8))
    rows = table(candidates, references).rows[draw]
    found = metrics_of_sums(rows.sum(0, keepdims=True), len(draw))

    drawn = [candidates[i] for i in draw], [references[i] for i in draw]
    expected = dict(zip(["bleu1", "bleu2", "bleu3", "bleu4"], bleu(*drawn).scores, strict=True))
    expected["rouge_l"] = rouge_l(*drawn).score
    # The document frequencies stay those of all photos.
    expected["cider"] = cider_d(*drawn, DocumentFrequency(references)).score
    assert {name: values.item() for name, values in found.items()} == pytest.approx(
        expected, abs=1e-12
    )


@given(PHOTOS, st.data())
def test_leaving_out_a_photo_never_gains(photos, data):
    candidates, references = zip(*photos, strict=True)
    left_out = data.draw(st.sets(st.integers(0, len(photos) - 1), min_size=1))
    kept = [None if i in left_out else words for i, words in enumerate(candidates)]
    full, partial = score_tokens(candidates, references), score_tokens(kept, references)
    assert partial.rouge_l.score <= full.rouge_l.score + 1e-12
    assert partial.cider.score <= full.cider.score + 1e-9
    longest = [max(map(len, captions)) for captions in references]
    if all(len(words) <= most for words, most in zip(candidates, longest, strict=True)):
        for less, more in zip(partial.bleu.scores, full.bleu.scores, strict=True):
            assert less <= more * (1 + 1e-6) + 1e-9


def test_an_empty_caption_can_gain_bleu_but_a_left_out_one_cannot():
    long = [["a", "b", "c", "d", "e", "f"], ["x", "y"]]
    references = [[["a", "b", "c", "d"]], [["p", "q"]]]

    def score(second):
        return score_tokens([long[0], second], references).bleu.scores[0]

    assert score([]) > score(long[1])
    assert score(None) < score(long[1])


def test_intervals_are_those_of_the_normal_approximation_for_a_mean():
    rng = np.random.default_rng(1)
    rows = np.zeros((500, 12))
    rows[:, -2] = rng.random(500)
    rows[:, -1] = np.nan
    low, high = bootstrap_intervals(ScoreTable(rows))["rouge_l"]
    half = 1.96 * rows[:, -2].std() / np.sqrt(500)
    assert (low + high) / 2 == pytest.approx(rows[:, -2].mean(), abs=half / 5)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_intervals_hold_the_score_and_follow_the_seed():
    good, _, references = random_photos(60, seed=0)
    scores = table(good, references)
    intervals = bootstrap_intervals(scores, samples=200)
    assert intervals == bootstrap_intervals(scores, samples=200)
    assert intervals != bootstrap_intervals(scores, samples=200, seed=1)
    assert intervals.keys() == scores.metrics().keys()
    for name, value in scores.metrics().items():
        low, high = intervals[name]
        assert low < value < high
    wide = bootstrap_intervals(scores, samples=200, confidence=0.99)
    assert all(wide[name][0] <= intervals[name][0] for name in wide)


def test_many_photos_are_resampled_a_few_at_a_time(monkeypatch):
    good, _, references = random_photos(20, seed=0)
    whole = bootstrap_intervals(table(good, references), samples=50)
    monkeypatch.setattr(statistics, "_CELLS", 45)
    assert bootstrap_intervals(table(good, references), samples=50) == whole


def test_metrics_of_the_table_are_those_of_the_scores():
    good, _, references = random_photos(20, seed=0)
    scores = score_tokens(good, references)
    assert ScoreTable.of(scores).metrics() == pytest.approx(scores.summary())


def test_one_photo_has_no_interval_and_no_cider():
    scores = table([["a"]], [[["a"]]])
    assert bootstrap_intervals(scores) == {}
    assert "cider" not in scores.metrics()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_p_values_are_those_of_all_swaps(seed):
    good, bad, references = random_photos(7, seed)
    a, b = table(good, references), table(bad, references)
    found = compare_tables(a, b, trials=4000)
    reached = dict.fromkeys(found, 0)
    for swap in itertools.product([False, True], repeat=7):
        mask = np.array(swap)[:, None]
        first = ScoreTable(np.where(mask, b.rows, a.rows)).metrics()
        second = ScoreTable(np.where(mask, a.rows, b.rows)).metrics()
        for name, d in found.items():
            reached[name] += abs(second[name] - first[name]) >= abs(d.difference) - 1e-9
    for name, d in found.items():
        assert d.p_value == pytest.approx(reached[name] / 2**7, abs=0.05)


def test_a_better_model_is_told_from_a_worse_one_and_from_itself():
    good, bad, references = random_photos(80, seed=3)
    a, b = table(bad, references), table(good, references)
    for name, d in compare_tables(a, b, trials=500).items():
        assert d.p_value < 0.05, name
        assert 0 < d.low < d.difference < d.high
    for d in compare_tables(a, a, trials=500).values():
        assert (d.difference, d.low, d.high, d.p_value) == (0, 0, 0, 1)


def test_p_is_never_zero():
    good, bad, references = random_photos(200, seed=5)
    a, b = table(bad, references), table(good, references)
    for d in compare_tables(a, b, trials=99).values():
        assert d.p_value == 1 / 100  # no swap comes near: only the observed assignment counts


def test_exchanging_the_models_turns_the_signs():
    good, bad, references = random_photos(30, seed=4)
    a, b = table(bad, references), table(good, references)
    forth, back = compare_tables(a, b, trials=200), compare_tables(b, a, trials=200)
    for name, d in forth.items():
        assert d.difference == -back[name].difference
        assert (d.low, d.high) == pytest.approx((-back[name].high, -back[name].low))


def test_tables_that_do_not_match_are_refused():
    good, bad, references = random_photos(5, seed=0)
    with pytest.raises(DataError, match="5 photos on one side and 4"):
        compare_tables(table(good, references), table(bad[:4], references[:4]))
    with pytest.raises(DataError, match="two or more"):
        compare_tables(table(good[:1], references[:1]), table(bad[:1], references[:1]))
