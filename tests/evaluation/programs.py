"""Nets with random weights and random batch statistics, to export."""

import tests.tiny  # noqa: F401, registers the tiny net
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.evaluation.exports import Source
from tests.models.nets import random_variables

GREY = {"crop_fraction": None, "interpolation": "bilinear", "channel_order": "L", "mean": [0.3], "std": [0.4]}
COLOUR = {**GREY, "channel_order": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def random_source(uint8=False, *, size=8, preprocessing=GREY, name="tiny", dtype="float32", seed=1, **model):
    preprocessing = {"size": size, **preprocessing}
    shape = (size, size, len(preprocessing["channel_order"]))
    model = {"name": name, "num_classes": 5, "dtype": dtype, **model}
    card = ModelCard(model, shape, tuple("abcde"), preprocessing, {}, {})
    variables = random_variables(card.variable_shapes(), seed)
    return Source(card, card.create_model(), variables, uint8)
