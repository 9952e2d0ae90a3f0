"""The nets for ImageNet, each a line of values."""

import dataclasses
import functools

from resnet_jax.models.convs import biased_conv2d, standardized_conv2d
from resnet_jax.models.downsample import pad_as_tensorflow
from resnet_jax.models.gates import GATES
from resnet_jax.models.norm import batch_norm, group_norm
from resnet_jax.models.resnet import (
    V1_BASIC,
    V1_BOTTLENECK,
    V1_BOTTLENECK_STRIDE_FIRST,
    V2_BASIC,
    V2_BASIC_ALL,
    V2_BOTTLENECK,
    V2_BOTTLENECK_ALL,
    ResNet,
    stride_in_last_block,
)
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import IMAGENET_STEM, STEMS

# Table 1 of He et al. 2015; 200 from He et al. 2016 (arXiv:1603.05027); 26 from timm.
_STAGE_SIZES = {
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_BASIC_DEPTHS = (18, 34)


def _net(depth, blocks, shortcut=SHORTCUTS["B"], stem=IMAGENET_STEM, **values):
    return functools.partial(ResNet, stage_sizes=_STAGE_SIZES[depth], stem=stem, shortcut=shortcut, **blocks, **values)


def _stem(name, **settings):
    return dataclasses.replace(STEMS[name], layers=functools.partial(STEMS[name].layers, **settings))


def _v1(depth):
    return V1_BASIC if depth in _BASIC_DEPTHS else V1_BOTTLENECK


def _v2(depth):
    return V2_BASIC if depth in _BASIC_DEPTHS else V2_BOTTLENECK


_D = {"stem": STEMS["deep"], "shortcut": SHORTCUTS["D"]}
_SE = {"gate": GATES["se"]}
_BIT = {"stem": _stem("bare_imagenet", pool_padding="zero"), "conv": standardized_conv2d, "norm": group_norm}

_KERAS_NORM = {"norm": functools.partial(batch_norm, epsilon=1.001e-5)}
_KERAS = {"conv": biased_conv2d, **_KERAS_NORM}
_KERAS_V2 = {
    "stem": _stem("bare_imagenet", pool_padding="zero", use_bias=True),
    "conv": functools.partial(biased_conv2d, biases=("conv3", "downsample_conv")),
    "strides": stride_in_last_block,
    "shortcut": SHORTCUTS["B_slim"],
    **_KERAS_NORM,
}
_FLAX = {"stem": _stem("imagenet", pool_padding="same"), "downsample": pad_as_tensorflow}
_BIG_VISION = {
    "stem": _stem("imagenet", conv_padding="same", pool_padding="same"),
    "downsample": pad_as_tensorflow,
    "conv": functools.partial(standardized_conv2d, standardize_by="deviation", standardize_epsilon=1e-5),
    "norm": functools.partial(group_norm, epsilon=1e-6),
}

# Basic blocks have no 1x1 convolution that could take the stride: resnet18_v1 is resnet18, resnet34_v1 is resnet34.
IMAGENET_MODELS = {
    **{f"resnet{depth}": _net(depth, _v1(depth)) for depth in (18, 26, 34, 50, 101, 152, 200)},
    **{f"resnet{depth}_v1": _net(depth, V1_BASIC) for depth in _BASIC_DEPTHS},
    **{f"resnet{depth}_v1": _net(depth, V1_BOTTLENECK_STRIDE_FIRST) for depth in (50, 101, 152, 200)},
    **{f"preact_resnet{depth}": _net(depth, _v2(depth)) for depth in (18, 34, 50, 101, 152, 200)},
    **{f"plain{depth}": _net(depth, V1_BASIC, SHORTCUTS["none"]) for depth in _BASIC_DEPTHS},
    # As in torchvision: wide (arXiv:1605.07146) and ResNeXt (arXiv:1611.05431).
    "wide_resnet50_2": _net(50, V1_BOTTLENECK, base_width=128),
    "wide_resnet101_2": _net(101, V1_BOTTLENECK, base_width=128),
    "resnext50_32x4d": _net(50, V1_BOTTLENECK, groups=32, base_width=4),
    "resnext101_32x8d": _net(101, V1_BOTTLENECK, groups=32, base_width=8),
    "resnext101_64x4d": _net(101, V1_BOTTLENECK, groups=64, base_width=4),
    # As in timm: ResNet-D (arXiv:1812.01187), SE (arXiv:1709.01507), group norm (arXiv:1803.08494), BiT
    # (arXiv:1912.11370), and pre-activation nets without a norm in the stem.
    **{f"resnet{depth}d": _net(depth, _v1(depth), **_D) for depth in (18, 26, 34, 50, 101, 152)},
    **{f"seresnet{depth}": _net(depth, _v1(depth), **_SE) for depth in (18, 34, 50, 101, 152)},
    "seresnext50_32x4d": _net(50, V1_BOTTLENECK, groups=32, base_width=4, **_SE),
    "resnet50_gn": _net(50, V1_BOTTLENECK, norm=group_norm),
    "resnetv2_18": _net(18, V2_BASIC_ALL, stem=STEMS["bare_imagenet"]),
    "resnetv2_34": _net(34, V2_BASIC_ALL, stem=STEMS["bare_imagenet"]),
    "resnetv2_50": _net(50, V2_BOTTLENECK_ALL, stem=STEMS["bare_imagenet"]),
    "resnetv2_101": _net(101, V2_BOTTLENECK_ALL, stem=STEMS["bare_imagenet"]),
    "resnetv2_50x1_bit": _net(50, V2_BOTTLENECK_ALL, **_BIT),
    # As in keras.applications, in Flax's ImageNet example and in `models/bit.py` of big_vision: other paddings, biases
    # and small numbers, so their weights mean something else in the nets above.
    **{f"keras_resnet{depth}": _net(depth, V1_BOTTLENECK_STRIDE_FIRST, **_KERAS) for depth in (50, 101, 152)},
    **{f"keras_resnet{depth}v2": _net(depth, V2_BOTTLENECK_ALL, **_KERAS_V2) for depth in (50, 101, 152)},
    **{f"flax_resnet{depth}": _net(depth, _v1(depth), **_FLAX) for depth in (18, 34, 50, 101, 152, 200)},
    "big_vision_resnet50": _net(50, V1_BOTTLENECK, **_BIG_VISION),
}
