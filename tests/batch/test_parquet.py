"""Parquet tables of photos, and results as Parquet tables."""

import io
import json
import os
import sys

import pytest
from helpers.fake_captioner import FakeCaptioner, caption_to, make_photos, save
from PIL import Image

from captioner.batch.parquet import write_parquet
from captioner.batch.sources import count_images, open_sources
from captioner.batch.writers import open_writer
from captioner.cli import main as cli
from captioner.errors import CaptionerError, ConfigError

pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'parquet'")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Waiting for the disk proves nothing here: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def table(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def items(*paths, **options):
    return list(open_sources(map(str, paths), **options))


# ----------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), "str")])
@pytest.mark.parametrize("name", ["path", "image_path", "file", "image", "Filename"])
def test_a_column_of_paths(tmp_path, name, kind):
    beside = save(tmp_path / "märz.png")
    names = pa.array(["märz.png", str(beside), "gone.png"], pa.string()).cast(kind)
    path = table(tmp_path / "t.parquet", {"label": [1, 2, 3], name: names, "id": [7, None, 9]})
    found = items(path)
    assert [(item.name, item.id) for item in found] == [
        ("märz.png", 7),
        (str(beside), None),
        ("gone.png", 9),
    ]
    assert [item.source for item in found[:2]] == [str(beside)] * 2
    assert items(path, image_root="else")[0].source == os.path.join("else", "märz.png")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_column_of_bytes(tmp_path, kind):
    data = [png("red"), None, b"", png("blue")]
    columns = {"jpg": pa.array(data, kind), "caption": ["x"] * 4}
    path = table(tmp_path / "t.parquet", columns, row_group_size=3)
    found = items(path)
    assert [item.name for item in found] == [f"{path}#{row}" for row in range(4)]
    assert [item.source for item in found] == [data[0], b"", b"", data[3]]
    assert "null" in found[1].error
    named = table(tmp_path / "n.parquet", {**columns, "file_name": ["a", None, "c", "d"]})
    assert [item.name for item in items(named)] == ["a", f"{named}#1", "c", "d"]


def test_hugging_face_structs(tmp_path):
    outside = save(tmp_path / "outside.png")
    structs = [
        {"bytes": png(), "path": "a.png"},
        {"bytes": png(), "path": None},
        {"bytes": None, "path": "outside.png"},
        {"bytes": None, "path": None},
        None,
    ]
    path = table(tmp_path / "t.parquet", {"image": structs, "image_id": ["x"] * 5})
    found = items(path)
    assert [item.name for item in found] == [
        "a.png",
        f"{path}#1",
        "outside.png",
        f"{path}#3",
        f"{path}#4",
    ]
    assert found[0].source == png()
    assert found[2].source == str(outside)
    assert [bool(item.error) for item in found] == [False, False, False, True, True]
    assert {item.id for item in found} == {"x"}


def test_choosing_the_column(tmp_path):
    columns = {"image": ["a.png"], "Photo 2": ["b.png"], "size": [3], "tags": [["x"]]}
    path = table(tmp_path / "t.parquet", columns)
    assert items(path)[0].name == "a.png"
    assert items(path, column="Photo 2")[0].name == "b.png"
    (missing,) = items(path, column="foto")
    assert missing.name == path
    assert "no column 'foto'; its columns are image, Photo 2, size, tags" in missing.error
    (wrong,) = items(path, column="tags")
    assert "list" in wrong.error
    assert "neither paths" in wrong.error
    (url,) = items(table(tmp_path / "u.parquet", {"url": ["http://x/a.jpg"]}))
    assert "'url' holds web addresses" in url.error
    (none,) = items(table(tmp_path / "n.parquet", {"text": ["x"], "number": [1]}))
    assert "--column, of text, number" in none.error
    (web,) = items(table(tmp_path / "w.parquet", {"image": ["https://x/a.jpg"]}))
    assert "download" in web.error


def test_bytes_are_preferred_to_paths(tmp_path):
    path = table(tmp_path / "t.parquet", {"path": ["a.png"], "bytes": [png()]})
    (item,) = items(path)
    assert (item.name, item.source) == ("a.png", png())


def test_globs_and_folders_of_tables(tmp_path):
    (tmp_path / "d.parquet").mkdir()  # as Spark writes them
    for number in range(3):
        table(tmp_path / "d.parquet" / f"part-{number}.parquet", {"path": [f"{number}.png"] * 2})
    expected = ["0.png", "0.png", "1.png", "1.png", "2.png", "2.png"]
    for source in (tmp_path / "d.parquet", tmp_path / "d.parquet" / "*.parquet"):
        assert [item.name for item in items(source)] == expected
        assert count_images([str(source)]) == 6
    picture = save(tmp_path / "d.parquet" / "photo.png")
    assert [item.name for item in items(picture.parent)] == [str(picture)]


def test_counting_reads_the_footer_alone(tmp_path, monkeypatch):
    path = table(tmp_path / "t.parquet", {"image": [png()] * 5}, row_group_size=2)
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert count_images([path]) == 5


