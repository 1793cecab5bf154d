import io
import itertools

import numpy as np
import pytest
from helpers.cells import cell_box
from PIL import Image

from captioner.errors import ConfigError
from captioner.image.io import open_image
from captioner.image.look import half_level, heat_colours, light, outline
from captioner.image.visualize import STYLES, animate, overlay, spread_weights, word_strip

GREY = 120
SHAPES = {"landscape": (120, 80), "portrait": (70, 150), "panorama": (400, 50), "odd": (101, 67)}


def photo(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (GREY, GREY, GREY))


def hot(row: int, col: int, grid: tuple[int, int] = (4, 6)) -> np.ndarray:
    cells = np.zeros(grid, np.float32)
    cells[row, col] = 0.3
    return cells


def plain(*given, **options) -> Image.Image:
    """An overlay without the line around half of the mass."""
    return overlay(*given, outlined=False, **options)


def brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float).mean(axis=2)


# ---------------------------------------------------------------------- overlays line up


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (3, 0), (2, 4)])
def test_one_hot_cell_brightens_exactly_its_region(size, cell) -> None:
    seen = brightness(plain(photo(size), hot(*cell), floor=0.4, interpolation="nearest"))
    left, top, right, bottom = cell_box(*cell, (4, 6), size)
    inside = np.zeros_like(seen, dtype=bool)
    inside[top:bottom, left:right] = True
    assert (seen[inside] == GREY).all()
    assert (seen[~inside] == round(0.4 * GREY)).all()


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_smooth_spot_peaks_inside_its_cell(size, interpolation) -> None:
    for cell in ((0, 0), (1, 3), (3, 5)):
        seen = brightness(plain(photo(size), hot(*cell), interpolation=interpolation))
        left, top, right, bottom = cell_box(*cell, (4, 6), size)
        ys, xs = np.nonzero(seen == seen.max())  # more than the peak: the curve saturates
        assert left <= xs.mean() < right
        assert top <= ys.mean() < bottom


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_spot_lies_right_on_a_turned_camera_photo(orientation: int) -> None:
    """The map belongs to the upright photo, whatever way round the file stores it."""
    upright = Image.new("RGB", (60, 40), (GREY, GREY, GREY))
    box = cell_box(1, 4, (4, 6), upright.size)
    upright.paste("white", box)  # the thing that the word names
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    for image in (open_image(buffer.getvalue()), Image.open(buffer)):
        result = plain(image, hot(1, 4), floor=0.4, interpolation="nearest")
        assert result.size == upright.size
        seen = brightness(result)
        assert (seen[box[1] : box[3], box[0] : box[2]] == 255).all()
        assert seen[seen < 255].max() == round(0.4 * GREY)


# --------------------------------------------------------------------------- scale and styles


@pytest.mark.parametrize("floor", [0.0, 0.4, 1.0])
def test_spotlight_keeps_its_floor_and_full_brightness_at_the_peak(floor: float) -> None:
    cells = np.random.default_rng(0).random((7, 7)) ** 4
    for interpolation in ("nearest", "bilinear", "bicubic"):
        seen = brightness(plain(photo((90, 60)), cells, floor=floor, interpolation=interpolation))
        assert seen.max() == GREY
        assert seen.min() >= np.floor(floor * GREY)


