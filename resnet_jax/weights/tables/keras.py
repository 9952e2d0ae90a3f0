"""Names in keras.applications: ResNet50 to ResNet152 and their V2."""

import re
from collections.abc import Set

from resnet_jax.weights.trees import AS_IS, Flat, Table

_LEAVES = {
    "kernel4": ("/kernel", AS_IS),
    "kernel2": ("/kernel", AS_IS),
    "bias": ("/bias", AS_IS),
    "scale": ("/gamma", AS_IS),
    "shift": ("/beta", AS_IS),
    "mean": ("/moving_mean", AS_IS),
    "var": ("/moving_variance", AS_IS),
}
_CONVS = {"conv1": "1_conv", "conv2": "2_conv", "conv3": "3_conv", "downsample_conv": "0_conv"}
_NORMS = {"bn1": "1_bn", "bn2": "2_bn", "bn3": "3_bn", "downsample_bn": "0_bn"}
_NORMS_V2 = {"bn1": "preact_bn", "bn2": "1_bn", "bn3": "2_bn"}
_OUTSIDE = {"conv1": "conv1_conv", "bn1": "conv1_bn", "bn_last": "post_bn", "fc": "predictions"}


def table(model, layers: Set[str]) -> Table:
    """The table of a model, from the paths of its layers."""
    norms = _NORMS_V2 if "bn_last" in layers else _NORMS
    return Table("conv{next_stage}_block{block}_", _CONVS | norms, _OUTSIDE, _LEAVES)


def canonical(arrays: Flat, model) -> Flat:
    """The arrays under the names of their layers, like "conv1_conv/kernel".

    Legacy files have them, some with ":0" at the end. Files of Keras 3 number the layers of each class in the order of
    the graph, like "layers/conv2d_1/vars/0".
    """
    if not any(name.startswith("layers/") for name in arrays):
        return {re.sub(r":0$", "", name): array for name, array in arrays.items()}
    found = {}
    variables = {"conv2d": ("kernel", "bias"), "dense": ("kernel", "bias"), "batch_normalization": _NORM_VARIABLES}
    for kind, names in _in_order(model).items():
        for number, layer in enumerate(names):
            for index, leaf in enumerate(variables[kind]):
                key = f"layers/{kind}{f'_{number}' if number else ''}/vars/{index}"
                found[key] = f"{layer}/{leaf}"
    return {found.get(name, name): array for name, array in arrays.items()}


_NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


def _in_order(model) -> dict[str, list[str]]:
    is_v2 = model.first_block is None and model.strides.__name__ == "stride_in_last_block"
    order = {"conv2d": ["conv1_conv"], "batch_normalization": [] if is_v2 else ["conv1_bn"], "dense": ["predictions"]}
    for stage, blocks in enumerate(model.stage_sizes, start=2):
        for block in range(1, blocks + 1):
            name = f"conv{stage}_block{block}_"
            shortcut = ["0"] if block == 1 else []
            order["conv2d"] += [f"{name}{layer}_conv" for layer in ("1", "2", *shortcut, "3")]
            norms = ("preact", "1", "2") if is_v2 else ("1", "2", *shortcut, "3")
            order["batch_normalization"] += [f"{name}{layer}_bn" for layer in norms]
    order["batch_normalization"] += ["post_bn"] if is_v2 else []
    return order
