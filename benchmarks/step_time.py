"""Speed, compile time and memory of the bare training step on one device, for synthetic images.

    python -m benchmarks.step_time --model resnet50 --size 224 --batch 32 --dtype bfloat16
    python -m benchmarks.step_time --model resnet18 --size 96 --against torch torch_compile flax

Every option of the first command takes several values; each combination is measured on its own. With --against, other
implementations of the net take turns with ours: torchvision's nets in torch (eager or compiled, channels_last, autocast
for bfloat16) and a plain Flax net. A round is `steps` steps, timed as one.
"""

import argparse
import itertools
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness import compare
from resnet_jax.commands import command_line
from resnet_jax.models import create_model
from resnet_jax.training.step import create_state, make_train_step


def our_training(
    name: str, size: int, batch: int, dtype: str, *, num_classes: int, steps: int
) -> tuple[Callable[[], None], dict]:
    """(function that trains `steps` steps on one batch of noise, seconds to compile and memory)."""
    model = create_model(name, num_classes=num_classes, dtype=jnp.dtype(dtype))
    optimizer = optax.sgd(0.1, momentum=0.9)
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3), jnp.dtype(dtype))
    data = {"image": images, "target": jax.nn.one_hot(jnp.arange(batch) % num_classes, num_classes)}
    state = jax.jit(lambda key: create_state(model, optimizer, key, key, images[:1], with_ema=False))(jax.random.key(0))

    start = time.perf_counter()
    step = jax.jit(make_train_step(model, optimizer), donate_argnums=0).lower(state, data).compile()
    compile_seconds = time.perf_counter() - start

    def train():
        nonlocal state
        for _ in range(steps):
            state, sums = step(state, data)
        jax.block_until_ready((state, sums))

    plan = step.memory_analysis()
    memory = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    return train, {"compile_seconds": round(compile_seconds, 2), "program_memory_bytes": memory}


def peers(names: list[str], *case, **settings) -> dict[str, Callable[[], None]]:
    """The training functions of other implementations."""
    candidates = {}
    for name in names:
        if name == "flax":
            from benchmarks.peers import flax_baseline

            candidates[name] = flax_baseline.training(*case, **settings)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["resnet50"])
    parser.add_argument("--size", nargs="+", type=int, default=[224])
    parser.add_argument("--batch", nargs="+", type=int, default=[32])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--against", nargs="+", choices=("torch", "torch_compile", "flax"), default=[])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    with command_line():
        for name, size, batch, dtype in itertools.product(args.model, args.size, args.batch, args.dtype):
            settings = {"num_classes": args.classes, "steps": args.steps}
            ours, about = our_training(name, size, batch, dtype, **settings)
            compare(
                {"ours": ours, **peers(args.against, name, size, batch, dtype, **settings)},
                args.rounds,
                case={"model": name, "size": size, "batch": batch, "dtype": dtype},
                images=batch * args.steps,
                about={"ours": {**about, **peak_memory()}},
            )


if __name__ == "__main__":
    main()