def test_scale_own_peak_or_a_given_one() -> None:
    def lit(cells, **options):
        return brightness(plain(photo((60, 40)), cells, floor=0, **options)).max()

    assert lit(hot(1, 1)) == lit(100 * hot(1, 1)) == GREY
    assert lit(hot(1, 1), peak=0.6) == pytest.approx(GREY * light()[128], abs=4)
    assert lit(hot(1, 1), peak=0.01) == GREY  # above the peak: full, never brighter


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "cells",
    [
        np.zeros((7, 7)),
        np.full((7, 7), np.nan),
        np.full((7, 7), 1 / 49),
        np.full((7, 7), -1.0),
        np.array([[np.inf, 1.0], [np.nan, 0.0]]),
        np.full((1, 1), 1.0),
        np.full((3, 3), 1e-38),
    ],
    ids=["zero", "nan", "flat", "negative", "inf", "one cell", "tiny"],
)
def test_odd_maps_neither_crash_nor_whiten(style: str, cells: np.ndarray) -> None:
    image = overlay(photo((50, 40)), cells, style, floor=0.4)
    assert image.size == (50, 40)
    assert image.mode == "RGB"
    if style == "spotlight":
        lit = brightness(plain(photo((50, 40)), cells, floor=0.4))
        assert 0.4 * GREY - 1 <= lit.min() <= lit.max() <= GREY


def test_a_flat_map_lights_everything_and_a_zero_map_nothing() -> None:
    assert brightness(overlay(photo((50, 40)), np.full((7, 7), 0.02))).min() == GREY
    dark = overlay(photo((50, 40)), np.zeros((7, 7)), floor=0.4)
    assert brightness(dark).max() == round(0.4 * GREY)


def test_the_heat_map_tints_the_peak_and_spares_the_rest() -> None:
    drawn = plain(photo((60, 40)), hot(1, 4), style="heatmap", interpolation="nearest")
    result = np.asarray(drawn)
    left, top, right, bottom = cell_box(1, 4, (4, 6), (60, 40))
    inside = result[top:bottom, left:right].astype(int)
    assert (inside[..., 0] - inside[..., 2] > 40).all()  # yellow
    changed = (result != GREY).any(axis=2)
    assert changed.sum() == inside[..., 0].size
    clear = plain(photo((60, 40)), hot(1, 4), style="heatmap", strength=0)
    assert (np.asarray(clear) == GREY).all()


def test_heat_colours_rise_evenly_in_lightness() -> None:
    srgb = heat_colours().astype(float) / 255
    assert srgb.shape == (256, 3)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(
        luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance
    )  # CIE L*, 0..100
    assert lightness[0] < 20
    assert lightness[-1] > 85
    steps = np.diff(lightness[::15])
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 2 * steps.mean()


def test_overlay_leaves_the_photo_alone_and_takes_every_mode() -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "I;16"):
        image = Image.new(mode, (30, 20))
        before = image.tobytes()
        assert overlay(image, hot(0, 0)).mode == "RGB"
        assert image.tobytes() == before


# ------------------------------------------------------------------------------ the outline


def test_half_of_the_mass_lies_at_or_above_the_half_level() -> None:
    for seed in range(5):
        weights = np.random.default_rng(seed).random((30, 40)) ** 3
        level = half_level(weights)
        assert weights[weights >= level].sum() >= weights.sum() / 2
        assert weights[weights > level].sum() <= weights.sum() / 2
    assert half_level(np.zeros((3, 3))) == np.inf


@pytest.mark.parametrize("style", STYLES)
def test_the_outline_surrounds_the_cells_of_half_the_mass(style: str) -> None:
    image, cells = photo((240, 160)), hot(1, 4)
    weights = spread_weights(cells, image.size)
    before = np.asarray(plain(image, cells, style=style), float)
    after = np.asarray(overlay(image, cells, style), float)
    white = (after > 240).all(2) & (before < 240).any(2)
    assert white.sum() > 80  # round the cell
    slope = np.hypot(*np.gradient(weights))
    away = np.abs(weights - half_level(weights)) / slope.clip(1e-6)
    assert away[white].max() < 2  # pixels
    assert np.array_equal(before[away > 6], after[away > 6])


def test_a_map_without_slope_has_no_outline() -> None:
    pixels = np.full((20, 30, 3), 99.0)
    for weights in (np.ones((20, 30)), np.zeros((20, 30)), np.ones((1, 30)), np.ones((20, 1))):
        assert np.array_equal(
            outline(pixels[: len(weights)], weights, half_level(weights)), pixels[: len(weights)]
        )


