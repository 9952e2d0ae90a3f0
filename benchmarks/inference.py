"""Speed of the forward pass on one device, norms folded into the convolutions, for synthetic images.

    python -m benchmarks.inference --model resnet50 --size 224 --batch 128 --dtype bfloat16
    python -m benchmarks.inference --model resnet18 --size 96 --against torch torch_compile

--model, --size, --batch and --dtype take several values; each combination is measured on its own. With --against,
torchvision's nets, folded by torch itself, take turns with ours, eager or compiled, channels_last. In bfloat16 the
weights of all are bfloat16. A round is `steps` batches, timed as one.
"""

import itertools
from collections.abc import Callable

from benchmarks import ours, roofline
from benchmarks.harness import benchmark, command_parser, compare
from resnet_jax.models import create_model


def peers(names: list[str], *case, **settings) -> dict[str, Callable[[], None]]:
    """The forward passes of other implementations."""
    if not names:
        return {}
    from benchmarks.peers import torch_nets

    return {name: torch_nets.inference(*case, compiled=name == "torch_compile", **settings) for name in names}


def main() -> None:
    """The command."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["resnet50"])
    parser.add_argument("--size", nargs="+", type=int, default=[224])
    parser.add_argument("--batch", nargs="+", type=int, default=[32])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--against", nargs="+", choices=("torch", "torch_compile"), default=[])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    with benchmark():
        for name, size, batch, dtype in itertools.product(args.model, args.size, args.batch, args.dtype):
            settings = {"num_classes": args.classes, "steps": args.steps}
            infer = ours.inference(name, size, batch, dtype, **settings)
            model = create_model(name, num_classes=args.classes)
            per_image = roofline.inference_seconds(model, (size, size, 3), dtype)
            images = batch * args.steps
            compare(
                {"ours": infer, **peers(args.against, name, size, batch, dtype, **settings)},
                args.rounds,
                case={"model": name, "size": size, "batch": batch, "dtype": dtype},
                images=images,
                fastest_seconds=per_image and images * per_image,
            )


if __name__ == "__main__":
    main()
