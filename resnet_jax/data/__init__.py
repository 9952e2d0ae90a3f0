"""Data sets: metadata (`DATASETS`), sources and splits, the order of examples, two loaders, augmentation."""

from resnet_jax.data.info import DATASETS, DatasetInfo

__all__ = ["DATASETS", "DatasetInfo"]
