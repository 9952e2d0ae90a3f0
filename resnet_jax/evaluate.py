"""Score a run: python -m resnet_jax.evaluate RUN [--split test] [--step best|latest|N] [--data FOLDER]"""

import argparse

from resnet_jax.bucket.files import outputs_in_buckets
from resnet_jax.commands import Parser, command_line, make_console
from resnet_jax.data.crops import EVALUATION_VIEWS
from resnet_jax.data.tfds import expand_corruptions
from resnet_jax.errors import UserError
from resnet_jax.evaluation import screens
from resnet_jax.evaluation.runs import evaluate, predict
from resnet_jax.workdir import absolute

__all__ = ["evaluate", "predict"]
_DATA = """other data with the same classes: a builder of TensorFlow Datasets (imagenet_v2, cifar10_corrupted/fog_1;
cifar10_corrupted: the whole benchmark), a folder with a folder for each class, or images without labels"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m resnet_jax.evaluate", description=__doc__.split(":")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directory, folder of one step, or a copy of either")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--step", default="best", help="best (default), latest or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--view", default="center", choices=EVALUATION_VIEWS, help="views to average over")
    parser.add_argument("--flip", action="store_true", help="average over mirror images, too")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME", help=_DATA)
    parser.add_argument("--data_dir", help="where the data are; default: as in the run")
    parser.add_argument("--predictions", metavar="FILE", help="write per-example predictions as CSV")
    parser.add_argument("--compare", action="store_true", help="two runs, or files of predictions, by McNemar's test")
    return parser


def _check(args: argparse.Namespace) -> None:
    several = len(expand_corruptions(args.data)) > 1
    if args.compare and len(args.runs) != 2:
        raise UserError(f"--compare: expected two workdirs or files of predictions, found {len(args.runs)}")
    if not args.compare and len(args.runs) != 1:
        raise UserError(f"expected one workdir, found {len(args.runs)}; to compare two, add --compare")
    if several and (args.predictions or args.compare):
        raise UserError("--predictions, --compare: expected one data set, found several")
    if args.predictions and not absolute(args.predictions).parent.is_dir():
        raise UserError(f"--predictions: expected a file in a folder that exists, found {args.predictions}")
    if args.predictions and args.compare:
        raise UserError("--predictions: expected one workdir; write the predictions of each, then --compare the files")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line():
        args = _parser().parse_args(argv)
        with outputs_in_buckets(args, "predictions"):
            _check(args)
            others = args.data or args.data_dir or args.predictions or args.flip or args.view != "center"
            show = screens.print_predictions if others else screens.print_split
            (screens.print_comparison if args.compare else show)(make_console(), args)


if __name__ == "__main__":
    main()
