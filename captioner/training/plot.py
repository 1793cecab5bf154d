"""Curves of several runs in one picture: ``captioner plot RUN... -o curves.png``. Pillow only.

Six panels over the training step: loss, CIDEr, BLEU-4, learning rate, attention entropy, gradient
norm; more if there are self-critical runs or hard attention. Runs have a colour each. Training is a
thin line (with its running mean where it is noisy), validations are dots.
"""

from __future__ import annotations

import colorsys
import functools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.errors import ConfigError, DataError
from captioner.evaluation.plots import Scale, round_ticks
from captioner.training.log import LOG_FILE, read_log
from captioner.utils.files import replacing

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]
Points = list[tuple[float, float]]

_OVERSAMPLE = 2  # everything is drawn larger and then shrunk: smooth lines
_PANEL = (520, 300)  # pixels, with its axes
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 40  # within a panel
_COLUMNS, _MARGIN, _LINE = 3, 16, 22
_INK, _PALE_INK, _GRID, _PAPER = (28, 28, 32), (110, 110, 118), (228, 228, 232), (255, 255, 255)
# Okabe and Ito's colours (2008), which people with any colour vision tell apart.
_COLORS: tuple[Color, ...] = (
    *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)),
    *((86, 180, 233), (230, 159, 0), (60, 60, 60)),
)


@dataclass(frozen=True)
class Panel:
    """One plot: which values of the records it shows.

    Attributes:
        title: Above it.
        training: Key of the training records, or None.
        validation: Key of the validation records, or None.
        factor: What values are multiplied by.
        optional: Left out if no run has such values.
    """

    title: str
    training: str | None = None
    validation: str | None = None
    factor: float = 1.0
    optional: bool = False


PANELS = (
    Panel("loss", training="loss"),
    Panel("validation CIDEr", validation="cider"),
    Panel("validation BLEU-4", validation="bleu4", factor=100),
    Panel("learning rate", training="learning_rate"),
    Panel(
        "attention entropy (1: uniform)",
        training="attention_entropy",
        validation="attention_entropy",
    ),
    Panel("gradient norm", training="gradient_norm"),
    Panel("reward: CIDEr-D of drawn sentences", training="reward", optional=True),
    Panel("words of drawn sentences, with END", training="length", optional=True),
    Panel("hard attention: log-probability of a word", training="word_log_prob", optional=True),
)


@dataclass(frozen=True)
class Run:
    """A training run as its log tells it."""

    label: str
    records: list[dict[str, Any]]

    def curve(self, key: str, *, validation: bool, factor: float = 1.0) -> Points:
        """(step, value) of a key; values that are not finite numbers are left out."""
        points = []
        for record in self.records:
            values = record.get("validation") if validation else record
            value = values.get(key) if isinstance(values, dict) else None
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.append((float(record["step"]), factor * value))
        return points

    def describe(self) -> str:
        """The run's line in the legend."""
        scores = self.curve("cider", validation=True)
        if not scores:
            return f"{self.label}: no validation yet"
        step, best = max(scores, key=lambda point: point[1])
        return f"{self.label}: best CIDEr {best:.3f} at step {step:,.0f}"


def plot_runs(paths: Sequence[str | Path], output: str | Path) -> None:
    """Read runs and draw their curves into a PNG file.

    Args:
        paths: Run folders, or their ``log.jsonl``.
        output: The picture; an older one is replaced.

    Raises:
        ConfigError: The output is not named ``.png``.
        DataError: A run has no log, or nothing is in it yet.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ConfigError(f"{output}: the picture is a PNG, so name it {output.stem or 'x'}.png")
    runs = read_runs([Path(path) for path in paths])
    for run in runs:
        if not run.curve("cider", validation=True):
            logger.warning("%s: no validation yet", run.label)
    picture = draw_runs(runs)
    with replacing(output) as temporary:
        picture.save(temporary, "PNG")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders or logs, with labels that tell them apart.

    Raises:
        DataError: A run has no log, or nothing is in it yet.
    """
    folders = [path.parent if path.name == LOG_FILE else path for path in paths]
    labels = [(f.resolve().name if f.is_dir() else f.stem) or str(f) for f in folders]
    often = Counter(labels)
    runs = []
    for path, folder, label in zip(paths, folders, labels, strict=True):
        records = read_log(path)
        if not records:
            raise DataError(
                f"{path}: its log is empty so far; the first record comes after a while"
            )
        runs.append(Run(str(folder) if often[label] > 1 else label, records))
    return runs


def draw_runs(runs: Sequence[Run]) -> Image.Image:
    """Draw all panels and a legend: an RGB picture."""
    panels = [panel for panel in PANELS if not panel.optional or _is_in(panel, runs)]
    rows = math.ceil(len(panels) / _COLUMNS)
    legend = _MARGIN + len(runs) * _LINE
    size = (_COLUMNS * _PANEL[0] + 2 * _MARGIN, legend + rows * _PANEL[1] + _MARGIN)
    canvas = _Canvas(*size)
    for number, run in enumerate(runs):
        y = _MARGIN + (number + 0.5) * _LINE
        canvas.line([(_MARGIN + 8, y), (_MARGIN + 36, y)], color_of(number), 3)
        canvas.text((_MARGIN + 46, y), run.describe(), _INK, "lm")
    for number, panel in enumerate(panels):
        x = _MARGIN + number % _COLUMNS * _PANEL[0]
        y = legend + number // _COLUMNS * _PANEL[1]
        _draw_panel(canvas, panel, runs, x, y)
    return canvas.finish()


