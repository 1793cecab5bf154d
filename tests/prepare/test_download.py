"""Downloading and unpacking: what breaks is resumed, what is wrong is refused."""

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import stat
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.file_server import FileServer

from captioner.cli import main as cli
from captioner.errors import ConfigError, DataError
from captioner.prepare import download as download_module
from captioner.prepare import registry as datasets
from captioner.prepare.download import Stopped, download
from captioner.prepare.fetch import fetch, unpack
from captioner.prepare.registry import ARCHIVES, Archive, addresses

DATA = bytes(range(256)) * 40


def md5(data):
    return "md5:" + hashlib.md5(data).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer().running() as server:
        server.files["a.bin"] = DATA
        yield server


def get(server, target, path="a.bin", **options):
    download(f"{server.url}/{path}", target, pause=0.001, **options)
    assert list(target.parent.iterdir()) == [target]  # no parts are left behind
    return target.read_bytes()


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.drops = 3
    assert get(server, tmp_path / "a", size=len(DATA), digest=md5(DATA)) == DATA
    assert [span for _, span in server.requests] == [
        None,
        *(f"bytes={n}-" for n in (1000, 2000, 3000)),
    ]


def test_without_ranges_it_starts_anew(server, tmp_path):
    server.ranges = False
    server.drops = 2
    assert get(server, tmp_path / "a", digest=md5(DATA)) == DATA


def test_a_part_of_an_earlier_run_is_used(server, tmp_path):
    server.drops = 1
    with pytest.raises(DataError, match="1 times in a row"):
        # A single attempt counts as a failure although bytes came.
        download(f"{server.url}/a.bin", tmp_path / "a", attempts=1)
    assert (tmp_path / "a.part").stat().st_size == 1000
    assert get(server, tmp_path / "a") == DATA
    assert server.requests[-1] == ("/a.bin", "bytes=1000-")


def test_versions_are_never_mixed(server, tmp_path):
    server.drops = 1
    with pytest.raises(DataError):
        download(f"{server.url}/a.bin", tmp_path / "a", attempts=1)
    server.files["a.bin"], server.etag = DATA[::-1], '"two"'
    assert get(server, tmp_path / "a") == DATA[::-1]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"etag": 'W/"one"'}, None),  # a weak one does not vouch for bytes
        ({"shift": 1}, "bytes=1000-"),  # not what was asked for
        ({"files": {"a.bin": DATA[:500]}}, "bytes=1000-"),  # nothing after what we have
    ],
    ids=["weak", "other-range", "too-long"],
)
def test_a_part_that_cannot_be_trusted_is_fetched_anew(server, tmp_path, change, again):
    server.etag, server.drops = change.get("etag", server.etag), 1
    with pytest.raises(DataError):
        download(f"{server.url}/a.bin", tmp_path / "a", attempts=1)
    vars(server).update(change)
    assert get(server, tmp_path / "a") == server.files["a.bin"]
    assert [span for _, span in server.requests[1:]] == ([again, None] if again else [None])


def test_a_part_of_unknown_origin_counts_only_with_a_checksum(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * 100)
    assert get(server, tmp_path / "a") == DATA
    (tmp_path / "a").unlink()
    (tmp_path / "a.part").write_bytes(DATA[:100])
    assert get(server, tmp_path / "a", digest=md5(DATA)) == DATA
    assert [span for _, span in server.requests] == [None, "bytes=100-"]


def test_a_complete_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "a.part").write_bytes(DATA)
    assert get(server, tmp_path / "a", digest=md5(DATA)) == DATA


def test_redirects_and_passing_errors(server, tmp_path):
    server.failures = [503, 429]
    assert get(server, tmp_path / "a", "moved/a.bin") == DATA


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("gone.bin", {}, "HTTP 404"),
        ("a.bin", {"size": 5}, "offers 10,240 bytes where 5 are expected"),
        ("a.bin", {"digest": md5(b"other")}, "its md5 is .* expected"),
    ],
)
def test_dead_links_and_wrong_files(server, tmp_path, path, options, message):
    with pytest.raises(DataError, match=message):
        download(f"{server.url}/{path}", tmp_path / "a", pause=0.001, **options)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.part").exists()  # resuming would never mend it
    assert len(server.requests) == 1  # and trying again would not help


def test_a_server_that_does_not_tell_the_length_is_resumed_too(server, tmp_path):
    server.lengths = False
    server.drops = 2
    assert get(server, tmp_path / "a", size=len(DATA), digest=md5(DATA)) == DATA
    assert [span for _, span in server.requests] == [None, "bytes=1000-", "bytes=2000-"]


