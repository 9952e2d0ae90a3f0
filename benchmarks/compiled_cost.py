"""Memory traffic, FLOP, temporaries and collectives of compiled data-parallel training steps, by the compiler itself.

    pip install libtpu
    python -m benchmarks.compiled_cost                       # for TPUs that are not there: v5e and v4
    python -m benchmarks.compiled_cost --platform cpu        # for this machine
    python -m benchmarks.compiled_cost --model resnet18 --size 64 --batch 8 --dtype float32

Ours and a plain Flax net, on four chips, or on the CPU as one device. Nothing is run. All figures are those of one
chip: for an image the bytes that XLA counts, those that `planning.hlo` counts to and from main memory, and FLOP; bytes
of temporaries for its batch; the number of all-reduces. The step of ResNet-50 takes minutes to compile for a TPU.
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.harness import benchmark, command_parser, print_line
from benchmarks.peers import flax_baseline
from resnet_jax.data.order import StepInputs
from resnet_jax.models import create_model
from resnet_jax.planning.hlo import collectives, main_memory_traffic
from resnet_jax.planning.topology import HERE, find_devices
from resnet_jax.training.parallel import DataParallel
from resnet_jax.training.step import make_train_step

# Of four chips.
TOPOLOGIES = {"v5e": "v5e:2x2", "v4": "v4:2x2x1"}
_CLASSES = 1000


def our_step(name: str, size: int, dtype: str, parallel: DataParallel) -> tuple[Callable, object]:
    """(function of state and inputs, shapes of the state)."""
    model = create_model(name, num_classes=_CLASSES, dtype=jnp.dtype(dtype))
    step = make_train_step(
        model, ours.OPTIMIZER, batch_of=lambda state, inputs: (inputs.sharded, state.key), devices=parallel
    )
    return step, jax.eval_shape(functools.partial(ours.random_state, model, size))


def flax_step(name: str, size: int, dtype: str, parallel: DataParallel) -> tuple[Callable, object]:
    """The same of the plain Flax net."""
    model = flax_baseline.create_net(name, _CLASSES, dtype=jnp.dtype(dtype))

    def step(state, inputs):
        batch = inputs.sharded
        return flax_baseline.train_step(model, state, batch["image"], batch["label"], parallel.mean)

    return step, jax.eval_shape(functools.partial(flax_baseline.create_state, model, size))


STEPS = {"ours": our_step, "flax": flax_step}


def cost(make_step: Callable, name: str, size: int, batch: int, dtype: str, devices: list) -> dict:
    """The figures of a step; batch is that of each device."""
    parallel = DataParallel(devices)
    step, state = make_step(name, size, dtype, parallel)
    images = batch * len(devices)
    inputs = {
        "image": jax.ShapeDtypeStruct((images, size, size, 3), jnp.dtype(dtype)),
        "target": jax.ShapeDtypeStruct((images, _CLASSES), jnp.float32),
        "label": jax.ShapeDtypeStruct((images,), jnp.int32),
    }
    start = time.perf_counter()
    compiled = parallel.compile(step, donate=True).lower(state, StepInputs({}, inputs)).compile()
    seconds, analysis, program = time.perf_counter() - start, compiled.cost_analysis(), compiled.as_text()
    return {
        "bytes_per_image": round(analysis["bytes accessed"] / batch),
        "main_memory_bytes_per_image": round(main_memory_traffic(program) / batch),
        "flop_per_image": round(analysis["flops"] / batch),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "all_reduces": collectives(program)["all-reduce"].count if len(devices) > 1 else 0,
        "compile_seconds": round(seconds, 1),
    }


def main() -> None:
    """The command."""
    parser = command_parser(__doc__)
    parser.add_argument("--platform", choices=("tpu", "cpu"), default="tpu")
    parser.add_argument("--chip", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32, help="images of each chip")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    args = parser.parse_args()
    with benchmark():
        jax.config.update("jax_platforms", "cpu")  # chips that are here are of no use
        topologies = [TOPOLOGIES[chip] for chip in args.chip] if args.platform == "tpu" else [HERE]
        case = {"model": args.model, "size": args.size, "batch": args.batch, "dtype": args.dtype}
        for devices in map(find_devices, topologies):
            kind = f"{len(devices)} x {devices[0].device_kind}"
            for name in args.only:
                figures = cost(STEPS[name], args.model, args.size, args.batch, args.dtype, devices)
                print_line({"case": case, "candidate": name, **figures, "device": kind})


if __name__ == "__main__":
    main()
