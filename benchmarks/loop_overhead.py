"""Wall time per step of the whole training loop against the bare compiled step, steady state.

    python -m benchmarks.loop_overhead

The loop and the bare step take turns in one process. The loop does all that it does in a real run (inputs, reading
metrics, logging every 100 steps); evaluation and checkpoints, which are no part of a step, fall after the last one.
Prints one JSON line: milliseconds per step of both, and the ratio of each pair (median, min, max).
"""

import argparse
import json
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from resnet_jax import get_config, train
from resnet_jax.config.build import Assembly, initial_state, make_recipe, random_keys
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState


def loop_seconds(config, warmup: int) -> float:
    """Seconds per step of a run after its first `warmup` steps."""
    stamps = []

    def stamp(step):  # asked after each step
        stamps.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir, Console(quiet=True), stop_requested=stamp)
    stamps.pop()  # the last step is followed by an evaluation
    return (stamps[-1] - stamps[warmup]) / (len(stamps) - 1 - warmup)


def bare_seconds(program: Program, state: TrainState, steps: int, warmup: int) -> float:
    """Seconds per step of the compiled step alone."""
    inputs, step = program.inputs(0), program.train_steps(1)
    state = jax.tree.map(jnp.copy, state)  # its memory is donated
    for index in range(warmup + steps):
        if index == warmup:
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = step(state, inputs)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = get_config()
    config.train.epochs = None
    config.train.steps = args.warmup + args.steps
    config.eval.every_epochs = 1e6
    recipe = make_recipe(config)
    assembly = Assembly(recipe)
    program = assembly.program(random_keys(config.seed)[0])
    state = assembly.parallel.replicate(initial_state(recipe))
    pairs = [
        (loop_seconds(config, args.warmup), bare_seconds(program, state, args.steps, args.warmup))
        for _ in range(args.repeats)
    ]
    ratios = [in_loop / bare for in_loop, bare in pairs]
    result = {
        "loop_ms_per_step": round(1e3 * float(np.median([in_loop for in_loop, _ in pairs])), 3),
        "bare_ms_per_step": round(1e3 * float(np.median([bare for _, bare in pairs])), 3),
        "ratio_median": round(float(np.median(ratios)), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "steps": args.steps,
        "repeats": args.repeats,
        "model": config.model.name,
        "data": config.data.name,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