def test_a_crash_between_two_versions_mixes_nothing(server, tmp_path, monkeypatch):
    """The moment when the new version's tag is written, and none of its bytes."""
    server.drops = 1
    with pytest.raises(DataError):
        download(f"{server.url}/a.bin", tmp_path / "a", attempts=1)
    server.files["a.bin"], server.etag = DATA[::-1], '"two"'
    write_text = Path.write_text

    def die(path, *arguments, **options):
        write_text(path, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        download(f"{server.url}/a.bin", tmp_path / "a")
    monkeypatch.setattr(Path, "write_text", write_text)
    assert get(server, tmp_path / "a") == DATA[::-1]


def test_it_gives_up(server, tmp_path):
    server.drops, server.drop_after = 99, 0
    with pytest.raises(DataError, match="3 times in a row"):
        download(f"{server.url}/a.bin", tmp_path / "a", attempts=3, pause=0.001)
    assert len(server.requests) == 3


def test_it_can_be_stopped(server, tmp_path):
    stop = threading.Event()
    with pytest.raises(Stopped):
        download(f"{server.url}/a.bin", tmp_path / "a", stop=stop, progress=lambda *_: stop.set())
    assert (tmp_path / "a.part").exists()


# ------------------------------------------------------------------------------------------ zips


def make_zip(members):
    """Bytes of a zip file with (name or ZipInfo, content) in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def unpack_members(tmp_path, members, **options):
    archive = tmp_path / "a.zip"
    archive.write_bytes(make_zip(members))
    return unpack(archive, tmp_path / "out", **options)


def link():
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "a/..", link()]
)
def test_nothing_leaves_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="nothing was unpacked"):
        unpack_members(tmp_path, [("good.txt", "x"), (name, "/etc/passwd")])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip"]


def test_unpacking_goes_on_where_it_was(tmp_path):
    members = [(f"d/{n}.txt", f"text {n}") for n in range(5)] + [("__MACOSX/d/x", "junk")]
    stop = threading.Event()
    with pytest.raises(Stopped):
        unpack_members(tmp_path, members, progress=lambda *_: stop.set(), stop=stop)
    assert len(list((tmp_path / "out/d").iterdir())) == 1
    (tmp_path / "out/d/3.txt").write_text("cut", encoding="utf-8")
    assert unpack_members(tmp_path, members) == 4
    assert unpack_members(tmp_path, members) == 0
    found = {path.name: path.read_text("utf-8") for path in (tmp_path / "out/d").iterdir()}
    assert found == {f"{n}.txt": f"text {n}" for n in range(5)}
    assert not (tmp_path / "out/__MACOSX").exists()


def test_damaged_archives(tmp_path):
    archive = tmp_path / "a.zip"
    for data in (b"<html>", make_zip([("a", "x" * 1000)])[:-30]):
        archive.write_bytes(data)
        with pytest.raises(DataError, match="no zip file, or a damaged one"):
            unpack(archive, tmp_path / "out")
    data = bytearray(make_zip([("a", bytes(range(256)))]))
    data[50] ^= 0xFF  # inside the file's content
    archive.write_bytes(data)
    with pytest.raises(DataError, match="no zip file, or a damaged one"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_encrypted_archives_and_full_disks(tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    data = bytearray(make_zip([("a", "x" * 1000)]))
    data[data.find(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="'a' is encrypted"):
        unpack(archive, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(DataError, match=r"unpacking a\.zip needs .* free"):
        unpack_members(tmp_path, [("a", "x" * 1000)])


# ------------------------------------------------------------------------------------------ fetch


def archive_of(server, name, members, pattern, count, **options):
    data = make_zip(members)
    server.files[name] = data
    return Archive(name, f"{server.url}/{name}", len(data), md5(data), pattern, count, **options)


def two_archives(server):
    photos = [(f"Photos/{n}.jpg", bytes([n]) * 3000) for n in range(4)]
    return (
        archive_of(server, "texts.zip", [("list.txt", "a")], "list.txt", 1, into="texts"),
        archive_of(server, "photos.zip", photos, "Photos/*.jpg", 4),
    )


def test_archives_are_fetched_once(server, tmp_path):
    server.drops, server.drop_after = 2, 50
    archives = two_archives(server)
    fetch(archives, tmp_path, addresses(archives), pause=0.001)
    assert (tmp_path / "texts/list.txt").is_file()
    assert len(list((tmp_path / "Photos").iterdir())) == 4
    before = len(server.requests)
    for path in (tmp_path / "downloads").iterdir():
        path.unlink()  # unpacked, they are not needed
    fetch(archives, tmp_path, addresses(archives))
    assert len(server.requests) == before


def test_a_dead_link_says_what_to_get_and_where_to_put_it(server, tmp_path):
    archives = two_archives(server)
    photos = server.files.pop("photos.zip")
    with pytest.raises(DataError) as caught:
        fetch(archives, tmp_path, addresses(archives), pause=0.001)
    message = str(caught.value)
    item = archives[1]
    assert "HTTP 404" in message
    assert f"{item.size:,} bytes" in message
    assert item.digest.removeprefix("md5:") in message
    assert str(tmp_path / "downloads") in message
    assert "--url photos=" in message
    assert (tmp_path / "texts/list.txt").is_file()  # the other came all the same
    (tmp_path / "downloads/photos.zip").write_bytes(photos)
    fetch(archives, tmp_path, addresses(archives))
    assert len(list((tmp_path / "Photos").iterdir())) == 4


def test_too_little_room_and_too_few_files(server, tmp_path, monkeypatch):
    archives = two_archives(server)
    item = dataclasses.replace(archives[1], count=5)
    with pytest.raises(DataError, match=r"gave 4 files Photos/\*\.jpg, expected 5"):
        fetch([item], tmp_path / "one", addresses(archives))
    requests = len(server.requests)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=item.size - 1))
    with pytest.raises(DataError, match=r"downloading photos\.zip needs .* free"):
        fetch([item], tmp_path / "two", addresses(archives))
    assert len(server.requests) == requests


def test_a_full_disk_is_told_with_the_file(server, tmp_path, monkeypatch):
    archives = two_archives(server)
    item = archives[1]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)  # while unpacking
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/photos.zip").write_bytes(server.files["photos.zip"])
    with pytest.raises(DataError, match=r"0\.jpg: cannot be written \(No space left"):
        fetch([item], tmp_path, addresses(archives))
    (tmp_path / "downloads/photos.zip").unlink()
    (tmp_path / "downloads/photos.zip.part.tag").mkdir()  # a name that cannot be written
    monkeypatch.setattr(download_module, "_LOCAL", {errno.EISDIR})
    with pytest.raises(DataError, match=r"photos\.zip: cannot write into .* \(Is a directory\)"):
        fetch([item], tmp_path, addresses(archives), pause=0.001)


def test_a_damaged_archive_of_ones_own_is_named(server, tmp_path):
    archives = two_archives(server)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/photos.zip").write_bytes(b"x" * archives[1].size)
    with pytest.raises(DataError, match=r"photos\.zip.*md5.*delete it"):
        fetch(archives, tmp_path, addresses(archives))


def test_addresses_by_flag_environment_and_default(monkeypatch):
    archives = ARCHIVES["coco2014"]
    monkeypatch.setenv("CAPTIONER_URL_VAL2014", "https://mirror/val.zip")
    urls = addresses(archives, ["train2014.zip=http://here/t.zip"])
    assert urls["train2014.zip"] == "http://here/t.zip"
    assert urls["val2014.zip"] == "https://mirror/val.zip"
    assert urls["annotations_trainval2014.zip"] == archives[0].url
    for wrong in ("train=http://here", "train2014", "train2014=file:///etc/passwd"):
        with pytest.raises(ConfigError):
            addresses(archives, [wrong])


def test_what_is_known_of_the_archives_is_well_formed():
    for archives in ARCHIVES.values():
        for item in archives:
            kind, _, digest = item.digest.partition(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size
            assert item.url.endswith("/" + item.name)
            assert item.count > 0


def small_flickr(server, monkeypatch):
    """Make Flickr8k a set of four photos; the names of its archives."""
    token = "".join(f"{n}.jpg#{k}\tPhoto {n}, told {k}.\n" for n in range(4) for k in range(2))
    lists = {"train": [0, 1], "dev": [2], "test": [3]}
    texts = [("Flickr8k.token.txt", token)] + [
        (f"Flickr_8k.{name}Images.txt", "".join(f"{n}.jpg\n" for n in numbers))
        for name, numbers in lists.items()
    ]
    photos = [(f"Flicker8k_Dataset/{n}.jpg", b"photo") for n in range(4)]
    archives = (
        archive_of(server, "Flickr8k_text.zip", texts, "Flickr*8k*.txt", 4, into="text"),
        archive_of(server, "Flickr8k_Dataset.zip", photos, "Flicker8k_Dataset/*.jpg", 4),
    )
    monkeypatch.setattr(datasets, "ARCHIVES", {"flickr8k": archives})
    return [item.name for item in archives]


def test_prepare_downloads_through_the_command_line(server, tmp_path, monkeypatch, capsys):
    small_flickr(server, monkeypatch)
    server.files["elsewhere"] = server.files.pop("Flickr8k_text.zip")
    root = tmp_path / "f8k"
    call = ["prepare", "flickr8k", "--root", str(root), "--partial"]
    assert cli.main(call) == 2
    assert "Flickr8k_text.zip" in capsys.readouterr().err
    assert cli.main([*call, "--url", f"Flickr8k_text={server.url}/elsewhere"]) == 0
    out = capsys.readouterr().out
    assert "captions_official.jsonl: train 2, val 1, test 1 photos, 8 captions" in out
    assert cli.main(call[:-1]) == 2  # four photos are no Flickr8k
    assert "--partial" in capsys.readouterr().err


def test_archives_among_ones_own_files_are_unpacked(server, tmp_path, monkeypatch, capsys):
    names = small_flickr(server, monkeypatch)
    have, root = tmp_path / "have", tmp_path / "root"
    (have / "deep").mkdir(parents=True)
    for name in names:
        (have / "deep" / name).write_bytes(server.files[name])
    call = ["prepare", "flickr8k", "--root", str(root), "--from", str(have), "--partial"]
    assert cli.main(call) == 0
    assert "train 2, val 1, test 1 photos" in capsys.readouterr().out
    assert len(list((root / "Flicker8k_Dataset").iterdir())) == 4
    assert server.requests == []
