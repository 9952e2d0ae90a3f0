"""Bars of measurements."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

from resnet_jax.training.plots import STYLE, save, subplots

# The first of these that a line has is drawn.
_QUANTITIES = {
    "images_per_second": "images/s (more is better)",
    "seconds": "seconds (less is better)",
    "bytes_per_image": "bytes of memory traffic per image (less is better)",
    "megabytes": "MB (less is better)",
}


@matplotlib.rc_context(STYLE)
def plot_benchmark(cases: Mapping[str, Sequence[dict]], target: pathlib.Path, title: str) -> None:
    """A panel of bars for each case: medians, and lines from min to max.

    Args:
      cases: measurements by the panel's title.
      target: file of the picture.
      title: heading of the picture.
    """
    heights = [1.3 + 0.4 * len(lines) for lines in cases.values()]
    settings = {"squeeze": False, "height_ratios": heights}
    figure, rows = subplots(len(cases), 1, figsize=(9, 0.5 + sum(heights)), **settings)
    figure.suptitle(title)
    for (case, lines), (axes,) in zip(cases.items(), rows, strict=True):
        quantity = next((name for name in _QUANTITIES if name in lines[0]), None)
        drawn = [line for line in lines if quantity in line]
        axes.set_title(case, fontsize=10)
        axes.set_xlabel(_QUANTITIES.get(quantity, ""), fontsize=10)
        for place, line in enumerate(drawn):
            value = line[quantity]
            median, low, high = value if isinstance(value, list) else (value,) * 3
            axes.barh(place, median, xerr=[[median - low], [high - median]], color=f"C{place}", height=0.7, capsize=3)
            axes.annotate(f"{median:,.4g}", (high, place), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(drawn)), [line["candidate"] for line in drawn])
        axes.invert_yaxis()
        axes.margins(x=0.12)  # for the numbers
        axes.grid(axis="y", visible=False)
    save(figure, target)
