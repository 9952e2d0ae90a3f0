"""Nets with random weights and random batch statistics, to export."""

import jax
import numpy as np

import tests.tiny  # noqa: F401, registers the tiny net
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.evaluation.exports import Source

GREY = {"crop_fraction": None, "interpolation": "bilinear", "channel_order": "L", "mean": [0.3], "std": [0.4]}
COLOUR = {**GREY, "channel_order": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def random_source(uint8=False, *, size=8, preprocessing=GREY, name="tiny", dtype="float32", seed=1, **model):
    preprocessing = {"size": size, **preprocessing}
    shape = (size, size, len(preprocessing["channel_order"]))
    model = {"name": name, "num_classes": 5, "dtype": dtype, **model}
    card = ModelCard(model, shape, tuple("abcde"), preprocessing, {}, {})
    rng = np.random.default_rng(seed)
    normal = np.float32(rng.normal(size=9973))  # a prime: repeated, since VGG has a kernel of 10^8 numbers

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            return np.resize(normal, leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        return rng.uniform(0.5 if "var" in name or "scale" in name else -0.5, 1, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, card.variable_shapes())
    return Source(card, card.create_model(), variables, uint8)
