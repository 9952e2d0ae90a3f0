"""Curves of runs in one picture: python -m resnet_jax.report RUN [RUN...] [--output runs.png]"""

import os

from resnet_jax.commands import Parser, command_line
from resnet_jax.studies.overlay import overlay


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m resnet_jax.report", description=__doc__.split(":")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directory")
    parser.add_argument("--output", default="runs.png", help="the picture (default: runs.png)")
    with command_line():
        args = parser.parse_args(argv)
        overlay(args.runs, args.output)
    print(f"picture: {os.path.abspath(args.output)}")


if __name__ == "__main__":
    main()
