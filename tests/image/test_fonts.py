"""Captions in any script: a font that has the letters is found, or what to install is said."""

import logging

import pytest

from captioner.image import fonts

builders = pytest.importorskip("fontTools.fontBuilder")
pens = pytest.importorskip("fontTools.pens.ttGlyphPen")


def square(size):
    pen = pens.TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((50, size), (size, size), (size, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def build_font(path, letters):
    """A font in which each letter is a square, and an absent one a smaller square."""
    names = [".notdef", *(f"u{ord(letter):04X}" for letter in letters)]
    builder = builders.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, letters), names[1:], strict=True)))
    builder.setupGlyf({name: square(300 if name == ".notdef" else 900) for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only folder of fonts on the system, without fontconfig."""
    monkeypatch.setattr(fonts, "_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
    for cached in (fonts._find_font, fonts._font_files, fonts._warn_once):
        cached.cache_clear()
    yield tmp_path
    for cached in (fonts._find_font, fonts._font_files, fonts._warn_once):
        cached.cache_clear()


def test_a_font_that_has_all_letters_is_found(folder):
    build_font(folder / "a.ttf", "犬")
    both = build_font(folder / "b.ttf", "犬猫")
    (folder / "broken.ttf").write_bytes(b"x")
    assert fonts.find_font("犬 猫") == both
    assert fonts.find_font("a dog, un café") is None  # Pillow's own


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("一只狗", "fonts-noto-cjk"),
        ("犬が走る", "fonts-noto-cjk"),
        ("개가 달린다", "fonts-noto-cjk"),
        ("كلب", "fonts-noto-core"),
        ("🐕", "Noto"),
    ],
)
def test_without_such_a_font_it_is_said_once_what_to_install(folder, text, advice, caplog):
    with caplog.at_level(logging.WARNING):
        assert fonts.find_font(text) is None
        assert fonts.find_font(text + " and more") is None
    assert caplog.text.count("no font here") == 1
    assert advice in caplog.text
