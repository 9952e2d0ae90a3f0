"""Wall time per step of the whole training loop against the bare compiled step, steady state.

    python -m benchmarks.loop_overhead

The loop and the bare step take turns in one process. The loop does all that it does in a real run (feeding, reading
metrics, logging every 100 steps); evaluation and checkpoints, which are no part of a step, fall after the last one.
Prints one JSON line: milliseconds per step of both, and the ratio of each pair (median, least, most).
"""

import argparse
import contextlib
import io
import json
import tempfile
import time

import jax
import numpy as np

from configs import default
from resnet_jax import loop
from resnet_jax.build import Run


def loop_seconds(config, warmup: int) -> float:
    """Seconds per step of a run after its first `warmup` steps."""
    stamps = []
    compiled = Run.train_steps

    def stamped(self, count):
        stamps.append(time.perf_counter())
        return compiled(self, count)

    Run.train_steps = stamped
    try:
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
            loop.train(config, workdir)
    finally:
        Run.train_steps = compiled
    return (stamps[-1] - stamps[warmup]) / (len(stamps) - 1 - warmup)


def bare_seconds(run: Run, steps: int, warmup: int) -> float:
    """Seconds per step of the compiled step alone."""
    state, feed, step = run.initial_state(), run.feed(0), run.train_steps(1)
    for index in range(warmup + steps):
        if index == warmup:
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = step(state, feed)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = default.get_config()
    config.train.epochs = None
    config.train.steps = args.warmup + args.steps
    config.eval.every_epochs = 1e6
    run = Run(config)
    pairs = [
        (loop_seconds(config, args.warmup), bare_seconds(run, args.steps, args.warmup)) for _ in range(args.repeats)
    ]
    ratios = [in_loop / bare for in_loop, bare in pairs]
    result = {
        "loop_ms_per_step": round(1e3 * float(np.median([in_loop for in_loop, _ in pairs])), 3),
        "bare_ms_per_step": round(1e3 * float(np.median([bare for _, bare in pairs])), 3),
        "ratio_median": round(float(np.median(ratios)), 4),
        "ratio_least": round(min(ratios), 4),
        "ratio_most": round(max(ratios), 4),
        "steps": args.steps,
        "repeats": args.repeats,
        "model": config.model.name,
        "data": config.data.name,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
