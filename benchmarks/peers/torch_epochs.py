"""Epochs of small images in torch, data and augmentation on the device: the quick way to train there by hand."""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.peers.torch_nets import create_net, device, make_train_step, wait


def augment(images_BHWC: torch.Tensor, padding: int = 4) -> torch.Tensor:
    """Float images (b, c, h, w), channels_last: scaled, padded, cropped to the old size and mirrored at random.

    Args:
      images_BHWC: uint8, on the device.
      padding: pixels on each side.
    """
    batch, height, width, _ = images_BHWC.shape
    on = images_BHWC.device
    images = (images_BHWC.float() / 255 - 0.5) / 0.25
    images = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    rows = torch.randint(0, 2 * padding + 1, (batch, 1), device=on) + torch.arange(height, device=on)
    columns = torch.randint(0, 2 * padding + 1, (batch, 1), device=on) + torch.arange(width, device=on)
    columns = torch.where(torch.rand(batch, 1, device=on) < 0.5, columns.flip(1), columns)
    cropped = images[torch.arange(batch, device=on)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def epochs(
    name: str, images: np.ndarray, labels: np.ndarray, batch: int, dtype: str, *, compiled: bool
) -> Callable[[], None]:
    """A function that trains an epoch, the last partial batch left out.

    Args:
      name: net, with 10 classes.
      images: uint8 (n, h, w, c).
      labels: int32 (n,).
      batch: number of images of a step.
      dtype: "float32" or "bfloat16", by autocast.
      compiled: net and augmentation by `torch.compile`.
    """
    train_step = make_train_step(create_net(name, 10, small_images=True).train(), dtype, compiled)
    augment_batch = torch.compile(augment) if compiled else augment
    images, labels = torch.tensor(images, device=device()), torch.tensor(labels, device=device()).long()

    def train_epoch():
        order = torch.randperm(len(labels), device=device())
        for start in range(0, len(labels) - batch + 1, batch):
            ids = order[start : start + batch]
            train_step(augment_batch(images[ids]), labels[ids])
        wait()

    return train_epoch
