"""BLEU, ROUGE-L and CIDEr against figures of the official tools and against plain definitions."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import DataError
from captioner.metrics.bleu import bleu
from captioner.metrics.cider import DocumentFrequency, cider_d
from captioner.metrics.coco_caption import score_tokens
from captioner.metrics.ngrams import count_ngrams
from captioner.metrics.rouge import longest_common_subsequence, rouge_l
from captioner.tokenizer import tokenize


def split(captions):
    return [caption.split() for caption in captions]


CANDIDATES = split(
    [
        "a brown goat stands on a rocky hill",
        "two boats in the harbour",
        "a a a a the",
        "the old clock shows nine",
    ]
)
REFERENCES = [
    split(
        [
            "a goat stands on a hill",
            "a brown goat on the rocky hill side",
            "a hill with a goat",
        ]
    ),
    split(["two small boats float in the harbour", "boats in a harbour at dusk"]),
    split(["a girl rides the blue bike to school", "the girl on a bike"]),
    split(
        [
            "an old clock on the tower",
            "the clock shows half past nine",
            "a tower clock",
        ]
    ),
]
# The same with an empty and a one-word candidate.
SHORT_CANDIDATES = [CANDIDATES[0], [], CANDIDATES[2], ["clock"]]

# The figures of pycocoevalcap 1.2 for these captions.
BLEU = [0.7971451756050191, 0.6504379679130555, 0.4693951389906651, 0.30469447911864483]
BLEU_PER_IMAGE = [
    [0.99999999975, 0.9258200995328305, 0.753947440925708, 0.5410822689004724],
    [0.81873075275049, 0.7090416307237545, 0.5157680547617896, 8.657023703488241e-05],
    [0.39999999984, 9.99999999575e-09, 3.2182979472014454e-11, 2.0205155036242722e-12],
    [0.81873075275049, 0.5789300672213649, 4.505648969749411e-06, 1.3910597733719861e-08],
]
ROUGE_PER_IMAGE = [0.8798076923076923, 0.8090185676392573, 0.2953995157384988, 0.7155425219941348]
CIDER_D_PER_IMAGE = [3.066973161857696, 2.856118942348501, 0.0, 1.621832017102127]
SHORT_BLEU = [0.4437070957998528, 0.36969479143128053, 0.29521089258292565, 0.21344338734596294]
SHORT_BLEU_LAST = [
    0.1353352829659427,
    0.00013533528303361024,
    1.3533528305616618e-05,
    4.2796774227674215e-06,
]
SHORT_ROUGE_PER_IMAGE = [0.8798076923076923, 0.0, 0.2953995157384988, 0.45864661654135336]
SHORT_CIDER_D_PER_IMAGE = [3.066973161857696, 0.0, 0.0, 1.1136287389659723]


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_bleu_equals_the_official_figures():
    score = bleu(CANDIDATES, REFERENCES)
    assert score.scores == close(BLEU)
    np.testing.assert_allclose(score.per_image, BLEU_PER_IMAGE, rtol=1e-9)
    short = bleu(SHORT_CANDIDATES, REFERENCES)
    assert short.scores == close(SHORT_BLEU)
    assert short.per_image[3] == close(SHORT_BLEU_LAST)
    assert short.per_image[1] == close([0, 0, 0, 0])


def test_rouge_equals_the_official_figures():
    score = rouge_l(CANDIDATES, REFERENCES)
    assert score.per_image == close(ROUGE_PER_IMAGE)
    assert score.score == close(0.6749420744198957)
    assert rouge_l(SHORT_CANDIDATES, REFERENCES).per_image == close(SHORT_ROUGE_PER_IMAGE)


def test_cider_d_equals_the_official_figures():
    score = cider_d(CANDIDATES, REFERENCES)
    assert score.per_image == close(CIDER_D_PER_IMAGE)
    assert score.score == close(1.886231030327081)
    assert cider_d(SHORT_CANDIDATES, REFERENCES).per_image == close(SHORT_CIDER_D_PER_IMAGE)


def test_official_figures_of_twenty_images():
    """`official_figures.json`: invented captions, scored by pycocoevalcap 1.2."""
    path = Path(__file__).parents[1] / "data" / "official_figures.json"
    content = json.loads(path.read_text("utf-8"))
    images, corpus = content["images"], content["corpus"]
    candidates = [image["candidate"].split() for image in images]
    references = [split(image["references"]) for image in images]
    scores = score_tokens(candidates, references)
    assert scores.summary() == {name: close(value) for name, value in corpus.items()}
    per_image = [scores.bleu, scores.rouge_l, scores.cider]
    for score, name in zip(per_image, ("bleu", "rouge_l", "cider"), strict=True):
        expected = [image[name] for image in images]
        np.testing.assert_allclose(score.per_image, expected, rtol=1e-9, atol=1e-12)


def test_official_figures_of_the_thousand_photos(shared_data):
    path = shared_data / "metrics"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with (path / "official_tokens.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    candidates = [row["candidate"].split() for row in rows]
    references = [split(row["references"]) for row in rows]
    assert figures(candidates, references) == OFFICIAL_FIGURES

    annotations = json.loads((path / "references.json").read_text("utf-8"))["annotations"]
    results = json.loads((path / "results.json").read_text("utf-8"))
    captions = {result["image_id"]: [] for result in results}
    for annotation in annotations:
        captions[annotation["image_id"]].append(tokenize(annotation["caption"]))
    candidates = [tokenize(result["caption"]) for result in results]
    references = [captions[result["image_id"]] for result in results]
    assert figures(candidates, references) == pytest.approx(OFFICIAL_FIGURES, abs=5e-4)


OFFICIAL_FIGURES = [0.57940, 0.40439, 0.27854, 0.19083, 0.39625, 0.59979]


def figures(candidates, references):
    scores = [
        *bleu(candidates, references).scores,
        rouge_l(candidates, references).score,
        cider_d(candidates, references).score,
    ]
    return [round(score, 5) for score in scores]


# Plain definitions, for captions of all kinds

CAPTION = st.lists(st.sampled_from("abcde"), max_size=7)
SETS = st.lists(
    st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3)), min_size=1, max_size=5
)


def plain_cider(candidates, references, counted):
    """The formulas of CIDEr-D, n-gram by n-gram."""

    def ngrams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def weighted(words, n):
        seen = {
            g: sum(any(g in ngrams(r, n) for r in s) for s in counted) for g in ngrams(words, n)
        }
        return {
            g: k * math.log(len(counted) / max(seen[g], 1)) for g, k in ngrams(words, n).items()
        }

    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        total = 0.0
        for caption in captions:
            gap = max(len(candidate), 1) - max(len(caption), 1)
            for n in range(1, 5):
                c, r = weighted(candidate, n), weighted(caption, n)
                norm = math.hypot(*c.values()) * math.hypot(*r.values())
                if norm:
                    dot = sum(min(c[g], r[g]) * r[g] for g in c if g in r)
                    total += dot / norm * math.exp(-(gap**2) / 72)
        scores.append(10 * total / 4 / len(captions))
    return scores


@given(SETS, SETS)
def test_cider_is_its_definition(images, others):
    candidates, references = zip(*images, strict=True)
    counted = [captions for _, captions in others]
    own = cider_d(candidates, references)
    foreign = cider_d(candidates, references, DocumentFrequency(counted))
    for score, documents in ((own, references), (foreign, counted)):
        assert score.defined == (len(documents) > 1)
        if score.defined:
            expected = plain_cider(candidates, references, documents)
            assert score.per_image == pytest.approx(expected, abs=1e-9)
            assert score.score == pytest.approx(np.mean(expected), abs=1e-9)


@given(CAPTION, CAPTION)
def test_longest_common_subsequence_is_its_definition(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    assert longest_common_subsequence(a, b) == table[-1][-1]


@given(SETS)
def test_scores_lie_in_their_ranges_and_do_not_depend_on_order(images):
    candidates, references = zip(*images, strict=True)
    backwards = candidates[::-1], references[::-1]
    b, r, c = (metric(candidates, references) for metric in (bleu, rouge_l, cider_d))
    assert np.all((b.per_image >= 0) & (b.per_image <= 1))
    assert np.all((r.per_image >= 0) & (r.per_image <= 1))
    assert bleu(*backwards).scores == pytest.approx(b.scores)
    np.testing.assert_allclose(rouge_l(*backwards).per_image[::-1], r.per_image)
    np.testing.assert_allclose(cider_d(*backwards).per_image[::-1], c.per_image, atol=1e-9)
    if c.defined:
        assert np.all((c.per_image >= 0) & (c.per_image <= 10 + 1e-9))


# Edges


def test_perfect_candidates():
    candidates = [captions[0] for captions in REFERENCES]
    references = [[caption] for caption in candidates]
    assert bleu(candidates, references).scores == pytest.approx([1, 1, 1, 1])
    assert rouge_l(candidates, references).score == pytest.approx(1)
    assert cider_d(candidates, references).score == pytest.approx(10)


def test_cider_of_one_image_is_undefined_and_not_zero():
    score = cider_d(CANDIDATES[:1], REFERENCES[:1])
    assert score.score is None
    assert not score.defined
    assert np.isnan(score.per_image).all()
    frequency = DocumentFrequency(REFERENCES)
    with_set = cider_d(CANDIDATES[:1], REFERENCES[:1], frequency)
    assert with_set.score == close(CIDER_D_PER_IMAGE[0])


def test_cider_of_images_that_are_all_equal_is_zero_as_in_the_official_tool():
    score = cider_d([["a", "dog"]] * 3, [[["a", "dog"]]] * 3)
    assert score.defined
    assert score.score == 0


def test_all_candidates_empty():
    empty = [[]] * len(REFERENCES)
    assert bleu(empty, REFERENCES).scores == close([0, 0, 0, 0])
    assert rouge_l(empty, REFERENCES).score == 0
    assert cider_d(empty, REFERENCES).score == 0


def test_all_captions_empty():
    assert rouge_l([[]], [[[]]]).score == 0
    assert cider_d([[], []], [[[]], [[]]]).score == 0


def test_several_candidates_of_one_image_score_as_each_alone():
    frequency = DocumentFrequency(REFERENCES)
    samples = [CANDIDATES[0], ["unheard", "of"], CANDIDATES[1], []]
    together = cider_d(samples, [REFERENCES[0]] * 4, frequency).per_image
    for sample, score in zip(samples, together, strict=True):
        assert cider_d([sample], [REFERENCES[0]], frequency).score == pytest.approx(score)


def test_cider_d_punishes_repetition():
    frequency = DocumentFrequency(REFERENCES)
    scores = [
        cider_d([words], [[["a", "goat"]]], frequency).score
        for words in (["a", "goat"], ["goat"] * 2, ["goat"] * 6)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] < 0.3 * scores[0]


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    candidate, shorter, longer = ["a"] * 5, ["a"] * 4, ["a"] * 6
    for references in ([shorter, longer], [longer, shorter]):
        assert bleu([candidate], [references]).counts[0, -1] == 4
    assert bleu([candidate], [[longer, ["b"] * 9]]).counts[0, -1] == 6


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider_d])
@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([["a"], ["b"]], [[["a"]], []], "image 1 has no reference"),
        ([["a"]], [[["a"]], [["b"]]], "1 candidates for 2"),
        ([], [], "no captions"),
        (["a dog"], [[["a"]]], "image 0 is not tokenized"),
        ([["a"]], [["a dog"]], "image 0 is not tokenized"),
        ([["a"]], ["a dog"], "image 0 is not tokenized"),
    ],
)
def test_wrong_input_names_the_image(metric, candidates, references, message):
    with pytest.raises(DataError, match=message):
        metric(candidates, references)


def test_document_frequency_checks_its_references():
    with pytest.raises(DataError, match="image 1"):
        DocumentFrequency([[["a"]], []])


def test_count_ngrams():
    assert count_ngrams(["a", "b", "a", "b"], 3) == [
        {("a",): 2, ("b",): 2},
        {("a", "b"): 2, ("b", "a"): 1},
        {("a", "b", "a"): 1, ("b", "a", "b"): 1},
    ]
    assert count_ngrams([], 2) == [{}, {}]
