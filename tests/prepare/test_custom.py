"""Captions of one's own: reading, splitting, finding what is wrong, near-duplicate photos."""

import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.cli import main as cli
from captioner.data.annotations import read_captions
from captioner.errors import ConfigError, DataError
from captioner.prepare.custom import check_and_split, draw_splits, read_folder, read_table
from captioner.prepare.near_duplicates import (
    NEAR,
    Fingerprint,
    fingerprint,
    fingerprints,
    groups,
    near_pairs,
)


def picture(seed, size=(96, 72)):
    """A picture of soft blobs, as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Twenty captioned photos, some in a subfolder."""
    folder = tmp_path / "my photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(20):
        path = folder / ("sub" if number % 5 == 0 else ".") / f"{number:02}.jpg"
        picture(number).save(path)
        path.with_suffix(".txt").write_text(f"Photo {number}.\nA number {number}!\n", "utf-8")
    return folder


def records(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------------ rows


def rows_of(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return [(row.image, row.captions, row.split) for row in read_table(path)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,caption\na.jpg,A dog.\nb.jpg,\"A cat, asleep\"\n"),
        ("a.csv", "\ufeffcaption;file_name\r\nA dog.;a.jpg\r\nA cat, asleep;b.jpg\r\n"),
        ("a.tsv", "filename\tid\tcaption\na.jpg\t1\tA dog.\n\nb.jpg\t2\tA cat, asleep\n"),
        ("a.csv", "image,caption\na.jpg,A dog.\nb.jpg,A cat, asleep\n"),  # nobody quoted it
        ("a.txt", "a.jpg#0\tA dog.\nb.jpg#0\tA cat, asleep\n"),
        ("a.jsonl", '{"image": "a.jpg", "caption": "A dog."}\n\n'
                    '{"image": "b.jpg", "captions": ["A cat, asleep"]}\n'),
    ],
)  # fmt: skip
def test_forms_of_captions(tmp_path, name, text):
    assert rows_of(tmp_path, name, text) == [
        ("a.jpg", ("A dog.",), None),
        ("b.jpg", ("A cat, asleep",), None),
    ]


def test_several_captions_a_row_and_splits(tmp_path):
    text = 'image,caption_1,caption_2,split\na.jpg,One,Two,val\nb.jpg,"[""x"", ""y""]",,train\n'
    assert rows_of(tmp_path, "a.csv", text) == [
        ("a.jpg", ("One", "Two"), "val"),
        ("b.jpg", ("x", "y"), "train"),
    ]


def test_empty_cells_behind_the_last_column_do_not_matter(tmp_path):
    text = "image,caption,split\na.jpg,A cat,val,, \n"
    assert rows_of(tmp_path, "a.csv", text) == [("a.jpg", ("A cat",), "val")]


