"""Speed of the forward pass on one device, norms folded into the convolutions, for synthetic images.

    python -m benchmarks.inference --model resnet50 --size 224 --batch 128 --dtype bfloat16
    python -m benchmarks.inference --model resnet18 --size 96 --against torch torch_compile

--model, --size, --batch and --dtype take several values; each combination is measured on its own. With --against,
torchvision's nets, folded by torch itself, take turns with ours, eager or compiled, channels_last. In bfloat16 the
weights of all are bfloat16. A round is `steps` batches, timed as one.
"""

from collections.abc import Callable

from benchmarks import ours, roofline
from benchmarks.nets import compare_nets


def our_inference(*case, **settings) -> tuple[Callable[[], None], dict]:
    """(the forward passes of ours, nothing more for its line)."""
    return ours.inference(*case, **settings), {}


def their_inference(peer: str, *case, **settings) -> Callable[[], None]:
    """The forward passes of another implementation."""
    from benchmarks.peers import torch_nets

    return torch_nets.inference(*case, compiled=peer == "torch_compile", **settings)


if __name__ == "__main__":
    compare_nets(__doc__, our_inference, their_inference, ("torch", "torch_compile"), roofline.inference_seconds)
