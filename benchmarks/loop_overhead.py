"""Wall time of the whole training loop, without and with a look inside the net, against the bare compiled step.

    python -m benchmarks.loop_overhead

The loop does all that it does in a real run (inputs, reading metrics, logging every 100 steps); evaluation and
checkpoints, which are no part of a step, fall after the last one. `diagnostics` is the loop with `diagnostics.layers`.
"""

import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.harness import benchmark, command_parser, compare


def loop_seconds(config, warmup: int) -> float:
    """Seconds of a run's steps after its first `warmup`, and without its last."""
    from resnet_jax import train

    stamps = []

    def stamp(step):  # asked after each step
        stamps.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir, Console(quiet=True), stop_requested=stamp)
    stamps.pop()  # the last step is followed by an evaluation
    return stamps[-1] - stamps[warmup]


def bare_step(config, steps: int, warmup: int) -> Callable[[], float]:
    """A function that returns the seconds of so many calls of the compiled step alone, after some others."""
    from resnet_jax.config.build import Assembly, initial_state, make_recipe, random_keys

    recipe = make_recipe(config)
    assembly = Assembly(recipe)
    program = assembly.program(random_keys(config.seed)[0])
    first_state = assembly.parallel.replicate(initial_state(recipe))
    inputs, step = program.inputs(0), program.train_steps(1)

    def seconds() -> float:
        state = jax.tree.map(jnp.copy, first_state)  # its memory is donated
        for index in range(warmup + steps):
            if index == warmup:
                jax.block_until_ready(state)
                start = time.perf_counter()
            state, _ = step(state, inputs)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return seconds


def main() -> None:
    """The command."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--steps", type=int, default=300, help="a multiple of 100, the interval of the log")
    parser.add_argument("--warmup", type=int, default=20)
    args = parser.parse_args()
    with benchmark():
        from resnet_jax import get_config

        config = get_config()
        config.model.name = args.model
        config.train.epochs = None
        config.train.steps = args.warmup + args.steps + 2  # a first stamp, and a last step
        config.eval.every_epochs = 1e6
        looking = config.copy_and_resolve_references()
        looking.diagnostics.layers = True
        compare(
            {
                "loop": lambda: loop_seconds(config, args.warmup),
                "diagnostics": lambda: loop_seconds(looking, args.warmup),
                "bare step": bare_step(config, args.steps, args.warmup),
            },
            args.rounds,
            case={"model": args.model, "data": config.data.name, "steps": args.steps},
            images=args.steps * config.train.batch_size,
        )


if __name__ == "__main__":
    main()
