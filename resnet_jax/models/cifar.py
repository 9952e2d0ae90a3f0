"""The 6n+2 layer nets for small images (He et al. 2015, section 4.2): three stages of n basic blocks, 16 channels."""

import functools

from resnet_jax.models import layers
from resnet_jax.models.resnet import BasicBlock, ResNet


def _cifar_net(depth, shortcut):
    blocks = (depth - 2) // 6
    return functools.partial(
        ResNet,
        stage_sizes=(blocks, blocks, blocks),
        block=BasicBlock,
        stem=layers.SMALL_IMAGE_STEM,
        shortcut=shortcut,
        width=16,
    )


CIFAR_MODELS = {
    **{f"resnet{depth}": _cifar_net(depth, layers.zero_pad_shortcut) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"plain{depth}": _cifar_net(depth, layers.no_shortcut) for depth in (20, 32, 44, 56, 110)},
}
