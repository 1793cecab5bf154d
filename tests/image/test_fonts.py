"""Captions in any script: a font that has the letters is found, or what to install is said."""

import logging

import pytest
from helpers.fonts import build_font

from captioner.image import fonts


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
