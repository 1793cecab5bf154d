"""Readers of caption files: three formats, one result; errors that name the thing and the fix."""

import json
import logging

import pytest

from captioner.data.annotations import Example, read_captions
from captioner.errors import DataError

CAPTIONS = {
    "a.jpg": ["Un chien à côté d'une fenêtre.", " A dog by a window "],
    "b.jpg": ["一只狗在雪地里奔跑。", "犬が走る", "Ein Hund läuft."],
    "c.jpg": ["A line\u2028separator stays inside its caption"],
}
STRIPPED = {name: tuple(c.strip() for c in captions) for name, captions in CAPTIONS.items()}


@pytest.fixture
def photos(tmp_path):
    """A folder `images` with files; readers look at their names only."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in CAPTIONS:
        (folder / name).write_bytes(b"x")
    return folder


def write(path, content, **options):
    options = {"ensure_ascii": False, **options}
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


def coco_content():
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(CAPTIONS)]
    pairs = [(10 + i, c) for i, name in enumerate(CAPTIONS) for c in CAPTIONS[name]]
    annotations = [
        {"id": 100 + i, "image_id": image, "caption": caption}
        for i, (image, caption) in enumerate(pairs)
    ]
    return {"images": images, "annotations": annotations}


def karpathy_content(splits=("train", "restval", "val")):
    return {
        "dataset": "toy",
        "images": [
            {
                "filename": name,
                "split": split,
                "imgid": i,
                "sentences": [{"raw": caption, "tokens": ["x"]} for caption in captions],
            }
            for i, ((name, captions), split) in enumerate(
                zip(CAPTIONS.items(), splits, strict=True)
            )
        ],
    }


def jsonl_lines(splits=("train", "train", "val")):
    return [
        json.dumps({"image": name, "captions": captions, "split": split}, ensure_ascii=False)
        for (name, captions), split in zip(CAPTIONS.items(), splits, strict=True)
    ]


def write_format(kind, path):
    if kind == "jsonl":
        path = path.with_suffix(".jsonl")
        path.write_text("\n".join(jsonl_lines()) + "\n\n", encoding="utf-8")
        return path
    return write(path, coco_content() if kind == "coco" else karpathy_content())


@pytest.mark.parametrize("kind", ["coco", "karpathy", "jsonl"])
def test_every_format_gives_the_same_captions_in_order(kind, photos, tmp_path):
    examples = read_captions(write_format(kind, tmp_path / "captions.json"))
    assert {e.image: e.captions for e in examples} == {
        str(photos / name): captions for name, captions in STRIPPED.items()
    }
    assert len({e.image_id for e in examples}) == len(examples)


@pytest.mark.parametrize("kind", ["coco", "karpathy", "jsonl"])
def test_reading_does_not_depend_on_locale_or_byte_order_mark(kind, photos, tmp_path, monkeypatch):
    path = write_format(kind, tmp_path / "captions.json")
    plain = read_captions(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    assert read_captions(path) == plain


def test_escaped_and_indented_json_reads_alike(photos, tmp_path):
    plain = read_captions(write(tmp_path / "a.json", coco_content()))
    escaped = read_captions(write(tmp_path / "b.json", coco_content(), ensure_ascii=True, indent=1))
    assert escaped == plain


def test_coco_example(photos, tmp_path, capsys):
    examples = read_captions(write(tmp_path / "c.json", coco_content()), split="val")
    assert examples[0] == Example(str(photos / "a.jpg"), STRIPPED["a.jpg"], "val", 10)
    assert capsys.readouterr().out == ""  # pycocotools prints; stdout carries data only


def test_photos_are_found_in_images_beside_the_file_or_at_the_root(photos, tmp_path):
    (photos / "val2014").mkdir()
    (photos / "a.jpg").rename(photos / "val2014" / "a.jpg")
    content = karpathy_content()
    content["images"][0]["filepath"] = "val2014"
    content["images"][1]["filepath"] = "val2014"  # named so, but the photos lie in one folder
    default = read_captions(write(tmp_path / "k.json", content))
    assert default[0].image == str(photos / "val2014" / "a.jpg")
    assert default[1].image == str(photos / "b.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert read_captions(write(elsewhere / "k.json", content), photos) == default
    assert read_captions(write(photos / "k.json", content)) == default
    with pytest.raises(DataError, match=r"3 of 3 images not found.*elsewhere"):
        read_captions(elsewhere / "k.json")


def test_missing_photos_are_an_error_or_skipped(photos, tmp_path, caplog):
    (photos / "b.jpg").unlink()
    path = write(tmp_path / "c.json", coco_content())
    with pytest.raises(DataError, match=r"1 of 3 images not found: b\.jpg.*image_root"):
        read_captions(path)
    with caplog.at_level(logging.WARNING):
        kept = read_captions(path, missing="skip")
    assert [e.image_id for e in kept] == [10, 12]
    assert "b.jpg" in caplog.text


def test_photos_without_captions_are_left_out(photos, tmp_path, caplog):
    content = coco_content()
    content["annotations"] = [
        a | {"caption": "  "} if a["image_id"] == 11 else a for a in content["annotations"]
    ]
    with caplog.at_level(logging.WARNING):
        examples = read_captions(write(tmp_path / "c.json", content))
    assert [e.image_id for e in examples] == [10, 12]
    assert "1 image(s) without a caption: b.jpg" in caplog.text


def test_captions_of_unlisted_photos_are_reported(photos, tmp_path, caplog):
    content = coco_content()
    del content["images"][0]
    with caplog.at_level(logging.WARNING):
        examples = read_captions(write(tmp_path / "c.json", content))
    assert [e.image_id for e in examples] == [11, 12]
    assert "2 caption(s) of images" in caplog.text


def test_karpathy_splits(photos, tmp_path):
    path = write(tmp_path / "k.json", karpathy_content())

    def ids(split):
        return [e.image_id for e in read_captions(path, split=split)]

    assert ids(None) == [0, 1, 2]
    assert ids("train") == [0, 1]
    assert ids("val") == [2]
    with pytest.raises(DataError, match="no split 'test' in it, only train, val"):
        ids("test")


def test_jsonl_splits_and_default_split(photos, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(jsonl_lines()), encoding="utf-8")
    assert [e.image_id for e in read_captions(path, split="val")] == ["c.jpg"]
    for more in ("", ', "split": null'):
        path.write_text(f'{{"image": "a.jpg", "captions": ["A dog."]{more}}}', encoding="utf-8")
        assert [e.split for e in read_captions(path)] == ["train"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "b.jpg", ', ":2: not JSON"),
        ('{"captions": ["x"]}', ":2: no image named: .*'captions'"),
        ('{"image": "b.jpg"}', ":2: no captions: expected 'captions'"),
        ('{"image": "b.jpg", "captions": {"x": 1}}', ":2: a caption must be a string"),
        ('{"image": "b.jpg", "captions": [1]}', ":2: a caption must be a string, not 1"),
        ('["b.jpg"]', ":2: expected an object"),
        ('{"image": "b.jpg", "captions": [], "split": 1}', ":2: 'split' must be a string"),
        (jsonl_lines()[0], ":2: a.jpg is in .*:1 already"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_bad_line_is_named(line, reason, suffix, photos, tmp_path):
    path = (tmp_path / "d").with_suffix(suffix)
    path.write_text("\n".join([jsonl_lines()[0], line, jsonl_lines()[2]]), encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        read_captions(path)


def test_duplicate_ids_are_errors(photos, tmp_path):
    content = coco_content()
    content["images"][1]["id"] = content["images"][0]["id"]
    with pytest.raises(DataError, match=r"10 is in .* already"):
        read_captions(write(tmp_path / "c.json", content))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        '{"images": [{"id": 1',
        "[]",
        "[1, 2]",
        "3",
        "{}",
        '{"images": []}',
        '{"images": {}, "annotations": []}',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1}]}',
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}',
        '{"images": [3], "annotations": [4]}',
        '{"images": [{"sentences": [{}], "filename": "a.jpg", "split": "train"}]}',
        '{"images": [{"sentences": 3}]}',
        '{"images": [3]}',
        '{"images": null}',
        b"\xff\xfe\x00",
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
def test_foreign_files_are_one_clear_error(text, suffix, photos, tmp_path):
    path = (tmp_path / "foreign").with_suffix(suffix)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match="foreign") as caught:
        read_captions(path)
    assert len(str(caught.value).splitlines()) <= 2


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.json"):
        read_captions(tmp_path / "nothing.json")


def test_real_caption_files(shared_data):
    examples = read_captions(shared_data / "flickr8k" / "captions_val.json", split="val")
    assert len(examples) == 1000
    assert {len(e.captions) for e in examples} == {5}
    assert {e.split for e in examples} == {"val"}
