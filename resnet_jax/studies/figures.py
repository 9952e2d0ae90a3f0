"""The figures of a report: headings, notes, and the numbers that are drawn."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.studies import plots
from resnet_jax.studies.factors import lines_along, varied_values
from resnet_jax.studies.findings import errors_by_seed, series_by_depth
from resnet_jax.studies.study import StudyRun


class Figure(NamedTuple):
    """A section of the report that is a picture.

    Attributes:
      heading, note: text above and below the picture.
      file: file name in `figures/`.
      alt: text in place of the picture.
      draw: draws it into a file.
    """

    heading: str
    file: str
    alt: str
    note: str
    draw: Callable[[pathlib.Path], None]


def figures(finished: Mapping[str, list[StudyRun]]) -> list[Figure]:
    """The figures that the finished runs, by name of cell, have data for."""
    cells = [plots.Cell(name, runs[0].cell["series"], runs[0].result["depth"]) for name, runs in finished.items()]
    found = [_error_curves(finished, cells), *_final_errors(finished), *_layer_figures(finished, cells)]
    return [figure for figure in found if figure]


def _error_curves(finished: Mapping[str, list[StudyRun]], cells: Sequence[plots.Cell]) -> Figure | None:
    train = _curves(finished, "train")
    if not train:
        return None
    split = plots.evaluated_split([run.lines for runs in finished.values() for run in runs]) or ""
    bold = f"bold: error on the {split} split; " if split else ""
    return Figure(
        "Error while training",
        "error_curves.png",
        f"Training{' and ' * bool(split)}{split} error against epochs of {', '.join(train)}",
        f"Thin: training error; {bold}mean over seeds. Shaded: from the min to the max over seeds.",
        functools.partial(plots.plot_error_curves, cells, train, _curves(finished, split), split),
    )


def _final_errors(finished: Mapping[str, list[StudyRun]]) -> list[Figure]:
    """Errors of the last weights against depth, or against each varied key; cell by cell, if these leave cells out."""
    series = series_by_depth(finished)
    if along_depth := any(len(own) > 1 for own in series.values()):
        lines = {name: {cell: depth for depth, cell in own.items()} for name, own in series.items()}
        found = [("depth", "depth, layers", "final_errors.png", lines)]
    else:
        varied = varied_values(finished)
        found = [(key, key, f"error_by_{key}.png", lines_along(varied, key)) for key in varied]
    shown = {name for *_, lines in found for line in lines.values() for name in line}
    if len(shown) < len(finished) > 1:
        by_cell = ("cell", "", "error_by_cell.png", {"": {name: name for name in finished}})
        found = [*found, by_cell] if along_depth else [by_cell]  # keys that make no grid leave most cells out
    return [_errors_along(*axis, finished) for axis in found if axis[-1]]


def _errors_along(what, xlabel, file, lines, finished) -> Figure:
    names = [name for line in lines.values() for name in line]
    errors = {
        f"{kind.capitalize()} error": {
            name: np.array(list(errors_by_seed(finished[name], kind).values())) for name in names
        }
        for kind in ("training", "test")
    }
    return Figure(
        f"Final error against {what}",
        file,
        f"Training and test error of the last weights against {what}: {', '.join(filter(None, lines)) or 'all cells'}",
        "Mean over seeds; bars: standard deviation over seeds, cut at 0; dots: seeds.",
        functools.partial(plots.plot_final_errors, lines, xlabel, errors),
    )


def _layer_figures(finished: Mapping[str, list[StudyRun]], cells: Sequence[plots.Cell]) -> list[Figure]:
    specs = (_responses(finished), _gradients(finished), _branches(finished), _lesions(finished))
    found = []
    for heading, file, alt, note, panels in specs:
        if drawn := [panel for panel in panels if panel.values]:
            draw = functools.partial(plots.plot_layers, cells, drawn)
            found.append(Figure(heading, file, f"{alt}: {', '.join(finished)}", note, draw))
    return found


_LAYER, _BLOCK = "layer, in the order of the forward pass", "block, in the order of the forward pass"


# --- (heading, file, alt, note, panels) of each picture of layers; a panel without values is left out ---


def _responses(finished) -> tuple:
    responses = _diagnosed(finished, "response_std", _last)
    by_magnitude = {name: -np.sort(-values.mean(axis=0, keepdims=True)) for name, values in responses.items()}
    return (
        "Layer responses",
        "layer_responses.png",
        "Standard deviation of layer responses at the end of training",
        "Standard deviation of each layer's response after normalisation, before the nonlinearity or the addition, "
        "at the last logged step, as in Figure 7 of He et al. 2015; mean over seeds.",
        (
            plots.Panel("In order", _LAYER, "standard deviation", responses, wide=True),
            plots.Panel("Sorted", "layer, by magnitude", "standard deviation", by_magnitude, wide=True),
        ),
    )


def _gradients(finished) -> tuple:
    first, last = (_diagnosed(finished, "grad_norm", which, "_block") for which in (_at_initialisation, _last))
    return (
        "Gradient norm against depth",
        "gradient_norms.png",
        "Gradient norm of each block at initialisation and at the end of training",
        "L2 norm of the loss's gradient by all weights of a block; mean over seeds.",
        (
            plots.Panel("At initialisation", _BLOCK, "gradient norm", first, wide=True),
            plots.Panel("At the last logged step", _BLOCK, "gradient norm", last, wide=True),
        ),
    )


def _branches(finished) -> tuple:
    ratio, scale = (_diagnosed(finished, name, _last) for name in ("branch_to_skip", "norm_scale"))
    return (
        "Branches",
        "branches.png",
        "Ratio of branch to skip of each block and scale of each norm",
        "At the last logged step; mean over seeds. Ratio: root mean square of what a block's branch adds over that "
        "of what its shortcut adds. Scale: mean absolute scale (gamma) of each norm.",
        (
            plots.Panel("Branch to skip", _BLOCK, "ratio of root mean squares", ratio, wide=True),
            plots.Panel("Norm scale", _LAYER, "mean absolute scale", scale, wide=True),
        ),
    )


def _lesions(finished) -> tuple:
    removed, swapped = (_accuracy_after(finished, kind) for kind in ("removed", "swapped"))
    return (
        "Lesions",
        "lesions.png",
        "Test accuracy without each block and with neighbours swapped",
        "Test accuracy of the last weights, mean over seeds; 0 is the whole net. Left: without the branch of one "
        "block. Right: two neighbouring blocks of equal shape exchanged.",
        (
            plots.Panel("Without one block", "block removed", "accuracy, %", removed, first=0),
            plots.Panel("Neighbours swapped", "pair swapped", "accuracy, %", swapped, first=0),
        ),
    )


# --- the numbers ---


def _curves(finished: Mapping[str, list[StudyRun]], split: str) -> dict[str, plots.Curve]:
    """Errors on a split at the epochs that all runs of a cell have, by cell."""
    curves = {}
    for name, runs in finished.items():
        lines = [[line for line in run.lines if line["split"] == split] for run in runs]
        errors = [{line["epoch"]: 100 * (1 - line["accuracy"]) for line in seed} for seed in lines]
        if epochs := sorted(set.intersection(*map(set, errors))):
            values = [[seed[epoch] for epoch in epochs] for seed in errors]
            curves[name] = plots.Curve(np.array(epochs), np.array(values))
    return curves


def _at_initialisation(lines: Sequence[dict]) -> dict:
    return lines[0] if lines[0]["step"] == 0 else {}


def _last(lines: Sequence[dict]) -> dict:
    return lines[-1]


def _diagnosed(finished, diagnostic, which, part="") -> dict[str, np.ndarray]:
    """A diagnostic, (seeds, layers), by cell: of the line that `which` picks, the layers with `part` in their name."""
    found = {}
    for name, runs in finished.items():
        lines = [[line for line in run.lines if line["split"] == "layers"] for run in runs]
        values = [which(own).get(diagnostic, {}) for own in lines if own]
        found[name] = _by_position([{key: x for key, x in one.items() if part in key} for one in values])
    return {name: values for name, values in found.items() if values.size}


def _accuracy_after(finished, kind) -> dict[str, np.ndarray]:
    """Accuracy in percent, (seeds, 1 + lesions), of the whole net and after each lesion, by cell."""
    found = {}
    for name, runs in finished.items():
        lesions = [run.result["lesions"] for run in runs if "lesions" in run.result]
        if any(seed[kind] for seed in lesions):
            found[name] = 100 * _by_position([{"": seed["accuracy"], **seed[kind]} for seed in lesions])
    return found


def _by_position(seeds: Sequence[Mapping[str, float]]) -> np.ndarray:
    """(seeds, names), of the names that all have, in order."""
    names = [name for name in (seeds[0] if seeds else ()) if all(name in seed for seed in seeds)]
    return np.array([[seed[name] for name in names] for seed in seeds])
