"""Residual networks and their plain twins in JAX/Flax: train, ablate, load."""

import importlib

from resnet_jax.data import DATASETS
from resnet_jax.errors import UserError
from resnet_jax.models import MODELS, create_model

# On use: configs, runs and training bring Orbax and Optax, which a script that only builds a model need not wait for.
_ON_USE = {
    "get_config": "resnet_jax.config.flags",
    "load_card": "resnet_jax.config.runs",
    "load_checkpoint": "resnet_jax.config.runs",
    "load_data": "resnet_jax.config.runs",
    "preprocessing": "resnet_jax.config.runs",
    "train": "resnet_jax.config.train",
}

__all__ = ["DATASETS", "MODELS", "UserError", "create_model", *_ON_USE]  # noqa: F822


def __getattr__(name: str):
    if name in _ON_USE:
        return getattr(importlib.import_module(_ON_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
