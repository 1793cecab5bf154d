"""Images whose pixels are sound are read, whatever lies beside them; missing pixels are errors."""

import io
import struct
import zlib

import numpy as np
import pytest
from helpers.images import encode, same
from PIL import Image, PngImagePlugin

from captioner.errors import ImageError
from captioner.image.io import open_image
from captioner.image.salvage import count_scans


def noise(width=90, height=70):
    values = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def png_chunk(kind, body, crc=None):
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


TEXT = b"key\0\0" + zlib.compress(b"x" * 3_000_000)
CHUNKS = {
    "large zTXt": png_chunk(b"zTXt", TEXT),
    "large iTXt": png_chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "large iCCP": png_chunk(b"iCCP", TEXT),
    "checksum of text": png_chunk(b"tEXt", b"key\0text", crc=1),
    "checksum of profile": png_chunk(b"iCCP", b"key\0\0" + zlib.compress(b"x"), crc=1),
    "checksum of EXIF": png_chunk(b"eXIf", b"MM\0*\0\0\0\0", crc=1),
    "short pHYs": png_chunk(b"pHYs", b"\0"),
    "private": png_chunk(b"prVt", b"x" * 100, crc=1),
}


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("late", [False, True])
def test_what_a_png_carries_beside_its_pixels_does_not_matter(kind, late):
    data = encode(noise(), "PNG")
    place = data.index(b"IEND") - 4 if late else data.index(b"IDAT") - 4
    assert same(open_image(data[:place] + CHUNKS[kind] + data[place:]), noise())


def test_transparency_and_orientation_outlive_a_damaged_text():
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = noise().quantize(8)
    data = encode(palette, "PNG", transparency=3, exif=exif)
    place = data.index(b"PLTE") - 4
    found = open_image(data[:place] + CHUNKS["checksum of text"] + data[place:])
    assert found.size == (70, 90)
    assert same(found, open_image(data))


@pytest.mark.parametrize("kind", [b"\xff\xe0\0\7JFIF\0", b"\xff\xee\0\7Adobe"])
def test_a_segment_of_a_jpeg_that_is_too_short_does_not_matter(kind):
    data = encode(noise(), "JPEG")
    assert same(open_image(data[:2] + kind + data[2:]), open_image(data))


def test_pixels_with_a_wrong_checksum_stay_an_error():
    data = bytearray(encode(noise(), "PNG", pnginfo=PngImagePlugin.PngInfo()))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError, match="damaged or truncated PNG"):
        open_image(bytes(data))


@pytest.mark.parametrize("marker", [0xE2, 0xED, 0xFE])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged segments
def test_damaged_segments_of_a_jpeg_do_not_matter(marker):
    data = encode(noise(), "JPEG")
    bodies = (b"MPF\0II*\0\x08\0\0\0\xff\xff", b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff")
    for body in (*bodies, b"ICC_PROFILE\0\1"):
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
        assert same(open_image(data[:2] + segment + data[2:]), open_image(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_may_lack_its_end_marker_but_no_pixel(progressive, subsampling):
    data = encode(noise(), "JPEG", progressive=progressive, subsampling=subsampling)
    whole = open_image(data)
    assert same(open_image(data[:-2]), whole)
    assert same(open_image(data[:-1]), whole)
    refused = 0
    for length in range(len(data) - 40, len(data) - 2):
        try:
            assert same(open_image(data[:length]), whole)  # the last bits are mere padding
        except ImageError:
            refused += 1
    assert refused >= 36


def test_a_progressive_jpeg_that_lacks_whole_scans_is_an_error():
    data = encode(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="truncated"):
        open_image(data[:last])
    with pytest.raises(ImageError, match="truncated"):
        open_image(data[: data.rindex(b"\xff\xda", 0, last)])


def test_bytes_behind_a_progressive_jpeg_are_no_scans():
    data = encode(noise(), "JPEG", progressive=True)
    scans = count_scans(io.BytesIO(data))
    assert 5 < scans < 20
    film = data + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 200  # a motion photo
    thumbnail = b"Exif\0\0" + b"\xff\xda" * 200
    app1 = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    for more in (film, data[:2] + app1 + data[2:]):
        assert count_scans(io.BytesIO(more)) == scans
        assert same(open_image(more), open_image(data))


def test_many_scans_are_still_refused():
    data = encode(noise(), "JPEG", progressive=True)
    begin, end = data.index(b"\xff\xda"), data.rindex(b"\xff\xc4")
    bomb = data[:begin] + data[begin:end] * 20 + data[end:]
    assert count_scans(io.BytesIO(bomb)) > 100
    with pytest.raises(ImageError, match="over the limit of 100"):
        open_image(bomb)


def planar_tiff(bits):
    """A TIFF of one colour in three planes of 2 x 2 pixels."""
    size = 4 * bits // 8
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3),
               (278, 3, 1, 2), (284, 3, 1, 2)]  # fmt: skip
    place = 8 + 2 + 12 * (len(entries) + 3) + 4
    entries += [(258, 3, 3, place), (273, 4, 3, place + 6), (279, 4, 3, place + 18)]
    directory = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<HH", value, 0) if kind == 3 and count == 1 else struct.pack("<I", value))
        for tag, kind, count, value in sorted(entries)
    )
    pixels = place + 30
    extra = struct.pack("<3H", bits, bits, bits)
    extra += struct.pack("<3I", *(pixels + size * i for i in range(3))) + struct.pack(
        "<3I", *[size] * 3
    )
    planes = b"".join(bytes([value]) * size for value in (10, 200, 90))
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return head + directory + bytes(4) + extra + planes