# -------------------------------------------------------------------------------- word strips


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def panels_of(sheet: Image.Image) -> list[tuple[int, int, int, int]]:
    """Boxes of the grey panels, in reading order: found in the pixels, not by the layout code."""
    pixels = np.asarray(sheet, dtype=int)
    grey = (np.ptp(pixels, axis=2) <= 1) & (pixels[..., 0] <= GREY)  # ink is bluish
    return [
        (left, top, right, bottom)
        for top, bottom in runs(grey.any(axis=1))
        for left, right in runs(grey.any(axis=0))
        if grey[top:bottom, left:right].all()
    ]


PLAIN = {"style": "spotlight", "outlined": False}
WORDS = ["two", "dogs", "run", "fast", "wet", "sand"]
MAPS = np.stack([hot(i % 4, i) for i in range(6)])


@pytest.mark.parametrize("size", [*SHAPES.values(), (3000, 2000)])
def test_a_strip_has_one_panel_more_than_words_in_the_photos_shape(size) -> None:
    sheet = word_strip(photo(size), WORDS, MAPS, **PLAIN)
    boxes = panels_of(sheet)
    assert len(boxes) == 7
    for left, top, right, bottom in boxes:
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.05)
        assert left >= 20  # margins
        assert top >= 20
        assert sheet.width - right >= 20
    assert 0.4 < sheet.width / sheet.height < 4


def test_columns_and_panel_width_are_kept() -> None:
    for columns in (1, 3, 50):
        boxes = panels_of(
            word_strip(photo((120, 80)), WORDS, MAPS, columns=columns, panel_width=150, **PLAIN)
        )
        assert len({box[0] for box in boxes}) == min(columns, 7)
        assert {box[2] - box[0] for box in boxes} == {150}
        assert {box[3] - box[1] for box in boxes} == {100}


def test_panels_come_in_reading_order_photo_first() -> None:
    sheet = word_strip(
        photo((120, 80)), WORDS, MAPS, columns=4, panel_width=120, interpolation="nearest", **PLAIN
    )
    boxes = panels_of(sheet)
    panels = [brightness(sheet.crop(box)) for box in boxes]
    assert (panels[0] == GREY).all()
    for panel, cells in zip(panels[1:], MAPS, strict=True):
        y, x = np.argwhere(panel == GREY).mean(axis=0)
        row, col = np.unravel_index(cells.argmax(), cells.shape)
        assert int(y * 4 / 80) == row
        assert int(x * 6 / 120) == col


def test_every_word_is_printed_below_its_panel_and_within_its_width() -> None:
    words = ["i", "dog", "antidisestablishmentarianism" * 2]
    sheet = word_strip(photo((120, 80)), words, MAPS[:3], columns=4, panel_width=120, **PLAIN)
    boxes = sorted(panels_of(sheet))
    widths = []
    for left, _, right, bottom in boxes:
        below = brightness(sheet.crop((left - 6, bottom + 2, right + 6, sheet.height)))
        inked = np.nonzero((below < 128).any(axis=0))[0]
        widths.append(inked.max() - inked.min() + 1 if inked.size else 0)
        assert not (below[:, :5] < 128).any()
        assert not (below[:, -5:] < 128).any()
    assert widths[0] == 0
    assert 0 < widths[1] < widths[2] < widths[3] <= 121


def test_shared_scale_shows_which_word_looked_hardest() -> None:
    maps = np.stack([hot(1, 1), 0.1 * hot(1, 1)])
    seen = {}
    for shared in (False, True):
        sheet = word_strip(
            *(photo((120, 80)), ["one", "two"], maps),
            **(PLAIN | {"columns": 3, "floor": 0.2, "shared_scale": shared}),
        )
        last = sorted(panels_of(sheet))[-1]
        seen[shared] = brightness(sheet.crop(last)).max()
    assert seen[False] > 110
    assert seen[True] < 45


