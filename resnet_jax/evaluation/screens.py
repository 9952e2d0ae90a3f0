"""Scores as people see them."""

import argparse
import functools
import os
import pathlib

import numpy as np
from rich.console import Console
from rich.table import Table

from resnet_jax.commands import titled_table
from resnet_jax.config.runs import load_card
from resnet_jax.data.tfds import expand_corruptions
from resnet_jax.evaluation.predictions import Predictions, compare, read_predictions
from resnet_jax.evaluation.runs import open_source, predict
from resnet_jax.progress import progress_bars, watch
from resnet_jax.workdir import file_name, shown

_PAIRS = 5  # of classes that are confused


def print_split(console: Console, args: argparse.Namespace) -> None:
    """Scores of a run on a split, class by class."""
    card = load_card(args.runs[0], args.step)
    predictions = _predict(console, args.runs[0], args, None)
    scores = predictions.scores()
    title = f"{args.split} of {card.data['name']}: {scores['count']:,} examples"
    table = titled_table(title)
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name, accuracy in predictions.per_class(card.class_names).items():
        table.add_row(name, f"{accuracy:.2%}")
    console.print(table)
    _print_line(console, args, scores)
    _show_mistakes(console, args, None, predictions)


def print_predictions(console: Console, args: argparse.Namespace) -> None:
    """Scores on other data or views, a line for each dataset; and the file of per-example predictions."""
    found = {}
    for name in expand_corruptions(args.data) or [None]:
        predictions = _predict(console, args.runs[0], args, name)
        if not predictions.counts.any():
            console.print(_unlabelled(predictions))
            continue
        found[name or args.split] = scores = predictions.scores()
        _print_line(console, args, scores, f"{name or args.split}: {scores['count']:,} examples  ")
        _show_mistakes(console, args, name, predictions)
    if len(found) > 1:
        mean = {key: float(np.mean([scores[key] for scores in found.values()])) for key in ("accuracy", "top5", "loss")}
        _print_line(console, args, mean, f"mean of {len(found)}: ")
    if args.predictions:
        predictions.write(args.predictions)
        console.print(f"predictions: {shown(pathlib.Path(args.predictions))}", soft_wrap=True)


def _show_mistakes(console: Console, args: argparse.Namespace, data: str | None, predictions: Predictions) -> None:
    """The pairs of classes that are confused most, and pictures in the folder of a run."""
    card = load_card(args.runs[0], args.step)
    names = [f"{card.class_names[a]} as {card.class_names[b]} ({n:,})" for a, b, n in predictions.confused(_PAIRS)]
    if names:
        console.print(f"most confused: {', '.join(names)}", soft_wrap=True)
    run = pathlib.Path(args.runs[0])
    if not (run / "checkpoints").is_dir():
        return  # the folder of a step holds what was saved, and nothing else
    from resnet_jax.evaluation import plots  # on use: it brings matplotlib

    chosen = {args.step: "best", args.view: "center", "flip" * args.flip: "", "ema" * args.ema: ""}
    parts = [data or args.split, *(value for value, default in chosen.items() if value != default)]
    folder = run / "evaluation" / file_name("-".join(parts))
    source, _ = open_source(card, args.split, data, args.data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = plots.plot_evaluation(predictions, source, card.class_names, folder)
        console.print(f"pictures: {', '.join(map(str, drawn))}", soft_wrap=True)
    except OSError as error:
        console.print(f"pictures: they cannot be written to {folder}: {error.strerror}", soft_wrap=True)


def _unlabelled(predictions: Predictions) -> Table:
    title = f"{len(predictions.names)} images without labels"
    table = titled_table(title)
    for column in ("image", "class", "probability"):
        table.add_column(column, overflow="fold")
    for name, cls, probability in zip(predictions.names, predictions.classes, predictions.probabilities, strict=True):
        table.add_row(name, cls or "cannot be decoded", f"{probability:.2%}")
    return table


def print_comparison(console: Console, args: argparse.Namespace) -> None:
    """McNemar's test of two runs, or of two files of predictions."""
    first, second = (
        _predict(console, path, args, next(iter(args.data), None)) if os.path.isdir(path) else read_predictions(path)
        for path in args.runs
    )
    result = compare(first, second)
    for path, predictions in zip(args.runs, (first, second), strict=True):
        _print_line(console, args, predictions.scores(), f"{path}: ")
    verdict = "differ" if result.p_value < 0.05 else "cannot be told apart"
    console.print(
        f"right in the first alone {result.only_first}, in the second alone {result.only_second}: they {verdict} "
        f"(McNemar's exact test, p = {result.p_value:.2g})",
        highlight=False,
        soft_wrap=True,
    )


def _predict(console: Console, path: str, args: argparse.Namespace, data: str | None) -> Predictions:
    options = {"ema": args.ema, "data_dir": args.data_dir, "view": args.view, "flip": args.flip}
    with progress_bars(console) as bars:
        return predict(path, args.split, args.step, data=data, watch=functools.partial(watch, bars), **options)


def _print_line(console: Console, args: argparse.Namespace, scores: dict, name: str = "") -> None:
    of_runs = all(map(os.path.isdir, args.runs))
    few = of_runs and len(load_card(args.runs[0], args.step).class_names) <= 5  # then it is always 100%
    top5 = "" if few else f"  top-5 {scores['top5']:.4%}"
    console.print(f"{name}accuracy {scores['accuracy']:.4%}{top5}  loss {scores['loss']:.6f}", soft_wrap=True)
