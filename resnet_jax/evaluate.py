"""Score a run: python -m resnet_jax.evaluate WORKDIR [--split test] [--step best|latest|N]"""

import argparse
import os
import pathlib

import numpy as np
from rich.console import Console
from rich.table import Table

from resnet_jax.build import Run
from resnet_jax.data.archives import expand_corruptions
from resnet_jax.data.crops import EVALUATION_VIEWS
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import UserError, command_line
from resnet_jax.metrics import means, per_class_accuracy
from resnet_jax.predict import predict
from resnet_jax.predictions import Predictions, compare, read_predictions
from resnet_jax.runs import load_checkpoint
from resnet_jax.workdir import read_config


def evaluate(workdir: str, split: str = "test", step: str | int = "best", *, ema: bool = False) -> dict:
    """Score a checkpoint on a split as the run did, every example exactly once.

    Args:
      workdir: of the run.
      split: "train", "validation" or "test".
      step: "best" on the validation split, "latest", or a number.
      ema: score the moving average of the weights.

    Returns:
      {"loss", "accuracy", "top5", "count", "per_class": {class name: accuracy}}.

    Raises:
      UserError: no run, no such split or step, a damaged checkpoint, data that are not prepared.
    """
    use_compilation_cache()
    _, variables = load_checkpoint(workdir, step, ema=ema)
    config = read_config(workdir)
    # One device, so that nothing is asked of the batch that the run was trained with, or of this machine.
    config.parallel.devices, config.norm.scope = 1, "local"
    run = Run(config)
    if split not in run.splits:
        raise UserError(f"--split: expected one of {', '.join(run.splits)}, found {split!r}")
    sums = run.evaluate(run.parallel.replicate(variables), split)
    per_class = dict(zip(run.facts.class_names, map(float, per_class_accuracy(sums)), strict=True))
    return {**means(sums), "count": int(sums["count"]), "per_class": per_class}


def _print_split(console: Console, args: argparse.Namespace) -> None:
    scores = evaluate(args.runs[0], args.split, args.step, ema=args.ema)
    data = read_config(args.runs[0]).data.name
    table = Table(title=f"{args.split} of {data}: {scores['count']:,} examples", title_justify="left")
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name, accuracy in scores["per_class"].items():
        table.add_row(name, f"{accuracy:.2%}")
    console.print(table)
    console.print(_line(scores), highlight=False, soft_wrap=True)


def _print_predictions(console: Console, args: argparse.Namespace) -> None:
    found = {}
    for name in expand_corruptions(args.data) or [None]:
        predictions = _predict(args.runs[0], args, name)
        found[name or args.split] = scores = predictions.scores()
        console.print(
            f"{name or args.split}: {scores['count']:,} examples  {_line(scores)}", highlight=False, soft_wrap=True
        )
    if len(found) > 1:
        mean = {key: float(np.mean([scores[key] for scores in found.values()])) for key in ("accuracy", "top5", "loss")}
        console.print(f"mean of {len(found)}: {_line(mean)}", highlight=False)
    elif args.predictions:
        predictions.write(args.predictions)
        console.print(f"predictions: {args.predictions}", highlight=False, soft_wrap=True)


def _print_comparison(console: Console, args: argparse.Namespace) -> None:
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


def _predict(workdir: str, args: argparse.Namespace, data: str | None) -> Predictions:
    return predict(
        workdir,
        args.split,
        args.step,
        ema=args.ema,
        data=data,
        data_dir=args.data_dir,
        view=args.view,
        flip=args.flip,
    )


def _line(scores: dict) -> str:
    return f"accuracy {scores['accuracy']:.4%}  top-5 {scores['top5']:.4%}  loss {scores['loss']:.6f}"


def _check(args: argparse.Namespace) -> None:
    if args.compare and len(args.runs) != 2:
        raise UserError(f"--compare: expected two workdirs or files of predictions, found {len(args.runs)}")
    if not args.compare and len(args.runs) != 1:
        raise UserError(f"expected one workdir, found {len(args.runs)}; to compare two, add --compare")
    if args.predictions and len(expand_corruptions(args.data)) > 1:
        raise UserError("--predictions: expected one data set, found several")
    if args.predictions and not pathlib.Path(args.predictions).absolute().parent.is_dir():
        raise UserError(f"--predictions: expected a file in a folder that exists, found {args.predictions}")
    if args.compare and len(expand_corruptions(args.data)) > 1:
        raise UserError("--compare: expected one data set, found several")
    if args.predictions and args.compare:
        raise UserError("--predictions: expected one workdir; write the predictions of each, then --compare the files")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m resnet_jax.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("runs", nargs="*", metavar="WORKDIR", help="of the run")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--step", default="best", help="best (default), latest or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--view", default="center", choices=EVALUATION_VIEWS, help="views to average over")
    parser.add_argument("--flip", action="store_true", help="average over mirror images, too")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME",
        help="other data with the classes of the run's: a builder of TensorFlow Datasets (imagenet_v2, imagenet_a, "
        "imagenet2012_real, cifar10_corrupted/fog_1, ...; cifar10_corrupted: the whole benchmark), or a folder "
        "with a folder for each class",
    )
    parser.add_argument("--data_dir", help="where the data are; default: as in the run")
    parser.add_argument("--predictions", metavar="FILE", help="write what is said of each example, as CSV")
    parser.add_argument(
        "--compare", action="store_true", help="two workdirs, or files of predictions, by McNemar's test"
    )
    args = parser.parse_args(argv)
    console = Console()
    with command_line():
        _check(args)
        if args.compare:
            _print_comparison(console, args)
        elif args.data or args.data_dir or args.predictions or args.flip or args.view != "center":
            _print_predictions(console, args)
        else:
            _print_split(console, args)


if __name__ == "__main__":
    main()
