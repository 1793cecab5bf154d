"""Copies of photos with the caption in their metadata."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_captioner import FakeCaptioner, caption_to
from PIL import Image, ImageCms, ImageSequence

from captioner.batch.item import Item
from captioner.batch.metadata import MetadataFolder, embed_caption
from captioner.cli import main as cli
from captioner.errors import ConfigError, ImageError

pyexiv2 = pytest.importorskip("pyexiv2", reason="needs the extra 'metadata'")

TEXT = 'ein Hund – 犬 "x" & <b>'


def picture(seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(form, frames=1, mode="RGB", **options):
    buffer = io.BytesIO()
    if frames > 1:
        more = [picture(seed, mode) for seed in range(1, frames)]
        options |= {"save_all": True, "append_images": more}
    picture(mode=mode).save(buffer, form, **options)
    return buffer.getvalue()


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return [frame.convert("RGBA").tobytes() for frame in ImageSequence.Iterator(image)]


def read(data):
    image = pyexiv2.ImageData(data)
    return image.read_xmp(), image.read_iptc()


def described(path):
    return read(Path(path).read_bytes())[0]["Xmp.dc.description"]['lang="x-default"']


CARRIERS = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "cmyk": encoded("JPEG", mode="CMYK"),
    "mpo": encoded("MPO", 3),
    "motion photo": encoded("JPEG") + b"a film behind the photo" * 9,
    "png": encoded("PNG"),
    "apng": encoded("PNG", 3),
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
    "animated webp": encoded("WEBP", 3, lossless=True),
    "tiff": encoded("TIFF", compression="tiff_lzw"),
    "two pages": encoded("TIFF", 2),
}


@pytest.mark.parametrize("name", CARRIERS)
def test_the_caption_goes_in_and_the_pixels_stay(name):
    data = CARRIERS[name]
    result = embed_caption(data, TEXT)
    xmp, iptc = read(result)
    assert xmp["Xmp.dc.description"] == {'lang="x-default"': TEXT}
    assert iptc.get("Iptc.Application2.Caption") == (None if "webp" in name else TEXT)
    assert pixels(result) == pixels(data)
    if data.startswith(b"\xff\xd8"):  # the file from the first table on is the same
        assert result.endswith(data[data.index(b"\xff\xdb") :])
    again = embed_caption(result, "another")
    assert read(again)[0]["Xmp.dc.description"] == {'lang="x-default"': "another"}


OTHERS = {
    "gif": encoded("GIF", mode="P"),
    "bmp": encoded("BMP"),
    "ppm": encoded("PPM"),
    "seven pages": encoded("TIFF", 7),
    "nonsense": b"nonsense",
    "nothing": b"",
    "torn": CARRIERS["jpeg"][:30],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_carry_a_caption_says_so(name):
    with pytest.raises(ImageError, match=r"cannot carry|cannot be written into|too many pages"):
        embed_caption(OTHERS[name], TEXT)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_other_metadata_stays():
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    data = encoded("JPEG", exif=exif, icc_profile=PROFILE, comment=b"hello")
    image = pyexiv2.ImageData(data)
    image.modify_xmp({"Xmp.dc.subject": ["Zoë", "b"], "Xmp.xmp.Rating": "4"})
    image.modify_iptc({"Iptc.Application2.Keywords": ["Zoë", "b"]}, "latin-1")
    result = embed_caption(image.get_bytes(), TEXT)
    xmp, iptc = read(result)
    assert xmp["Xmp.dc.subject"] == ["Zoë", "b"]
    assert xmp["Xmp.xmp.Rating"] == "4"
    assert iptc["Iptc.Application2.Keywords"] == ["Zoë", "b"]
    with Image.open(io.BytesIO(result)) as opened:
        assert opened.getexif()[0x010F] == "Maker"
        assert opened.getexif()[0x0112] == 6
        assert opened.info["icc_profile"] == PROFILE
        assert opened.info["comment"].rstrip(b"\0") == b"hello"


# -------------------------------------------------------------------------------------- the folder


@pytest.fixture
def trip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("trip/a.jpg", "trip/día 1/é.jpg", "trip/día 1/b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    return Path("trip")


def relative(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.*"))


def copy(folder, sources, mode="new", output="out.jsonl", **options):
    recursive = options.pop("recursive", False)
    copies = MetadataFolder(folder, sources, mode, recursive=recursive)
    return caption_to(output, sources, mode=mode, copies=copies, **options)


def test_subfolders_are_kept_and_originals_untouched(trip):
    before = {path: path.read_bytes() for path in trip.rglob("*.*")}
    sources = [str(trip), str(trip / "día 1")]
    assert copy("copies", sources).ok
    assert relative("copies") == ["a.jpg", "día 1/b.png", "día 1/é.jpg"]
    assert {described(path) for path in Path("copies").rglob("*.*")} == {"a photo"}
    assert {path: path.read_bytes() for path in trip.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["trip/a.jpg"], ["a.jpg"]),
        (["trip/*/*.jpg"], ["día 1/é.jpg"]),
        (["trip/a.jpg", "trip/día 1/é.jpg"], ["a.jpg", "día 1/é.jpg"]),
        (["trip/a.jpg", "trip/a.jpg"], ["a.jpg"]),  # the same photo twice
        (["list.txt"], ["trip/a.jpg", "trip/día 1/é.jpg"]),
    ],
)
def test_where_copies_lie(trip, sources, names):
    Path("list.txt").write_text("trip/a.jpg\ntrip/día 1/é.jpg\n", encoding="utf-8")
    summary = copy("copies", sources)
    assert summary.ok
    assert relative("copies") == names


def test_photos_from_elsewhere_stay_in_the_folder(trip, tmp_path):
    copies = MetadataFolder("copies", ["trip"])
    caption = FakeCaptioner().caption(b"", 1.0)
    names = ["x.tar/../../../evil1.png", "/etc/evil2.png", "../evil3.png", "t.parquet#3"]
    for name in names:
        copies.write(Item(name, CARRIERS["png"]), caption)
    assert relative("copies") == ["etc/evil2.png", "evil1.png", "evil3.png", "t.parquet#3.png"]
    assert not list(tmp_path.glob("*evil*"))


def test_names_that_are_taken_or_none(trip):
    copies = MetadataFolder("copies", ["trip"])
    caption = FakeCaptioner().caption(b"", 1.0)
    copies.write(Item("a.png", CARRIERS["png"]), caption)
    for name, text in (("a.png", "same name"), ("x" * 300, "is none"), ("a\0.png", "is none")):
        with pytest.raises(ImageError, match=text):
            copies.write(Item(name, CARRIERS["png"]), caption)
    assert relative("copies") == ["a.png"]


def test_never_in_place(trip):
    before = (trip / "a.jpg").read_bytes()
    for folder, sources, recursive in (
        ("trip", ["trip"], False),
        ("trip", ["trip/a.jpg"], False),
        ("trip/../trip", ["trip/*.jpg"], False),
        ("trip/copies", ["trip"], True),
        ("trip/copies", ["trip", "trip/día 1"], True),
    ):
        with pytest.raises(ConfigError, match="choose another"):
            MetadataFolder(folder, sources, recursive=recursive)
    Path("link").symlink_to("trip")
    with pytest.raises(ConfigError, match="choose another"):
        MetadataFolder("link", ["trip"])
    # A list in another folder that leads to the photos by an odd way.
    Path("lists").mkdir()
    Path("lists/list.txt").write_text(str(Path("trip/a.jpg").absolute()))
    root = Path("trip").absolute()
    Path("lists/root").symlink_to("/")
    for mode in ("new", "overwrite"):
        summary = copy("lists/root", ["lists/list.txt"], mode)
        assert summary.uncopied == {"the copy would replace the photo itself": 1}
        assert (root / "a.jpg").read_bytes() == before


def test_a_copy_that_is_there(trip):
    Path("copies").mkdir()
    Path("copies/a.jpg").write_bytes(b"mine")
    summary = copy("copies", ["trip"])
    assert summary.uncopied == {"a file of its name is there already": 1}
    assert (summary.captioned, summary.ok) == (1, False)
    assert "1 × no copy: a file of its name is there already" in summary.lines()[-1]
    assert Path("copies/a.jpg").read_bytes() == b"mine"
    assert copy("copies", ["trip"], "overwrite").ok
    assert described("copies/a.jpg") == "a photo"


def test_a_format_without_metadata_keeps_its_caption(trip, caplog):
    picture().save(trip / "b.bmp")
    summary = copy("copies", ["trip"])
    assert (summary.captioned, summary.failed) == (2, 0)
    assert summary.uncopied == {"its format cannot carry a caption": 1}
    assert "b.bmp: captioned, but no copy: its format cannot carry a caption" in caplog.text
    assert relative("copies") == ["a.jpg"]
    assert "b.bmp" in Path("out.jsonl").read_text()
    again = copy("copies", ["trip"], "resume")
    assert again.uncopied == {"none was made by the earlier run": 1}


def test_a_resumed_run_makes_the_same_copies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    for number in range(7):
        picture(number).save(f"p/{number}.jpg")
    copy("whole", ["p"], output="whole.jsonl")
    for stop in range(7):
        with pytest.raises(KeyboardInterrupt):
            copy(f"c{stop}", ["p"], output=f"{stop}.jsonl", captioner=FakeCaptioner(stop))
        # What a kill between the copy and its row leaves behind.
        torn = Path(f"{stop}.jsonl")
        if torn.exists():
            torn.write_bytes(torn.read_bytes()[:-5])
        assert copy(f"c{stop}", ["p"], "resume", output=f"{stop}.jsonl").ok
        for name in relative("whole"):
            assert Path(f"c{stop}", name).read_bytes() == Path("whole", name).read_bytes()
        assert relative(f"c{stop}") == relative("whole")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyexiv2", None)
    with pytest.raises(ConfigError, match=r"captioner\[metadata\]"):
        MetadataFolder("copies", ["trip"])


def test_the_command(trip, model, capsys):
    Path("trip/broken.jpg").write_bytes(b"nonsense")
    command = ["caption", "trip", "-r", "-m", str(model), "--device", "cpu", "-o", "out.jsonl"]
    assert cli.main([*command, "--write-metadata", "copies"]) == 1
    assert relative("copies") == ["a.jpg", "día 1/b.png", "día 1/é.jpg"]
    assert "3 captioned, 1 failed" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "--write-metadata", "trip"]) == 2
    assert "choose another" in capsys.readouterr().err
