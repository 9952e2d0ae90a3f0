"""Curves of runs in one picture, or a list of runs: python -m resnet_jax.report RUN [RUN...] [--output runs.png]"""

import pathlib

from resnet_jax.bucket.files import outputs_in_buckets
from resnet_jax.commands import Parser, command_line, make_console, print_whole
from resnet_jax.studies.listing import runs_table
from resnet_jax.studies.overlay import overlay
from resnet_jax.workdir import absolute, local_path, shown


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m resnet_jax.report", description=__doc__.split(":")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directory; or one folder of runs, which are listed")
    parser.add_argument("--output", default="runs.png", help="the picture (default: runs.png)")
    with command_line():
        args, console = parser.parse_args(argv), make_console()
        if len(args.runs) == 1 and _holds_runs(local_path(args.runs[0])):
            print_whole(console, runs_table(args.runs[0]))
        else:
            with outputs_in_buckets(args, "output"):
                overlay(args.runs, args.output)
                console.print(f"picture: {shown(absolute(args.output))}", soft_wrap=True)


def _holds_runs(folder: pathlib.Path) -> bool:
    return folder.is_dir() and not any((folder / name).exists() for name in ("metrics.jsonl", "cells"))


if __name__ == "__main__":
    main()
