"""What becomes of all the things that a person may name as a source of photos."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_captioner import caption_to, make_photos, names, save

from captioner.batch.item import Item
from captioner.batch.runner import Summary
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


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_a_tar_give_the_image_that_they_lead_to(tmp_path, photos, mode):
    """GNU tar writes a hard link for a file that it has met already."""
    data, other = (photos / "0.png").read_bytes(), (photos / "1.png").read_bytes()
    links = {
        "d/hard.png": (tarfile.LNKTYPE, "./d/a.png"),
        "d/soft.png": (tarfile.SYMTYPE, "a.png"),
        "up.png": (tarfile.SYMTYPE, "d/../d/soft.png"),
        "forward.png": (tarfile.SYMTYPE, "blobs/12ab"),  # as the cache of a model hub has them
        "away.png": (tarfile.SYMTYPE, "/etc/passwd"),
        "out.png": (tarfile.SYMTYPE, "../a.png"),
        "gone.png": (tarfile.LNKTYPE, "d/gone.png"),
        "circle.png": (tarfile.SYMTYPE, "circle.png"),
        "pipe.png": (tarfile.FIFOTYPE, ""),
        "notes.txt": (tarfile.SYMTYPE, "d/a.png"),
    }
    path = tmp_path / "shard.tar"
    with tarfile.open(path, mode) as archive:
        for name, content in {"./d/a.png": data, **links, "blobs/12ab": other}.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname = content
                content = b""
            archive.addfile(info, io.BytesIO(content))
    items = list(open_sources([str(path)]))
    found = {item.name.removeprefix(f"{path}/"): item for item in items}
    assert len(found) == len(items) == len(links)  # without the text, with the image itself
    for name in ("./d/a.png", "d/hard.png", "d/soft.png", "up.png"):
        assert (found[name].source, found[name].error) == (data, None)
    assert found["forward.png"].source == other
    assert found["pipe.png"].error == "not a regular file"
    for name in ("away.png", "out.png", "gone.png", "circle.png"):
        assert "a link to no file in the archive" in found[name].error
    assert caption_to(tmp_path / "out.jsonl", [path]).captioned == 5
    assert caption_to(tmp_path / "out.jsonl", [path], mode="resume").kept == 10


def test_names_in_a_tar_that_are_no_utf8_stay_readable(tmp_path, photos):
    path, output = tmp_path / "shard.tar", tmp_path / "out.txt"
    with tarfile.open(path, "w", encoding="gbk", format=tarfile.GNU_FORMAT) as archive:
        archive.add(photos / "0.png", "狗.png")
    assert caption_to(output, [path]).ok
    name, _ = output.read_text("utf-8").split("\t")
    assert name == f"{path}/\\xb9\\xb7.png"


@pytest.mark.parametrize("address", ["https://a.org/b.jpg", "http://a.org/b.jpg?size=3&c=[1]"])
def test_an_address_is_no_pattern(address):
    (item,) = open_sources([address])
    assert item.error == "a web address: download the image first"


def test_other_files_of_folders_are_counted(tmp_path):
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        save(tmp_path / name)
    for name in ("a.txt", "b.jpg.txt", "x.mov", "notes.txt", ".hidden", "a.jpg.attention.png"):
        (tmp_path / name).touch()  # the first two are captions of images
    (tmp_path / "sub" / "README").touch()
    found = Counter()
    list(open_sources([str(tmp_path)], left_out=found))
    assert found == {".mov": 1, ".txt": 1}
    found = Counter()
    list(open_sources([str(tmp_path)], recursive=True, left_out=found))
    assert found == {".mov": 1, ".txt": 1, "no ending": 1}
    assert Summary(captioned=3, left_out=found).lines()[-1] == (
        "  3 files are no images: .mov, .txt, no ending"
    )


@pytest.mark.parametrize("packer", [gzip, bz2, lzma])
def test_archives_compressed_in_several_pieces(tmp_path, packer):
    with tarfile.open(tmp_path / "plain.tar", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.add(save(tmp_path / name), name)
    data = (tmp_path / "plain.tar").read_bytes()
    path = tmp_path / "pieces.tar.gz"  # whatever its name says
    path.write_bytes(packer.compress(data[:700]) + packer.compress(data[700:]))
    assert [item.error for item in open_sources([str(path)])] == [None, None]


def test_what_is_called_an_archive_is_named(tmp_path):
    for content, reason in ((b"PK\3\4", "a zip archive"), (b"<html>", "a web page")):
        path = tmp_path / "photos.tar"
        path.write_bytes(content + bytes(600))
        (item,) = open_sources([str(path)])
        assert reason in item.error


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
