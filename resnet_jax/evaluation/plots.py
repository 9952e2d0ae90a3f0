"""Pictures of an evaluation: the confusion matrix, and the worst mistakes."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np

from resnet_jax.data.sampling import read_image
from resnet_jax.evaluation.predictions import Predictions
from resnet_jax.training.plots import STYLE, save, shortened, subplots

_SEEN = 2000  # classes: less than a pixel for each
_NAMED = 60  # classes: names of more cannot be read
_COUNTED = 25  # classes: numbers in more cells cannot be read
_COLUMNS, _ROWS = 6, 4  # of the sheet
_LETTERS = 22  # of a name


def plot_evaluation(
    predictions: Predictions, source, class_names: Sequence[str], folder: pathlib.Path
) -> list[pathlib.Path]:
    """Draw the confusion matrix and the worst mistakes into a folder; see there.

    Returns:
      The files: no matrix of more classes than can be seen, no sheet without mistakes.
    """
    drawn = []
    if len(class_names) <= _SEEN:
        drawn.append(folder / "confusion.png")
        plot_confusion(predictions, class_names, drawn[-1])
    if predictions.mistakes.any():
        drawn.append(folder / "mistakes.png")
        plot_mistakes(predictions, source, class_names, drawn[-1])
    return drawn


@matplotlib.rc_context({**STYLE, "axes.grid": False})
def plot_confusion(predictions: Predictions, class_names: Sequence[str], target: str | pathlib.Path) -> None:
    """Draw how many examples of each true class (rows) have which predicted class (columns).

    Args:
      predictions: of examples with one right class each; others are left out.
      class_names: in label order.
      target: file of the picture.
    """
    counts = predictions.confusion(len(class_names))
    size = min(max(4.5, 0.45 * len(class_names) + 2.5), 16)
    figure, axes = subplots(1, 1, figsize=(size + 0.5, size))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    axes.set(
        title=f"Confusion matrix, accuracy {predictions.scores()['accuracy']:.2%}",
        xlabel="predicted class",
        ylabel="true class",
    )
    places = range(len(class_names)) if len(class_names) <= _NAMED else ()
    names = [shortened(class_names[place], _LETTERS) for place in places]
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    if len(class_names) <= _COUNTED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=9)
    save(figure, target)


@matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.titlesize": 9})
def plot_mistakes(predictions: Predictions, source, class_names: Sequence[str], target: str | pathlib.Path) -> None:
    """Draw a sheet of the wrong predictions with the largest loss, the worst first.

    Args:
      predictions: one entry for each example of the source, in its order.
      source: dataset; see `data.sources`.
      class_names: in label order.
      target: file of the picture.
    """
    worst = predictions.worst(_COLUMNS * _ROWS)
    rows = -(-len(worst) // _COLUMNS)
    figure, grid = subplots(rows, _COLUMNS, figsize=(2.3 * _COLUMNS, 2.8 * rows), squeeze=False)
    figure.suptitle(
        f"The {len(worst)} worst mistakes of {predictions.mistakes.sum():,}: true class, then the predicted one"
    )
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, worst, strict=False):
        image, _ = read_image(source, int(index))
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        true = " or ".join(class_names[label] for label in predictions.labels[index])
        predicted, probability = predictions.classes[index], predictions.probabilities[index]
        axes.set_title(f"{shortened(true, _LETTERS)}\n{shortened(predicted, _LETTERS)} ({probability:.0%})")
    save(figure, target)
