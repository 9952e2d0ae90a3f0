"""Residual networks and their plain twins in JAX/Flax: train, ablate, load."""

from resnet_jax.data import DATASETS
from resnet_jax.errors import UserError
from resnet_jax.models import MODELS, create_model

__all__ = ["DATASETS", "MODELS", "UserError", "create_model", "load_checkpoint", "load_data"]


def __getattr__(name: str):
    # On use: reading runs brings Orbax and Optax, which a script that only builds a model need not wait for.
    if name in ("load_checkpoint", "load_data"):
        from resnet_jax import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
