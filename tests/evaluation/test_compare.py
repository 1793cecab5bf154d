"""Two files of scores or captions side by side."""

import json

import pytest

from captioner.cli import main as cli
from captioner.data.annotations import Example
from captioner.errors import DataError
from captioner.evaluation.compare import compare_files
from captioner.evaluation.results import score_results

NOUNS = ["dog", "cat", "boat", "clock", "bird", "car", "horse", "tree", "house", "ball"]
EXAMPLES = [
    Example(f"{noun}.jpg", (f"a {noun} on the grass", f"one {noun}"), "val", i)
    for i, noun in enumerate(NOUNS)
]
WRONG = dict.fromkeys(range(len(NOUNS)), "a man on a bench")
RIGHT = {i: f"a {noun} on the grass" for i, noun in enumerate(NOUNS)}


def results(path, captions):
    path.write_text(json.dumps([{"image_id": i, "caption": c} for i, c in captions.items()]))
    return path


def scores(path, captions, examples=EXAMPLES):
    """What ``evaluate --json`` would write."""
    source = results(path.with_suffix(".results"), captions)
    path.write_text(json.dumps(score_results(source, examples).to_dict()))
    return path


@pytest.fixture
def references(tmp_path):
    rows = [{"image": e.image, "image_id": e.image_id, "captions": e.captions} for e in EXAMPLES]
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_and_captions_compare_alike(tmp_path):
    a, b = scores(tmp_path / "a.json", WRONG), scores(tmp_path / "b.json", RIGHT)
    stored = compare_files(a, b)
    fresh = compare_files(a.with_suffix(".results"), b.with_suffix(".results"), EXAMPLES)
    mixed = compare_files(a, b.with_suffix(".results"), EXAMPLES)
    assert stored.images == fresh.images == len(NOUNS)
    assert stored.metrics.keys() == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    for name, d in stored.metrics.items():
        for other in (fresh.metrics[name], mixed.metrics[name]):
            assert (d.a, d.b, d.low, d.high) == pytest.approx(
                (other.a, other.b, other.low, other.high), abs=1e-5
            )
            assert d.p_value == other.p_value
        assert d.b > d.a
        assert d.p_value < 0.01
    assert stored.equal_captions == 0


def test_photos_are_matched_by_id_whatever_their_order(tmp_path):
    mixed = {**WRONG, 3: RIGHT[3], 5: RIGHT[5]}
    a = scores(tmp_path / "a.json", mixed)
    b = scores(tmp_path / "b.json", dict(reversed(mixed.items())), EXAMPLES[::-1])
    found = compare_files(a, b)
    assert found.equal_captions == 1
    for d in found.metrics.values():
        assert d.p_value == 1
        assert (d.low, d.high) == pytest.approx((0, 0), abs=1e-9)


def test_the_table_and_the_json_tell_all(tmp_path):
    found = compare_files(
        scores(tmp_path / "a.json", WRONG), scores(tmp_path / "b.json", {**RIGHT, 9: WRONG[9]})
    )
    table = found.table()
    assert "10 photos, 10.0 % with equal captions" in table
    assert "approximate randomisation" in table
    assert "CIDEr-D" in table
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    rouge = document["metrics"]["rouge_l"]
    assert rouge["difference"] == pytest.approx(rouge["b"] - rouge["a"])


def test_missing_captions_are_noted_and_count(tmp_path):
    part = {i: RIGHT[i] for i in range(8)}
    for compared in (
        compare_files(scores(tmp_path / "a.json", RIGHT), scores(tmp_path / "b.json", part)),
        compare_files(
            tmp_path / "a.results", results(tmp_path / "part.json", {**part, 99: "x"}), EXAMPLES
        ),
    ):
        assert compared.metrics["rouge_l"].b == pytest.approx(0.8)
        assert compared.notes[0].startswith("B: 2 ")
        assert compared.notes[0] in compared.table()


def test_other_photos_or_references_are_refused(tmp_path):
    a = scores(tmp_path / "a.json", RIGHT)
    fewer = scores(tmp_path / "b.json", {i: RIGHT[i] for i in range(9)}, EXAMPLES[:9])
    with pytest.raises(DataError, match=r"\(10 photos\) .* \(9\) were not scored on the same"):
        compare_files(a, fewer)
    reworded = [Example(e.image, ("something else",), "val", e.image_id) for e in EXAMPLES]
    with pytest.raises(DataError, match="same photos and references"):
        compare_files(a, scores(tmp_path / "c.json", RIGHT, reworded))


def test_captions_need_references_and_damage_is_named(tmp_path):
    a = scores(tmp_path / "a.json", RIGHT)
    with pytest.raises(DataError, match=r"a\.results is not what captioner evaluate --json"):
        compare_files(a, tmp_path / "a.results")
    document = json.loads(a.read_text())
    del document["images"][2]["bleu_counts"]
    (tmp_path / "damaged.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"damaged\.json: damaged scores .*evaluate again"):
        compare_files(a, tmp_path / "damaged.json")


def test_the_command(tmp_path, references, capsys):
    a, b = results(tmp_path / "a.json", WRONG), results(tmp_path / "b.json", RIGHT)
    out = tmp_path / "comparison.json"
    command = ["compare", str(a), str(b)]
    assert cli.main([*command, "--references", str(references), "--json", str(out)]) == 0
    assert "BLEU-4" in capsys.readouterr().out
    assert json.loads(out.read_text())["metrics"]["bleu4"]["p_value"] < 0.05
    assert cli.main(command) == 2
    assert "name their references" in capsys.readouterr().err
