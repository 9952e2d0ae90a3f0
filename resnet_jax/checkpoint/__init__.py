"""Checkpoints that describe themselves: any pytree, its digests, and the model card beside the weights."""

from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.checkpoint.files import CorruptCheckpoint, read_step, unflatten
from resnet_jax.checkpoint.store import Checkpoints, SavedSteps

__all__ = ["Checkpoints", "CorruptCheckpoint", "ModelCard", "SavedSteps", "read_step", "unflatten"]
