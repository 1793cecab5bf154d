"""Zips that a stranger uploads to the demo: photos come out, and nothing else happens."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

from helpers.damaged import make_zip

from captioner.demo import security
from captioner.demo.uploads import count_zip, read_zip, shown_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zips") / "photos"
    make_photos(folder, 1)
    return folder


def errors(path):
    return [item.error for item in read_zip(str(path), "a.zip")]


def test_a_zip_gives_its_photos_and_nothing_else(tmp_path, folder):
    photo = (folder / "00.png").read_bytes()
    members = {"b/one.png": photo, "a.JPG": photo, "notes.txt": b"", "__MACOSX/._a.jpg": b""}
    path = make_zip(tmp_path / "a.zip", {**members, ".hidden.png": photo, "folder.png/": b""})
    items = list(read_zip(path, "a.zip"))
    assert [item.name for item in items] == ["b/one.png", "a.JPG"]
    assert all(item.source == photo and item.error is None for item in items)
    assert count_zip(path) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.png", "etc/passwd.png"),
        ("/etc/passwd.png", "etc/passwd.png"),
        ("..\\..\\windows\\a.png", "windows/a.png"),
        ("./a/../b.png", "a/b.png"),
        ("..", "photo"),
        ("x" * 5000 + ".png", "x" * 196 + ".png"),
    ],
)
def test_no_name_leads_anywhere(name, shown):
    assert shown_name(name) == shown


@pytest.mark.parametrize(
    ("raw", "declared", "shown"),
    [
        ("照片/小狗.jpg".encode("gbk"), False, "照片/小狗.jpg"),  # GB2312 is enough
        ("囧丂堃.jpg".encode("gbk"), False, "囧丂堃.jpg"),
        ("写真.jpg".encode(), False, "写真.jpg"),  # UTF-8 that nobody declares
        ("小狗.jpg".encode(), True, "小狗.jpg"),
        ("café été.jpg".encode("cp437"), False, "café été.jpg"),
        ("dog.jpg".encode("cp437"), False, "dog.jpg"),
    ],
)
def test_names_in_other_encodings_are_read(tmp_path, folder, raw, declared, shown):
    name = "x" * (len(raw) - 4) + ".jpg"
    path = Path(make_zip(tmp_path / "a.zip", {name: (folder / "00.png").read_bytes()}))
    content = bytearray(path.read_bytes().replace(name.encode(), raw))
    if declared:
        content[6 + 1] |= 8
        content[content.rfind(b"PK\x01\x02") + 9] |= 8
    path.write_bytes(content)
    (item,) = read_zip(str(path), "a.zip")
    assert (item.name, item.error) == (shown, None)


def test_nothing_of_a_zip_reaches_the_disk(tmp_path, folder):
    photo = (folder / "00.png").read_bytes()
    (tmp_path / "in").mkdir()
    path = make_zip(tmp_path / "in" / "a.zip", {"../out.png": photo, "/tmp/out.png": photo})
    before = set(tmp_path.rglob("*"))
    assert [item.source for item in read_zip(path, "a.zip")] == [photo, photo]
    assert set(tmp_path.rglob("*")) == before


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(security, "MAX_FILE_BYTES", 1 << 20)
    path = make_zip(tmp_path / "a.zip", {"a.png": bytes(2 << 20), "b.png": b"x"})
    assert errors(path) == ["too large: 2,097,152 bytes, over the limit of 1 MB", None]


def test_all_of_a_zip_together_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(security, "MAX_UNZIPPED_BYTES", 1 << 20)
    path = make_zip(tmp_path / "a.zip", {f"{number}.png": bytes(400_000) for number in range(9)})
    found = errors(path)
    assert found == [None, None, "over 1 MB unpacked: the rest is left out"]


def test_a_header_that_lies_about_the_size_unpacks_no_more(tmp_path):
    path = Path(make_zip(tmp_path / "a.zip", {"a.png": bytes(3 << 20)}))
    content = path.read_bytes()
    lie = content.replace(struct.pack("<L", 3 << 20), struct.pack("<L", 1000))
    path.write_bytes(lie)
    (item,) = read_zip(str(path), "a.zip")
    assert item.error == "damaged in the zip"


def test_a_zip_of_a_million_names_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"n" * 200 + str(number): b"" for number in range(6000)})
    assert errors(path) == ["damaged zip (too many files in it)"]
    assert count_zip(path) == 1


def test_odd_zips_are_told(tmp_path, folder):
    photo = (folder / "00.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", photo)
    assert errors(tmp_path / "lzma.zip") == ["packed in an unusual way: make a plain zip"]

    plain = Path(make_zip(tmp_path / "locked.zip", {"a.png": photo}))
    content = bytearray(plain.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1  # the flag of encryption
    plain.write_bytes(content)
    assert errors(plain) == ["protected by a password"]

    assert errors(make_zip(tmp_path / "empty.zip", {"a.txt": b""})) == ["no photos in this zip"]


@pytest.mark.parametrize("content", [b"", b"PK", b"nonsense" * 100, b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_zip_is_told(tmp_path, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    (error,) = errors(path)
    assert error.startswith("damaged zip")
    assert str(tmp_path) not in error
    assert count_zip(str(path)) == 1


def test_any_damage_to_a_zip_is_an_error_not_a_crash(tmp_path, folder):
    photo = (folder / "00.png").read_bytes()
    whole = Path(make_zip(tmp_path / "a.zip", {"a.png": photo, "b.png": photo})).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "b.zip"
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for place in rng.integers(0, len(damaged), 8):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        assert all(item.error or item.source for item in read_zip(str(path), "b.zip"))
