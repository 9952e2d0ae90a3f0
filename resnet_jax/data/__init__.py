"""Data sets: what is known of them (`DATASETS`), reading, the order of examples, loading and augmentation."""

from resnet_jax.data.facts import DATASETS, DatasetFacts

__all__ = ["DATASETS", "DatasetFacts"]