def test_a_damaged_table_gives_what_can_be_read(tmp_path):
    rows = [os.urandom(3000) for _ in range(12)]
    path = table(tmp_path / "t.parquet", {"image": rows}, row_group_size=4, compression="snappy")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 60] = b"\xff" * 60
    (tmp_path / "t.parquet").write_bytes(data)
    found = items(path)
    assert [item.source for item in found if item.error is None] == rows[:4] + rows[8:]
    (bad,) = (item for item in found if item.error)
    assert bad.name == f"{path}#4"
    assert "rows 4 to 7 are lost" in bad.error
    for end in (0, 3, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "t.parquet").write_bytes(data[:end])
        (bad,) = items(path)
        assert bad.error.startswith("cannot read this table")
        assert "\n" not in bad.error
    (gone,) = items(tmp_path / "gone.parquet")
    assert gone.error == "cannot read this table: No such file or directory"


def test_one_large_row_group_is_read_in_pieces(tmp_path):
    rows = [os.urandom(50_000) for _ in range(400)]
    small_pages = {"use_dictionary": False, "write_batch_size": 16}
    path = table(tmp_path / "t.parquet", {"image": rows}, **small_pages)
    assert pq.read_metadata(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in open_sources([path]))
    assert most < 5_000_000  # of 20 million


# ------------------------------------------------------------------------------------------- sink


def test_a_table_has_the_fields_of_json_lines(tmp_path):
    photos = make_photos(tmp_path / "photos")
    caption_to(tmp_path / "out.jsonl", [photos])
    caption_to(tmp_path / "out.parquet", [photos])
    assert not list(tmp_path.glob("*.partial"))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    plain = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert plain == [json.loads(line) for line in (tmp_path / "out.jsonl").open()]


def write(tmp_path, *rows):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_parquet(lines, tmp_path / "rows.parquet")
    return pq.read_table(tmp_path / "rows.parquet")


def test_nested_columns_and_ids(tmp_path):
    caption = {"caption": "a b", "score": -1.5, "words": ["a", "b"], "log_probs": [-0.5, -1, 0]}
    candidates = [{"caption": "a b", "score": -1.5}, {"caption": "c", "score": -2.0}]
    maps = [[[0.25, 0.75]], [[0.5, 0.5]]]
    row = {"image": "x", **caption, "finished": True, "candidates": candidates, "attention": maps}
    result = write(tmp_path, {**row, "id": 3}, {"image": "y", "error": "no"})
    first, second = result.to_pylist()
    assert first == {**row, "id": 3, "error": None}
    assert (second["error"], second["candidates"], second["caption"]) == ("no", None, None)
    assert result.schema.field("id").type == pa.int64()
    assert write(tmp_path, {**row, "id": 3}, {**row, "id": "b"})["id"].to_pylist() == ["3", "b"]
    assert write(tmp_path, {**row, "id": 2**70})["id"].to_pylist() == [str(2**70)]
    error = {"image": os.fsdecode(b"caf\xe9.jpg"), "error": "no"}
    assert write(tmp_path, error)["image"].to_pylist() == [r"caf\udce9.jpg"]
    assert "id" not in write(tmp_path, error).schema.names


def test_resume_from_any_byte_gives_the_same_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")
    paths = ["photos/0.png", "photos", "missing.png", "photos/1.png"]
    caption_to(tmp_path / "whole.parquet", paths)
    whole = (tmp_path / "whole.parquet").read_bytes()
    output, partial = tmp_path / "x.parquet", tmp_path / "x.parquet.partial"
    with pytest.raises(KeyboardInterrupt):
        caption_to(output, paths, captioner=FakeCaptioner(stop_after=9))
    assert not output.exists()
    data = partial.read_bytes()
    for end in range(0, len(data) + 1, 23):
        output.unlink(missing_ok=True)
        partial.write_bytes(data[:end])
        caption_to(output, paths, mode="resume")
        assert output.read_bytes() == whole
        assert not partial.exists()


def test_what_is_there_is_not_lost(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos")
    output = tmp_path / "out.parquet"

    def second():
        with pytest.raises(CaptionerError, match="another captioner"):
            open_writer(str(output), mode="resume")

    caption_to(output, [photos], captioner=FakeCaptioner(on_batch=second))
    before = output.read_bytes()
    with pytest.raises(CaptionerError, match="--overwrite"):
        caption_to(output, [photos])
    assert output.read_bytes() == before

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(CaptionerError, match=r"No space left.* --resume goes on"):
        caption_to(output, [photos], mode="overwrite")
    assert output.read_bytes() == before
    monkeypatch.undo()
    caption_to(output, [photos], mode="resume")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "photos"]


def test_unusable_outputs(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="-o"):
        open_writer(None, "parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(ConfigError, match="regular file"):
        open_writer(str(tmp_path / "pipe.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"captioner\[parquet\]"):
        open_writer(str(tmp_path / "out.parquet"))
    with pytest.raises(ConfigError, match=r"captioner\[parquet\]"):
        items(tmp_path / "in.parquet")


def test_the_command(tmp_path, model, photos):
    path = table("in.parquet", {"photo": sorted(map(str, photos.iterdir()))})
    options = ["--column", "photo", "--num-captions", "2", "--attention-json", "-q"]
    command = ["caption", path, "-m", str(model), "--device", "cpu", *options]
    assert cli.main([*command, "-o", "out.parquet"]) == 0
    result = pq.read_table("out.parquet")
    assert result["image"].to_pylist() == [f"photos/{number:02}.png" for number in range(5)]
    assert all(len(row) == 2 for row in result["candidates"].to_pylist())
    for row in result.to_pylist():
        assert len(row["attention"]) == len(row["words"])
    assert cli.main([*command, "-o", "out.parquet"]) == 2
