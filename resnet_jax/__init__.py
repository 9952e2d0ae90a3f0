"""Residual networks and their plain twins in JAX/Flax: train, ablate, load."""

import importlib
import sys

from resnet_jax import signals
from resnet_jax.errors import UserError
from resnet_jax.xla_flags import choose_flags

if sys.argv[:1] == ["-m"] and __name__ in [argument.split(".")[0] for argument in sys.orig_argv]:
    signals.end_on_ctrl_c()  # here, where `python -m resnet_jax.COMMAND` begins: JAX takes seconds to import

choose_flags()  # here, before anything computes: XLA reads them once

# On use: a script that asks for a model need not wait for Orbax and Optax.
_ON_USE = {
    "DATASETS": "resnet_jax.data",
    "MODELS": "resnet_jax.models",
    "create_model": "resnet_jax.models",
    "fold_batchnorm": "resnet_jax.models.fold",
    "get_config": "resnet_jax.config.flags",
    "load_card": "resnet_jax.config.runs",
    "load_checkpoint": "resnet_jax.config.runs",
    "join": "resnet_jax.job.join",
    "list_models": "resnet_jax.models",
    "load_data": "resnet_jax.config.runs",
    "load_exported": "resnet_jax.evaluation.exported",
    "load_pretrained": "resnet_jax.weights.pretrained",
    "preprocessing": "resnet_jax.config.runs",
    "train": "resnet_jax.config.train",
}

__all__ = ["UserError", *_ON_USE]  # noqa: F822


def __getattr__(name: str):
    if name in _ON_USE:
        return getattr(importlib.import_module(_ON_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
