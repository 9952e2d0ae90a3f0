"""Curves of runs in one picture: python -m resnet_jax.report RUN [RUN...] [--output runs.png]"""

import argparse
import os

from resnet_jax.commands import command_line
from resnet_jax.studies.overlay import overlay


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m resnet_jax.report", description=__doc__.split(":")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directory")
    parser.add_argument("--output", default="runs.png", help="the picture (default: runs.png)")
    args = parser.parse_args(argv)
    with command_line():
        overlay(args.runs, args.output)
    print(f"picture: {os.path.abspath(args.output)}")


if __name__ == "__main__":
    main()
