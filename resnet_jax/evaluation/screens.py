"""Scores as people see them."""

import argparse
import os

import numpy as np
from rich.console import Console
from rich.table import Table

from resnet_jax.config.runs import load_card
from resnet_jax.data.tfds import expand_corruptions
from resnet_jax.evaluation.predictions import Predictions, compare, read_predictions
from resnet_jax.evaluation.runs import evaluate, predict


def print_split(console: Console, args: argparse.Namespace) -> None:
    """Scores of a run on a split, class by class."""
    scores = evaluate(args.runs[0], args.split, args.step, ema=args.ema)
    data = load_card(args.runs[0], args.step).data["name"]
    table = Table(title=f"{args.split} of {data}: {scores['count']:,} examples", title_justify="left")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name, accuracy in scores["per_class"].items():
        table.add_row(name, f"{accuracy:.2%}")
    console.print(table)
    console.print(_line(scores), highlight=False, soft_wrap=True)


def print_predictions(console: Console, args: argparse.Namespace) -> None:
    """Scores on other data or views, a line for each dataset; and the file of per-example predictions."""
    found = {}
    for name in expand_corruptions(args.data) or [None]:
        predictions = _predict(args.runs[0], args, name)
        if not predictions.counts.any():
            console.print(_unlabelled(predictions))
            continue
        found[name or args.split] = scores = predictions.scores()
        console.print(
            f"{name or args.split}: {scores['count']:,} examples  {_line(scores)}", highlight=False, soft_wrap=True
        )
    if len(found) > 1:
        mean = {key: float(np.mean([scores[key] for scores in found.values()])) for key in ("accuracy", "top5", "loss")}
        console.print(f"mean of {len(found)}: {_line(mean)}", highlight=False)
    if args.predictions:
        predictions.write(args.predictions)
        console.print(f"predictions: {args.predictions}", highlight=False, soft_wrap=True)


def _unlabelled(predictions: Predictions) -> Table:
    table = Table(title=f"{len(predictions.names)} images without labels", title_justify="left")
    for column in ("image", "class", "probability"):
        table.add_column(column, overflow="fold")
    for name, cls, probability in zip(predictions.names, predictions.classes, predictions.probabilities, strict=True):
        table.add_row(name, cls or "cannot be decoded", f"{probability:.2%}")
    return table


def print_comparison(console: Console, args: argparse.Namespace) -> None:
    """McNemar's test of two runs, or of two files of predictions."""
    first, second = (
        _predict(path, args, next(iter(args.data), None)) if os.path.isdir(path) else read_predictions(path)
        for path in args.runs
    )
    result = compare(first, second)
    for path, predictions in zip(args.runs, (first, second), strict=True):
        console.print(f"{path}: {_line(predictions.scores())}", highlight=False, soft_wrap=True)
    verdict = "differ" if result.p_value < 0.05 else "cannot be told apart"
    console.print(
        f"right in the first alone {result.only_first}, in the second alone {result.only_second}: they {verdict} "
        f"(McNemar's exact test, p = {result.p_value:.2g})",
        highlight=False,
        soft_wrap=True,
    )


def _predict(path: str, args: argparse.Namespace, data: str | None) -> Predictions:
    options = {"ema": args.ema, "data_dir": args.data_dir, "view": args.view, "flip": args.flip}
    return predict(path, args.split, args.step, data=data, **options)


def _line(scores: dict) -> str:
    return f"accuracy {scores['accuracy']:.4%}  top-5 {scores['top5']:.4%}  loss {scores['loss']:.6f}"
