"""Files of results: read, matched, scored; what does not fit is reported."""

import json
import math

import pytest

from captioner.cli import main as cli
from captioner.data.annotations import Example, read_captions
from captioner.errors import DataError
from captioner.evaluation.results import ResultRow, match_results, read_results, score_results

REFERENCES = {
    "images": [
        {"id": 1, "file_name": "COCO_val2014_000000000001.jpg"},
        {"id": 2, "file_name": "two.jpg"},
        {"id": 3, "file_name": "three.jpg"},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "caption": "A dog runs."},
        {"id": 11, "image_id": 1, "caption": "The dog is running"},
        {"id": 12, "image_id": 2, "caption": "Two boats."},
        {"id": 13, "image_id": 3, "caption": "An old clock"},
    ],
}
TEXTS = {1: "a dog runs", 2: "two boats", 3: "an old clock"}


@pytest.fixture
def references(tmp_path):
    path = tmp_path / "references.json"
    path.write_text(json.dumps(REFERENCES))
    return path


@pytest.fixture
def examples(references):
    return read_captions(references, missing="ignore")


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def coco(tmp_path, captions):
    rows = [{"image_id": i, "caption": caption} for i, caption in captions.items()]
    return write(tmp_path, "results.json", json.dumps(rows))


FILES = {
    "coco.json": json.dumps([{"image_id": i, "caption": text} for i, text in TEXTS.items()]),
    "names.jsonl": '{"image": "photos/COCO_val2014_000000000001.jpg", "caption": "a dog runs"}\n\n'
    '{"image": "two.jpg", "caption": "two boats", "score": -1}\n'
    '{"image": "three.jpg", "id": 3, "caption": "an old clock"}\n',
    "ids.csv": "\ufeffimage_id,caption\r\n1,a dog runs\r\n2,two boats\r\n3,an old clock\r\n",
    "names.csv": "image,id,caption,score,error\nx/two.jpg,,two boats,-1,\n"
    'COCO_val2014_000000000001.jpg,,a dog runs,-1,\nthree.jpg,,"an old clock",-1,\n',
    "semicolons.csv": "Caption;Image\na dog runs;COCO_val2014_000000000001.jpg\n"
    "two boats;two.jpg\nan old clock;three.jpg\n",
    "names.json": json.dumps([{"image": "two.jpg", "caption": "two boats"}]),
}


@pytest.mark.parametrize("name", FILES)
def test_all_kinds_of_files(tmp_path, examples, name):
    rows = read_results(write(tmp_path, name, FILES[name]))
    matching = match_results(rows, examples)
    expected = list(TEXTS.values()) if name != "names.json" else [None, "two boats", None]
    assert matching.captions == expected
    assert not matching.unknown
    assert not matching.repeated


def test_what_does_not_fit_is_reported(tmp_path, examples):
    rows = [
        ResultRow(2, None, "first"),
        ResultRow("2", None, "second"),
        ResultRow(9, None, "stranger"),
        ResultRow(None, "nine.jpg", "stranger"),
        ResultRow(None, "three.jpg", None),
    ]
    matching = match_results(rows, examples)
    assert matching.captions == [None, "first", None]
    assert matching.missing == [1, 3]
    assert matching.unknown == ["9", "nine.jpg"]
    assert matching.repeated == ["2"]
    assert [line.split(":")[0] for line in matching.lines()] == [
        "2 of 3 photos have no caption (this lowers the scores)",
        "2 not scored, without references",
        "1 not scored, the photo has an earlier caption",
    ]
    assert json.loads(json.dumps(matching.to_dict())) == {
        "missing": [1, 3],
        "unknown": ["9", "nine.jpg"],
        "repeated": ["2"],
    }


def test_an_error_is_no_caption_but_a_later_caption_counts(examples):
    rows = [ResultRow(1, None, None), ResultRow(1, None, "a dog"), ResultRow(2, None, "")]
    matching = match_results(rows, examples)
    assert matching.captions == ["a dog", "", None]
    assert not matching.repeated


def test_a_row_that_ends_at_its_error_is_no_caption(tmp_path):
    text = "image_id,error,caption\n1,cannot open the photo\n2,,two boats\n"
    rows = read_results(write(tmp_path, "short.csv", text))
    assert rows == [ResultRow("1", None, None), ResultRow("2", None, "two boats")]


def test_numbers_in_file_names_are_ids_where_references_name_no_files(tmp_path):
    bare = {**REFERENCES, "images": [{"id": i} for i in (1, 2, 3)]}
    examples = read_captions(write(tmp_path, "bare.json", json.dumps(bare)), missing="ignore")
    names = ["a/COCO_val2014_000000000001.jpg", "000000000003.jpg", "two.jpg"]
    matching = match_results([ResultRow(None, name, "x") for name in names], examples)
    assert matching.captions == ["x", None, "x"]
    assert matching.unknown == ["two.jpg"]


def test_a_name_that_two_photos_share_needs_its_folder():
    examples = [Example(f"{f}/a.jpg", ("x",), "val", f) for f in ("one", "two")]
    rows = [ResultRow(None, "two/a.jpg", "fits"), ResultRow(None, "a.jpg", "which?")]
    matching = match_results(rows, examples)
    assert matching.captions == [None, "fits"]
    assert matching.unknown == ["a.jpg"]


def test_id_and_name_of_two_photos_are_refused(examples):
    with pytest.raises(DataError, match=r"two\.jpg has the id 3, which is another image"):
        match_results([ResultRow(3, "two.jpg", "x")], examples)


