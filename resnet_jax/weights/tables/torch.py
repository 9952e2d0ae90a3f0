"""Names in torchvision and timm, whose ResNets share theirs."""

from collections.abc import Set

from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.vgg import VGG
from resnet_jax.weights.trees import AS_IS, OIHW, TRANSPOSED, Layout, Table

_LEAVES = {
    "kernel4": (".weight", OIHW),
    "kernel2": (".weight", TRANSPOSED),
    "scale": (".weight", AS_IS),
    "bias": (".bias", AS_IS),
    "shift": (".bias", AS_IS),
    "mean": (".running_mean", AS_IS),
    "var": (".running_var", AS_IS),
}
_IGNORED = r"\.num_batches_tracked$"
_SAME = {layer: layer for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "fc")}
_SE = {"se_fc1": "se.fc1", "se_fc2": "se.fc2"}
_DEEP_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6"}
_DENSE_1X1 = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
# The first dense layer sees channels, rows, columns there, and rows, columns, channels here: 512 x 7 x 7.
_VGG_DENSE = Layout(
    lambda x: x.reshape(-1, 512, 7, 7).transpose(2, 3, 1, 0).reshape(7 * 7 * 512, -1),
    lambda x: x.reshape(7, 7, 512, -1).transpose(3, 2, 0, 1).reshape(-1, 512 * 7 * 7),
)


def table(model, layers: Set[str]) -> Table:
    """The table of a model, from the paths of its layers, like "conv1" and "stage1_block1/conv1"."""
    if isinstance(model, VGG):
        return Table("", {}, _vgg(model, layers), _LEAVES, {"classifier.0.weight": _VGG_DENSE}, _IGNORED)
    if "bn_last" in layers:
        return _preactivation()
    first = 1 if model.shortcut is SHORTCUTS["D"] else 0  # a pooling comes before it
    downsample = {"downsample_conv": f"downsample.{first}", "downsample_bn": f"downsample.{first + 1}"}
    stem = _DEEP_STEM | {"bn3": "bn1", "fc": "fc"} if "conv3" in layers else _SAME
    return Table("layer{stage}.{block0}.", _SAME | _SE | downsample, stem, _LEAVES, ignored=_IGNORED)


def _preactivation() -> Table:
    norms = {f"bn{index}": f"norm{index}" for index in (1, 2, 3)}
    in_block = _SAME | norms | _SE | {"downsample_conv": "downsample.conv"}
    outside = {"conv1": "stem.conv", "bn1": "stem.norm", "bn_last": "norm", "fc": "head.fc"}
    layouts = {"head.fc.weight": _DENSE_1X1}
    return Table("stages.{stage0}.blocks.{block0}.", in_block, outside, _LEAVES, layouts, _IGNORED)


def _vgg(model: VGG, layers: Set[str]) -> dict[str, str]:
    """Convolution, norm (if any), ReLU after each other, a pooling after each stage; dropouts between dense layers."""
    names, index = {"fc1": "classifier.0", "fc2": "classifier.3", "fc": "classifier.6"}, 0
    for stage, convs in enumerate(model.stage_sizes, start=1):
        for conv in range(1, convs + 1):
            names[f"stage{stage}_conv{conv}"] = f"features.{index}"
            index += 1
            if f"stage{stage}_bn{conv}" in layers:
                names[f"stage{stage}_bn{conv}"] = f"features.{index}"
                index += 1
            index += 1
        index += 1
    return names
