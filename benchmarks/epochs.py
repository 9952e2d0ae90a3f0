"""Seconds of whole epochs with augmentation (pad-and-crop, mirroring) on noise of CIFAR-10's shape, on one device.

    python -m benchmarks.epochs --model resnet20 resnet18 --dtype bfloat16 --against torch_compile flax
    python -m benchmarks.epochs --examples 2560 --batch 128 --against torch

Ours is the program that the training loop calls, its data on the device, its sums fetched a call later as there.
`torch` and `torch_compile` have data and augmentation on the device, too; `flax` is a plain Flax net that the host
feeds, augmenting by NumPy. Nets of ImageNet begin with a 3x3 convolution. An epoch leaves out the last partial batch.
"""

import itertools
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import ours, roofline
from benchmarks.harness import benchmark, command_parser, compare


def our_epochs(
    name: str, images: np.ndarray, labels: np.ndarray, batch: int, dtype: str, steps_per_call: int
) -> Callable[[], None]:
    """A function that trains an epoch; see `peers.torch_epochs.epochs`."""
    model = ours.small_image_model(name, dtype)
    program = ours.small_image_program(model, images, labels, batch, jax.random.key(0), steps_per_call)
    state = program.parallel.replicate(ours.random_state(model, images.shape[1]))
    step = 0

    def train_epoch():
        nonlocal state, step
        end, earlier = step + len(labels) // batch, None
        while step < end:
            count = min(steps_per_call, end - step)
            state, sums = program.train_steps(count)(state, program.inputs(step))
            step += count
            jax.device_get(earlier)
            earlier = sums
        jax.block_until_ready((state, sums))

    return train_epoch


def peers(names: list[str], *case) -> dict[str, Callable[[], None]]:
    """The epochs of other implementations."""
    candidates = {}
    for name in names:
        if name == "flax":
            from benchmarks.peers import flax_epochs

            candidates[name] = flax_epochs.epochs(*case)
        else:
            from benchmarks.peers import torch_epochs

            candidates[name] = torch_epochs.epochs(*case, compiled=name == "torch_compile")
    return candidates


def main() -> None:
    """The command."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["resnet20"])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--steps-per-call", type=int, default=1, help="of ours; see the config's train.steps_per_call")
    parser.add_argument("--against", nargs="+", choices=("torch", "torch_compile", "flax"), default=[])
    args = parser.parse_args()
    if args.examples < args.batch:
        parser.error(f"--examples: expected at least a batch ({args.batch}), found {args.examples}")
    with benchmark():
        images, labels = ours.small_images(args.examples)
        for name, dtype in itertools.product(args.model, args.dtype):
            case = name, images, labels, args.batch, dtype
            per_image = roofline.training_seconds(ours.small_image_model(name, dtype), images.shape[1:], dtype)
            trained = args.examples // args.batch * args.batch
            compare(
                {"ours": our_epochs(*case, args.steps_per_call), **peers(args.against, *case)},
                args.rounds,
                case={"model": name, "size": images.shape[1], "batch": args.batch, "dtype": dtype},
                images=trained,
                fastest_seconds=per_image and trained * per_image,
                about={"ours": {"steps_per_call": args.steps_per_call}},
            )


if __name__ == "__main__":
    main()
