"""Images per second of K seeds that train in one program by `vmap`, against one seed after another.

    python -m benchmarks.replicas --model resnet20 --replicas 2 8

Noise of CIFAR-10's shape on one device, with augmentation. One after another is the time of one seed, K times: its
images per second are those of a single run.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.harness import benchmark, command_parser, compare
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState


def training(program: Program, state: TrainState, calls: int, steps_per_call: int) -> Callable[[], float]:
    """A function that trains some calls, and returns the seconds."""

    def train() -> float:
        nonlocal state
        inputs, step = program.inputs(0), program.train_steps(steps_per_call)
        start = time.perf_counter()
        for _ in range(calls):
            state, _ = step(state, inputs)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return train


def measure(name: str, replicas: int, dtype: str, args: argparse.Namespace) -> None:
    """Compare the two for one net."""
    model, data = ours.small_image_model(name, dtype), ours.small_images(10 * args.batch)
    keys = jax.random.split(jax.random.key(0), replicas)
    state = functools.partial(ours.random_state, model, data[0].shape[1])
    one = ours.small_image_program(model, *data, args.batch, keys[0], args.steps_per_call)
    many = ours.small_image_program(model, *data, args.batch, keys, args.steps_per_call)
    calls = -(-args.steps // args.steps_per_call)
    states = jax.vmap(state)(jnp.arange(replicas))
    together = training(many, many.parallel.replicate(states), calls, args.steps_per_call)
    alone = training(one, one.parallel.replicate(state(0)), calls, args.steps_per_call)
    compare(
        {"together": together, "one after another": lambda: replicas * alone()},
        args.rounds,
        case={"model": name, "replicas": replicas, "size": data[0].shape[1], "batch": args.batch, "dtype": dtype},
        images=replicas * args.batch * args.steps_per_call * calls,
    )


def main() -> None:
    """The command."""
    parser = command_parser(__doc__, rounds=3)
    parser.add_argument("--model", nargs="+", default=["resnet20"])
    parser.add_argument("--replicas", type=int, nargs="+", default=[3])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--steps-per-call", type=int, default=1)
    args = parser.parse_args()
    with benchmark():
        for name, replicas, dtype in itertools.product(args.model, args.replicas, args.dtype):
            measure(name, replicas, dtype, args)


if __name__ == "__main__":
    main()
