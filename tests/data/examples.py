"""Sources and samplers that the tests of the stream share."""

import jax
import numpy as np
import simplejpeg

from resnet_jax.data.crops import random_resized_box
from resnet_jax.data.reader import batches
from resnet_jax.data.sampling import EpochOrder, TrainSampler
from resnet_jax.data.sources import Record, SyntheticSource

KEY = jax.random.key(3)


class Numbered:
    """JPEGs of one grey level, seven times their id; up to 36 of them."""

    class_names = tuple("abcdefg")

    def __init__(self, count, corrupt=()):
        self.labels = np.arange(count, dtype=np.int32) % 7
        self._corrupt = corrupt

    def __len__(self):
        return len(self.labels)

    def name(self, index):
        return f"example {index}"

    def read(self, index):
        encoded = simplejpeg.encode_jpeg(np.full((8, 8, 3), 7 * index, np.uint8))
        return Record(b"corrupt" if index in self._corrupt else encoded, int(self.labels[index]))


def image_shape(step, size=8):
    return size, size, 3


def ids_of(batch):
    return np.round(np.asarray(batch["image"])[:, 0, 0, 0] / 7).astype(int)


def train_sampler(
    source=None, batch_size=12, repeats=1, choose_box=random_resized_box, image_shape=image_shape, seed=(1, 2)
):
    source = SyntheticSource(50, 5, seed=0) if source is None else source
    order = EpochOrder(KEY, len(source))
    return TrainSampler(source, order, seed, batch_size, repeats, choose_box, image_shape)


def host_batches(sampler, first=0, count=3, rows=None, workers="threads", num_workers=2):
    rows = np.arange(sampler.batch_size) if rows is None else rows
    return list(batches(sampler, first, count, rows, workers, num_workers))


def assert_equal_batches(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
