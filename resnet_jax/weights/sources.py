"""Libraries that weights come from: how their files are recognised, their names, and the images that their nets see."""

import re
from collections.abc import Callable, Mapping, Set
from typing import NamedTuple

from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.models import MODELS
from resnet_jax.weights.tables import bit, flax, keras, torch
from resnet_jax.weights.trees import Flat, Table


class Source(NamedTuple):
    """A library that weights come from.

    Attributes:
      title: its name in a sentence.
      sign: regular expression of a name that its files have, and no other's.
      models: regular expression of the names in `MODELS` that compute what its nets compute.
      table: function from a model and the paths of its layers to the table of names.
      canonical: function from arrays as read, and the model, to arrays under the names of the table.
    """

    title: str
    sign: str
    models: str
    table: Callable[[object, Set[str]], Table]
    canonical: Callable[[Flat, object], Flat] = lambda arrays, model: arrays


SOURCES = {
    "torch": Source(
        "torchvision or timm",
        r"^(layer1\.0\.conv1|features\.0|stages\.0\.blocks\.0\.conv1)\.weight$",
        r"^(?!keras_|flax_|big_vision_)",
        torch.table,
    ),
    "keras": Source(
        "keras.applications",
        r"^(layers/batch_normalization/vars/0$|conv2_block1_1_conv/kernel)",
        r"^keras_",
        keras.table,
        keras.canonical,
    ),
    "flax": Source(
        "Flax's ImageNet example",
        r"^params/(Bottleneck)?ResNetBlock_0/Conv_0/kernel$",
        r"^flax_",
        flax.table,
        flax.canonical,
    ),
    "bit": Source(
        "BiT",
        r"(^|/)(root_block/|conv_root/kernel$)",
        r"^(big_vision_|resnetv2_.*_bit$)",
        bit.table,
        bit.canonical,
    ),
}

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_VIEW = {"size": 224, "crop_fraction": 0.875, "interpolation": "bilinear", "channel_order": "RGB"}
# Keyword arguments of `Preprocessing` but for the names of the classes; means and deviations on the scale 0..1.
CONVENTIONS: Mapping[str, dict] = {
    "torchvision": {**_VIEW, **_IMAGENET},
    "timm": {**_VIEW, **_IMAGENET, "interpolation": "bicubic"},
    "timm_v2": {**_VIEW, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
    "flax": {**_VIEW, **_IMAGENET, "interpolation": "bicubic"},
    # Blue, green, red of 0..255, minus their means: Caffe's ResNets (He et al. 2015) and Keras' ResNet50 to 152.
    "caffe": {
        **_VIEW,
        "channel_order": "BGR",
        "mean": [value / 255 for value in (103.939, 116.779, 123.68)],
        "std": [1 / 255] * 3,
    },
    "centered": {**_VIEW, "mean": [0.5] * 3, "std": [0.5] * 3},  # -1..1: Keras' V2 nets, BiT
}

_STRIDE_FIRST = r"^resnet(50|101|152|200)_v1$"  # in the first convolution of a bottleneck, as in He et al. 2015
# The nets of torchvision; what else is in its names is timm's.
_TORCHVISION = r"^(resnet(18|34|50|101|152)|resnext(50_32x4d|101_32x8d|101_64x4d)|wide_resnet(50|101)_2|vgg\d\d(_bn)?)$"


def recognized(arrays: Flat, where: object) -> str:
    """The key in `SOURCES` of the library that arrays come from, by their names.

    Raises:
      UserError: none that is known.
    """
    for key, source in SOURCES.items():
        if any(re.search(source.sign, name) for name in arrays):
            return key
    titles = ", ".join(source.title for source in SOURCES.values())
    raise UserError(
        f"{where}: expected the names of {titles}, found {len(arrays)} arrays like {next(iter(arrays))!r}; rename them "
        "to those of one of these"
    )


def computes_alike(name: str, key: str, images: str | None = None) -> bool:
    """True if a model computes what the nets of a source do, whose weights may fit all the same.

    Args:
      name: key of `MODELS`.
      key: key of `SOURCES`.
      images: key of `CONVENTIONS` if it was asked for; "caffe" says that the weights under torch's names are Caffe's.
    """
    if key == "torch" and re.search(_STRIDE_FIRST, name):
        return images == "caffe"
    return re.search(SOURCES[key].models, name) is not None


def check_model(name: str, key: str, where: object, images: str | None) -> None:
    """Raise `UserError` if a model computes something else than the nets of a source; see `computes_alike`."""
    if computes_alike(name, key, images):
        return
    base = re.sub(r"^(keras|flax|big_vision)_|_v1$", "", name)
    known = [model for model in MODELS if computes_alike(model, key)]
    near = [model for model in known if model.endswith(base)]
    advice = f"try {near[0]}" if near else did_you_mean(name, known)
    if re.search(_STRIDE_FIRST, name):
        advice += ", or preprocessing='caffe' if the weights are Caffe's"
    raise UserError(
        f"{where}: expected a model that computes what the nets of {SOURCES[key].title} do, found {name}: its "
        f"paddings, strides or biases are others, and its outputs would be; {advice}"
    )


def convention(name: str, key: str) -> str:
    """The key in `CONVENTIONS` of the images that a model with weights of a source was trained on."""
    if key == "keras":
        return "centered" if name.endswith("v2") else "caffe"
    if key == "bit" or name.endswith("_bit"):
        return "centered"
    if key == "flax":
        return "flax"
    if name.startswith("resnetv2_"):
        return "timm_v2"
    return "torchvision" if re.search(_TORCHVISION, name) else "timm"


def table_of(model, shapes: Mapping, key: str) -> Table:
    """The table of names of a model in a source."""
    return SOURCES[key].table(model, {path.rsplit("/", 1)[0].split("/", 1)[1] for path in shapes})
