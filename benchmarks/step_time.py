"""Speed, compile time and memory of the bare training step on one device, for synthetic images.

    python -m benchmarks.step_time --model resnet50 --size 224 --batch 32 --dtype bfloat16
    python -m benchmarks.step_time --model resnet18 --size 96 --against torch torch_compile flax

--model, --size, --batch and --dtype take several values; each combination is measured on its own. With --against, other
implementations of the net take turns with ours: torchvision's nets in torch (eager or compiled, channels_last, autocast
for bfloat16), and a plain Flax net in a process of its own, with the flags of XLA as they come. A round is `steps`
steps, timed as one.
"""

import resource
from collections.abc import Callable

import jax

from benchmarks import ours, roofline
from benchmarks.nets import compare_nets


def our_training(*case, **settings) -> tuple[Callable[[], None], dict]:
    """(the training steps of ours, seconds to compile and memory)."""
    train, about = ours.training(*case, **settings)
    train()
    return train, about | peak_memory()  # before others are built


def their_training(peer: str, *case, **settings) -> Callable[[], None]:
    """The training steps of another implementation."""
    if peer == "flax":
        from benchmarks.peers import flax_process

        return flax_process.training(*case, **settings)
    from benchmarks.peers import torch_nets

    return torch_nets.training(*case, compiled=peer == "torch_compile", **settings)


def peak_memory() -> dict:
    """The peak of this process so far, on the device or, where that is not known, on the host."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"]}
    return {"peak_host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    compare_nets(__doc__, our_training, their_training, ("torch", "torch_compile", "flax"), roofline.training_seconds)
