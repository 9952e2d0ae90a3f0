"""Names of BiT: in big_vision (models/bit_paper.py and models/bit.py), and in the files released with the paper."""

import re
from collections.abc import Set

from resnet_jax.weights.trees import AS_IS, Flat, Layout, Table

# Files differ in axes of length 1: of norms (1, 1, 1, C), and of the head, a 1x1 convolution.
_VECTOR = Layout(lambda x: x.reshape(x.shape[-1]), lambda x: x)
_MATRIX = Layout(lambda x: x.reshape(x.shape[-2:]), lambda x: x)
_LEAVES = {
    "kernel4": ("/kernel", AS_IS),
    "kernel2": ("/kernel", _MATRIX),
    "scale": ("/scale", _VECTOR),
    "shift": ("/bias", _VECTOR),
    "bias": ("/bias", AS_IS),
}
_IN_BLOCK = {
    **{f"conv{index}": f"conv{index}" for index in (1, 2, 3)},
    **{f"bn{index}": f"gn{index}" for index in (1, 2, 3)},
    "downsample_conv": "conv_proj",
    "downsample_bn": "gn_proj",
}
_RELEASED = (
    (r"^resnet/", ""),
    (r"standardized_conv2d(_\d+)?", "conv2d"),
    (r"a/proj/conv2d", "conv_proj"),
    (r"root_block/conv2d", "root_block/conv_root"),
    (r"head/conv2d", "head"),
    *((rf"/{part}/conv2d", f"/conv{index}") for index, part in enumerate("abc", start=1)),
    *((rf"/{part}/group_norm", f"/gn{index}") for index, part in enumerate("abc", start=1)),
    (r"^group_norm", "norm-pre-head"),
    (r"gamma$", "scale"),
    (r"beta$", "bias"),
)


def table(model, layers: Set[str]) -> Table:
    """The table of a model, from the paths of its layers."""
    if "bn_last" in layers:
        outside = {"conv1": "root_block/conv_root", "bn_last": "norm-pre-head", "fc": "head"}
        return Table("block{stage}/unit{block:02}/", _IN_BLOCK, outside, _LEAVES)
    outside = {"conv1": "conv_root", "bn1": "gn_root", "fc": "head"}
    return Table("block{stage}/unit{block}/", _IN_BLOCK, outside, _LEAVES)


def canonical(arrays: Flat, model) -> Flat:
    """The arrays under the names that big_vision's code has; released files have those of its forerunner."""
    found = {}
    for name, array in arrays.items():
        if name.startswith("resnet/"):
            for pattern, replacement in _RELEASED:
                name = re.sub(pattern, replacement, name)
        found[re.sub(r"^(opt/target|params)/", "", name)] = array
    return found
