"""A folder of awkward files with picture names, to try a captioner on.

    python scripts/bad_inputs.py FOLDER
    captioner caption FOLDER -o out.jsonl

A name that starts with ``ok-`` is a picture that must get a caption, ``bad-`` must be reported
with its reason, and ``any-`` may go either way. Nothing is larger than a few hundred kilobytes,
though some of it asks a decoder for gigabytes. What this machine cannot make is left out: Pillow
without WebP or AVIF, a file system without pipes or odd names, a user who may read everything.
"""

import contextlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, features

LARGE = 13_300  # pixels a side: just under the usual limit of 178,956,970 in all
PREFIXES = ("ok-", "bad-", "any-")


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    print(f"{len(make(Path(sys.argv[1])))} files in {sys.argv[1]}")


def make(folder: Path) -> list[str]:
    """Make the folder and what is in it; returns the names."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (modes, formats, truncations, metadata, beside_pixels, tiffs, bombs)
    kinds += (impostors, not_fetched, shapes, odd_names)
    for kind in kinds:
        for name, data in kind():
            with contextlib.suppress(OSError):  # a file system that cannot have such a name
                (folder / name).write_bytes(data)
    with contextlib.suppress(OSError, AttributeError):
        make_no_files(folder)
    return sorted(os.listdir(folder))


# ---------------------------------------------------------------------------------------- pictures


def photo(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A smooth scene with some noise, as photos are."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(size)
    noise = rng.integers(-8, 9, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def modes() -> Iterator[tuple[str, bytes]]:
    """Every mode that a file can hold."""
    rgb = photo()
    clear = rgb.copy()
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    deep = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    yield "ok-mode-1.png", encode(rgb.convert("1"), "PNG")
    yield "ok-mode-L.png", encode(rgb.convert("L"), "PNG")
    yield "ok-mode-LA.png", encode(clear.convert("LA"), "PNG")
    yield "ok-mode-P.png", encode(rgb.quantize(16), "PNG")
    yield "ok-mode-P-transparent.png", encode(rgb.quantize(16), "PNG", transparency=3)
    yield "ok-mode-PA.tif", palette_and_alpha_tiff()
    yield "ok-mode-RGB.png", encode(rgb, "PNG")
    yield "ok-mode-RGBA.png", encode(clear, "PNG")
    yield "ok-mode-CMYK.tif", encode(rgb.convert("CMYK"), "TIFF")
    yield "ok-mode-YCbCr.tif", encode(rgb.convert("YCbCr"), "TIFF", compression="tiff_lzw")
    yield "ok-mode-LAB.tif", encode(Image.frombytes("LAB", rgb.size, rgb.tobytes()), "TIFF")
    yield "ok-mode-I.tif", encode(Image.fromarray(deep.astype(np.int32)), "TIFF")
    yield "ok-mode-I16.png", encode(Image.fromarray(deep), "PNG")
    yield "ok-mode-I16.tif", encode(Image.fromarray(deep), "TIFF")
    yield "ok-mode-F.tif", encode(Image.fromarray((deep / 65535).astype(np.float32)), "TIFF")
    odd = np.where(deep > 30_000, np.nan, np.where(deep < 9_000, np.inf, -1.0 * deep))
    yield "ok-mode-F-nan-inf.tif", encode(Image.fromarray(odd.astype(np.float32)), "TIFF")


def palette_and_alpha_tiff(side: int = 16) -> bytes:
    """Pillow reads palettes with alpha from TIFF and writes them nowhere."""
    pixels = bytes(byte for n in range(side * side) for byte in (n % 256, 255 - n % 256))
    colours = struct.pack("<768H", *(257 * (n % 256) for n in range(768)))
    entries = 11
    after = 8 + 2 + 12 * entries + 4
    fields = [
        (256, 4, 1, side),  # width
        (257, 4, 1, side),  # height
        (258, 3, 2, 8 | 8 << 16),  # bits per sample
        (259, 3, 1, 1),  # not compressed
        (262, 3, 1, 3),  # palette
        (273, 4, 1, after + len(colours)),  # where the pixels are
        (277, 3, 1, 2),  # samples per pixel
        (278, 4, 1, side),  # rows per strip
        (279, 4, 1, len(pixels)),
        (320, 3, 768, after),  # where the palette is
        (338, 3, 1, 2),  # the second sample is alpha
    ]
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    header = b"II*\0" + struct.pack("<IH", 8, entries)
    return header + directory + bytes(4) + colours + pixels


def formats() -> Iterator[tuple[str, bytes]]:
    """Variants of the usual formats."""
    rgb = photo()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    more = {"save_all": True, "append_images": frames[1:], "duration": 50}
    yield "ok-progressive.jpg", encode(rgb, "JPEG", progressive=True)
    yield "ok-grey.jpg", encode(rgb.convert("L"), "JPEG")
    yield "ok-cmyk-adobe.jpg", encode(rgb.convert("CMYK"), "JPEG")
    yield "ok-interlaced.png", interlaced_png(photo((21, 13)))
    yield "ok-animated.gif", encode(frames[0], "GIF", **more)
    yield "ok-animated.png", encode(frames[0], "PNG", **more)
    yield "ok-bitmap.bmp", encode(rgb, "BMP")
    yield "ok-lzw.tiff", encode(rgb, "TIFF", compression="tiff_lzw")
    yield "ok-pages.tiff", encode(frames[0], "TIFF", **more)
    yield "ok-plain.ppm", b"P3 2 1 255  255 0 0  0 0 255\n"
    if features.check("webp"):
        yield "ok-animated.webp", encode(frames[0], "WEBP", **more)
    if features.check("avif"):
        yield "ok-photo.avif", encode(rgb, "AVIF")


def truncations() -> Iterator[tuple[str, bytes]]:
    """Files that end too early."""
    rgb = photo()
    cut = {
        "jpg": encode(rgb, "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "png": encode(rgb, "PNG"),
        "gif": encode(rgb, "GIF"),
        "tif": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
    }
    if features.check("webp"):
        cut["webp"] = encode(rgb, "WEBP")
    for ending, data in cut.items():
        for percent in (1, 10, 50, 90):
            length = max(5, len(data) * percent // 100)
            yield f"bad-truncated-{percent}-percent.{ending}", data[:length]
        yield f"any-truncated-by-one-byte.{ending}", data[:-1]
    half = len(cut["jpg"]) // 2
    yield "any-zeros-inside.jpg", cut["jpg"][:half] + bytes(300) + cut["jpg"][half + 300 :]
    yield "bad-wrong-checksum.png", cut["png"].replace(b"IHDR\0\0\0\x60", b"IHDR\0\0\0\x61")


def metadata() -> Iterator[tuple[str, bytes]]:
    """EXIF and colour profiles, good and broken."""
    rgb = photo()
    for orientation in (*range(1, 9), 0, 77):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"ok-orientation-{orientation}.jpg", encode(rgb, "JPEG", exif=exif)
    yield (
        "ok-broken-exif.jpg",
        encode(rgb, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"x" * 40),
    )
    yield "ok-broken-exif.png", encode(rgb, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "ok-profile.jpg", encode(rgb, "JPEG", icc_profile=profile)
    yield "ok-broken-profile.jpg", encode(rgb, "JPEG", icc_profile=profile[::-1])
    yield "ok-broken-profile.png", encode(rgb, "PNG", icc_profile=b"no profile at all")


def beside_pixels() -> Iterator[tuple[str, bytes]]:
    """Sound pixels with something large, damaged or foreign beside them."""
    rgb = photo()
    plain, jpeg = encode(rgb, "PNG"), encode(rgb, "JPEG")
    large = zlib.compress(b"1234567890" * 200_000)
    texts = {
        "iTXt": b"workflow\0\1\0\0\0" + large,
        "zTXt": b"parameters\0\0" + large,
        "iCCP": b"profile\0\0" + large,
    }
    for kind, body in texts.items():
        yield f"ok-large-{kind}.png", with_chunk(plain, chunk(kind.encode(), body))
    for kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"pHYs", b"tIME", b"xxXx"):
        damaged = chunk(kind, b"Comment\0\0no such thing")[:-4] + b"\0\1\2\3"  # its checksum
        yield f"ok-damaged-{kind.decode()}.png", with_chunk(plain, damaged)
    yield "ok-bytes-after-the-end.png", plain + b"more" * 500
    yield "ok-bytes-after-the-end.gif", encode(rgb, "GIF") + b"more" * 500
    yield "ok-bytes-after-the-end.bmp", encode(rgb, "BMP") + b"more" * 500
    yield "ok-motion-photo.jpg", jpeg + b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(3000)
    yield "ok-second-jpeg-after-it.jpg", jpeg + encode(rgb.rotate(90), "JPEG")
    yield "ok-zip-after-it.jpg", jpeg + b"PK\3\4" + bytes(500)
    yield "ok-without-end-marker.jpg", jpeg[:-2]
    yield "ok-zeros-for-end-marker.jpg", jpeg[:-2] + bytes(2)
    yield "ok-line-feed-after-it.jpg", jpeg + b"\n"
    comment = b"\xff\xfe" + struct.pack(">H", 40_002) + b"c" * 40_000
    yield "ok-large-comment.jpg", jpeg[:2] + comment + jpeg[2:]
    unknown = b"\xff\xef" + struct.pack(">H", 12) + b"\xff" * 10
    yield "ok-unknown-segment.jpg", jpeg[:2] + unknown * 20 + jpeg[2:]
    # Missing rows before an end marker: libjpeg makes them up. One percent may be less than a row.
    for kind, percent in (("bad", 60), ("any", 99)):
        cut = jpeg[: len(jpeg) * percent // 100]
        yield f"{kind}-rows-missing-{100 - percent}-percent.jpg", cut + b"\xff\xd9"


def with_chunk(data: bytes, more: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    return data[:33] + more + data[33:]


def tiffs() -> Iterator[tuple[str, bytes]]:
    """Compressions, depths and layouts of TIFF."""
    rgb = photo()
    for compression in ("packbits", "tiff_adobe_deflate", "tiff_deflate", "jpeg"):
        yield f"ok-{compression}.tif", encode(rgb, "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield f"ok-{compression}.tif", encode(rgb.convert("1"), "TIFF", compression=compression)
    for bits, planes in ((8, 1), (8, 2), (16, 1), (16, 2)):
        prefix = "bad" if (bits, planes) == (16, 2) else "ok"
        yield f"{prefix}-{bits}-bits-planes-{planes}.tif", rgb_tiff(bits, planes)


def rgb_tiff(bits: int, planes: int, side: int = 16) -> bytes:
    """RGB with interleaved (1) or separate (2) colours, which Pillow does not write."""
    size = side * side * bits // 8
    pixels = np.random.default_rng(3).bytes(3 * size)
    strips = 1 if planes == 1 else 3
    after = 8 + 2 + 12 * 11 + 4
    start = after + 8 + 8 * strips
    lists = struct.pack("<3HH", bits, bits, bits, 0)
    places = [start + number * size for number in range(strips)]
    sizes = [len(pixels) // strips] * strips
    lists += struct.pack(f"<{2 * strips}I", *places, *sizes)
    fields = [
        (256, 4, 1, side),  # width
        (257, 4, 1, side),  # height
        (258, 3, 3, after),  # bits per sample
        (259, 3, 1, 1),  # not compressed
        (262, 3, 1, 2),  # RGB
        (273, 4, strips, after + 8 if strips > 1 else start),
        (277, 3, 1, 3),  # samples per pixel
        (278, 4, 1, side),  # rows per strip
        (279, 4, strips, after + 8 + 4 * strips if strips > 1 else len(pixels)),
        (284, 3, 1, planes),
        (339, 3, 1, 1),  # whole numbers
    ]
    directory = b"".join(struct.pack("<HHII", *field) for field in fields)
    header = b"II*\0" + struct.pack("<IH", 8, len(fields))
    return header + directory + bytes(4) + lists + pixels


# ------------------------------------------------------------------------------------------- bombs


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes, depth: int = 8, more: bytes = b"") -> bytes:
    """A grey PNG of this declared size with whatever data, compressed already."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def interlaced_png(image: Image.Image) -> bytes:
    """An Adam7 PNG, which Pillow reads but does not write."""
    grey = np.asarray(image.convert("L"))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]  # top, left, down, right
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in grey[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 0, 0, 0, 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bombs() -> Iterator[tuple[str, bytes]]:
    """Little files that want much memory or time."""
    nothing = zlib.compress(bytes(100))
    yield "bad-bomb-60000x60000.png", png(60_000, 60_000, nothing)
    yield "bad-bomb-largest.png", png(2**31 - 1, 2**31 - 1, nothing)
    yield "bad-bomb-empty-within-the-limit.png", png(LARGE, LARGE, nothing)
    zeros = zlib.compress(bytes(200_000_000), 9)
    small = zlib.compress(b"\0\0" * 2)
    for kind, prefix in ((b"zTXt", b"Comment\0\0"), (b"iCCP", b"profile\0\0")):
        more = chunk(kind, prefix + zeros)
        yield f"any-bomb-in-{kind.decode()}.png", png(1, 2, small, more=more)
    yield "bad-bomb.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0;"
    yield (
        "bad-bomb.bmp",
        b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, 65_000, 65_000, 1, 24) + (bytes(60)),
    )
    yield "bad-bomb.ppm", b"P6 99999 99999 255\n" + bytes(100)
    # Several pictures within the limit at a time, for whoever reads in threads.
    row = bytes(1 + (LARGE + 7) // 8)
    large = png(LARGE, LARGE, zlib.compress(row * LARGE, 9), depth=1)
    for number in range(4):
        yield f"ok-large-{number}.png", large
    # A progressive decoder takes memory for the whole picture before it sees any of it.
    jpeg = encode(photo(), "JPEG", progressive=True)
    yield "bad-bomb-60000x60000.jpg", with_jpeg_size(jpeg, 60_000, 60_000)
    yield "bad-bomb-progressive.jpg", with_jpeg_size(jpeg, LARGE, LARGE)
    four = encode(photo().convert("CMYK"), "JPEG", progressive=True)
    yield "bad-bomb-progressive-cmyk.jpg", with_jpeg_size(four, LARGE, LARGE)
    # Each of these scans makes the decoder go through the whole picture once more.
    start = jpeg.rindex(b"\xff\xda")
    scan = jpeg[start : start + 2 + struct.unpack_from(">H", jpeg, start + 2)[0]]
    many = jpeg[:start] + scan * 5_000 + b"\xff\xd9"
    yield "bad-bomb-5000-scans.jpg", with_jpeg_size(many, 4_000, 4_000)
    if features.check("webp"):
        # One colour takes no bits at all, so the size can be written over.
        webp = bytearray(encode(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
        struct.pack_into("<I", webp, 21, (LARGE - 1) | (LARGE - 1) << 14)
        yield "bad-bomb.webp", bytes(webp)
    if features.check("avif"):
        avif = encode(photo(), "AVIF").replace(struct.pack(">II", 96, 64), b"\0\0\x60\0" * 2)
        yield "bad-bomb.avif", avif


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that declares another size."""
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


# ------------------------------------------------------------------------------ names and no files


def impostors() -> Iterator[tuple[str, bytes]]:
    """What a file is not always called."""
    rgb = photo()
    yield "ok-jpeg-called.png", encode(rgb, "JPEG")
    yield "ok-png-called.JPG", encode(rgb, "PNG")
    yield "ok-gif-called.webp", encode(rgb, "GIF")
    yield "bad-empty.jpg", b""
    yield "bad-one-byte.jpg", b"\xff"
    yield "bad-zeros.jpg", bytes(5000)
    yield "bad-text.jpg", b"This is not a picture.\n"
    yield "bad-html.jpg", b"<!DOCTYPE html><title>404 Not Found</title>"
    yield "bad-vector.jpg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    yield "bad-document.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Type/Catalog>>\nendobj\n"
    yield "bad-postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    yield "bad-zip.jpg", b"PK\x05\x06" + bytes(18)
    yield "bad-video.jpg", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100)
    yield "bad-noise.jpg", np.random.default_rng(1).bytes(3000)
    yield "bad-signature-and-noise.png", b"\x89PNG\r\n\x1a\n" + np.random.default_rng(2).bytes(999)


def not_fetched() -> Iterator[tuple[str, bytes]]:
    """What is found where a picture should be."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n"
    yield "bad-lfs-pointer.jpg", pointer % (b"0" * 64)
    yield "bad-lfs-pointer.png", pointer % (b"f" * 64)
    yield "bad-address.jpg", b"https://example.org/photo.jpg\n"
    yield "bad-shortcut.jpg", b"[InternetShortcut]\r\nURL=https://example.org/photo.jpg\r\n"
    yield "bad-json.jpg", b'{"error": {"code": 403, "message": "Rate limit"}}'
    yield "bad-xml.jpg", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
    yield "bad-base64.jpg", b"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    yield "bad-multipart.jpg", b"--boundary\r\nContent-Type: image/jpeg\r\n\r\n"
    yield "bad-pickle.jpg", b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x08builtins"
    yield "bad-array.jpg", b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'shape': (2, 2)}"
    yield "bad-parquet.jpg", b"PAR1" + bytes(40) + b"PAR1"
    yield "bad-tar.jpg", bytes(257) + b"ustar\x0000" + bytes(247)
    yield "bad-zip-with-files.jpg", b"PK\3\4" + bytes(60)
    for name, start in {"gzip": b"\x1f\x8b\x08", "bzip2": b"BZh9", "xz": b"\xfd7zXZ\0"}.items():
        yield f"bad-{name}.jpg", start + bytes(60)
    yield "bad-rar.jpg", b"Rar!\x1a\x07\x01\0" + bytes(40)
    yield "bad-matroska.jpg", b"\x1aE\xdf\xa3" + bytes(60)
    yield "bad-photoshop.jpg", b"8BPS\0\1" + bytes(60)
    yield "bad-appledouble.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60)
    yield "bad-line-feed.jpg", b"\n"
    yield "bad-mark-alone.jpg", b"\xef\xbb\xbf"


def shapes() -> Iterator[tuple[str, bytes]]:
    """Extreme sizes."""
    for width, height in ((1, 1), (1, 20_000), (20_000, 1)):
        yield f"ok-{width}x{height}.png", encode(Image.new("RGB", (width, height), "teal"), "PNG")
    yield "ok-1x1.jpg", encode(Image.new("RGB", (1, 1), "teal"), "JPEG")
    yield "ok-65500x1.jpg", encode(Image.new("RGB", (65_500, 1), "teal"), "JPEG")
    yield "bad-0x0.png", png(0, 0, zlib.compress(b""))
    yield "bad-0x5.ppm", b"P6 0 5 255\n"


def odd_names() -> Iterator[tuple[str, bytes]]:
    """Good pictures with names that break tables and command lines."""
    data = encode(photo((24, 16)), "PNG")
    names = [b"line\nend", b"tab\tstop", b"carriage\rreturn", b"caf\xe9 \xff", b'"quoted", twice']
    names += [b"'; echo hello; #", b" two  spaces ", "äöü 猫 🐈".encode(), b"*", b"x" * 240]
    names += ["红色的圆".encode("gbk"), "тест".encode("cp1251"), "e\u0301".encode(), b"-- -m x"]
    names += [b"=1+2", b"@SUM(A1)", b"https:", b"#3", b"CON", b"~", "\u2028line".encode()]
    names += [b"[1]", b"bell\x07", "right\u202eto left".encode(), b"back\\slash", b"%s{0}$HOME"]
    for name in names:
        yield os.fsdecode(b"ok-" + name + b".png"), data
    yield "-o.png", data  # as an option of the command would be


def make_no_files(folder: Path) -> None:
    """Folders, links, pipes, and a file that must not be read."""
    (folder / "bad-folder.jpg").mkdir(exist_ok=True)
    links = {"bad-dangling.jpg": "nowhere", "bad-loop.jpg": "bad-loop.jpg"}
    links |= {"bad-folder-loop.jpg": ".", "ok-link.jpg": "ok-mode-RGB.png"}
    links |= {"bad-null.jpg": os.devnull}
    for name, target in links.items():
        if not os.path.lexists(folder / name):
            (folder / name).symlink_to(target)
    if not os.path.lexists(folder / "bad-pipe.jpg"):
        os.mkfifo(folder / "bad-pipe.jpg")
    secret = folder / "bad-unreadable.jpg"
    secret.write_bytes(encode(photo(), "JPEG"))
    secret.chmod(0)
    if os.access(secret, os.R_OK):  # root may read everything
        secret.unlink()


if __name__ == "__main__":
    main()
