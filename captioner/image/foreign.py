"""What a file is that was taken for an image or a list, told by its first bytes."""

from __future__ import annotations

import re

_CONVERT = "save it as JPEG or PNG"
_STARTS = (
    (
        b"version https://git-lfs.github.com/",
        "a Git LFS pointer, not the file itself: run `git lfs pull` to get it",
    ),
    (b"PK\3\4", "a zip archive (or an Excel workbook): unpack it, or save the sheet as CSV"),
    (b"\x1f\x8b", "a compressed file: unpack it first"),
    (b"BZh", "a compressed file: unpack it first"),
    (b"\xfd7zXZ", "a compressed file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a compressed file: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (b"PAR1", "a Parquet table: `captioner caption` reads it if its name ends in .parquet"),
    (b"\xff\xd8\xff", "an image, not a list of images"),
    (b"\x89PNG", "an image, not a list of images"),
    (b"GIF8", "an image, not a list of images"),
    (b"\0\5\x16\7", "what macOS notes about a file, not the file itself"),
    (b"%PDF", f"a PDF document: {_CONVERT}"),
    (b"%!PS", f"a PostScript file: {_CONVERT}"),
    (b"8BPS", f"a Photoshop file: {_CONVERT}"),
    (b"\xd0\xcf\x11\xe0", "an Office document: save the sheet as CSV"),
    (b"\0\0\1\0", f"an icon: {_CONVERT}"),
    (b"\xff\x0a", f"a JPEG XL image: {_CONVERT}"),
    (b"\0\0\0\x0cJXL ", f"a JPEG XL image: {_CONVERT}"),
    (b"\0\0\0\x0cjP  ", f"a JPEG 2000 image: {_CONVERT}"),
    (b"\xff\x4f\xff\x51", f"a JPEG 2000 image: {_CONVERT}"),
    (b"FUJIFILMCCD-RAW", f"a camera's raw file: {_CONVERT}"),
    (b"\x1aE\xdf\xa3", "a video: save a frame of it as JPEG or PNG"),
)
_BRANDS = {  # of the ISO base media format, behind b"ftyp"
    "heic heix hevc hevx heim heis mif1 msf1": (
        "a HEIC photo needs one more package: pip install pillow-heif"
    ),
    "avif avis": "an AVIF image, which this Pillow cannot read: pip install --upgrade pillow",
    "crx": f"a camera's raw file: {_CONVERT}",
}
_VIDEO = "a video: save a frame of it as JPEG or PNG"
_MARKUP = re.compile(  # the first tag of HTML or XML
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?xml[^>]*>|<!--.*?-->)*<(!doctype\s+)?(\w+)", re.DOTALL
)


def describe_foreign_file(head: bytes) -> str | None:
    """Say what a file of another kind is and what to do about it; None if unknown.

    Args:
        head: Its first 512 bytes.
    """
    for start, text in _STARTS:
        if head.startswith(start):
            return text
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, or give it the ending .tar to caption the images in it"
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("latin-1").strip()
        return next((text for brands, text in _BRANDS.items() if brand in brands.split()), _VIDEO)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return _VIDEO
    if markup := _MARKUP.match(head.lower()):
        if markup[2] == b"svg":
            return f"an SVG drawing: {_CONVERT}"
        if markup[2] in (b"html", b"error"):
            return "a web page: what was downloaded is not the file itself"
    return None
