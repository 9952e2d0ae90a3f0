"""Names in Flax's ImageNet example (examples/imagenet/models.py)."""

import re
from collections.abc import Set

from resnet_jax.weights.trees import AS_IS, Flat, Table

_LEAVES = {leaf: (f"/{leaf}", AS_IS) for leaf in ("scale", "bias", "mean", "var")}
_LEAVES |= {"shift": ("/bias", AS_IS), "kernel4": ("/kernel", AS_IS), "kernel2": ("/kernel", AS_IS)}
_IN_BLOCK = {f"conv{index}": f"Conv_{index - 1}" for index in (1, 2, 3)}
_IN_BLOCK |= {f"bn{index}": f"BatchNorm_{index - 1}" for index in (1, 2, 3)}
_IN_BLOCK |= {"downsample_conv": "conv_proj", "downsample_bn": "norm_proj"}
_OUTSIDE = {"conv1": "conv_init", "bn1": "bn_init", "fc": "Dense_0"}
_NO_WEIGHTS = r"^(opt_state|step|dynamic_scale)(/|$)"  # the rest of its training state


def table(model, layers: Set[str]) -> Table:
    """The table of a model, from the paths of its layers."""
    bottleneck = any(layer.endswith("/conv3") for layer in layers)
    block = ("BottleneckResNetBlock" if bottleneck else "ResNetBlock") + "_{number0}/"
    return Table(block, _IN_BLOCK, _OUTSIDE, _LEAVES, ignored=_NO_WEIGHTS)


def canonical(arrays: Flat, model) -> Flat:
    """The arrays of both collections under the names of their layers; no two of these are the same."""
    return {re.sub(r"^(params|batch_stats)/", "", name): array for name, array in arrays.items()}
