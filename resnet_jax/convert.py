"""Convert weights: python -m resnet_jax.convert SOURCE [--model NAME] --to OUT.safetensors [--check]"""

import argparse

from resnet_jax.bucket.files import outputs_in_buckets
from resnet_jax.commands import Parser, command_line, make_console, new_file, writing_file
from resnet_jax.config.runs import check_one_set, load_model
from resnet_jax.errors import UserError
from resnet_jax.weights.native import NAMES, SUFFIX, write_weights
from resnet_jax.weights.pretrained import read_pretrained
from resnet_jax.weights.screens import describe, print_check
from resnet_jax.weights.sources import CONVENTIONS
from resnet_jax.workdir import absolute, shown

_SOURCE = "run, folder of one step, our .safetensors; with --model another library's file, Orbax folder, hf:OWNER/NAME"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m resnet_jax.convert", description=__doc__.split(":")[0])
    parser.add_argument("source", metavar="SOURCE", help=_SOURCE)
    parser.add_argument("--model", metavar="NAME", help="our name of the net, for weights of another library")
    parser.add_argument("--preprocessing", choices=CONVENTIONS, help="of another library's; default: of its own nets")
    parser.add_argument("--step", default="best", help="of a run: best (default), latest or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--to", metavar="OUT", help="a .safetensors file that is not there yet")
    parser.add_argument("--names", default="ours", choices=NAMES, help="ours, with the card; torch: those of timm")
    parser.add_argument("--check", action="store_true", help="run the other library's net on the same images")
    return parser


def _check(args: argparse.Namespace) -> None:
    if not (args.to or args.check):
        raise UserError("--to: expected a file to write, or --check, found neither")
    if (args.check or args.preprocessing) and not args.model:
        raise UserError("--check, --preprocessing: expected weights of another library and --model NAME, found none")
    if args.to and new_file(args.to, "--to").suffix != SUFFIX:
        raise UserError(f"--to: expected the name of a new {SUFFIX} file, found {args.to}; take another name")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line():
        args, console = _parser().parse_args(argv), make_console()
        with outputs_in_buckets(args, "to"):
            _check(args)
            if args.model:
                check_one_set(args.step, args.ema)
                loaded = read_pretrained(args.model, args.source, preprocessing=args.preprocessing)
            card, _, variables = loaded[:3] if args.model else load_model(args.source, args.step, ema=args.ema)
            console.print(describe(args.source, card), soft_wrap=True)
            if args.check:
                print_check(console, loaded)
            if args.to:
                with writing_file(args.to, "--to"):
                    write_weights(absolute(args.to), card, variables, args.names)
                console.print(f"wrote {shown(absolute(args.to))}", soft_wrap=True)


if __name__ == "__main__":
    main()
