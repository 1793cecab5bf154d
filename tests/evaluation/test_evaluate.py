import copy
import json
import logging
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny import MODEL, shake
from pictures import scenes, write_pictures

from captioner.api import Caption, Captioner, Ensemble
from captioner.checkpoint import Header
from captioner.data.annotations import Example, read_captions
from captioner.errors import ConfigError, DataError
from captioner.evaluation.attention import AttentionMeasure
from captioner.evaluation.evaluate import evaluate
from captioner.evaluation.masks import CocoInstances
from captioner.image.transforms import Preprocess
from captioner.metrics.coco_caption import score_captions
from captioner.tokenizer import Vocabulary, tokenize

WORDS = (
    "a dog cat person car red green blue circle cross on white black ground something there is "
    "one here and its color . bus tree road"
).replace(" . ", " ")


@pytest.fixture
def captioner(tiny_model):
    words = [*WORDS.split(), "the"]
    vocabulary = Vocabulary((*Vocabulary.SPECIALS, *words))
    assert len(vocabulary) == 30
    header = Header(
        config=MODEL, vocabulary=vocabulary, preprocess=Preprocess(64, (0.5,) * 3, (0.5,) * 3)
    )
    return Captioner(tiny_model, header, device="cpu", precision="fp32")


@pytest.fixture
def examples(tmp_path):
    return read_captions(write_pictures(tmp_path, count=6, captions=3))


class Speaker:
    """Says what it is told to, with uniform maps; stands in for a captioner."""

    vocabulary = Vocabulary((*Vocabulary.SPECIALS, *WORDS.split()))
    backends = (SimpleNamespace(name="torch"),)

    def __init__(self, *texts, finished=True):
        self.texts, self.finished = texts, finished
        self.maps, self.alive = [], 0

    def stream(self, sources, *, batch_size, **search):
        for source, text in zip(sources, self.texts, strict=True):
            self.alive = max(self.alive, sum(reference() is not None for reference in self.maps))
            words = text.split()
            maps = np.full((len(words), 2, 3), 1 / 6, dtype=np.float32)
            self.maps.append(weakref.ref(maps))
            yield Caption(
                text=text,
                words=words,
                log_probs=[0.0] * len(words),
                score=0.0,
                finished=self.finished,
                attention=maps,
                source=source,
            )
            del maps


def photo(image_id, *captions):
    return Example(image=f"{image_id}.jpg", captions=captions, split="val", image_id=image_id)


def write_instances(path, ids, size=64):
    """A COCO instances file: in each photo, a dog in the left half and a car in the right one."""

    def half(left):
        right = left + size / 2
        return [[left, 0, right, 0, right, size, left, size]]

    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": size, "height": size} for i in ids],
        "categories": [
            {"id": 1, "name": "dog", "supercategory": "animal"},
            {"id": 2, "name": "car", "supercategory": "vehicle"},
        ],
        "annotations": [
            {
                "id": 10 * i + kind,
                "image_id": i,
                "category_id": kind,
                "iscrowd": 0,
                "segmentation": half(left),
            }
            for i in ids
            for kind, left in ((1, 0), (2, size / 2))
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_scores_what_the_captioner_says_about_each_photo_once(captioner, examples):
    result = evaluate(captioner, examples, batch_size=4, progress=False, beam=2, max_length=6)
    said = captioner([example.image for example in examples], beam=2, max_length=6)
    assert result.quality.results == [
        {"image_id": example.image_id, "caption": caption.text}
        for example, caption in zip(examples, said, strict=True)
    ]
    expected = score_captions(
        [tokenize(caption.text) for caption in said], [example.captions for example in examples]
    )
    assert result.quality.scores.summary() == pytest.approx(expected.summary())
    assert result.unfinished == sum(not caption.finished for caption in said) / 6
    assert result.search == {"beam": 2, "max_length": 6}
    figures = result.to_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["photos"], figures["references"]) == (6, 18)
    assert figures["metrics"] == pytest.approx(expected.summary())


def test_mean_entropy_is_over_words(captioner, examples):
    result = evaluate(captioner, examples, progress=False, max_length=6)
    entropies = []
    for caption in captioner([example.image for example in examples], max_length=6):
        for weights in caption.attention.reshape(len(caption.words), -1):
            logs = [p * math.log(p) for p in weights.tolist() if p > 0]
            entropies.append(-sum(logs) / math.log(len(weights)))
    assert result.entropy == pytest.approx(sum(entropies) / len(entropies), abs=1e-5)
    assert 0 < result.entropy < 1


def test_uniform_maps_have_entropy_one_and_no_word_has_none():
    photos = [photo(1, "a dog"), photo(2, "a cat")]
    assert evaluate(Speaker("a dog", "a red cat"), photos).entropy == pytest.approx(1)
    silent = evaluate(Speaker("", ""), photos)
    assert math.isnan(silent.entropy)
    assert silent.to_dict()["attention_entropy"] is None


def test_perfect_captions_get_full_marks():
    texts = ["a red dog on white ground", "one blue bus is here and there"]
    result = evaluate(Speaker(*texts), [photo(1, texts[0]), photo(2, "the tree", texts[1])])
    summary = result.quality.scores.summary()
    assert [summary[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1] * 4)
    assert summary["rouge_l"] == pytest.approx(1)
    assert "100.0" in result.table()  # the table is in percent
    assert result.unfinished == 0
    assert evaluate(Speaker(*texts, finished=False), [photo(1, "a"), photo(2, "b")]).unfinished == 1