def test_our_own_formats_are_read(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}]
    annotations = [{"id": 1, "image_id": 1, "caption": "A dog."}]
    text = json.dumps({"images": images, "annotations": annotations})
    assert rows_of(tmp_path, "a.json", text) == [("a.jpg", ("A dog.",), None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,words\na,b\n", "no column for the image"),
        ("a.csv", "image,words\na,b\n", "no column for the captions"),
        ("a.csv", "", "empty"),
        ("a.csv", "image,caption\n,A dog\n", "a.csv:2: no image named"),
        ("a.csv", "image,caption,split\na.jpg,A cat, asleep,val\n", "a.csv:2: 4 cells .* 3"),
        ("a.jsonl", '{"image": "a.jpg"}\n{"image"\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"images": "a.jpg"}\n', "a.jsonl:1: no image named"),
        (
            "a.jsonl",
            '{"image": "a.jpg", "captions": [1]}\n',
            "a.jsonl:1: a caption must be a string",
        ),
        ("a.txt", "a.jpg#0\tA dog.\nb.jpg A cat\n", "a.txt:2: expected photo.jpg#0"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, name, text)


def test_a_folder_with_text_beside_the_photos(folder):
    (folder / "none.jpg").touch()
    (folder / "stray.txt").write_text("nobody", "utf-8")
    rows, strays = read_folder(folder)
    assert rows[0].image == "01.jpg"
    assert rows[0].captions == ("Photo 1.", "A number 1!")
    assert {row.image for row in rows} >= {"sub/05.jpg", "none.jpg"}
    assert [row.captions for row in rows if row.image == "none.jpg"] == [()]
    assert strays == [str(folder / "stray.txt")]


# ---------------------------------------------------------------------------------------- splits

names = st.lists(st.text(max_size=5), min_size=1, max_size=40, unique=True)


@settings(deadline=None, max_examples=60)
@given(names=names, data=st.data(), seed=st.integers(0, 5))
def test_groups_stay_together_and_shares_are_kept(names, data, seed):
    numbers = data.draw(st.lists(st.integers(0, 20), min_size=len(names), max_size=len(names)))
    splits = draw_splits(names, numbers, {"val": 0.2, "test": 0.1}, seed)
    assert "train" in splits
    assert all(
        len({split for split, number in zip(splits, numbers, strict=True) if number == wanted}) == 1
        for wanted in numbers
    )
    counts = Counter(splits)
    assert counts["val"] <= max(1, round(0.2 * len(names)))
    assert counts["test"] <= max(1, round(0.1 * len(names)))


def test_a_split_depends_on_the_seed_and_hardly_on_further_photos():
    names = [f"{number}.jpg" for number in range(200)]
    first = draw_splits(names, range(200), {"val": 0.1}, 0)
    assert Counter(first) == {"train": 180, "val": 20}
    assert first == draw_splits(names, range(200), {"val": 0.1}, 0)
    assert first != draw_splits(names, range(200), {"val": 0.1}, 1)
    more = draw_splits([*names, "new.jpg"], range(201), {"val": 0.1}, 0)
    assert sum(a != b for a, b in zip(first, more, strict=False)) <= 1


# ------------------------------------------------------------------------------------ duplicates


def test_a_photo_saved_anew_has_a_near_fingerprint(tmp_path):
    prints = []
    for number in range(6):
        photo = picture(number, (400, 300))
        photo.save(tmp_path / f"{number}.png")
        photo.resize((160, 120)).save(tmp_path / f"{number}_small.jpg", quality=50)
        photo.convert("L").save(tmp_path / f"{number}_grey.jpg")
        prints += fingerprints(sorted(str(path) for path in tmp_path.glob(f"{number}*")))
    found, identical = groups(prints)
    assert found.tolist() == [3 * (place // 3) for place in range(18)]
    assert identical == []


def test_plain_photos_are_alike_only_if_the_files_are(tmp_path):
    for name, color in (("a", "white"), ("b", "white"), ("c", "black")):
        Image.new("RGB", (50, 50), color).save(tmp_path / f"{name}.png")
    prints = fingerprints([str(tmp_path / f"{name}.png") for name in "abc"])
    assert all(item.bits is None for item in prints)
    found, identical = groups(prints)
    assert found.tolist() == [0, 0, 2]
    assert identical == [[0, 1]]


def test_damage_is_found_although_photos_are_shrunk(tmp_path):
    picture(0, (800, 600)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 3 // 4])
    assert "a.jpg" in fingerprint(str(tmp_path / "a.jpg")).error
    assert "no such file" in fingerprint(str(tmp_path / "b.jpg")).error


@pytest.mark.parametrize("distance", [0, 3, NEAR])
def test_near_pairs_are_those_of_comparing_all_with_all(distance):
    rng = np.random.default_rng(distance)
    bits = rng.integers(0, 2, (60, 128), dtype=np.uint8)
    bits = np.repeat(bits, 4, axis=0)
    for row in bits:  # many differences around the limit
        row[rng.choice(128, rng.integers(0, 9), replace=False)] ^= 1
    bits = np.unique(bits, axis=0)
    differing = (bits[:, None] != bits[None]).sum(axis=2)
    expected = np.argwhere(np.triu(differing <= distance, k=1))
    packed = np.packbits(bits, axis=1).view(np.uint16)
    assert near_pairs(packed, distance).tolist() == expected.tolist()
    assert distance == 0 or 10 < len(expected) < 600


def test_many_copies_are_no_trouble():
    bits = np.arange(8, dtype=np.uint16)
    prints = [Fingerprint(bits, b"%d" % number) for number in range(20_000)]
    found, _ = groups(prints)
    assert not found.any()


# --------------------------------------------------------------------------------------- command


def test_a_folder_becomes_a_caption_file(folder, capsys):
    call = ["prepare", "folder", str(folder), "--val", "0.2", "--test", "0.1"]
    assert cli.main(call) == 0
    out = capsys.readouterr().out
    assert "20 photos (train 14, val 4, test 2), 40 captions" in out
    path = folder / "captions.jsonl"
    assert len(read_captions(path, split="val")) == 4  # and the photos are found
    assert all(not Path(record["image"]).is_absolute() for record in records(path))
    first = path.read_bytes()
    assert cli.main(call) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*call, "--overwrite"]) == 0
    assert path.read_bytes() == first
    assert cli.main([*call, "--overwrite", "--seed", "1"]) == 0
    assert path.read_bytes() != first


def test_the_report_tells_what_is_wrong(folder, tmp_path, capsys):
    picture(1, (300, 220)).save(folder / "again.png")
    (folder / "again.txt").write_text("One more\none more.\n" + "word " * 31, "utf-8")
    (folder / "copy.jpg").write_bytes((folder / "02.jpg").read_bytes())
    (folder / "copy.txt").write_text("Photo 3.", "utf-8")
    (folder / "broken.jpg").write_bytes((folder / "02.jpg").read_bytes()[:-100])
    (folder / "broken.txt").write_text("Broken", "utf-8")
    (folder / "silent.jpg").write_bytes((folder / "03.jpg").read_bytes())
    (folder / "blank.jpg").write_bytes((folder / "03.jpg").read_bytes())
    (folder / "blank.txt").write_text(" \n...\n", "utf-8")
    (folder / "stray.txt").write_text("stray", "utf-8")
    report = tmp_path / "report.json"
    assert cli.main(["prepare", "folder", str(folder), "--json", str(report)]) == 1
    found = json.loads(report.read_text("utf-8"))
    assert found["photos"] == 22
    assert list(found["unreadable"]) == ["broken.jpg"]
    assert found["uncaptioned"] == ["blank.jpg", "silent.jpg"]
    assert len(found["empty"]) == 1
    assert found["repeated"] == ["again.png: one more."]
    assert found["long"] == ["again.png: 31 words"]
    assert found["shared"] == {"photo 3": 2}
    assert found["identical"] == [["02.jpg", "copy.jpg"]]
    assert [[name.split()[0] for name in group] for group in found["similar"]] == [
        ["01.jpg", "again.png"],
        ["02.jpg", "copy.jpg"],
    ]
    assert found["leaks"] == []
    assert found["strays"] == [str(folder / "stray.txt")]
    out = capsys.readouterr().out
    assert "photos that cannot be read, left out: 1 " in out
    assert "stray.txt" in out
    assert "missing" not in out


def test_splits_of_the_file_are_kept_and_leaks_told(folder, tmp_path, capsys):
    picture(1, (300, 220)).save(folder / "again.png")
    lines = ["image,caption,split", "01.jpg,One,Train", "02.jpg,Two,VALIDATION"]
    lines += ["again.png,Three,dev", "gone.jpg,Four,train", "02.jpg,Five,train", "03.jpg,Six,"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines), "utf-8")
    out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    call = ["prepare", "csv", str(table), "--images", str(folder), "-o", str(out)]
    assert cli.main([*call, "--json", str(report)]) == 1
    found = json.loads(report.read_text("utf-8"))
    assert found["missing"] == ["gone.jpg"]
    assert len(found["conflicts"]) == 1
    assert found["unassigned"] == 1
    assert found["leaks"] == [["01.jpg (train)", "again.png (val)"]]
    assert found["splits"] == {"train": 2, "val": 2}
    assert {Path(record["image"]).name: record["split"] for record in records(out)} == {
        **{"01.jpg": "train", "02.jpg": "val", "again.png": "val", "03.jpg": "train"}
    }
    assert [record["captions"] for record in records(out)][1] == ["Two", "Five"]
    assert len(read_captions(out)) == 4
    assert "several splits" in capsys.readouterr().out
    assert cli.main([*call, "--overwrite", "--val", "0.5"]) == 2
    assert "names splits" in capsys.readouterr().err
    assert cli.main(["prepare", "csv", str(out), "-o", str(out), "--overwrite"]) == 2
    assert "is what is read" in capsys.readouterr().err


def test_names_that_are_not_utf8(folder, capsys, monkeypatch):
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (folder / "01.jpg").rename(folder / name)
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    (folder / "01.txt").rename(folder / Path(name).with_suffix(".txt"))
    (folder / os.fsdecode(b"silent\xe9.jpg")).write_bytes((folder / "02.jpg").read_bytes())
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # refuses them, as terminals' do
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli.main(["prepare", "folder", str(folder), "--json", str(folder / "r.json")]) == 0
    stdout.flush()
    assert "silent\\udce9.jpg" in stdout.buffer.getvalue().decode()
    (found,) = [item for item in read_captions(folder / "captions.jsonl") if "caf" in item.image]
    assert os.path.samefile(found.image, folder / name)
    assert json.loads((folder / "r.json").read_text("utf-8"))["uncaptioned"] == [
        os.fsdecode(b"silent\xe9.jpg")
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["csv"], "needs a CSV or JSONL file"),
        (["folder"], "needs a folder"),
        (["folder", "nowhere"], "no such folder"),
        (["csv", "nowhere.csv"], "cannot read"),
        (["folder", ".", "--root", "x"], "--root is not for prepare folder"),
        (["coco2014", "--root", "x", "--val", "0.1"], "--val is not for prepare coco2014"),
        (["coco2014", "x", "--root", "y"], "x is not for prepare coco2014"),
        (["folder", ".", "--val", "1"], "below 1 together"),
        (["coco2014", "--root", "x", "--url", "train=http://a"], "NAME one of"),
    ],
)
def test_wrong_usage(folder, monkeypatch, capsys, call, message):
    monkeypatch.chdir(folder)
    assert cli.main(["prepare", *call]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "captions.jsonl").exists()


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    (tmp_path / "a.txt").write_text("a dog", "utf-8")
    rows, _ = read_folder(tmp_path)
    with pytest.raises(DataError, match="none of the photos can be read"):
        check_and_split(rows, tmp_path, tmp_path)
    with pytest.raises(DataError, match="no photo with a caption"):
        check_and_split([], tmp_path, tmp_path)
    with pytest.raises(ConfigError):
        check_and_split(rows, tmp_path, tmp_path, val=-0.1)