def test_function_words_are_pale() -> None:
    maps = [hot(1, 1)] * 2
    sheet = word_strip(photo((120, 80)), ["dog", "of"], maps, columns=3, panel_width=120)
    width = (sheet.width - 42) // 3
    dog, of = (brightness(sheet.crop((28 + i * width, 28, 148 + i * width, 108))) for i in (1, 2))
    assert of.min() > dog.min() + 30
    frames, _ = frames_of(animate(photo((120, 80)), ["dog", "of"], maps, size=120))
    dog, of = (brightness(frame)[:70].min() for frame in frames[1:])
    assert of > dog + 10


def test_strips_survive_odd_captions() -> None:
    for words in ([], [""], ["naïve café"], ["犬"], ["line\nbreak"], ["x" * 500], ["🐕"]):
        sheet = word_strip(photo((120, 80)), words, MAPS[: len(words)])
        assert sheet.mode == "RGB"
    for size in ((1, 1), (1, 5000), (5000, 1)):
        word_strip(photo(size), WORDS, MAPS)


# ---------------------------------------------------------------------------------- animation


def frames_of(data: bytes) -> tuple[list[Image.Image], list[int]]:
    film = Image.open(io.BytesIO(data))
    assert film.format == "GIF"
    assert film.info["loop"] == 0
    frames, lengths = [], []
    for index in range(film.n_frames):
        film.seek(index)
        frames.append(film.convert("RGB"))
        lengths.append(film.info["duration"])
    return frames, lengths


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_the_film_has_the_photo_and_a_frame_per_word(size) -> None:
    frames, lengths = frames_of(animate(photo(size), WORDS, MAPS, size=200, seconds=0.5))
    assert len(frames) == len(lengths) == 7
    assert len({frame.size for frame in frames}) == 1
    assert lengths[1:] == [500] * 6
    assert frames[0].height > 200 * size[1] / max(size)  # room for the sentence
    for before, after in itertools.pairwise(frames):
        assert before.tobytes() != after.tobytes()


def test_a_long_sentence_wraps() -> None:
    words = [f"word{i}" for i in range(40)]
    short, _ = frames_of(animate(photo((120, 80)), words[:2], [hot(0, 0)] * 2, size=128))
    long, _ = frames_of(animate(photo((120, 80)), words, [hot(0, 0)] * 40, size=128))
    assert long[0].width == short[0].width
    assert long[0].height > short[0].height + 200


def test_a_film_without_words_is_the_photo() -> None:
    frames, _ = frames_of(animate(photo((120, 80)), [], []))
    assert len(frames) == 1


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: overlay(p, hot(0, 0), "rainbow"), "rainbow.*spotlight"),
        (lambda p: overlay(p, hot(0, 0), floor=1.5), "floor"),
        (lambda p: overlay(p, hot(0, 0), floor=float("nan")), "floor"),
        (lambda p: overlay(p, hot(0, 0), "heatmap", strength=-1), "strength"),
        (lambda p: overlay(p, hot(0, 0), interpolation="magic"), "magic"),
        (lambda p: overlay(p, np.zeros(5)), "shape"),
        (lambda p: overlay(p, np.zeros((0, 4))), "shape"),
        (lambda p: word_strip(p, ["a", "dog"], MAPS), "2 words but 6"),
        (lambda p: word_strip(p, WORDS, MAPS, columns=0), "columns"),
        (lambda p: word_strip(p, WORDS, MAPS, panel_width=3), "panel_width"),
        (lambda p: word_strip(p, WORDS, MAPS, font="/no/such/font.ttf"), "font"),
        (lambda p: animate(p, ["a"], MAPS), "1 words but 6"),
        (lambda p: animate(p, WORDS, MAPS, seconds=0), "seconds"),
    ],
)
def test_mistakes_are_named(call, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call(photo((60, 40)))
