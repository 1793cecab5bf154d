"""Curves of several runs in one figure: `captioner plot RUN... -o curves.png`. Extra `plots`.

Six panels over the training step: loss, CIDEr, BLEU-4, learning rate, attention entropy, gradient
norm; more if a run is self-critical or has hard attention. Each run has its own color. Training is
a thin line (with its running mean where it is noisy), validations are dots.
"""

from __future__ import annotations

import colorsys
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.errors import ConfigError, DataError
from captioner.training.log import LOG_FILE, read_log
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Color = tuple[float, float, float]
Points = list[tuple[float, float]]

_COLUMNS, _WIDTH, _HEIGHT = 3, 5.2, 3.0  # of a panel, in inches
_FORMATS = (".png", ".svg")
# Okabe and Ito's colors (2008), which people with any color vision tell apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3c3c3c")


@dataclass(frozen=True)
class Panel:
    """One plot: which values of the log's records it shows.

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
    Panel("reward: CIDEr-D of sampled sentences", training="reward", optional=True),
    Panel("words of sampled sentences, with END", training="length", optional=True),
    Panel("hard attention: log-probability of a word", training="word_log_prob", optional=True),
)


@dataclass(frozen=True)
class Run:
    """A training run as its log describes it."""

    label: str
    records: list[dict[str, Any]]

    def curve(self, key: str | None, *, validation: bool, factor: float = 1.0) -> Points:
        """Return (step, value) of a key; values that are not finite numbers are left out."""
        points = []
        for record in self.records:
            values = record.get("validation") if validation else record
            value = values.get(key) if key and isinstance(values, dict) else None
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.append((float(record["step"]), factor * value))
        return points

    def describe(self) -> str:
        """Return the run's line in the legend."""
        scores = self.curve("cider", validation=True)
        if not scores:
            return f"{self.label}: no validation yet"
        step, best = max(scores, key=lambda point: point[1])
        return f"{self.label}: best CIDEr {best:.3f} at step {step:,.0f}"


def plot_runs(paths: Sequence[str | Path], output: str | Path) -> None:
    """Read runs and draw their curves into a PNG or SVG file.

    Args:
        paths: Run folders, or their `log.jsonl`.
        output: The file; an older one is replaced.

    Raises:
        ConfigError: The output is named neither `.png` nor `.svg`, or Matplotlib is missing.
        DataError: A run has no log, or its log is still empty.
    """
    output = Path(output)
    if output.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{output}: plots are PNG or SVG: name it {output.stem or 'x'}.png")
    runs = read_runs([Path(path) for path in paths])
    for run in runs:
        if not run.curve("cider", validation=True):
            logger.warning("%s: no validation yet", run.label)
    figure = draw_runs(runs)
    with replacing(output) as temporary:
        figure.savefig(temporary, format=output.suffix.lower()[1:], dpi=100)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs from folders or logs, and label each so that no two are confused.

    Raises:
        DataError: A run has no log, or its log is still empty.
    """
    folders = [path.parent if path.name == LOG_FILE else path for path in paths]
    labels = [(f.resolve().name if f.is_dir() else f.stem) or str(f) for f in folders]
    often = Counter(labels)
    runs = []
    for path, folder, label in zip(paths, folders, labels, strict=True):
        records = read_log(path)
        if not records:
            raise DataError(
                f"{path}: its log is still empty; the first record comes after log.every steps"
            )
        runs.append(Run(str(folder) if often[label] > 1 else label, records))
    return runs


def draw_runs(runs: Sequence[Run]) -> Figure:
    """Draw all panels and a legend.

    Raises:
        ConfigError: Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise ConfigError(
            "captioner plot needs Matplotlib: pip install 'captioner[plots]'"
        ) from None
    panels = [
        panel
        for panel in PANELS
        if not panel.optional or any(run.curve(panel.training, validation=False) for run in runs)
    ]
    rows = math.ceil(len(panels) / _COLUMNS)
    size = (_COLUMNS * _WIDTH, rows * _HEIGHT + 0.25 * len(runs))
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, runs)
    for axes in grid[len(panels) :]:
        axes.remove()
    lines = [Line2D([], [], color=color_of(number), linewidth=2) for number in range(len(runs))]
    legend = figure.legend(lines, ["run"] * len(runs), loc="outside upper left", frameon=False)
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_text(run.describe())
        text.set_parse_math(False)  # a "$" in a folder's name starts no formula
    return figure


def color_of(number: int) -> str | Color:
    """Return the color of a run."""
    if number < len(_COLORS):
        return _COLORS[number]
    return colorsys.hsv_to_rgb(0.618 * number % 1, 0.8, 0.75)  # the golden ratio spreads the hues


def _draw_panel(axes: Axes, panel: Panel, runs: Sequence[Run]) -> None:
    factor = panel.factor
    training = [run.curve(panel.training, validation=False, factor=factor) for run in runs]
    validation = [run.curve(panel.validation, validation=True, factor=factor) for run in runs]
    axes.set_title(panel.title, loc="left", fontsize=10)
    every = [point for points in (*training, *validation) for point in points]
    if not every:
        what = "no validation yet" if panel.training is None else "not in these logs"
        axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", alpha=0.6)
        axes.set(xticks=[], yticks=[])
        return
    for number, points in enumerate(training):
        steps, values = _columns(points)
        mean = running_mean(points)
        pale = mean != points or bool(validation[number])
        axes.plot(
            steps,
            values,
            color=color_of(number),
            linewidth=0.7 if pale else 1.6,
            alpha=0.4 if pale else 1.0,
        )
        if mean != points:
            axes.plot(*_columns(mean), color=color_of(number), linewidth=1.6)
    for number, points in enumerate(validation):
        axes.plot(*_columns(points), ".-", color=color_of(number), linewidth=1.6, markersize=8)
    heights = np.array([value for _, value in every])
    # A spike of a hundredth of the steps must not flatten the rest.
    low = float(heights.min())
    high = float(min(heights.max(), low + 2 * (np.quantile(heights, 0.99) - low)))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin)
    axes.set_xlim(0, 1.02 * max(step for step, _ in every) or 1.0)
    axes.set_xlabel("step", loc="right")
    axes.grid(alpha=0.3)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def running_mean(points: Points) -> Points:
    """Return the mean of each value and its neighbors, a twentieth of the curve.

    A short curve, or one without noise (a learning rate), stays as it is.
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
    # As many neighbors on either side, fewer towards the ends.
    reach = np.minimum(half, np.minimum(index, len(points) - 1 - index))
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]
