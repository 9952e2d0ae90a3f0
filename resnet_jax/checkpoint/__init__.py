"""Checkpoints that describe themselves: any pytree, its digests, and the model card beside the weights."""

from resnet_jax.checkpoint.arrays import read_step, read_trees, unflatten
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.checkpoint.errors import CorruptCheckpoint
from resnet_jax.checkpoint.store import Checkpoints, SavedSteps

__all__ = ["Checkpoints", "CorruptCheckpoint", "ModelCard", "SavedSteps", "read_step", "read_trees", "unflatten"]
