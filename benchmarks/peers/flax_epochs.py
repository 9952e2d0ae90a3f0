"""Epochs of small images in plain Flax, fed by the host: NumPy shuffles and augments, the device trains.

It runs in this process, so that on CPUs it has the XLA flags that our package sets.
"""

from collections.abc import Callable

import jax
import numpy as np

from benchmarks.peers.flax_baseline import compile_train_step


def augment(rng: np.random.Generator, images: np.ndarray, padding: int = 4) -> np.ndarray:
    """float32 images (b, h, w, c): scaled, padded, cropped to the old size and mirrored at random, from uint8 ones."""
    batch, height, width, _ = images.shape
    images = (images.astype(np.float32) / 255 - 0.5) / 0.25
    images = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = rng.integers(0, 2 * padding + 1, (batch, 1)) + np.arange(height)
    columns = rng.integers(0, 2 * padding + 1, (batch, 1)) + np.arange(width)
    columns = np.where(rng.random((batch, 1)) < 0.5, columns[:, ::-1], columns)
    return images[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def epochs(name: str, images: np.ndarray, labels: np.ndarray, batch: int, dtype: str) -> Callable[[], None]:
    """A function that trains an epoch, the last partial batch left out; see `torch_epochs.epochs`."""
    size, rng = images.shape[1], np.random.default_rng(0)
    step, state = compile_train_step(name, size, batch, dtype, 10, small_images=True)

    def train_epoch():
        nonlocal state
        order = rng.permutation(len(labels))
        for start in range(0, len(labels) - batch + 1, batch):
            ids = order[start : start + batch]
            state, loss = step(state, augment(rng, images[ids]).astype(dtype), labels[ids])
        jax.block_until_ready((state, loss))

    return train_epoch