def test_cider_of_one_photo_is_a_sentence_not_a_zero():
    result = evaluate(Speaker("a red dog"), [photo(1, "a red dog")])
    assert result.to_dict()["metrics"]["cider"] is None
    (line,) = [line for line in result.table().splitlines() if line.startswith("CIDEr")]
    assert "undefined" in line
    assert "0.0" not in line


def test_photos_that_cannot_be_read_are_counted_and_named(captioner, examples, tmp_path, caplog):
    whole = evaluate(captioner, examples, progress=False, max_length=6)
    damaged, missing = tmp_path / "damaged.jpg", tmp_path / "missing.jpg"
    damaged.write_bytes(b"\xff\xd8\xff not a photo")
    bad = [
        Example(image=str(path), captions=("a dog",), split="val", image_id=path.stem)
        for path in (damaged, missing)
    ]
    mixed = [bad[0], *examples[:3], bad[1], *examples[3:]]
    with caplog.at_level(logging.WARNING):
        result = evaluate(captioner, mixed, batch_size=3, progress=False, max_length=6)
    assert [failure["image_id"] for failure in result.failures] == ["damaged", "missing"]
    assert "no such file" in result.failures[1]["error"]
    assert "2 of 8 photos could not be read" in caplog.text
    assert "damaged.jpg" in caplog.text
    assert "2 photos could not be read" in result.table()
    assert result.quality.results == whole.quality.results
    assert result.quality.scores.summary() == pytest.approx(whole.quality.scores.summary())
    assert whole.failures == []
    assert "could not" not in whole.table()
    with pytest.raises(DataError, match=r"2 of 2 photos could not be read.*damaged\.jpg"):
        evaluate(captioner, bad, progress=False)


def test_an_ensemble_is_evaluated_as_a_whole(captioner, examples, tmp_path, caplog):
    other = Captioner(copy.deepcopy(captioner.model), captioner.header, "cpu", "fp32")
    shake(other.model.decoder, 0.5)
    ensemble = Ensemble([captioner, other])
    instances = write_instances(tmp_path / "instances.json", range(6))
    options = {"progress": False, "max_length": 5}
    with pytest.raises(ConfigError, match=r"--faithfulness\) needs one model in PyTorch"):
        evaluate(ensemble, examples, deletions=2, **options)
    result = evaluate(ensemble, examples, instances=[instances], **options)
    assert "no saliency maps: they need one model" in caplog.text
    assert result.saliency is None
    said = ensemble([example.image for example in examples], max_length=5)
    assert [row["caption"] for row in result.quality.results] == [caption.text for caption in said]
    measure = AttentionMeasure(CocoInstances(instances))
    for i, caption in enumerate(said):  # the mean of both models' maps
        measure.add(i, caption.words, caption.attention)
    assert result.attention.entropy == pytest.approx(measure.report().entropy, abs=1e-5)


def test_refuses_no_photos_and_the_same_photo_twice(captioner, examples):
    with pytest.raises(DataError, match="no photos"):
        evaluate(captioner, [], progress=False)
    with pytest.raises(DataError, match="more than once, the first is 2"):
        evaluate(captioner, [*examples, examples[2]], progress=False)


def test_attention_is_measured_on_the_photos_that_have_masks(captioner, examples, tmp_path):
    instances = write_instances(tmp_path / "instances.json", [1, 3, 4, 77])
    result = evaluate(
        captioner, examples, instances=[instances], batch_size=4, progress=False, max_length=5
    )
    said = captioner([example.image for example in examples], max_length=5)
    measure = AttentionMeasure(CocoInstances(instances))
    for i in (1, 3, 4):
        measure.add(i, said[i].words, said[i].attention)
    expected = measure.report()
    assert result.attention.images == 3
    assert result.attention.words == sum(len(said[i].words) for i in (1, 3, 4))
    assert result.attention.entropy == pytest.approx(expected.entropy, abs=1e-5)
    assert result.attention.named.words == expected.named.words
    assert len(result.quality.results) == len(
        scenes(6)
    )  # the others are captioned and scored all the same
    assert "name a visible object" in result.table()
    assert result.to_dict()["attention"]["photos"] == 3
    without = evaluate(captioner, examples, progress=False, max_length=5)
    assert without.attention is None
    assert without.to_dict()["attention"] is None


def test_masks_of_other_photos_are_refused_before_anything_is_captioned(tmp_path):
    instances = write_instances(tmp_path / "instances.json", [77])
    speaker = Speaker("a dog")
    with pytest.raises(DataError, match=r"none of the 1 photos .*instances\.json"):
        evaluate(speaker, [photo(1, "a dog")], instances=[instances])
    assert speaker.maps == []


def test_maps_of_earlier_photos_are_not_kept():
    count = 50
    speaker = Speaker(*["a dog"] * count)
    evaluate(speaker, [photo(n, "a dog") for n in range(count)])
    assert len(speaker.maps) == count
    assert speaker.alive <= 3


def test_progress_goes_to_no_stdout(captioner, examples, capsys):
    evaluate(captioner, examples[:2], max_length=3)
    assert capsys.readouterr().out == ""
