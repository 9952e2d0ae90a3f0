"""Nets as trees of shapes, and their published sizes."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import resnet_jax
from resnet_jax import create_model
from resnet_jax.models import CIFAR_MODELS, IMAGENET_MODELS

PUBLISHED = json.loads((pathlib.Path(resnet_jax.__file__).parent / "studies" / "published.json").read_text())
KEY = jax.random.key(0)


def shapes_of(model, size, channels=3):
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda key, images: model.init(key, images, train=False), KEY, images)


@functools.cache
def params_of(name, **overrides):
    size, classes = (32, 10) if name in CIFAR_MODELS else (224, 1000)
    return shapes_of(create_model(name, num_classes=classes, **overrides), size)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def published_counts():
    counts = {}
    for table in PUBLISHED["parameter_counts"].values():
        counts.update(table)
    # The stride has no weights; a plain net is its residual twin without the three projections of option B.
    counts |= {f"{name}_v1": counts[name] for name in IMAGENET_MODELS if f"{name}_v1" in IMAGENET_MODELS}
    projections = sum(in_ * out + 2 * out for in_, out in ((64, 128), (128, 256), (256, 512)))
    counts |= {f"plain{depth}": counts[f"resnet{depth}"] - projections for depth in (18, 34)}
    counts |= {f"plain{depth}": counts[f"resnet{depth}"] for depth in (20, 32, 44, 56, 110)}
    counts |= {f"preact_resnet{depth}": counts[f"resnetv2_{depth}"] for depth in (18, 34, 50, 101)}
    # Keras gives biases to the stem, to the last convolution of each block and to the projections.
    blocks_and_channels = ((3, 256), (8, 512), (36, 1024), (3, 2048))
    biases = 64 + sum((blocks + 1) * channels for blocks, channels in blocks_and_channels)
    counts["preact_resnet152"] = counts["ResNet152V2"] - biases
    # The norm after each convolution of v1 is before the next one in v2; only those of the projections are gone.
    counts["preact_resnet200"] = counts["resnet200"] - 2 * sum(channels for _, channels in blocks_and_channels)
    for name in [name for name in IMAGENET_MODELS if name.split("_")[0] in ("keras", "flax", "big")]:
        depth = name.split("resnet")[1]
        counts[name] = counts[f"ResNet{depth.replace('v2', 'V2')}" if name.startswith("keras") else f"resnet{depth}"]
    return counts


def random_variables(shapes, seed=0):
    """Kernels as He et al. initialise them, and norms and statistics that change what passes them."""
    rng = np.random.default_rng(seed)
    low = {"scale": 0.5, "var": 0.5, "bias": -0.5, "mean": -0.5}
    normal = np.float32(rng.normal(size=9973))  # a prime: repeated, since VGG has a kernel of 10^8 numbers

    def value(path, x):
        name = path[-1].key
        if name == "kernel":
            return np.resize(normal, x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]), dtype=np.float32)
        return np.float32(rng.uniform(low[name], low[name] + 1, x.shape))

    return jax.tree.map_with_path(value, shapes)
