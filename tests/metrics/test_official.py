"""The official Java metrics: equal to published figures where they run, a sentence where not."""

import json
import shutil
from itertools import chain

import pytest

from captioner.cli import main as cli
from captioner.metrics import official
from captioner.metrics.coco_caption import score_captions
from captioner.metrics.official import UnusableError, meteor, official_scores, ptb_tokenize
from captioner.tokenizer import tokenize

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


@pytest.fixture
def with_java():
    pytest.importorskip("pycocoevalcap", reason="the extra 'metrics' is not installed")


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.fixture
def command(tmp_path):
    rows = [{"image": "a.jpg", "captions": ["A dog runs."]}, {"image": "b.jpg", "captions": ["x"]}]
    references = tmp_path / "references.jsonl"
    references.write_text("\n".join(map(json.dumps, rows)))
    captions = tmp_path / "captions.jsonl"
    texts = [{"image": "a.jpg", "caption": "a dog runs"}, {"image": "b.jpg", "caption": "x"}]
    captions.write_text("\n".join(map(json.dumps, texts)))
    files = ["--results", str(captions), "--references", str(references)]
    return ["evaluate", *files, "--official", "--json", str(tmp_path / "scores.json")]


def test_without_java_one_sentence_and_the_rest(no_java, command, tmp_path, capsys):
    pytest.importorskip("pycocoevalcap", reason="the extra 'metrics' is not installed")
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "BLEU-1              100.0" in out
    assert "METEOR: not computed: Java is not installed\n" in out
    assert "SPICE: not computed: Java is not installed\n" in out
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["metrics"]["meteor"] is None
    assert document["metrics"]["bleu1"] == pytest.approx(1)
    assert "PTBTokenizer" in document["made_by"]["tokenizer"]
    assert document["made_by"]["official"]["meteor"]["reason"] == "Java is not installed"


def test_without_the_package_one_sentence(monkeypatch):
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: None)
    for score in official_scores(["a dog"], [["a dog"]]):
        assert score.score is None
        assert "pip install 'captioner[metrics]'" in score.reason


def test_a_java_that_does_not_start_is_none(monkeypatch, tmp_path):
    stub = tmp_path / "java"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UnusableError, match="Java is not installed"):
        official._java()


def test_a_java_that_fails_later_is_a_reason(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="the extra 'metrics' is not installed")
    stub = tmp_path / "java"
    stub.write_text(
        '#!/bin/sh\n[ "$1" = -version ] && echo version && exit\necho no memory >&2\nexit 1\n'
    )
    stub.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", "")
    monkeypatch.setattr(official, "_working_java", lambda home, search: str(stub))
    assert official_scores(["a"], [["a"]])[0].reason == (
        "the official tokenizer failed (no memory)"
    )
    with pytest.raises(UnusableError, match=r"METEOR failed \(no memory\)"):
        meteor(["a"], [["a"]])


@needs_java
@pytest.mark.java
def test_odd_captions_keep_their_places(with_java):
    captions = ["A dog.", "", "one\ntwo\u2028three", "a ||| b", "Ein Café – schön…", "..."]
    tokens = ptb_tokenize(captions)
    assert tokens[:3] == ["a dog", "", "one two three"]
    assert tokens[4].startswith("ein café")
    assert tokens[5] == ""
    score, single = meteor(["a dog", "", "x ||| y"], [["a dog"], ["a dog"], ["x", "||| y"]])
    assert single[0] == 1
    assert single[1] == 0
    assert 0 < score < 1


@needs_java
@pytest.mark.java
def test_the_command_states_who_made_each_figure(with_java, command, tmp_path, capsys):
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "BLEU, ROUGE-L, CIDEr-D: captioner" in out
    assert "METEOR: METEOR 1.5 (meteor-1.5.jar of pycocoevalcap" in out
    assert "tokenizer: Stanford PTBTokenizer 3.4.1" in out
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["metrics"]["meteor"] > 0.5
    assert document["images"][0]["meteor"] == 1


@needs_java
@pytest.mark.java
def test_our_tokens_are_those_of_the_official_tokenizer(with_java, shared_data):
    path = shared_data / "metrics" / "ptb_pairs.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    raw = [json.loads(line)[0] for line in path.read_text("utf-8").splitlines()]
    live = ptb_tokenize(raw)
    different = [
        (text, tokens)
        for text, tokens in zip(raw, live, strict=True)
        if " ".join(tokenize(text)) != tokens
    ]
    assert len(different) <= 0.0005 * len(raw), different


@needs_java
@pytest.mark.java
def test_the_whole_way_equals_the_official_tools_live(with_java, shared_data):
    path = shared_data / "metrics"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    results = json.loads((path / "results.json").read_text("utf-8"))
    texts = {result["image_id"]: [] for result in results}
    for annotation in json.loads((path / "references.json").read_text("utf-8"))["annotations"]:
        texts[annotation["image_id"]].append(annotation["caption"])
    candidates, references = [result["caption"] for result in results], list(texts.values())

    flat = iter(ptb_tokenize([*candidates, *chain.from_iterable(references)]))
    result = {i: [next(flat)] for i in range(len(candidates))}
    truth = {i: [next(flat) for _ in group] for i, group in enumerate(references)}
    expected = [
        *Bleu(4).compute_score(truth, result, verbose=0)[0],
        Rouge().compute_score(truth, result)[0],
        Cider().compute_score(truth, result)[0],
    ]
    found = score_captions([tokenize(text) for text in candidates], references).summary()
    assert list(found.values()) == pytest.approx(expected, abs=5e-4)


@needs_java
@pytest.mark.java
@pytest.mark.slow
def test_meteor_of_the_thousand_photos(with_java, shared_data):
    path = shared_data / "metrics"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    lines = (path / "official_tokens.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    candidates, references = ([row[key] for row in rows] for key in ("candidate", "references"))
    results = json.loads((path / "results.json").read_text("utf-8"))
    assert ptb_tokenize([result["caption"] for result in results]) == candidates
    score, single = meteor(candidates, references)
    assert score == pytest.approx(0.195, abs=5e-4)
    assert len(single) == len(rows)
