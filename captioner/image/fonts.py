"""Find a font on the system for captions in scripts that Pillow's own font lacks."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from typing import TypeAlias

from PIL import ImageFont

from captioner.errors import ConfigError

logger = logging.getLogger(__name__)

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

_FOLDERS = (
    *("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
_SUFFIXES = (".ttf", ".otf", ".ttc")
_MAX_FILES = 500  # fonts that are opened in a search
_UNSEEN = ("Cc", "Cf", "Mn", "Zs")  # categories of characters that need no glyph of their own
_UNUSED = "\U0010fffe"  # no font has this one
_ADVICE = {
    ("CJK", "HIRAGANA", "KATAKANA", "HANGUL"): "Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)",
    ("ARABIC",): "Noto Sans Arabic or DejaVu Sans (Debian, Ubuntu: fonts-noto-core, fonts-dejavu)",
}


@functools.lru_cache(maxsize=32)
def load_font(size: int, path: str | None) -> Font:
    """Load a font file, or Pillow's own font for None.

    Raises:
        ConfigError: It cannot be loaded.
    """
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(path, size)
    except OSError as error:
        raise ConfigError(f"cannot load the font {path}: {error}") from error


def find_font(text: str) -> str | None:
    """Return the path of a font that has all letters of a text; None for Pillow's own.

    Where no font has them, Pillow's own draws boxes, and what to install is logged once.
    """
    return _find_font(frozenset(c for c in text if unicodedata.category(c) not in _UNSEEN))


@functools.lru_cache(maxsize=256)
def _find_font(letters: frozenset[str]) -> str | None:
    if _has_letters(load_font(20, None), letters):
        return None
    for path in [*_ask_fontconfig(letters), *_font_files()]:
        try:
            font = load_font(20, path)
        except ConfigError:  # such as bitmaps of another size
            continue
        if _has_letters(font, letters):
            return path
    lacking = {c for c in letters if not _has_letters(load_font(20, None), frozenset(c))}
    _warn({unicodedata.name(c, "").split(" ")[0] for c in lacking}, min(lacking))
    return None


def _warn(scripts: set[str], example: str) -> None:
    for names, font in _ADVICE.items():
        if scripts & set(names):
            _warn_once(example, font)
            return
    _warn_once(example, "the Noto fonts (Debian, Ubuntu: fonts-noto-core, fonts-symbola)")


@functools.cache
def _warn_once(example: str, font: str) -> None:
    logger.warning(
        "no font here has letters like %r: install %s, or name one (font=, --font)", example, font
    )


def _has_letters(font: Font, letters: frozenset[str]) -> bool:
    """Return whether no letter is drawn as the box that stands for an absent one."""
    box = bytes(font.getmask(_UNUSED))
    return all(bytes(font.getmask(letter)) != box for letter in letters)


def _ask_fontconfig(letters: frozenset[str]) -> list[str]:
    """Return the fonts that fontconfig, where it is installed, has for all letters."""
    if not letters or shutil.which("fc-list") is None:
        return []
    codes = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
    command = ["fc-list", f":charset={codes}", "--format", "%{file}\n"]
    try:
        found = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted((os.fsdecode(line) for line in found.stdout.splitlines()), key=_plainness)


@functools.cache
def _font_files() -> tuple[str, ...]:
    """Return the font files in the usual folders, plain ones first."""

    def walk() -> Iterator[str]:
        for folder in _FOLDERS:
            for place, _, names in os.walk(os.path.expanduser(folder)):
                yield from (os.path.join(place, n) for n in names if n.lower().endswith(_SUFFIXES))

    return tuple(sorted(walk(), key=_plainness)[:_MAX_FILES])


def _plainness(path: str) -> tuple[bool, str]:
    """Order fonts so that upright ones of usual weight come first."""
    name = os.path.basename(path).lower()
    return any(style in name for style in ("bold", "italic", "oblique", "mono", "light")), path
