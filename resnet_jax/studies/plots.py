"""Pictures of studies, drawn from plain data.

Up to four depths have colours ordered by luminance (cividis); all else has distinct ones. Both are readable by the
colour-blind, and markers say the same.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from resnet_jax.training.plots import STYLE, draw, drawable, points, save, shortened, subplots

_MARKERS = "os^DvP*X"
_LINE_STYLES = ("-", "--", ":", "-.")
_MANY_PERCENT = 40  # where some net ends above this, a linear axis would press the good ones into one line


class Cell(NamedTuple):
    """Runs that differ by their seed alone.

    Attributes:
      name: label in legends.
      series: cells of a series share a panel or a line style; "" for none.
      depth: layers; colour and marker go by it.
    """

    name: str
    series: str
    depth: int


class Curve(NamedTuple):
    """The error of a cell while it trained.

    Attributes:
      epochs: (points,).
      errors: percent, (seeds, points).
    """

    epochs: np.ndarray
    errors: np.ndarray


class Panel(NamedTuple):
    """Values of a cell's layers or blocks side by side.

    Attributes:
      title, xlabel, ylabel: with units.
      values: (seeds, positions), by cell name.
      first: number of the first position.
      wide: the values may differ by orders of magnitude; where they do, the axis is logarithmic.
    """

    title: str
    xlabel: str
    ylabel: str
    values: Mapping[str, np.ndarray]
    first: int = 1
    wide: bool = False


@matplotlib.rc_context(STYLE)
def plot_overlay(runs: Mapping[str, Sequence[dict]], target: str | pathlib.Path) -> None:
    """Error and loss of any runs against epochs: thin while training, bold on the test split or the validation split.

    Args:
      runs: lines of `metrics.jsonl`, by name in the legend.
      target: file of the picture.
    """
    figure, (error, loss) = subplots(1, 2, figsize=(12, 5.5))
    last_errors, lowest = [], 100.0
    for (name, lines), (color, marker) in zip(runs.items(), _distinct_looks(len(runs)), strict=True):
        split = max(("test", "validation"), key=[line["split"] for line in lines].count)
        for drawn, width in (("train", 1.0), (split, 2.5)):
            for axes, metric in ((error, "accuracy"), (loss, "loss")):
                epochs, values = points(lines, drawn, metric)
                values = 100 * (1 - values) if metric == "accuracy" else values
                draw(axes, epochs, values, color=color, lw=width, marker=marker, ms=3 + 1.5 * width)
                if metric == "accuracy":
                    last_errors += list(values[-1:])
                    lowest = min([lowest, *values])
        error.plot([], [], color=color, lw=2.5, marker=marker, label=drawable(f"{name} (bold: {split})"))
    _fit_error_axis(error, lowest, max(last_errors), above=0.5)
    error.set(title="Error (thin: training)", xlabel="epoch")
    loss.set(title="Loss (thin: training)", xlabel="epoch", ylabel="cross-entropy, nats", yscale="log")
    handles, labels = error.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    save(figure, target)


@matplotlib.rc_context(STYLE)
def plot_error_curves(
    cells: Sequence[Cell],
    train: Mapping[str, Curve],
    evaluated: Mapping[str, Curve],
    split: str,
    target: str | pathlib.Path,
) -> None:
    """Error against epochs, a panel for each series, as in Figures 1 and 6 of He et al. 2015.

    Thin: training; bold: evaluated; both the mean over seeds, with a band from min to max.

    Args:
      cells: the study's cells, in order.
      train, evaluated: curves by cell name.
      split: name of the evaluated split.
      target: file of the picture.
    """
    series = list(dict.fromkeys(cell.series for cell in cells))
    columns = min(len(series), 2)
    rows = -(-len(series) // columns)
    size = (6.5 * columns + 0.5, 5.8 * rows)
    figure, grid = subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    styles = _cell_styles(cells)
    for axes, title in zip(grid.flat, series, strict=False):
        for name in (cell.name for cell in cells if cell.series == title):
            color, marker, _ = styles[name]
            for curves, width in ((train, 0.9), (evaluated, 2.6)):
                if name in curves:
                    epochs, errors = curves[name]
                    style = {"color": color, "lw": width, "marker": marker, "ms": 3 + 1.5 * width}
                    draw(axes, epochs, errors.mean(axis=0), **style)
                    axes.fill_between(epochs, errors.min(axis=0), errors.max(axis=0), color=color, alpha=0.15, lw=0)
            axes.plot([], [], color=color, lw=2.6, marker=marker, ms=7, label=drawable(name))
        axes.plot([], [], color="black", lw=0.9, label="training")
        if evaluated:
            axes.plot([], [], color="black", lw=2.6, label=split)
        axes.set(title=title, xlabel="epoch")
        if max(curve.epochs[-1] for curve in train.values()) > 2:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
        ncols = max(1, min(3, 56 // (longest + 5)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=ncols, fontsize=11)
    for axes in grid.flat[len(series) :]:
        axes.remove()
    curves = (*train.values(), *evaluated.values())
    lowest = min(curve.errors.min() for curve in curves)
    for axes in grid[:, 0]:
        _fit_error_axis(axes, lowest, max(curve.errors[:, -1].max() for curve in curves), above=0.5)
    save(figure, target)


@matplotlib.rc_context(STYLE)
def plot_final_errors(
    lines: Mapping[str, Mapping[str, object]],
    xlabel: str,
    errors: Mapping[str, Mapping[str, np.ndarray]],
    target: str | pathlib.Path,
) -> None:
    """Error at the end: mean and standard deviation over seeds; dots are seeds.

    Args:
      lines: what a cell is drawn against, by label of the line and cell name: numbers, which are joined by the line,
        or other values, side by side.
      xlabel: label of the axis.
      errors: percent, (seeds,), by panel title and cell name.
      target: file of the picture.
    """
    figure, panels = subplots(1, len(errors), figsize=(6.5 * len(errors), 4.8), sharey=True, squeeze=False)
    axis = _axis_of([x for line in lines.values() for x in line.values()])
    highest = 0.0
    for axes, (title, by_cell) in zip(panels.flat, errors.items(), strict=True):
        looks = _distinct_looks(len(lines))
        for index, ((label, cells), (color, marker)) in enumerate(zip(lines.items(), looks, strict=True)):
            by_place = sorted(cells, key=lambda name: axis.places[cells[name]])
            aside = 0.0 if axis.has_order else 0.6 / len(lines)  # else one would hide another
            at = [axis.places[cells[name]] + aside * (index - (len(lines) - 1) / 2) for name in by_place]
            values = [by_cell[name] for name in by_place]
            means = np.array([seeds.mean() for seeds in values])
            deviations = np.array([seeds.std(ddof=1) if len(seeds) > 1 else 0 for seeds in values])
            style = _LINE_STYLES[index % len(_LINE_STYLES)] if axis.has_order else "none"
            bars = [np.minimum(deviations, means), deviations]
            axes.errorbar(at, means, bars, color=color, marker=marker, ls=style, capsize=5, label=drawable(label))
            for x, seeds in zip(at, values, strict=True):
                axes.plot([x] * len(seeds), seeds, ".", color=color, ms=5, alpha=0.6, transform=_beside(axes))
            highest = max([highest, *(means + deviations), *np.concatenate(values)])
        axes.set(title=title, xlabel=xlabel, xscale=axis.scale)
        leaning = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if axis.is_crowded else {}
        axes.set_xticks(list(axis.ticks), axis.ticks.values(), parse_math=False, **leaning)
        axes.minorticks_off()
        axes.margins(x=0.1)
    _fit_error_axis(panels[0, 0], min(seeds.min() for own in errors.values() for seeds in own.values()), highest)
    if any(lines):
        panels[0, 0].legend()
    save(figure, target)


class _Axis(NamedTuple):
    """Values on an axis: the place of each, its scale, and names at places far enough from each other."""

    places: Mapping[object, float]
    scale: str
    ticks: Mapping[float, str]
    has_order: bool

    @property
    def is_crowded(self) -> bool:
        return sum(map(len, self.ticks.values())) > _LETTERS


def _axis_of(values: Sequence) -> _Axis:
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        places = {x: place for place, x in enumerate(dict.fromkeys(values))}
        return _Axis(
            places, "linear", {place: shortened(str(x), _LONGEST) for x, place in places.items()}, has_order=False
        )
    numbers = sorted(set(values))
    if numbers[0] == 0 and len(numbers) > 2 and numbers[1] < numbers[-1] / 4:  # a logarithm has no 0
        places = {x: place for place, x in enumerate(numbers)}
        return _Axis(places, "linear", {place: f"{x:g}" for x, place in places.items()}, has_order=True)
    is_wide = 0 < numbers[0] < numbers[-1] / 4
    along = np.log(numbers) if is_wide else np.array(numbers, float)
    ticks, last = {}, -np.inf
    for x, place in zip(numbers, along, strict=True):
        if place - last >= _CLOSEST * (along[-1] - along[0]):
            ticks[x], last = f"{x:g}", place
    return _Axis({x: x for x in numbers}, "log" if is_wide else "linear", ticks, has_order=True)


_CLOSEST = 0.08  # share of an axis between two names
_LETTERS = 45  # below an axis
_LONGEST = 24  # letters of a value


def _beside(axes):
    """A little to the right of the bars."""
    return axes.transData + ScaledTranslation(7 / 72, 0, axes.figure.dpi_scale_trans)


@matplotlib.rc_context(STYLE)
def plot_layers(cells: Sequence[Cell], panels: Sequence[Panel], target: str | pathlib.Path) -> None:
    """Values of layers or blocks against their position, panels side by side, the mean over seeds for each cell.

    Args:
      cells: the study's cells, in order.
      panels: panels, from left to right.
      target: file of the picture.
    """
    figure, grid = subplots(1, len(panels), figsize=(6.5 * len(panels), 5.8), squeeze=False)
    styles = _cell_styles(cells)
    drawn = {}
    for axes, panel in zip(grid.flat, panels, strict=True):
        for cell in cells:
            if cell.name in panel.values:
                mean = panel.values[cell.name].mean(axis=0)
                color, marker, line_style = styles[cell.name]
                every = max(1, len(mean) // 8)
                (drawn[cell.name],) = axes.plot(
                    range(panel.first, panel.first + len(mean)),
                    mean,
                    color=color,
                    ls=line_style,
                    marker=marker,
                    ms=5,
                    markevery=every,
                    lw=1.4,
                )
        axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        shown = np.concatenate([line.get_ydata() for line in axes.lines])
        if panel.wide and shown.max() > 10 * shown.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    names = [cell.name for cell in cells if cell.name in drawn]
    figure.legend(
        [drawn[name] for name in names], map(drawable, names), loc="outside lower center", ncols=4, handlelength=3.5
    )
    save(figure, target)


def evaluated_split(runs: Sequence[Sequence[dict]]) -> str | None:
    """The split whose error can be drawn while all these runs train, "test" before "validation", or None.

    Two points on the test split are no curve: they may be the best and the last weights.
    """
    for split, fewest in (("test", 3), ("validation", 1)):
        if runs and all(sum(line["split"] == split for line in lines) >= fewest for lines in runs):
            return split
    return None


def _cell_styles(cells):
    """(colour, marker, line style) by name: the first two by depth, alike in all series; the last by series."""
    keys = {}
    for cell in cells:  # cells of one depth in one series are told apart by their order
        twins = sum(other == (cell.series, cell.depth) for other, _ in keys.values())
        keys[cell.name] = ((cell.series, cell.depth), twins)
    ranks = sorted({(depth, twin) for (_, depth), twin in keys.values()})
    looks = dict(zip(ranks, _ordered_looks(len(ranks)), strict=True))
    series = list(dict.fromkeys(cell.series for cell in cells))
    return {
        name: (*looks[depth, twin], _LINE_STYLES[series.index(own) % len(_LINE_STYLES)])
        for name, ((own, depth), twin) in keys.items()
    }


_ORDERED = 4  # more shades of one map cannot be told apart
# The eight colours of Petroff 2021 (arXiv:2107.02270), "Accessible color sequences for data visualization", Table 1.
_DISTINCT = ("#1845fb", "#ff5e02", "#c91f16", "#c849a9", "#adad7d", "#86c8dd", "#578dff", "#656364")


def _ordered_looks(count: int) -> list[tuple]:
    """(colour, marker) of things with an order, which their luminance shows as long as they are few."""
    if count > _ORDERED:
        return _distinct_looks(count)
    shades = np.linspace(0, 0.8, count)  # its last fifth is too light for white paper
    return [(matplotlib.colormaps["cividis"](x), _MARKERS[i]) for i, x in enumerate(shades)]


def _distinct_looks(count: int) -> list[tuple]:
    """(colour, marker) of things that must be told apart."""
    rounds = [(i // len(_DISTINCT), i % len(_DISTINCT)) for i in range(count)]
    return [(_DISTINCT[i], _MARKERS[(i + 3 * lap) % len(_MARKERS)]) for lap, i in rounds]


def _fit_error_axis(axes, lowest: float, highest: float, above: float = 0.15) -> None:
    """Percent: from the lowest error to the highest one at an end, and `above` of this range more.

    The start of a curve may leave the picture, as in papers.
    """
    if highest > _MANY_PERCENT and lowest < highest / 10:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.1 if lowest < 1 else 0.8 * lowest, min(100, 1.5 * highest))
        ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100) if axes.get_ylim()[0] <= tick < 2 * highest]
        axes.set_yticks(ticks, map(str, ticks))
        axes.set_ylabel("top-1 error, % (linear below 1)")
        axes.minorticks_off()
    else:
        extent = max(highest - lowest, highest / 2, 0.5)
        axes.set_ylim(max(0, lowest - 0.15 * extent), min(100, highest + above * extent))
        axes.set_ylabel("top-1 error, %")
