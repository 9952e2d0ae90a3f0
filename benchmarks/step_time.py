"""Speed, compile time and memory of the bare training step on one device, for synthetic images.

    python -m benchmarks.step_time --model resnet50 --size 224 --batch 32 --dtype bfloat16
    python -m benchmarks.step_time --model resnet18 --size 96 --against torch torch_compile flax

--model, --size, --batch and --dtype take several values; each combination is measured on its own. With --against, other
implementations of the net take turns with ours: torchvision's nets in torch (eager or compiled, channels_last, autocast
for bfloat16), and a plain Flax net in a process of its own, with the flags of XLA as they come. A round is `steps`
steps, timed as one.
"""

import itertools
import resource
from collections.abc import Callable

import jax

from benchmarks import ours, roofline
from benchmarks.harness import benchmark, command_parser, compare
from resnet_jax.models import create_model


def peers(names: list[str], *case, **settings) -> dict[str, Callable[[], None]]:
    """The training functions of other implementations."""
    candidates = {}
    for name in names:
        if name == "flax":
            from benchmarks.peers import flax_process

            candidates[name] = flax_process.training(*case, **settings)
        else:
            from benchmarks.peers import torch_nets

            candidates[name] = torch_nets.training(*case, compiled=name == "torch_compile", **settings)
    return candidates


def peak_memory() -> dict:
    """The peak of this process so far, on the device or, where that is not known, on the host."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"]}
    return {"peak_host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    """The command."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["resnet50"])
    parser.add_argument("--size", nargs="+", type=int, default=[224])
    parser.add_argument("--batch", nargs="+", type=int, default=[32])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--against", nargs="+", choices=("torch", "torch_compile", "flax"), default=[])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    with benchmark():
        for name, size, batch, dtype in itertools.product(args.model, args.size, args.batch, args.dtype):
            settings = {"num_classes": args.classes, "steps": args.steps}
            train, about = ours.training(name, size, batch, dtype, **settings)
            train()
            about |= peak_memory()  # before others are built
            model = create_model(name, num_classes=args.classes)
            per_image = roofline.training_seconds(model, (size, size, 3), dtype)
            images = batch * args.steps
            compare(
                {"ours": train, **peers(args.against, name, size, batch, dtype, **settings)},
                args.rounds,
                case={"model": name, "size": size, "batch": batch, "dtype": dtype},
                images=images,
                fastest_seconds=per_image and images * per_image,
                about={"ours": about},
            )


if __name__ == "__main__":
    main()
