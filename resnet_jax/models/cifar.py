"""The nets for small images: three stages of n blocks, 16 channels at first.

6n+2 layers in basic blocks: He et al. 2015, section 4.2. 9n+2 layers in bottlenecks: He et al. 2016, section 5, whose
projections (option B) stand where shapes differ. The stride of a bottleneck is on its 3x3 convolution, as in all our
nets (the code released for ResNet-1001 has it on the first 1x1). Wide ResNets: Zagoruyko & Komodakis 2016
(arXiv:1605.07146), 6n+4 layers (as they count projections), the widths of the stages times a factor.

The net that is called "ResNet-18" on CIFAR elsewhere is not among them: it is `resnet18`, 64 channels and four stages,
with the stem for small images, `create_model("resnet18", num_classes=10, stem="small")`.
"""

import functools

from resnet_jax.models.resnet import V1_BASIC, V1_BOTTLENECK, V2_BASIC, V2_BASIC_ALL, V2_BOTTLENECK, ResNet
from resnet_jax.models.shortcuts import SHORTCUTS, no_shortcut
from resnet_jax.models.stems import SMALL_IMAGE_STEM, STEMS


def _cifar_net(n, blocks, shortcut, stem=SMALL_IMAGE_STEM, width=16):
    return functools.partial(ResNet, stage_sizes=(n, n, n), stem=stem, shortcut=shortcut, width=width, **blocks)


def _basic_net(depth, blocks=V1_BASIC, shortcut=SHORTCUTS["A"]):
    return _cifar_net((depth - 2) // 6, blocks, shortcut)


def _bottleneck_net(depth, blocks):
    return _cifar_net((depth - 2) // 9, blocks, SHORTCUTS["B"])


def _wide_net(depth, factor):
    return _cifar_net((depth - 4) // 6, V2_BASIC_ALL, SHORTCUTS["B"], STEMS["bare_small"], 16 * factor)


CIFAR_MODELS = {
    **{f"resnet{depth}": _basic_net(depth) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"resnet{depth}": _bottleneck_net(depth, V1_BOTTLENECK) for depth in (164, 1001)},
    "preact_resnet110": _basic_net(110, V2_BASIC),
    **{f"preact_resnet{depth}": _bottleneck_net(depth, V2_BOTTLENECK) for depth in (164, 1001)},
    **{f"wrn_{depth}_{factor}": _wide_net(depth, factor) for depth, factor in ((16, 8), (28, 10))},
    **{f"plain{depth}": _basic_net(depth, shortcut=no_shortcut) for depth in (20, 32, 44, 56, 110)},
}
