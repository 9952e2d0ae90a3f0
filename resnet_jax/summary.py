"""Costs of a model: python -m resnet_jax.summary NAME [--size 224] [--table]"""

import argparse

from resnet_jax.commands import command_line, make_console
from resnet_jax.errors import UserError
from resnet_jax.models import CIFAR_MODELS, create_model
from resnet_jax.models.profile import profile
from resnet_jax.studies.costs import layer_table, total_table


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m resnet_jax.summary", description=__doc__.split(":")[0])
    parser.add_argument("name", help="a model, like resnet50")
    parser.add_argument("--size", type=int, help="height and width of the image; default 224, or 32 for CIFAR nets")
    parser.add_argument("--table", action="store_true", help="a line for each layer")
    args = parser.parse_args(argv)
    with command_line():
        is_cifar = args.name in CIFAR_MODELS
        size = args.size if args.size is not None else 32 if is_cifar else 224
        if size < 1:
            raise UserError(f"--size: expected at least 1, found {size}")
        layers = profile(create_model(args.name, num_classes=10 if is_cifar else 1000), (size, size, 3))
    console = make_console()
    if args.table:
        console.print(layer_table(layers))
    console.print(total_table(args.name, size, layers))


if __name__ == "__main__":
    main()
