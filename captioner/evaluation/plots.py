"""Plots of the report as inline SVG, by Matplotlib (extra `plots`).

The page's style sheet sets colours and font, so that plots follow its light and dark themes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (5.6, 2.6)  # inches
_MOST_BARS = 40
# Stand-ins for the page's colours, replaced by its CSS variables in the finished SVG.
_SERIES = ("#2a78d6", "#e0602a", "#1a9e70", "#8b8983")
_INK, _SOFT, _LINE = "#1b1b19", "#66645f", "#e4e2dc"
_VARIABLES = {color: f"var(--s{n})" for n, color in enumerate(_SERIES)} | {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
}


def histogram(
    values: Iterable[float],
    *,
    label: str,
    unit: str = "photos",
    whole: bool = False,
    others: Sequence[float] = (),
    names: tuple[str, str] | None = None,
) -> str:
    """Draw how often values occur, as shares, with their mean as a dashed line.

    Args:
        values: Values; those that are not finite are left out.
        label: Label of the horizontal axis.
        unit: What is counted.
        whole: The values are whole numbers, with a bar each (up to 40).
        others: Values of a second set, drawn as a line; up to the highest hundredth may be cut off.
        names: What the two sets are, for a legend.

    Returns:
        An `<svg>` element, or an empty text if there is no value.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    data = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    if not data.size:
        return ""
    second = np.asarray(others, dtype=float)
    if second.size:  # a few long captions would squeeze all others
        second = second[second <= max(data.max(), np.quantile(second, 0.99))]
    joined = np.concatenate((data, second))
    low, high = float(joined.min()), float(joined.max())
    if whole:
        step = math.ceil((high - low + 1) / _MOST_BARS)
        edges = np.arange(math.floor(low) - 0.5, math.ceil(high) + step, step).tolist()
    else:
        edges = list(MaxNLocator(24, steps=[1, 2, 2.5, 5, 10]).tick_values(min(0.0, low), high))
    figure, axes = _axes(label, f"share of {unit}")
    axes.hist(data, edges, weights=np.full(data.size, 1 / data.size), color=_SERIES[0], rwidth=0.9)
    if second.size:
        shares = np.full(second.size, 1 / second.size)
        axes.hist(second, edges, weights=shares, histtype="step", color=_SERIES[1], linewidth=1.5)
    axes.axvline(float(data.mean()), color=_INK, linestyle="--", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=whole))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if names:
        axes.legend([*axes.containers, *axes.patches[-1:]], names, labelcolor=_SOFT, frameon=False)
    return _svg(figure)


def curves(
    x_values: Sequence[float],
    series: Mapping[str, Sequence[float]],
    bands: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
) -> str:
    """Draw lines over a logarithmic axis of shares, with their intervals as bands.

    Args:
        x_values: Rising, above 0; each gets a tick, in percent.
        series: One value per `x_values` and line; at most four lines.
        bands: By the same names, (low, high) per value.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _axes(x_label, y_label)
    axes.set_xscale("log")
    axes.set_xticks(x_values, [f"{100 * value:g} %" for value in x_values])
    axes.minorticks_off()
    for color, (name, values) in reversed(list(zip(_SERIES, series.items(), strict=False))):
        low, high = zip(*bands[name], strict=True)
        axes.fill_between(x_values, low, high, color=color, alpha=0.13, linewidth=0)
        axes.plot(x_values, values, color=color, marker="o", markersize=4, label=name)
    axes.axhline(0, color=_SOFT, linewidth=0.8)
    axes.legend(labelcolor=_SOFT, frameon=False, reverse=True)
    return _svg(figure)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label, color=_SOFT)
    axes.set_ylabel(y_label, color=_SOFT)
    axes.tick_params(colors=_SOFT, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    """Return the figure as an element that an HTML page may contain."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "captioner"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    # HTML needs no namespaces; nothing is drawn outside the axes; the page chooses the font.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| clip-path="[^"]*"', "", text)
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    return re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], text)
