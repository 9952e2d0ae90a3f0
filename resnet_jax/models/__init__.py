"""MODELS, the table of networks, and `create_model`."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.models.cifar import CIFAR_MODELS
from resnet_jax.models.layers import DOWNSAMPLES, NORMS, SHORTCUTS, STEMS
from resnet_jax.models.resnet import IMAGENET_MODELS
from resnet_jax.models.vgg import VGG_MODELS

MODELS = {**IMAGENET_MODELS, **CIFAR_MODELS, **VGG_MODELS}

_NAMED_VALUES = {"shortcut": SHORTCUTS, "stem": STEMS, "norm": NORMS, "downsample": DOWNSAMPLES}


def attributes_of(name: str) -> list[str]:
    """The attributes that `create_model` takes for a key of `MODELS`, like "num_classes" and "shortcut"."""
    return [field.name for field in dataclasses.fields(MODELS[name].func) if field.name not in ("parent", "name")]


def create_model(name: str, *, num_classes: int, dtype=jnp.float32, **overrides) -> nn.Module:
    """A network from the registry.

    >>> model = create_model("resnet20", num_classes=10)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    >>> logits = model.apply(variables, images, train=False)

    Args:
      name: a key of `MODELS`.
      num_classes: size of the logits.
      dtype: of the computation (`jnp.float32` or `jnp.bfloat16`); parameters stay float32.
      **overrides: other attributes of the model (`attributes_of`). `shortcut`, `stem`, `norm` and `downsample` are
        keys of `layers.SHORTCUTS`, `layers.STEMS`, `layers.NORMS` and `layers.DOWNSAMPLES`, or values of your own of
        the same kind.

    Raises:
      UserError: an unknown name, shortcut, stem, norm, downsample or attribute.
    """
    if name not in MODELS:
        raise UserError(f"model.name: no model is called {name!r}; {did_you_mean(name, MODELS)}")
    if num_classes < 1:
        raise UserError(f"model.num_classes: expected at least 1, found {num_classes}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"precision: expected a floating point dtype, found {dtype!r}")
    attributes = attributes_of(name)
    for key, value in overrides.items():
        if key not in attributes:
            raise UserError(f"model.{key}: a model {name} has no such attribute; {did_you_mean(key, attributes)}")
        if key in _NAMED_VALUES and isinstance(value, str):
            if value not in _NAMED_VALUES[key]:
                raise UserError(f"model.{key}: no {key} is called {value!r}; {did_you_mean(value, _NAMED_VALUES[key])}")
            overrides[key] = _NAMED_VALUES[key][value]
    return MODELS[name](num_classes=num_classes, dtype=dtype, **overrides)
