"""Speed, compile time and memory of the bare training step on one device, for synthetic images.

    python -m benchmarks.step_time --model resnet50 --size 224 --batch 32 --dtype bfloat16

Every option but --blocks and --steps takes several values; each combination prints one JSON line. A block is `steps`
steps, timed as one; the line gives the median, min and max images per second over the blocks.
"""

import argparse
import itertools
import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.commands import command_line
from resnet_jax.models import create_model
from resnet_jax.training.step import create_state, make_train_step


def measure(name: str, size: int, batch: int, dtype: str, blocks: int, steps: int) -> dict:
    """One JSON line, as a dict."""
    model = create_model(name, num_classes=1000, dtype=jnp.dtype(dtype))
    optimizer = optax.sgd(0.1, momentum=0.9)
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    data = {"image": images, "target": jax.nn.one_hot(jnp.arange(batch) % 1000, 1000)}
    state = jax.jit(lambda key: create_state(model, optimizer, key, key, images[:1], with_ema=False))(jax.random.key(0))

    start = time.perf_counter()
    step = jax.jit(make_train_step(model, optimizer), donate_argnums=0).lower(state, data).compile()
    compile_seconds = time.perf_counter() - start
    rates = []
    for _ in range(1 + blocks):
        start = time.perf_counter()
        for _ in range(steps):
            state, sums = step(state, data)
        jax.block_until_ready((state, sums))
        rates.append(steps * batch / (time.perf_counter() - start))
    rates = rates[1:]  # the first block warms up
    return {
        "model": name,
        "size": size,
        "batch": batch,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "images_per_second": round(float(np.median(rates)), 2),
        "images_per_second_min": round(min(rates), 2),
        "images_per_second_max": round(max(rates), 2),
        "blocks": blocks,
        "steps": steps,
        "compile_seconds": round(compile_seconds, 2),
        **_peak_memory(step),
    }


def _peak_memory(step) -> dict:
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"], "memory_of": "device, this process so far"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    plan = step.memory_analysis()
    return {
        "peak_memory_bytes": peak,
        "memory_of": "host, this process so far",
        "program_memory_bytes": plan.argument_size_in_bytes + plan.temp_size_in_bytes,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["resnet50"])
    parser.add_argument("--size", nargs="+", type=int, default=[224])
    parser.add_argument("--batch", nargs="+", type=int, default=[32])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    with command_line():
        for combination in itertools.product(args.model, args.size, args.batch, args.dtype):
            print(json.dumps(measure(*combination, args.blocks, args.steps)), flush=True)


if __name__ == "__main__":
    main()
