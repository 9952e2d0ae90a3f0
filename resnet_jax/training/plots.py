"""The picture of a run: loss, accuracy and learning rate."""

import pathlib
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from resnet_jax.workdir import naming

_SPLIT_STYLES = {"train": ("C0", "-", 1.0), "validation": ("C1", "--", 2.0), "test": ("C2", "-", 2.0)}
STYLE = {"font.size": 12, "axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 130}


@matplotlib.rc_context(STYLE)
def plot_run(lines: Sequence[dict], target: str | pathlib.Path, title: str) -> None:
    """Loss, accuracy and learning rate of a run against epochs.

    Args:
      lines: from `metrics.jsonl`.
      target: file of the picture.
      title: heading of the picture.
    """
    figure, (loss, accuracy, rate) = subplots(1, 3, figsize=(14, 4.2))
    figure.suptitle(title)
    for axes, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for split, (color, style, width) in _SPLIT_STYLES.items():
            epochs, values = points(lines, split, name)
            draw(axes, epochs, values * scale, color=color, ls=style, lw=width, label=split)
        axes.legend()
    loss.set(title="Loss", ylabel="cross-entropy, nats")
    if any(line["loss"] > 0 for line in lines if "loss" in line):
        loss.set_yscale("log")
    accuracy.set(title="Accuracy", ylabel="top-1 accuracy, %")
    rate.plot(*points(lines, "train", "learning_rate"), color="black")
    rate.set(title="Learning rate", ylabel="learning rate")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
    save(figure, target)


def subplots(rows: int, columns: int, *, figsize: tuple[float, float], **settings) -> tuple:
    """(figure, axes) for a file. Not by pyplot, whose backend and figures belong to whoever imports us."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **settings)


def save(figure: Figure, target: str | pathlib.Path) -> None:
    """Write a picture. Titles and legends, which hold names, are shown as they are: `$` begins no formula there."""
    texts = [text for legend in figure.findobj(Legend) for text in legend.get_texts()]
    texts += [axes.title for axes in figure.axes] + [figure.suptitle(figure.get_suptitle())]
    for text in texts:
        text.set_parse_math(False)
    with naming(target), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands in the picture
        figure.savefig(target)


def drawable(name: str) -> str:
    """The name as a legend shows it: matplotlib hides what begins with `_`, and fails on what is no text."""
    text = name.encode("utf-8", "replace").decode()  # names of files may be bytes that mean nothing
    return f"\u2009{text}" if text.startswith("_") else text


def shortened(name: str, letters: int) -> str:
    """The name as it can be drawn, in up to so many letters."""
    name = drawable(name)
    return name if len(name) <= letters else name[: letters - 1] + "…"


def points(lines: Sequence[dict], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values) of a metric on a split, from lines of `metrics.jsonl`."""
    own = [line for line in lines if line["split"] == split]
    return np.array([line["epoch"] for line in own]), np.array([line[name] for line in own])


def draw(axes, x: np.ndarray, y: np.ndarray, **style) -> None:
    """Draw a curve; up to two points stand alone."""
    if len(x) > 2:
        axes.plot(x, y, markevery=max(1, len(x) // 8), **style)
    elif len(x):
        axes.plot(x, y, **{"marker": "o", "ms": 8, **style, "ls": "none"})