def grey_tiff(bits, photometric, values):
    """A TIFF of one row of greys."""
    data = np.array(values, "<u2").tobytes()
    if bits == 12:
        packed = "".join(f"{value:012b}" for value in values)
        data = int(packed, 2).to_bytes(len(packed) // 8, "big")
    entries = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, 0), (277, 1), (278, 1), (279, len(data))]
    place = 8 + 2 + 12 * len(entries) + 4
    directory = b"".join(
        struct.pack("<HHIHH", tag, 3, 1, place if tag == 273 else value, 0)
        for tag, value in entries
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


def test_greys_of_more_than_8_bits_fill_the_range():
    def first_row(bits, photometric, values):
        return np.asarray(open_image(grey_tiff(bits, photometric, values)))[0, :, 0].tolist()

    assert first_row(16, 1, [0, 0x8080, 0xFFFF, 257]) == [0, 128, 255, 1]
    assert first_row(16, 0, [0, 0x8080, 0xFFFF, 257]) == [255, 127, 0, 254]  # counted from white
    assert first_row(12, 1, [0, 0x808, 0xFFF, 16]) == [0, 128, 255, 1]


def test_16_bit_tiffs_with_separate_planes_are_refused_by_name():
    assert np.asarray(open_image(planar_tiff(8)))[0, 0].tolist() == [10, 200, 90]
    with pytest.raises(ImageError, match="separate planes: save it with interleaved"):
        open_image(planar_tiff(16))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\3\4" + bytes(50), "a zip archive"),
        (b"x" * 257 + b"ustar", "a tar archive"),
    ],
)
def test_other_files_are_named_with_what_to_do(content, said, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=said):
        open_image(path)


@pytest.mark.parametrize("shrink_to", [None, 32])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_rows_that_are_missing_before_the_end_marker_are_an_error(options, shrink_to):
    noise = np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)
    noise[-16:] = 90  # a plain border at the end is no fault
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=90, **options)
    whole = stream.getvalue()
    expected = open_image(whole, shrink_to=shrink_to)
    assert open_image(whole[:-2] + b"junk\xff\xd9", shrink_to=shrink_to) == expected
    for percent in (20, 50, 80):
        cut = whole[: len(whole) * percent // 100] + b"\xff\xd9"
        with pytest.raises(ImageError, match="rows are missing"):
            open_image(cut, shrink_to=shrink_to)


def test_a_web_address_is_named_with_what_to_do():
    with pytest.raises(ImageError, match="a web address: download"):
        open_image("https://example.org/a.jpg")