def test_a_file_that_fits_nothing_says_what_both_look_like(tmp_path, examples):
    path = coco(tmp_path, {77: "a", 78: "b"})
    with pytest.raises(DataError, match=r"results\.json: none of its 2 rows .* like 1, .* 77, 78"):
        score_results(path, examples)
    with pytest.raises(DataError, match="none of its 0 rows"):
        score_results(write(tmp_path, "none.json", "[]"), examples)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image_id": 1', "damaged JSON"),
        ('[{"image_id": 1}]', r"\[0\]: no caption and no error"),
        ('[{"image_id": 1, "caption": [1]}]', "must be a string"),
        ('[{"caption": "a"}]', r"\[0\]: no image named"),
        ('[{"image_id": 1, "caption": "a"}, 3]', r"\[1\]: expected an object"),
        ('{"image_id": 1, "caption": "a"}\n{"image', ":2: not JSON"),
        ("name,text\na,b\n", "no column for the image"),
        ("", "empty"),
        ("image_id,caption\n1\n", ":2: no caption"),
    ],
)
def test_damaged_files_name_the_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path, "results.any", text))


def test_scores_of_a_perfect_file(tmp_path, examples):
    result = score_results(coco(tmp_path, TEXTS), examples)
    metrics = result.quality.metrics
    assert metrics["bleu1"] == pytest.approx(1)
    assert metrics["rouge_l"] == pytest.approx(1)
    assert metrics["cider"] > 2
    assert result.quality.results == json.loads((tmp_path / "results.json").read_text())
    assert "3 photos, 4 references" in result.table()
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [image["image_id"] for image in document["images"]] == [1, 2, 3]
    assert document["images"][0]["caption"] == "a dog runs"
    assert document["images"][0]["rouge_l"] == pytest.approx(1)
    assert document["images"][1]["bleu_counts"] == [2, 1, 0, 0, 2, 1, 0, 0, 2, 2]
    assert document["diversity"]["vocabulary"] == 8


def test_a_missing_caption_scores_zero_and_stays_in_the_means(tmp_path, examples):
    full = score_results(coco(tmp_path, TEXTS), examples).quality
    part = score_results(coco(tmp_path, {1: TEXTS[1], 3: TEXTS[3]}), examples).quality
    assert part.scores.rouge_l.per_image.tolist() == pytest.approx([1, 0, 1])
    assert part.metrics["rouge_l"] == pytest.approx(2 / 3)
    assert part.metrics["cider"] < full.metrics["cider"]
    assert part.metrics["bleu1"] == pytest.approx(6 / 8 * math.exp(1 - 8 / 6))


def test_cider_of_one_photo_is_a_sentence(tmp_path, examples):
    result = score_results(coco(tmp_path, {1: "a dog"}), examples[:1])
    assert "CIDEr-D             undefined: it weighs words" in result.table()
    assert "intervals" not in result.table()
    assert result.to_dict()["metrics"]["cider"] is None
    assert result.to_dict()["images"][0]["cider"] is None


def test_chinese_references_by_hand(tmp_path):
    lines = '{"image": "a.jpg", "captions": ["一只黑狗。"]}\n{"image": "b.jpg", "captions": ["猫"]}'
    examples = read_captions(write(tmp_path, "zh.jsonl", lines), missing="ignore")
    row = '{"image": "a.jpg", "caption": "一只狗"}\n{"image": "b.jpg", "caption": "猫"}'
    bleu = score_results(write(tmp_path, "zh_results.jsonl", row), examples).quality.scores.bleu
    # 一 只 狗 against 一 只 黑 狗: three of three words, one of two pairs, a word short.
    assert bleu.per_image[0, 0] == pytest.approx(math.exp(1 - 4 / 3))
    assert bleu.per_image[0, 1] == pytest.approx(math.sqrt(1 / 2) * math.exp(1 - 4 / 3))


def test_photos_without_references_are_unknown(tmp_path):
    silent = {**REFERENCES, "annotations": REFERENCES["annotations"][:3]}
    examples = read_captions(write(tmp_path, "silent.json", json.dumps(silent)), missing="ignore")
    result = score_results(coco(tmp_path, TEXTS), examples)
    assert result.matching.unknown == ["3"]
    assert len(result.quality.image_ids) == 2


# The command


def test_the_command_scores_files(tmp_path, references, capsys):
    path = coco(tmp_path, TEXTS)
    out = tmp_path / "scores.json"
    command = ["evaluate", "--results", str(path), "--references", str(references)]
    assert cli.main([*command, "--json", str(out), "--training", str(references)]) == 0
    printed = capsys.readouterr().out
    assert "BLEU-1              100.0" in printed
    assert "copied              100.0 %" in printed
    assert json.loads(out.read_text())["missing"] == []

    path = coco(tmp_path, {1: "a dog"})
    assert cli.main(command) == 1
    assert "2 of 3 photos have no caption (this lowers the scores): 2, 3" in capsys.readouterr().out


def test_the_command_measures_hallucination(tmp_path, references, capsys):
    instances = {
        "images": [{"id": 1}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 18}],
    }
    objects = write(tmp_path, "instances.json", json.dumps(instances))
    path = coco(tmp_path, {**TEXTS, 1: "a dog and a cat"})
    command = ["evaluate", "--results", str(path), "--references", str(references)]
    assert cli.main([*command, "--instances", str(objects)]) == 0
    out = capsys.readouterr().out
    assert "CHAIR_i             50.0 % of 2 objects named in 1 photos; most often cat 1" in out


@pytest.mark.parametrize("option", [["--beam", "3"], ["--model", "x"], ["--results-out", "y"]])
def test_options_of_models_are_refused(tmp_path, references, capsys, option):
    path = coco(tmp_path, TEXTS)
    command = ["evaluate", "--results", str(path), "--references", str(references), *option]
    assert cli.main(command) == 2
    assert f"{option[0]} is for scoring a model" in capsys.readouterr().err
