"""Nets on noise, ours and others, side by side: what the benchmarks of training and of inference share."""

import itertools
from collections.abc import Callable, Sequence

from benchmarks.harness import benchmark, command_parser, compare, positive
from resnet_jax.models import create_model


def compare_nets(
    description: str, our_work: Callable, their_work: Callable, peers: Sequence[str], fastest_seconds: Callable
) -> None:
    """The command: each combination of --model, --size, --batch and --dtype, ours against those of --against.

    Args:
      description: docstring of the command's module.
      our_work: function of a combination, `num_classes` and `steps`: (function that works through so many batches, more
        for its line).
      their_work: the same for a peer, its name first; it gives the function alone.
      peers: names of peers.
      fastest_seconds: of `roofline`.
    """
    parser = command_parser(description)
    parser.add_argument("--model", nargs="+", default=["resnet50"])
    parser.add_argument("--size", nargs="+", type=positive, default=[224])
    parser.add_argument("--batch", nargs="+", type=positive, default=[32])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--against", nargs="+", choices=peers, default=[])
    parser.add_argument("--classes", type=positive, default=1000)
    parser.add_argument("--steps", type=positive, default=10)
    args = parser.parse_args()
    with benchmark():
        for case in itertools.product(args.model, args.size, args.batch, args.dtype):
            name, size, batch, dtype = case
            settings = {"num_classes": args.classes, "steps": args.steps}
            ours, about = our_work(*case, **settings)
            model = create_model(name, num_classes=args.classes)
            per_image = fastest_seconds(model, (size, size, 3), dtype)
            images = batch * args.steps
            compare(
                {"ours": ours, **{peer: their_work(peer, *case, **settings) for peer in args.against}},
                args.rounds,
                case={"model": name, "size": size, "batch": batch, "dtype": dtype},
                images=images,
                fastest_seconds=per_image and images * per_image,
                about={"ours": about},
            )
