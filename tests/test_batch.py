"""Sources, sinks and runs, with a stand-in for the model that is quick and sees its batch."""

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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captioner import images
from captioner.api import Caption, Failure
from captioner.batch.formats import CsvFormat, JsonLinesFormat, TextFormat, coco_id
from captioner.batch.items import Item, escaped, reason
from captioner.batch.rowfile import RowFile
from captioner.batch.run import Summary, failure_kind, run
from captioner.batch.sinks import open_sink
from captioner.batch.sources import count_photos, open_sources
from captioner.batch.strips import StripFolder
from captioner.errors import CaptionerError, ConfigError, ImageError


class FakeCaptioner:
    """Captions depend on the picture, scores also on the other pictures of the batch."""

    def __init__(self, stop_after=None, on_batch=None):
        self.read = 0
        self.stop_after = stop_after
        self.on_batch = on_batch

    def stream(self, sources, *, batch_size=32, workers=None, **search):
        sources = iter(sources)
        while batch := list(islice(sources, batch_size)):
            if self.on_batch:
                self.on_batch()
            self.read += len(batch)
            together = float(sum(sum(os.fsencode(str(source))) for source in batch))
            for source in batch:
                if self.stop_after == 0:
                    raise KeyboardInterrupt
                if self.stop_after is not None:
                    self.stop_after -= 1
                try:
                    images.open_image(source)
                except ImageError as error:
                    yield Failure(source, str(error))
                else:
                    yield self.caption(source, together)

    def caption(self, source, score):
        words = ["a", "photo"]
        return Caption(
            text=" ".join(words),
            words=words,
            log_probs=[-0.5, -0.25, -1.0],
            score=score,
            finished=True,
            attention=np.full((2, 2, 2), 0.25, np.float32),
            source=source,
        )


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Waiting for the disk proves nothing here: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def photos(tmp_path):
    """Seven photos, the third of which is none, in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"nonsense")
    return folder


def save(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), colour).save(path)
    return path


def names(*paths, **options):
    return [item.name for item in open_sources(map(str, paths), **options)]


def caption_to(output, paths, *, mode="new", form=None, captioner=None, batch_size=3, **options):
    """What the command does, without a model."""
    sink = open_sink(str(output), form, mode=mode)
    items = open_sources(map(str, paths))
    return run(captioner or FakeCaptioner(), items, sink, batch_size=batch_size, **options)


# ---------------------------------------------------------------------------------------- sources


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
    assert count_photos(paths) == len(list(open_sources(paths))) == 10
    assert count_photos([*paths, "-"]) is None


# ------------------------------------------------------------------------------------------ names


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_escaped_names_are_one_line_of_valid_text(name):
    text = escaped("".join("?" if "\ud800" <= c <= "\udfff" else c for c in name))
    assert len(text.splitlines()) <= 1
    assert "\t" not in text
    assert escaped(os.fsdecode(b"caf\xe9\t.jpg")) == r"caf\xe9\t.jpg"


@pytest.mark.parametrize(
    "raw", [b"a.jpg", b"a: b.jpg", b"caf\xe9.jpg", b"a\tb\nc.jpg", b"\xe2\x80\xaf.jpg"]
)
def test_the_reason_does_not_repeat_the_name(tmp_path, raw):
    source = os.path.join(tmp_path, os.fsdecode(raw))
    with pytest.raises(ImageError) as caught:
        images.open_image(source)
    assert reason(source, str(caught.value)) == "no such file"
    assert reason(b"xyz", "<3 bytes>: no picture") == "no picture"


def test_failure_kinds_leave_details_out():
    assert failure_kind("damaged or truncated JPEG data (OSError: 7 bytes)") == (
        "damaged or truncated JPEG data"
    )
    assert failure_kind("1,000 x 20 = 20,000 pixels") == failure_kind("9 x 9 = 81 pixels")


def test_strip_names_are_unique_and_safe(tmp_path):
    odd = ["a/dog.jpg", "b/dog.jpg", "b/DOG.png", "a/dog.jpg", "../../x.jpg", "...", "é\n.jpg"]
    odd += ["x" * 300 + ".jpg", "x" * 301 + ".jpg", os.fsdecode(b"\xff.jpg"), "t.tar/dog.jpg"]
    folder = StripFolder(str(tmp_path / "maps"))
    paths = [folder.claim(Item(name)) for name in odd]
    assert paths[0].name == "dog.attention.png"
    assert len({path.name.lower() for path in paths}) == len(odd)
    assert all(path.parent == tmp_path / "maps" for path in paths)
    for path in paths:
        path.touch()
    again = StripFolder(str(tmp_path / "maps"))
    assert [again.claim(Item(name)) for name in odd] == paths


# ------------------------------------------------------------------------------------------ sinks

WEIRD = [
    b"plain.png",
    b"a,b.png",
    b'q"q.png',
    b"tab\t.png",
    b"line\nend.png",
    b"\r.png",
    b"\xe9.png",
]


@pytest.mark.parametrize("form", [TextFormat(), JsonLinesFormat(), CsvFormat(2)])
@pytest.mark.parametrize("raw", WEIRD)
def test_records_can_be_read_back(form, raw):
    item = Item(os.fsdecode(raw), id=7)
    record = form.encode(item, FakeCaptioner().caption(b"", 1.0))
    data = (form.header + record).encode()  # valid UTF-8, whatever the name
    assert form.decode(record) == (form.name(item), None)
    torn = [data[:end] for end in range(len(data))]
    assert list(form.split(io.BytesIO(data))) == [
        part.encode() for part in (form.header, record) if part
    ]
    assert all(sum(map(len, form.split(io.BytesIO(part)))) <= len(form.header) for part in torn)
    if form.has_errors:
        failed = form.decode(form.encode(item, 'no, "such" file'))
        assert failed == (form.name(item), 'no, "such" file')


def test_jsonl_brings_every_name_back(tmp_path):
    for raw in WEIRD:
        (tmp_path / os.fsdecode(raw)).write_bytes(b"")
    output = tmp_path / "out.jsonl"
    caption_to(output, [tmp_path])
    rows = [json.loads(line) for line in output.open(encoding="utf-8")]
    found = {os.path.basename(os.fsencode(row["image"])) for row in rows}
    assert found == set(WEIRD)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt", "out.json"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_resume_from_any_byte_gives_the_same_file(tmp_path, photos, monkeypatch, name, batch_size):
    monkeypatch.chdir(tmp_path)
    paths = ["photos/0.png", "photos", "missing.png", "photos/1.png"]
    whole, output = tmp_path / "whole" / name, tmp_path / name
    caption_to(whole, paths, batch_size=batch_size)
    written = whole
    if name == "out.json":  # its rows lie in out.json.partial until the end
        stopped = FakeCaptioner(stop_after=9)
        with pytest.raises(KeyboardInterrupt):
            caption_to(tmp_path / "x.json", paths, captioner=stopped, batch_size=batch_size)
        written, output = tmp_path / "x.json.partial", tmp_path / "x.json"
    data = written.read_bytes()
    partial = written.with_name(output.name + ".partial") if name == "out.json" else output
    for end in range(0, len(data) + 1, 1 if batch_size == 3 and partial == output else 11):
        output.unlink(missing_ok=True)
        partial.write_bytes(data[:end])
        captioner = FakeCaptioner()
        caption_to(output, paths, mode="resume", captioner=captioner, batch_size=batch_size)
        assert output.read_bytes() == whole.read_bytes()
        if name == "out.jsonl":  # a few batches are repeated, no more
            assert captioner.read <= 9 - data[:end].count(b"\n") + 4 * batch_size


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt", "out.json"])
def test_an_output_is_refused_without_resume_or_overwrite(tmp_path, photos, name):
    output = tmp_path / name
    caption_to(output, [photos])
    before = output.read_bytes()
    with pytest.raises(CaptionerError, match="--overwrite"):
        caption_to(output, [photos])
    assert output.read_bytes() == before
    caption_to(output, [photos / "0.png"], mode="overwrite")
    assert 0 < output.stat().st_size < len(before)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt"])
def test_resume_refuses_other_photos_and_other_files(tmp_path, photos, name):
    output = tmp_path / name
    caption_to(output, [photos])
    before = output.read_bytes()
    with pytest.raises(CaptionerError, match="--overwrite"):
        caption_to(output, [photos / "3.png"], mode="resume")
    assert output.read_bytes() == before
    output.write_bytes(b"my notes,\nnot yours\ntorn")
    with pytest.raises(CaptionerError):
        caption_to(output, [photos], mode="resume")
    assert output.read_bytes() == b"my notes,\nnot yours\ntorn"


def test_a_complete_output_resumes_to_itself(tmp_path, photos):
    output = tmp_path / "out.jsonl"
    caption_to(output, [photos])
    before, captioner = output.read_bytes(), FakeCaptioner()
    summary = caption_to(output, [photos], mode="resume", captioner=captioner)
    assert (summary.kept, summary.kept_failed, summary.captioned) == (7, 1, 0)
    assert not summary.ok
    assert captioner.read == 0
    assert output.read_bytes() == before


def test_two_writers_are_refused(tmp_path, photos):
    for name in ("out.jsonl", "out.json"):
        output = tmp_path / name
        for mode in ("new", "resume", "overwrite"):

            def second(output=output, mode=mode):
                with pytest.raises(CaptionerError, match="another captioner"):
                    open_sink(str(output), mode=mode)

            captioner = FakeCaptioner(on_batch=second)
            summary = caption_to(output, [photos], mode="overwrite", captioner=captioner)
            assert summary.captioned == 6
            assert len(output.read_text().split('"image"')) == 8


def test_a_full_disk_keeps_whole_rows_and_can_be_resumed(tmp_path, photos):
    resource = pytest.importorskip("resource")
    whole = tmp_path / "whole.jsonl"
    caption_to(whole, [photos])
    output = tmp_path / "out.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(CaptionerError, match=r"cannot write .*out\.jsonl.* kept"):
            caption_to(output, [photos])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = output.read_bytes()
    assert kept.endswith(b"\n")
    assert whole.read_bytes().startswith(kept)
    caption_to(output, [photos], mode="resume")
    assert output.read_bytes() == whole.read_bytes()


def test_unusable_outputs(tmp_path, photos):
    (tmp_path / "file").touch()
    with pytest.raises(CaptionerError, match="cannot write"):
        open_sink(str(tmp_path / "file" / "out.jsonl"))
    with pytest.raises(ConfigError, match="is a folder"):
        open_sink(str(tmp_path), "jsonl")
    with pytest.raises(ConfigError, match="--format"):
        open_sink(str(tmp_path / "out.docx"))
    with pytest.raises(ConfigError, match="-o"):
        open_sink(None, mode="resume")


def test_interrupted_at_once_leaves_no_file(tmp_path, photos):
    with pytest.raises(KeyboardInterrupt):
        caption_to(tmp_path / "out.csv", [photos], captioner=FakeCaptioner(stop_after=0))
    assert not (tmp_path / "out.csv").exists()


def test_coco_results(tmp_path):
    for name in ("COCO_val2014_000000000042.png", "000007.png", "dog.png"):
        save(tmp_path / "photos" / name)
    output = tmp_path / "results.json"
    summary = caption_to(output, [tmp_path / "photos"], form="coco")
    assert json.loads(output.read_text()) == [
        {"image_id": 7, "caption": "a photo"},
        {"image_id": 42, "caption": "a photo"},
    ]
    assert (summary.captioned, summary.failed) == (2, 1)
    assert "no image id" in str(summary.kinds)
    assert not list(tmp_path.glob("*.partial"))
    assert coco_id(Item("7.png", id="x")) == "x"


def test_sidecars(tmp_path, photos):
    def caption(mode, *paths):
        items = open_sources(map(str, paths))
        return run(FakeCaptioner(), items, open_sink(None, "sidecar", mode=mode))

    (photos / "1.txt").write_text("by hand")
    save(photos / "0.jpg")  # the same sidecar as 0.png
    summary = caption("new", photos)
    assert (photos / "0.txt").read_text() == "a photo\n"
    assert (photos / "1.txt").read_text() == "by hand"
    assert (summary.captioned, summary.failed) == (5, 3)
    (photos / "6.txt").unlink()
    summary = caption("resume", photos)
    assert (summary.captioned, summary.failed, summary.kept) == (1, 1, 6)
    caption("overwrite", photos / "1.png")
    assert (photos / "1.txt").read_text() == "a photo\n"


# -------------------------------------------------------------------------------------------- run


def test_fail_fast_keeps_what_is_before_the_failure(tmp_path, photos):
    output = tmp_path / "out.jsonl"
    summary = caption_to(output, [photos], fail_fast=True)
    assert "2.png" in summary.stopped_by
    assert len(output.read_text().splitlines()) == 2
    save(photos / "2.png")
    summary = caption_to(output, [photos], mode="resume")
    assert summary.ok
    assert (summary.kept, summary.captioned) == (2, 5)


def test_errors_file_is_complete_after_a_resume_and_a_manifest(tmp_path, photos):
    errors, output = tmp_path / "errors.jsonl", tmp_path / "out.jsonl"
    form = JsonLinesFormat()
    stopped = FakeCaptioner(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        caption_to(output, [photos], captioner=stopped, errors=RowFile(errors, form))
    paths = [photos, tmp_path / "missing.png"]
    caption_to(output, paths, mode="resume", errors=RowFile(errors, form, "overwrite"))
    assert names(errors) == [str(photos / "2.png"), str(tmp_path / "missing.png")]


def test_strips_of_a_resumed_run(tmp_path):
    for folder in "abc":
        save(tmp_path / folder / "dog.png")
    paths = [tmp_path / folder for folder in "abc"]
    caption_to(tmp_path / "1.jsonl", paths, strips=StripFolder(str(tmp_path / "one")))
    with pytest.raises(KeyboardInterrupt):
        caption_to(
            tmp_path / "2.jsonl",
            paths,
            captioner=FakeCaptioner(stop_after=2),
            strips=StripFolder(str(tmp_path / "two")),
        )
    strips = StripFolder(str(tmp_path / "two"))
    caption_to(tmp_path / "2.jsonl", paths, mode="resume", strips=strips)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert len(one) == 3
    assert one == two


def test_out_of_memory_names_the_option(tmp_path, photos):
    def fail():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(CaptionerError, match="--batch-size"):
        caption_to(tmp_path / "out.jsonl", [photos], captioner=FakeCaptioner(on_batch=fail))


def test_summary_reads_well():
    summary = Summary(captioned=9998, failed=2, seconds=10000 / 41)
    summary.kinds["no such file"] = 2
    assert summary.lines() == ["9,998 captioned, 2 failed, 41 images/s", "  2 × no such file"]


def test_memory_stays_flat(tmp_path, photos):
    """Eight thousand names go through without being held."""
    tracemalloc = pytest.importorskip("tracemalloc")

    class Instant(FakeCaptioner):
        def stream(self, sources, *, batch_size=32, workers=None, **search):
            for source in sources:
                yield Failure(source, "x")

    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"photo_{n:060}.jpg\n" for n in range(8_000)))
    tracemalloc.start()
    try:
        summary = caption_to(tmp_path / "out.jsonl", [manifest], captioner=Instant())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summary.failed == 8_000
    assert peak < 300_000  # bytes; the names alone would take a million
