"""What becomes of all the things that a person may name as a source of photos."""

import csv
import io
import json
import os
import sys
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_captioner import caption_to, make_photos, names, save

from captioner.batch.item import Item
from captioner.batch.sources import count_images, open_sources


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def test_a_folder_gives_its_pictures_sorted(tmp_path):
    for name in ("b.jpg", "a.PNG", ".hidden.jpg", "._a.png", "sub/c.webp", "a.attention.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("a.PNG")
    assert [Path(name).name for name in names(tmp_path)] == ["a.PNG", "b.jpg"]
    assert [Path(name).name for name in names(tmp_path, recursive=True)] == [
        "a.PNG",
        "b.jpg",
        "c.webp",
    ]


def test_links_to_folders_are_entered_once(tmp_path):
    save(tmp_path / "a" / "x.jpg")
    save(tmp_path / "b" / "y.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "self.jpg").symlink_to(tmp_path / "b" / "self.jpg")
    found = [Path(name).name for name in names(tmp_path, recursive=True)]
    assert sorted(found) == ["self.jpg", "x.jpg", "y.jpg"]


def test_odd_things_with_a_pictures_name_are_items(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    output = tmp_path / "out.jsonl"
    assert caption_to(output, [tmp_path]).failed == 3
    errors = {Path(r["image"]).name: r["error"] for r in map(json.loads, output.open())}
    assert errors == {
        "folder.jpg": "a folder, not a picture",
        "gone.jpg": "no such file",
        "pipe.jpg": "not a regular file",
    }


def test_an_unreadable_folder_is_an_error_in_its_place(tmp_path, monkeypatch):
    save(tmp_path / "a" / "x.jpg")
    save(tmp_path / "b.jpg")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    items = list(open_sources([str(tmp_path)], recursive=True))
    assert [item.error for item in items] == [None, "cannot read the folder: Permission denied"]


def test_globs(tmp_path, monkeypatch):
    save(tmp_path / "a1.jpg")
    save(tmp_path / "deep" / "er" / "a2.jpg")
    save(tmp_path / "odd[1].jpg")
    monkeypatch.chdir(tmp_path)
    assert names("a*") == ["a1.jpg"]
    assert names("**/a*.jpg") == ["a1.jpg", "deep/er/a2.jpg"]
    assert names("odd[1].jpg") == ["odd[1].jpg"]  # a name that is there is no pattern
    assert names("nothing*.jpg") == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_manifest(tmp_path, monkeypatch, encoding, end):
    beside = save(tmp_path / "lists" / "märz one.jpg")
    here = save(tmp_path / "cwd" / "two.jpg")
    monkeypatch.chdir(here.parent)
    manifest = tmp_path / "lists" / "list.txt"
    lines = ["märz one.jpg", "", "two.jpg", str(here), "three.jpg"]
    manifest.write_bytes(end.join(lines).encode(encoding))
    items = list(open_sources([str(manifest)]))
    assert [item.name for item in items] == [line for line in lines if line]
    assert [item.source for item in items] == [
        str(beside),
        "two.jpg",
        str(here),
        str(tmp_path / "lists" / "three.jpg"),
    ]


@pytest.mark.parametrize("column", ["image", "path", "file", "filename", "Filename"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_manifest(tmp_path, column, delimiter):
    manifest = tmp_path / "list.csv"
    rows = [["note", "image_id", column], ["x", "7", "a.jpg"], ["", "", "b, or c.jpg"]]
    with open(manifest, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    items = list(open_sources([str(manifest)]))
    assert [(item.name, item.id) for item in items] == [("a.jpg", "7"), ("b, or c.jpg", None)]


def test_csv_without_a_header(tmp_path):
    (tmp_path / "list.csv").write_text("a.jpg\nb.jpg\n")
    assert names(tmp_path / "list.csv") == ["a.jpg", "b.jpg"]


def test_json_manifests(tmp_path):
    save(tmp_path / "images" / "a.jpg")
    lines = ['{"image": "a.jpg", "id": 3}', '"b.jpg"', "{", '{"x": 1}', "7"]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    items = list(open_sources([str(tmp_path / "list.jsonl")]))
    assert [(item.name, item.id) for item in items[:2]] == [("a.jpg", 3), ("b.jpg", None)]
    assert [Path(item.name).name for item in items[2:]] == [f"list.jsonl:{n}" for n in (3, 4, 5)]
    assert all(item.error for item in items[2:])

    coco = {"images": [{"id": 42, "file_name": "a.jpg"}], "annotations": []}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (item,) = open_sources([str(tmp_path / "coco.json")])
    assert (item.name, item.id) == ("a.jpg", 42)
    assert item.source == str(tmp_path / "images" / "a.jpg")
    (item,) = open_sources([str(tmp_path / "coco.json")], image_root="elsewhere")
    assert item.source == os.path.join("elsewhere", "a.jpg")

    karpathy = {"images": [{"cocoid": 5, "filepath": "val", "filename": "k.jpg"}]}
    (tmp_path / "k.json").write_text(json.dumps(karpathy))
    (item,) = open_sources([str(tmp_path / "k.json")])
    assert (item.name, item.id) == ("val/k.jpg", 5)

    (tmp_path / "bad.json").write_text("{")
    (item,) = open_sources([str(tmp_path / "bad.json")])
    assert item.error


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar(tmp_path, photos, mode):
    data = (photos / "0.png").read_bytes()
    path = tmp_path / "shard.tar"
    make_tar(path, {"d/a.png": data, "d/a.json": b"{}", "d/._a.png": b"x", "b.png": data}, mode)
    items = list(open_sources([str(path)]))
    assert [item.name for item in items] == [f"{path}/d/a.png", f"{path}/b.png"]
    assert items[0].source == data
    assert caption_to(tmp_path / "out.jsonl", [path]).captioned == 2


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_damaged_tar_gives_what_is_before_the_damage(tmp_path, mode):
    rng = np.random.default_rng(0)
    members = {f"{n}.png": rng.bytes(40_000) for n in range(4)}
    path = tmp_path / "shard.tar"
    make_tar(path, members, mode)
    assert len(list(open_sources([str(path)]))) == 4
    data = path.read_bytes()
    for end in range(100, 160_000, 7_777):
        path.write_bytes(data[:end])
        *good, bad = open_sources([str(path)])
        assert bad.name == str(path)
        assert "damaged archive" in bad.error
        assert [item.source for item in good] == list(members.values())[: len(good)]
    (tmp_path / "no.tar").write_bytes(b"not a tar file")
    (item,) = open_sources([str(tmp_path / "no.tar")])
    assert "damaged archive" in item.error


class FakeStdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def test_stdin(monkeypatch, photos):
    monkeypatch.setattr(sys, "stdin", FakeStdin(b"\xef\xbb\xbfa.jpg\r\n\nb c.jpg\ncaf\xe9.jpg"))
    assert names("-") == ["a.jpg", "b c.jpg", os.fsdecode(b"caf\xe9.jpg")]
    monkeypatch.setattr(sys, "stdin", FakeStdin(b"a\nb.jpg\0c.jpg\0"))
    assert names("-", null_separated=True) == ["a\nb.jpg", "c.jpg"]
    data = (photos / "0.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", FakeStdin(data))
    assert list(open_sources(["-"])) == [Item("-", data)]


def test_sources_are_lazy(tmp_path):
    def endless():
        while True:
            yield str(tmp_path / "x.jpg")

    assert len(list(islice(open_sources(endless()), 1000))) == 1000


def test_count_agrees_with_the_sources(tmp_path, photos):
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    paths = [str(photos), str(tmp_path / "list.txt"), "missing.jpg"]
    assert count_images(paths) == len(list(open_sources(paths))) == 10
    assert count_images([*paths, "-"]) is None
