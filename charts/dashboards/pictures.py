"""Pictures of panels, drawn from the figures of a Prometheus in the look of a dashboard.

    Plot, lines --> draw --> PNG

They are for people who have no Grafana at hand. It asks nobody: the figures are given.
"""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from PIL import Image

from dashboards.parts import Plot
from dashboards.units import write_value

WIDTH, HEIGHT = 6.4, 2.6
ROW_HEIGHT = 0.19
"""Inches: a panel, and each line of its legend."""

MOST_LEGENDS = 8
HEADROOM = 1.06
NUM_TICKS = 5
GAP = 2.5
"""A line is broken where it has no value for so many times its usual step."""

COUNTED = ("workers", "processes", "batches", "calls")
"""Axes of whole things."""

MINUTE_S = 60.0
_TIME_STEPS_S = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)
DPI = 80
NUM_COLOURS = 64
"""Of a file: enough for flat colours, and a third of the size."""

COLOURS = (
    *("#5794f2", "#73bf69", "#f2a93b", "#e0626e", "#b877d9", "#3aa6a6"),
    *("#9c6b4e", "#d683ce", "#7d8590", "#b8b137"),
)
GREY = "#6e7781"
GREEN, RED = "#2c8a4b", "#c4314b"


@dataclass(frozen=True)
class Line:
    """One line of a panel. times_s: since the picture's beginning. values: as many."""

    name: str
    times_s: Sequence[float]
    values: Sequence[float]


def draw(plot: Plot, lines: Sequence[Line], span_s: float, path: Path) -> None:
    """Draw a panel into a PNG. span_s: from the picture's beginning to its end.

    Raises:
        ValueError: there is no line to draw.
    """
    if not lines:
        raise ValueError(f"the panel {plot.title!r} has no data")
    figure = _draw_stat(plot, lines[0]) if plot.is_stat else _draw_lines(plot, lines, span_s)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def _draw_stat(plot: Plot, line: Line) -> Figure:
    figure = Figure(figsize=(2.4, 1.2))
    value = line.values[-1]
    is_alarm = (plot.alarm_above is not None and value >= plot.alarm_above) or (
        plot.alarm_below is not None and value < plot.alarm_below
    )
    figure.text(0.04, 0.86, plot.title, fontsize=8, color=GREY, va="center")
    text = _price(value, plot) if plot.decimals is not None else write_value(value, plot.unit)
    figure.text(
        *(0.5, 0.55, text), fontsize=17, ha="center", va="center", color=RED if is_alarm else GREEN
    )
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.3))
    axes.axis("off")
    axes.fill_between(line.times_s, line.values, color=RED if is_alarm else GREEN, alpha=0.2)
    axes.set_ylim(bottom=0, top=max(*line.values, 1e-9) * 1.1)
    return figure


def _price(value: float, plot: Plot) -> str:
    return write_value(round(value, plot.decimals), plot.unit)


def _draw_lines(plot: Plot, lines: Sequence[Line], span_s: float) -> Figure:
    shown = sorted(lines, key=lambda line: -_mean(line))[:MOST_LEGENDS]
    rows = len(shown) + 1 + (len(lines) > len(shown))
    height = HEIGHT + rows * ROW_HEIGHT
    figure = Figure(figsize=(WIDTH, height))
    bottom = (rows * ROW_HEIGHT + 0.45) / height
    axes = figure.add_axes((0.13, bottom, 0.84, 1 - bottom - 0.36 / height))
    figure.text(0.015, 1 - 0.17 / height, plot.title, fontsize=10, weight="bold", va="center")
    colours = {line.name: COLOURS[i % len(COLOURS)] for i, line in enumerate(shown)}
    _fill(axes, plot, shown, colours)
    _dress(axes, plot, span_s)
    _write_legend(figure, plot, shown, colours, len(lines) - len(shown))
    return figure


def _fill(axes: Axes, plot: Plot, lines: Sequence[Line], colours: dict[str, str]) -> None:
    if plot.stacked:
        times = sorted({time for line in lines for time in line.times_s})
        known = [dict(zip(line.times_s, line.values, strict=True)) for line in lines]
        layers = [[one.get(time, 0.0) for time in times] for one in known]
        axes.stackplot(times, layers, colors=[colours[line.name] for line in lines], alpha=0.75)
        return
    for line in lines:
        times, values = _with_gaps(line)
        axes.plot(times, values, color=colours[line.name], linewidth=1.3)
        axes.fill_between(times, values, color=colours[line.name], alpha=0.08)


def _dress(axes: Axes, plot: Plot, span_s: float) -> None:
    top = plot.most or axes.dataLim.y1 * HEADROOM or 1.0
    axes.set_ylim(bottom=plot.least, top=top)
    axes.yaxis.set_major_locator(FixedLocator(find_ticks(top, plot.unit, plot.axis)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write_value(value, plot.unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:g}"))
    axes.set_xlim(0, span_s)
    axes.xaxis.set_major_locator(FixedLocator(find_ticks(span_s, "s", "")))
    axes.set_xlabel("minutes", fontsize=8, color=GREY)
    axes.set_ylabel(plot.axis, fontsize=8, color=GREY)
    axes.tick_params(labelsize=8, colors=GREY, length=0)
    axes.grid(visible=True, color="#e4e7ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def find_ticks(top: float, unit: str, axis: str) -> list[float]:
    """Return about five round numbers from 0 to `top`, as people count what the axis shows."""
    least = top / NUM_TICKS
    if unit == "bytes":
        step = 2.0 ** math.ceil(math.log2(least))
    elif unit == "s" and least > MINUTE_S / NUM_TICKS:
        step = next((one for one in _TIME_STEPS_S if one >= least), _TIME_STEPS_S[-1])
    else:
        scale = 10.0 ** math.floor(math.log10(least))
        step = next(one * scale for one in (1, 2, 2.5, 5, 10) if one * scale >= least * 0.999)
    if axis in COUNTED:
        step = max(1.0, math.ceil(step))
    return [step * number for number in range(int(top / step) + 1)]


def _with_gaps(line: Line) -> tuple[list[float], list[float]]:
    """Return times and values, with nothing where there was nothing for a while."""
    times, values = list(line.times_s[:1]), list(line.values[:1])
    pairs = list(itertools.pairwise(line.times_s))
    usual_s = min((later - earlier for earlier, later in pairs), default=0.0)
    for (earlier, later), value in zip(pairs, line.values[1:], strict=True):
        if later - earlier > GAP * usual_s:
            times.append((earlier + later) / 2)
            values.append(math.nan)
        times.append(later)
        values.append(value)
    return times, values


def _write_legend(
    figure: Figure, plot: Plot, lines: Sequence[Line], colours: dict[str, str], num_left: int
) -> None:
    height = figure.get_size_inches()[1]
    step = ROW_HEIGHT / height
    place = (len(lines) + (num_left > 0) + 0.7) * step
    for left, text in ((0.8, "mean"), (0.97, "last")):
        figure.text(left, place, text, fontsize=7, color=GREY, ha="right", va="center")
    for line in lines:
        place -= step
        figure.text(0.03, place, "—", va="center", color=colours[line.name], weight="bold")
        figure.text(0.065, place, line.name, fontsize=8, va="center")
        for left, value in ((0.8, _mean(line)), (0.97, line.values[-1])):
            text = write_value(value, plot.unit)
            figure.text(left, place, text, fontsize=8, ha="right", va="center")
    if num_left:
        figure.text(0.065, place - step, f"and {num_left} more", fontsize=8, color=GREY)


def _mean(line: Line) -> float:
    return sum(line.values) / len(line.values)
