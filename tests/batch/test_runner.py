"""Writers and runs: formats, resuming, locks, full disks."""

import io
import json
import os
import subprocess
import sys

import pytest
from helpers.fake_captioner import FakeCaptioner, caption_to, make_photos, names, save
from helpers.tiny_files import environment
from hypothesis import given
from hypothesis import strategies as st

from captioner.api import Failure
from captioner.batch.formats import (
    CsvFormat,
    JsonLinesFormat,
    PreviousResult,
    TextFormat,
    coco_id,
    to_row,
)
from captioner.batch.item import Item, escaped, reason
from captioner.batch.journal import Journal
from captioner.batch.runner import Summary, failure_kind, run
from captioner.batch.sidecars import StripFolder
from captioner.batch.sources import open_sources
from captioner.batch.writers import RowWriter, is_finished, open_writer
from captioner.errors import CaptionerError, ConfigError, ImageError
from captioner.image import io as images
from captioner.utils.files import replacing


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Waiting for the disk proves nothing here: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


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


def test_strip_names_are_unique_and_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = ["dog.jpg", "b/dog.jpg", "b/dog.png", "../../x.jpg", "...", "é\n.jpg", "t.tar/dog.jpg"]
    odd += ["x" * 250 + ".jpg", "x" * 251 + ".jpg", os.fsdecode(b"\xff.jpg"), "/etc/x/dog.jpg"]
    folder = str(tmp_path / "maps")
    strips = StripFolder(folder, ["."])
    paths = [strips.path(Item(name)) for name in odd]
    (tmp_path / "b").mkdir()
    assert paths[:2] == [f"{folder}/{name}.attention.png" for name in odd[:2]]
    assert len(set(paths)) == len(odd)
    caption = FakeCaptioner().caption(str(save(tmp_path / "a.png")), 1.0)
    for name, path in zip(odd, paths, strict=True):
        assert os.path.commonpath([folder, os.path.realpath(path)]) == folder
        strips.write(Item(name), caption)
        assert os.path.exists(path)
    assert (
        StripFolder(folder, ["b"]).path(Item("x", "b/dog.jpg")) == f"{folder}/dog.jpg.attention.png"
    )


# ---------------------------------------------------------------------------------------- writers

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
    record = form.encode(to_row(item, FakeCaptioner().caption(b"", 1.0)))
    data = (form.header + record).encode()  # valid UTF-8, whatever the name
    assert form.decode(record) == PreviousResult(form.name(item), None)
    torn = [data[:end] for end in range(len(data))]
    assert list(form.split(io.BytesIO(data))) == [
        part.encode() for part in (form.header, record) if part
    ]
    assert all(sum(map(len, form.split(io.BytesIO(part)))) <= len(form.header) for part in torn)
    if form.has_errors:
        failed = form.decode(form.encode(to_row(item, Failure(b"", 'no, "such" file'))))
        assert failed == PreviousResult(form.name(item), 'no, "such" file')


def test_jsonl_brings_every_name_back(tmp_path):
    for raw in WEIRD:
        (tmp_path / os.fsdecode(raw)).write_bytes(b"")
    output = tmp_path / "out.jsonl"
    caption_to(output, [tmp_path])
    rows = [json.loads(line) for line in output.open(encoding="utf-8")]
    found = {os.path.basename(os.fsencode(row["image"])) for row in rows}
    assert found == set(WEIRD)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt", "out.json"])
@pytest.mark.parametrize(
    ("batch_size", "step"), [(1, 11), (3, 5), (32, 11), pytest.param(3, 1, marks=pytest.mark.slow)]
)
def test_resume_from_any_byte_gives_the_same_file(
    tmp_path, photos, monkeypatch, name, batch_size, step
):
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
    for end in range(0, len(data) + 1, step):
        output.unlink(missing_ok=True)
        partial.write_bytes(data[:end])
        captioner = FakeCaptioner()
        caption_to(output, paths, mode="resume", captioner=captioner, batch_size=batch_size)
        assert output.read_bytes() == whole.read_bytes()
        if name == "out.jsonl":  # a few batches are repeated, no more
            assert captioner.read <= 9 - data[:end].count(b"\n") + 4 * batch_size