def _is_in(panel: Panel, runs: Sequence[Run]) -> bool:
    return any(run.curve(panel.training or "", validation=False) for run in runs)


def color_of(number: int) -> Color:
    """The colour of a run."""
    if number < len(_COLORS):
        return _COLORS[number]
    rgb = colorsys.hsv_to_rgb(0.618 * number % 1, 0.8, 0.75)  # the golden ratio spreads the hues
    return (round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2]))


def _draw_panel(canvas: _Canvas, panel: Panel, runs: Sequence[Run], x0: float, y0: float) -> None:
    """One panel with its upper left corner at (x0, y0)."""

    def curves(key: str | None, validation: bool) -> list[Points]:
        if key is None:
            return [[] for _ in runs]
        return [run.curve(key, validation=validation, factor=panel.factor) for run in runs]

    training, validation = curves(panel.training, False), curves(panel.validation, True)
    left, right = x0 + _LEFT, x0 + _PANEL[0] - _RIGHT
    top, bottom = y0 + _TOP, y0 + _PANEL[1] - _BOTTOM
    canvas.text((left, y0 + _TOP - 12), panel.title, _INK, "ls", 15)
    every = [point for points in (*training, *validation) for point in points]
    if not every:
        canvas.box((left, top, right, bottom))
        what = "no validation yet" if panel.training is None else "not in these logs"
        canvas.text(((left + right) / 2, (top + bottom) / 2), what, _PALE_INK, "mm")
        return
    values = np.array([value for _, value in every])
    # A spike of a hundredth of the steps must not flatten the rest.
    low = float(values.min())
    high = float(min(values.max(), low + 2 * (np.quantile(values, 0.99) - low)))
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    x = Scale(0, 1.02 * max(step for step, _ in every), left, right)
    y = Scale(max(low - pad, 0.0) if low >= 0 else low - pad, high + pad, bottom, top)
    for value in round_ticks(y.low, y.high):
        canvas.line([(left, y(value)), (right, y(value))], _GRID, 1)
        canvas.text((left - 8, y(value)), f"{value:g}", _PALE_INK, "rm")
    for value in round_ticks(x.low, x.high):
        canvas.line([(x(value), top), (x(value), bottom)], _GRID, 1)
        canvas.text((x(value), bottom + 8), f"{value:,.0f}", _PALE_INK, "ma")
    canvas.text((right, bottom + 24), "step", _PALE_INK, "ra")

    def places(points: Points) -> Points:
        return [(x(step), min(max(y(value), top), bottom)) for step, value in points]

    for number, points in enumerate(training):
        color = color_of(number)
        mean = running_mean(points)
        both = mean != points or bool(validation[number])
        canvas.line(places(points), _paler(color) if both else color, 1 if both else 2)
        if mean != points:
            canvas.line(places(mean), color, 2)
    for number, points in enumerate(validation):
        canvas.line(places(points), color_of(number), 2)
        canvas.dots(places(points), color_of(number), 3.5)
    canvas.box((left, top, right, bottom))


def running_mean(points: Points) -> Points:
    """The mean of each value and its neighbours, a twentieth of the curve; short curves stay.

    A curve without noise (a learning rate) stays as it is as well.
    """
    if len(points) < 60:
        return points
    values = np.array([value for _, value in points])
    turns = np.count_nonzero(np.diff(np.sign(np.diff(values))))
    if turns < len(points) / 10:
        return points
    half = len(points) // 40
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(points))
    # As many neighbours on either side, fewer towards the ends.
    reach = np.minimum(half, np.minimum(index, len(points) - 1 - index))
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _paler(color: Color) -> Color:
    red, green, blue = (round(0.4 * part + 0.6 * 255) for part in color)
    return red, green, blue


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class _Canvas:
    """Draws in units of the final picture's pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._image = Image.new("RGB", (width * _OVERSAMPLE, height * _OVERSAMPLE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: Points, color: Color, width: float) -> None:
        if len(points) == 1:
            self.dots(points, color, width)
        else:
            self._draw.line(self._scaled(points), color, round(width * _OVERSAMPLE), "curve")

    def dots(self, points: Points, color: Color, radius: float) -> None:
        for point in self._scaled(points):
            self._draw.circle(point, radius * _OVERSAMPLE, color)

    def box(self, corners: tuple[float, float, float, float]) -> None:
        scaled = [round(corner * _OVERSAMPLE) for corner in corners]
        self._draw.rectangle(scaled, outline=_PALE_INK, width=_OVERSAMPLE)

    def text(
        self, place: tuple[float, float], text: str, color: Color, anchor: str, size: int = 13
    ) -> None:
        (scaled,) = self._scaled([place])
        self._draw.text(scaled, text, color, _font(size * _OVERSAMPLE), anchor=anchor)

    def finish(self) -> Image.Image:
        return self._image.resize(self._size, Image.Resampling.LANCZOS)

    @staticmethod
    def _scaled(points: Points) -> Points:
        return [(x * _OVERSAMPLE, y * _OVERSAMPLE) for x, y in points]
