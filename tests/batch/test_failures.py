"""What goes wrong around a run: one clear line, what was written is kept, `--resume` goes on."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from helpers.fake_captioner import FakeCaptioner, caption_to, names, save
from helpers.tiny_files import environment, make_photos

from captioner import streaming
from captioner.api import Failure
from captioner.batch import sources
from captioner.batch.item import Item
from captioner.batch.runner import caption_items
from captioner.batch.sources import open_sources
from captioner.cli import main as cli


@pytest.fixture
def caption(model, capsys):
    """Run `captioner caption` -> (status, standard error)."""

    def call(*arguments):
        status = cli.main(["caption", *map(str, arguments), "--model", str(model), "--quiet"])
        captured = capsys.readouterr()
        assert captured.out == ""
        return status, captured.err

    return call


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """`photos/00.png` to `photos/11.png`, relative to the working directory."""
    make_photos(tmp_path / "photos", 12)
    monkeypatch.chdir(tmp_path)
    return Path("photos")


def rows_of(path):
    return [json.loads(line) for line in Path(path).open(encoding="utf-8")]


# ------------------------------------------------------------------------------------------ output


@pytest.fixture
def limited():
    """Files cannot grow beyond so many bytes: (bytes) -> None."""
    resource = pytest.importorskip("resource", reason="needs limits of file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt"])
def test_a_full_disk(caption, photos, limited, name):
    assert caption(photos, "-o", f"whole-{name}") == (0, "")
    whole = Path(f"whole-{name}").read_bytes()
    limited(len(whole) * 2 // 3)
    status, said = caption(photos, "-o", name)
    limited(1 << 30)
    kept = Path(name).read_bytes()
    rows = kept.count(b"\n") - (name == "out.csv")
    assert (status, said) == (
        2,
        f"captioner: error: cannot write {name}: File too large; {rows} results are kept\n",
    )
    assert 0 < len(kept) < len(whole)
    assert whole.startswith(kept)
    assert kept.endswith(b"\n")
    assert caption(photos, "-o", name, "--resume") == (0, "")
    assert Path(name).read_bytes() == whole


def test_a_disk_that_is_full_when_the_array_is_made(caption, photos, limited):
    """The rows fit, the copy that is made of them at the end does not."""
    assert caption(photos, "-o", "whole.json") == (0, "")
    whole = Path("whole.json").read_bytes()
    limited(len(whole) - 5)  # commas, brackets: it is longer than the rows
    status, said = caption(photos, "-o", "out.json")
    limited(1 << 30)
    assert status == 2
    assert said.count("\n") == 1
    assert "the results are kept in out.json.partial: --resume goes on" in said
    assert not Path("out.json").exists()
    assert caption(photos, "-o", "out.json", "--resume") == (0, "")
    assert Path("out.json").read_bytes() == whole
    assert sorted(path.name for path in Path().iterdir()) == ["out.json", "photos", "whole.json"]


def test_a_device_without_space(caption, photos):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    said = "captioner: error: cannot write /dev/full: No space left on device\n"
    for form in ("jsonl", "json", "text"):
        assert caption(photos, "-o", "/dev/full", "--format", form) == (2, said)


def test_places_that_cannot_be_written(caption, photos):
    Path("file").touch()
    status, said = caption(photos, "-o", "file/out.jsonl")
    assert (status, said) == (
        2,
        "captioner: error: cannot write file/out.jsonl: file is no folder\n",
    )
    assert caption(photos, "-o", "new/folder/out.jsonl")[0] == 0  # it is made
    locked = Path("locked")
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("root may write everywhere")
    status, said = caption(photos, "-o", locked / "out.jsonl")
    assert (status, said) == (
        2,
        "captioner: error: cannot write locked/out.jsonl: Permission denied\n",
    )


def run_shell(photos, model, redirections):
    """The program with redirections of a shell -> what is left of its output."""
    command = f'exec "{sys.executable}" -m captioner caption "$@" {redirections}'
    return subprocess.run(
        ["sh", "-c", command, "sh", photos, "none.jpg", "--model", model, "--quiet"],
        capture_output=True,
        text=True,
        env=environment(),
    )


@pytest.mark.slow
def test_a_closed_standard_output(photos, model):
    done = run_shell(photos, model, ">&-")
    assert done.returncode == 2
    assert done.stderr == ("captioner: error: cannot write standard output: Bad file descriptor\n")


@pytest.mark.slow
def test_closed_streams_do_not_mix_with_the_output(photos, model):
    """A file that is opened would take the number of a closed stream, and its messages."""
    done = run_shell(photos, model, "-o out.txt --errors bad.jsonl <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert [line.split("\t")[0] for line in Path("out.txt").read_text().splitlines()] == [
        f"photos/{number:02}.png" for number in range(12)
    ]
    assert rows_of("bad.jsonl") == [{"image": "none.jpg", "error": "no such file"}]


def test_no_message_goes_to_standard_output(photos, model):
    done = run_shell("nothing*.jpg", model, "--beam none 2>&-")
    assert (done.returncode, done.stdout) == (2, "")
    done = run_shell("-", model, "--beam 1 <&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "captioner: error: [Errno 9] Bad file descriptor\n"


# ------------------------------------------------------------------------------------------- input


def test_files_that_vanish_after_they_were_listed(caption, photos, monkeypatch):
    real = streaming.begin_search

    def begin_search(*batch):
        (photos / "10.png").unlink(missing_ok=True)
        (photos / "11.png").unlink(missing_ok=True)
        return real(*batch)

    monkeypatch.setattr(streaming, "begin_search", begin_search)
    status, said = caption(photos, "-o", "out.jsonl", "--batch-size", 1)
    assert (status, said) == (1, "")
    errors = {row["image"]: row["error"] for row in rows_of("out.jsonl") if "error" in row}
    assert errors == {f"photos/{number}.png": "no such file" for number in (10, 11)}
    assert len(rows_of("out.jsonl")) == 12


def test_a_folder_that_has_changed_cannot_be_resumed_by_mistake(caption, photos):
    caption(photos, "-o", "out.jsonl")
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(lines[:6]))
    (photos / "03.png").rename(photos / "03b.png")
    status, said = caption(photos, "-o", "out.jsonl", "--resume")
    assert status == 2
    assert "has a result for 'photos/03.png', which is not among these photos" in said
    assert Path("out.jsonl").read_bytes() == b"".join(lines[:6])
    (photos / "03b.png").rename(photos / "03.png")
    assert caption(photos, "-o", "out.jsonl", "--resume") == (0, "")
    assert Path("out.jsonl").read_bytes() == b"".join(lines)


def test_folders_that_cannot_be_read(caption, photos, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (photos / "secret").mkdir()
    for paths in ([photos, "--recursive"], [photos, photos / "secret"]):
        status, said = caption(*paths, "-o", "out.jsonl", "--overwrite")
        assert (status, said) == (1, "")
        *good, bad = rows_of("out.jsonl")
        assert len(good) == 12
        assert bad == {
            "image": "photos/secret",
            "error": "cannot read the folder: Permission denied",
        }


def make_tar(path, photos, mode="w"):
    """An archive of the photos; returns where each of them ends."""
    ends = []
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:
        for photo in sorted(photos.iterdir()):
            archive.add(photo, photo.name)
            ends.append(archive.offset)
    return ends


@pytest.mark.parametrize("damage", ["cut", "cut at a header", "no end", "header", "name"])
def test_a_damaged_archive(caption, photos, damage):
    ends = make_tar("shard.tar", photos)
    data = bytearray(Path("shard.tar").read_bytes())
    fifth, whole = ends[4], 5
    if damage == "cut":
        data = data[: fifth + 600]
    elif damage == "cut at a header":
        data = data[:fifth]
    elif damage == "no end":
        data, whole = data[: ends[-1]], 12
    elif damage == "header":
        data[fifth : fifth + 40] = b"garbage, where the name and the mode are"
    else:  # a name that would take all memory
        header = tarfile.TarInfo("x.png")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
        data[fifth : fifth + 512] = header.tobuf(tarfile.GNU_FORMAT)
    Path("shard.tar").write_bytes(data)
    status, said = caption("shard.tar", photos / "00.png", "-o", "out.jsonl")
    assert (status, said) == (1, "")
    rows = rows_of("out.jsonl")
    assert [row["image"] for row in rows] == [
        *(f"shard.tar/{number:02}.png" for number in range(whole)),
        "shard.tar",
        "photos/00.png",
    ]
    assert rows[whole]["error"].startswith(f"damaged archive after {whole} photos (")
    before = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(before[: len(before) // 2])
    assert caption("shard.tar", photos / "00.png", "-o", "out.jsonl", "--resume")[0] == 1
    assert Path("out.jsonl").read_bytes() == before


def test_a_damaged_compressed_archive(photos):
    make_tar("shard.tar.gz", photos, "w:gz")
    data = bytearray(Path("shard.tar.gz").read_bytes())
    whole = names("shard.tar.gz")
    for place in range(40, len(data), len(data) // 12):
        damaged = data.copy()
        damaged[place : place + 8] = b"damaged!"
        Path("shard.tar.gz").write_bytes(damaged)
        found = names("shard.tar.gz")
        assert found == whole or found[-1] == "shard.tar.gz"
        assert found[:-1] == whole[: len(found) - 1]


def test_a_compressed_bomb_of_a_name(tmp_path):
    header = tarfile.TarInfo("x.png")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 31
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22))
    (item,) = open_sources([str(path)])
    assert item.error == "damaged archive after 0 photos (a name of 2,147,483,648 bytes)"


def test_a_member_that_would_fill_memory_is_not_read(photos, monkeypatch):
    monkeypatch.setattr(sources, "_MAX_BYTES", 200)
    (photos / "05.png").write_bytes(bytes(201))
    for number in (0, 1):
        (photos / f"{number:02}.png").write_bytes(bytes(200))
    make_tar("shard.tar", photos)
    items = {item.name[-6:]: item for item in open_sources(["shard.tar"])}
    assert items["00.png"].source == items["01.png"].source == bytes(200)
    assert items["05.png"].error == "too large: 201 bytes in the archive"
    assert len(items) == 12


def test_unusual_archives_that_are_whole(tmp_path):
    """Long names, links, folders, attributes: nothing of this is damage."""
    picture = save(tmp_path / "a.png").read_bytes()
    path = tmp_path / "shard.tar"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=form) as archive:
            for name in ("x" * 300 + ".png", "ä/ö.png", "d/" * 90 + "deep.png"):
                header = tarfile.TarInfo(name)
                header.size = len(picture)
                archive.addfile(header, io.BytesIO(picture))
                link = tarfile.TarInfo(name + ".link.png")
                link.type, link.linkname = tarfile.SYMTYPE, name.rsplit("/", 1)[-1]
                archive.addfile(link)
        items = list(open_sources([str(path)]))
        assert [item.error for item in items] == [None] * 6
        assert all(item.source == picture for item in items)


# ------------------------------------------------------------------------------------------- rows


def test_broken_items_do_not_pile_up():
    """Each is given on before the source is asked for many more."""
    asked = 0

    def items():
        nonlocal asked
        for number in range(500):
            asked += 1
            yield Item(str(number), error="broken")

    results = caption_items(FakeCaptioner(), items(), batch_size=4)
    for number, (item, result) in enumerate(results):
        assert (item.name, result.error) == (str(number), "broken")
        assert asked <= number + 5


def test_no_thread_is_left_by_a_run_that_fails(tmp_path, photos, limited):
    class Endless(FakeCaptioner):
        def stream(self, sources, **options):
            for source in sources:
                yield Failure(source, "x" * 1000)

    before = set(threading.enumerate())
    limited(5000)
    with pytest.raises(Exception, match="cannot write"):
        caption_to(tmp_path / "out.jsonl", [photos], captioner=Endless())
    limited(1 << 30)
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert left <= {"tqdm_monitor"}  # one for all bars, made with the first
