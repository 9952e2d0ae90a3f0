"""Metadata of data sets that need not be there, and splits that stand in for them: the same shapes, no content."""

from collections.abc import Mapping

import numpy as np

from resnet_jax.data import tfds
from resnet_jax.data.imagenet import imagenet_class_names
from resnet_jax.data.info import DATASETS, DatasetInfo
from resnet_jax.data.sources import ArrayDataset, SyntheticSource
from resnet_jax.data.splits import PHOTO_MEAN, PHOTO_STD


def known_info(name: str) -> DatasetInfo | None:
    """Metadata of a data set whose classes and sizes are known without its files; None for any other."""
    if name == "imagenet2012":
        _, sizes = tfds.NAMED[name]
        return DatasetInfo(imagenet_class_names(), None, sizes, PHOTO_MEAN, PHOTO_STD, name)
    return DATASETS.get(name)


def stand_ins(info: DatasetInfo, sizes: Mapping[str, int]) -> dict:
    """Splits by name, with as many examples as `sizes` says and equally many of each class.

    Args:
      info: metadata of the data set.
      sizes: number of examples by split; a split of none is left out.

    Returns:
      For images of one shape an `ArrayDataset` for each split, all zeros, that takes the memory of its labels alone;
      else sources of synthetic images.
    """
    return {name: _stand_in(info, size) for name, size in sizes.items() if size}


def _stand_in(info, size):
    if info.image_shape is None:
        return SyntheticSource(size, info.num_classes, seed=0)
    images = np.broadcast_to(np.uint8(0), (size, *info.image_shape))
    return ArrayDataset(images, (np.arange(size) % info.num_classes).astype(np.int32), info.class_names)
