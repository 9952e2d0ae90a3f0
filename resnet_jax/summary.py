"""Costs of a model: python -m resnet_jax.summary NAME [--size 224] [--table], or of a run: ... summary RUN"""

import os

from resnet_jax.commands import Parser, command_line, make_console, print_whole
from resnet_jax.errors import UserError
from resnet_jax.models import CIFAR_MODELS, MODELS, create_model
from resnet_jax.models.profile import profile, stage_shapes
from resnet_jax.studies.costs import layer_table, stage_table, total_table


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m resnet_jax.summary", description=__doc__.split(":")[0])
    parser.add_argument("name", help="a model, like resnet50, or a run directory")
    parser.add_argument("--size", type=int, help="height and width of the image; default 224, or 32 for CIFAR nets")
    parser.add_argument("--channels", type=int, help="of the image; default 3")
    parser.add_argument("--classes", type=int, help="default 1000, or 10 for CIFAR nets")
    parser.add_argument("--table", action="store_true", help="a line for each layer instead of each stage")
    with command_line():
        args = parser.parse_args(argv)
        is_run = args.name not in MODELS and os.path.isdir(args.name)
        name, model, shape = _of_run(args) if is_run else _of_name(args)
        layers, console = profile(model, shape), make_console()
        print_whole(console, layer_table(layers) if args.table else stage_table(stage_shapes(model, shape)))
        print_whole(console, total_table(name, model.num_classes, shape, layers))


def _of_run(args):
    from resnet_jax.config.runs import load_card  # on use: it brings Orbax

    for flag in ("size", "channels", "classes"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag}: expected none for a run, which has its own, found {getattr(args, flag)}")
    card = load_card(args.name)
    return card.model["name"], card.create_model(), card.input_shape


def _of_name(args):
    size, classes = (32, 10) if args.name in CIFAR_MODELS else (224, 1000)
    defaults = {"size": size, "channels": 3, "classes": classes}
    given = {flag: getattr(args, flag) for flag in defaults if getattr(args, flag) is not None}
    for flag, value in given.items():
        if value < 1:
            raise UserError(f"--{flag}: expected at least 1, found {value}")
    size, channels, classes = {**defaults, **given}.values()
    return args.name, create_model(args.name, num_classes=classes), (size, size, channels)


if __name__ == "__main__":
    main()