def test_a_resumed_run_shares_the_cores_as_before(tmp_path, photos):
    class Lanes(FakeCaptioner):
        """Computes up to four batches at once; the last digits tell how many, as `Captioner`'s."""

        def stream(self, sources, *, batch_size=32, **options):
            sources = list(sources)
            self.lanes = min(4, -(-len(sources) // batch_size))
            yield from super().stream(sources, batch_size=batch_size)

        def caption(self, source, score):
            return super().caption(source, self.lanes)

    output = tmp_path / "out.jsonl"
    caption_to(output, [photos], captioner=Lanes(), batch_size=1)
    whole = output.read_bytes()
    rows = whole.splitlines(keepends=True)
    for kept in range(len(rows)):
        output.write_bytes(b"".join(rows[:kept]))
        caption_to(output, [photos], mode="resume", captioner=Lanes(), batch_size=1)
        assert output.read_bytes() == whole


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


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_complete_output_resumes_to_itself_and_takes_more_photos(tmp_path, photos, name):
    output, more = tmp_path / name, save(tmp_path / "zoo.png")
    caption_to(output, [photos])
    before, captioner = output.read_bytes(), FakeCaptioner()
    summary = caption_to(output, [photos], mode="resume", captioner=captioner)
    assert (summary.kept, summary.kept_failed, summary.captioned) == (7, 1, 0)
    assert not summary.ok
    assert captioner.read == 0
    assert output.read_bytes() == before
    with pytest.raises(CaptionerError, match=f"{name} has a result for .*--overwrite"):
        caption_to(output, [photos / "3.png"], mode="resume")
    assert output.read_bytes() == before
    assert not is_finished(str(output))
    assert caption_to(output, [photos, more], mode="resume").captioned == 1
    assert output.read_bytes() != before
    assert caption_to(output, [photos, more], mode="resume").kept == 8


@pytest.mark.parametrize("name", ["out.json", "out.parquet"])
def test_a_file_that_is_made_at_the_end_is_finished_when_it_is_there(tmp_path, photos, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    output, partial = tmp_path / name, tmp_path / f"{name}.partial"
    with pytest.raises(KeyboardInterrupt):
        caption_to(output, [photos], captioner=FakeCaptioner(stop_after=4))
    assert partial.exists()
    assert not is_finished(str(output))
    rows = partial.read_bytes()
    caption_to(output, [photos], mode="resume")
    assert is_finished(str(output))
    whole = output.read_bytes()
    with pytest.raises(CaptionerError, match="exists already: --overwrite"):
        caption_to(output, [photos], mode="resume")
    partial.write_bytes(rows)  # as if killed just before it was removed
    assert not is_finished(str(output))
    caption_to(output, [photos], mode="resume")
    assert output.read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_two_writers_are_refused(tmp_path, photos):
    for name in ("out.jsonl", "out.json"):
        output = tmp_path / name
        for mode in ("new", "resume", "overwrite"):

            def second(output=output, mode=mode):
                with pytest.raises(CaptionerError, match="another captioner"):
                    open_writer(str(output), mode=mode)

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
        open_writer(str(tmp_path / "file" / "out.jsonl"))
    with pytest.raises(ConfigError, match="is a folder"):
        open_writer(str(tmp_path), "jsonl")
    with pytest.raises(ConfigError, match="--format"):
        open_writer(str(tmp_path / "out.docx"))
    with pytest.raises(ConfigError, match="-o"):
        open_writer(None, mode="resume")


def test_interrupted_at_once_leaves_no_file(tmp_path, photos):
    with pytest.raises(KeyboardInterrupt):
        caption_to(tmp_path / "out.csv", [photos], captioner=FakeCaptioner(stop_after=0))
    assert not (tmp_path / "out.csv").exists()


def test_coco_results(tmp_path):
    for name in ("COCO_val2014_000000000042.png", "000000000007.png", "dog_1.png"):
        save(tmp_path / "photos" / name)
    output = tmp_path / "results.json"
    summary = caption_to(output, [tmp_path / "photos"], form="coco")
    assert json.loads(output.read_text()) == [
        {"image_id": 7, "caption": "a photo"},
        {"image_id": 42, "caption": "a photo"},
    ]
    assert (summary.captioned, summary.failed) == (2, 1)
    assert "no image id" in str(summary.kinds)
    assert is_finished(str(output), "coco")
    assert not list(tmp_path.glob("*.partial"))
    assert coco_id("7.png", "x") == "x"


@pytest.mark.parametrize(
    ("cell", "image_id"),
    [
        ("42", 42),
        ("42.0", 42),
        ("0", 0),
        ("0042", "0042"),
        ("1234567890123456", "1234567890123456"),
    ],
)
def test_ids_in_tables_are_integers_in_coco_results(tmp_path, cell, image_id):
    save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(f"image,id\na.png,{cell}\n")
    caption_to(tmp_path / "out.json", [tmp_path / "list.csv"], form="coco")
    assert json.loads((tmp_path / "out.json").read_text())[0]["image_id"] == image_id


def test_a_second_image_of_a_coco_id_is_an_error(tmp_path):
    for name in ("a.png", "b.png", "000000000007.png"):
        save(tmp_path / name)
    rows = [{"image": "a.png", "id": 7}, {"image": "b.png", "id": "007"}, "000000000007.png"]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    summary = caption_to(tmp_path / "out.json", [tmp_path / "list.json"], form="coco")
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"image_id": 7, "caption": "a photo"}
    ]
    assert (summary.captioned, summary.failed) == (1, 2)
    assert "a.png has the image id # too" in str(summary.kinds)


def test_sidecars(tmp_path, photos):
    def caption(mode, *paths):
        items = open_sources(map(str, paths))
        return run(FakeCaptioner(), items, open_writer(None, "sidecar", mode=mode))

    (photos / "1.txt").write_text("by hand")
    save(photos / "0.jpg")  # before 0.png
    summary = caption("new", photos)
    assert (photos / "0.txt").read_text() == (photos / "0.png.txt").read_text() == "a photo\n"
    assert (photos / "1.txt").read_text() == "by hand"
    assert (summary.captioned, summary.failed) == (6, 2)
    (photos / "6.txt").unlink()
    summary = caption("resume", photos)
    assert (summary.captioned, summary.failed, summary.kept) == (1, 1, 6)
    save(photos / "0.png.jpg")  # its sidecar is that of 0.png
    assert "another photo has the sidecar" in str(caption("overwrite", photos / "0.png").kinds)
    (photos / "0.png.jpg").unlink()
    long = save(photos / ("x" * 251 + ".png"))  # 255 bytes, the usual limit
    assert caption("new", long).ok
    caption("overwrite", photos / "1.png")
    assert (photos / "1.txt").read_text() == "a photo\n"


@pytest.mark.skipif(os.name == "nt", reason="processes are not asked about there")
def test_what_a_killed_run_of_sidecars_left_is_removed(tmp_path, photos):
    program = (
        "import os, sys; from captioner.utils.files import replacing\n"
        "with replacing(sys.argv[1]): print(os.getpid(), flush=True); os.kill(os.getpid(), 9)"
    )
    target = str(photos / "0.txt")
    subprocess.run([sys.executable, "-c", program, target], env=environment(), capture_output=True)
    with replacing(photos / "other.txt") as mine:  # a process that lives
        before = {path.name for path in photos.glob(".captioner-*.part")}
        assert len(before) == 2
        run(FakeCaptioner(), open_sources([str(photos)]), open_writer(None, "sidecar"))
        assert {path.name for path in photos.glob(".captioner-*.part")} == {mine.name}
    assert (photos / "0.txt").read_text() == "a photo\n"


def test_a_failed_sidecar_fails_again_when_resumed(tmp_path, photos):
    """The sidecar that is there belongs to another image."""
    odd = photos / "0"  # no ending of an image: its sidecar is 0.txt too
    odd.write_bytes((photos / "0.png").read_bytes())
    for mode in ("new", "resume"):
        items = open_sources([str(photos / "0.png"), str(odd), str(photos / "2.png")])
        summary = run(FakeCaptioner(), items, open_writer(None, "sidecar", mode=mode))
        assert (summary.failed, summary.ok) == (2, False)
        assert "another photo has the sidecar" in str(summary.kinds)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt"])
def test_resume_what_a_windows_program_has_saved(tmp_path, photos, name):
    """A byte order mark before the first record, CRLF after each."""
    output = tmp_path / name
    caption_to(output, [photos])
    whole = output.read_bytes()
    records = whole.splitlines(keepends=True)
    saved = b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n")
    for count in range(1, len(records) + 1):
        kept = b"".join(records[:count])
        output.write_bytes(b"\xef\xbb\xbf" + kept.replace(b"\n", b"\r\n"))
        caption_to(output, [photos], mode="resume")
        assert output.read_bytes() == saved


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt"])
def test_photos_that_join_a_folder_are_captioned_last_when_resumed(tmp_path, photos, name):
    """Wherever their names stand; the other rows stay as they are, also when it is killed again."""
    output, whole = tmp_path / name, tmp_path / "whole" / name
    caption_to(whole, [photos])
    rows = whole.read_bytes().splitlines(keepends=True)
    for stem in ("00", "3b", "3c"):
        save(photos / f"{stem}.png")

    def resume():
        return caption_to(output, [photos], mode="resume", captioner=FakeCaptioner(), batch_size=2)

    for kept in (2, 4, len(rows)):
        output.write_bytes(b"".join(rows[:kept]))
        resume()
        lines = output.read_bytes().splitlines(keepends=True)
        assert len(lines) == len(rows) + 3
        assert lines[:kept] == rows[:kept]
        assert all(sum(name in line for line in lines) == 1 for name in (b"/00.", b"3b.", b"3c."))
        for end in (len(rows) + 1, len(rows) + 2, len(rows) + 3):
            output.write_bytes(b"".join(lines[:end]))
            summary = resume()
            assert output.read_bytes().startswith(b"".join(lines[:end]))
            assert summary.captioned == len(lines) - end
    save(photos / "zz.png")
    assert resume().captioned == 1
    assert "zz.png" in output.read_text().splitlines()[-1]


def test_a_list_in_another_order_is_resumed(tmp_path, photos):
    output, listing = tmp_path / "out.jsonl", tmp_path / "list.txt"
    names = [f"photos/{number}.png\n" for number in (0, 1, 3, 4, 1)]
    listing.write_text("".join(names))
    caption_to(output, [listing])
    before = output.read_bytes()
    listing.write_text("".join([*names[::-1], "photos/5.png\n"]))
    assert caption_to(output, [listing], mode="resume").captioned == 1
    assert output.read_bytes().startswith(before)
    listing.write_text("".join(names[:-1]))
    with pytest.raises(CaptionerError, match=r"has a result for '.*', which is not among these"):
        caption_to(output, [listing], mode="resume")


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

    def write(mode):
        return RowWriter(Journal(errors, JsonLinesFormat(), mode))

    stopped = FakeCaptioner(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        caption_to(output, [photos], captioner=stopped, errors=write("new"))
    paths = [photos, tmp_path / "missing.png"]
    caption_to(output, paths, mode="resume", errors=write("overwrite"))
    assert names(errors) == [str(photos / "2.png"), str(tmp_path / "missing.png")]


def test_strips_of_a_resumed_run(tmp_path):
    paths = [save(tmp_path / "photos" / folder / "dog.png").parent for folder in "abc"]

    def caption(folder, **options):
        strips = StripFolder(str(tmp_path / folder), list(map(str, paths)))
        caption_to(tmp_path / f"{folder}.jsonl", paths, strips=strips, **options)
        return {
            str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*.*")
        }

    with pytest.raises(KeyboardInterrupt):
        caption("two", captioner=FakeCaptioner(stop_after=2))
    assert caption("one") == caption("two", mode="resume")
    assert caption("one", mode="overwrite") == {f"{f}/dog.png.attention.png" for f in "abc"}


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
