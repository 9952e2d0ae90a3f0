"""Look after checkpoints: python -m resnet_jax.checkpoint ls|verify|diff|average|slim PATH [PATH...] [--to OUT]"""

import argparse
import contextlib

from resnet_jax.bucket.files import local_copy, outputs_in_buckets
from resnet_jax.checkpoint import screens, tools
from resnet_jax.commands import Parser, command_line, make_console, new_file, writing_file
from resnet_jax.errors import UserError

_PATHS = {
    "ls": ("RUN", "list the steps of a run", 1),
    "verify": ("PATH", "read all files of a run or of a step, and compare them with the manifests", 1),
    "diff": ("PATH", "compare the arrays of two steps, or of the best steps of two runs", 2),
    "average": ("PATH", "write the mean of the weights of steps, or of all steps of a run", None),
    "slim": ("PATH", "write a step, or the best of a run, without the state of the optimizer", 1),
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m resnet_jax.checkpoint", description=__doc__.split(":")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(_PATHS))
    for name, (paths, words, count) in _PATHS.items():
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("paths", nargs=count or "+", metavar=paths, help="run directory, or the folder of a step")
        if name in ("average", "slim"):
            command.add_argument("--to", required=True, metavar="OUT", help="a folder that is not there yet")
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with command_line(), contextlib.ExitStack() as stack:
        args, console = _parser().parse_args(argv), make_console()
        paths = [stack.enter_context(local_copy(path)) for path in args.paths]
        if args.command in ("average", "slim"):
            with outputs_in_buckets(args, "to"), writing_file(args.to, "--to"):
                out = new_file(args.to, "--to")
                if args.command == "slim":
                    tools.slim(tools.one_step(paths[0]), out)
                else:
                    tools.average([folder for path in paths for folder in tools.step_folders(path)], out)
            console.print(f"wrote {args.to}", soft_wrap=True)
        elif args.command == "ls":
            screens.print_steps(console, paths[0])
        elif args.command == "diff":
            screens.print_differences(console, *paths)
        elif corrupt := screens.print_verified(console, paths[0]):
            raise UserError(f"{args.paths[0]}: corrupt: {', '.join(corrupt)}; a run that resumes leaves them out")


if __name__ == "__main__":
    main()
