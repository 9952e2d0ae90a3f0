"""Boxes to cut images for training; resized and cropped views of images for evaluation."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


# --- training: (draws, height, width, ...) -> Box, to be resized to `size` squared ---
# `draws` are random numbers, float64 (DRAWS, 4), uniform from 0 to less than 1.

DRAWS = 10


def center_box(draws: np.ndarray, height: int, width: int, **_) -> Box:
    """The largest central square."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def random_resized_box(
    draws: np.ndarray, height: int, width: int, *, area: tuple[float, float] = (0.08, 1.0), **_
) -> Box:
    """A box that covers a share of the image drawn uniformly from `area`, of an aspect ratio from 3/4 to 4/3.

    Szegedy et al. 2014 (arXiv:1409.4842, section 6), in torchvision's definition (`RandomResizedCrop`): ratio uniform
    on a logarithmic scale, ten attempts to fit, then the largest central box of an allowed ratio.
    """
    low, high = area
    for share, shape, *place in map(np.ndarray.tolist, draws):  # row by row: the first is nearly always enough
        target = (low + (high - low) * share) * height * width
        ratio = (3 / 4) ** (1 - 2 * shape)
        box_height, box_width = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return _box_at(place, height, width, box_height, box_width)
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    box_height, box_width = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def scale_jitter_box(
    draws: np.ndarray,
    height: int,
    width: int,
    *,
    size: int,
    short_sides: tuple[int, int] = (256, 480),
    **_,
) -> Box:
    """A square that is `size` pixels wide once the short side is resized to a length drawn from `short_sides`.

    He et al. 2015 (section 3.4), after Simonyan & Zisserman 2014 (arXiv:1409.1556, section 3.1).
    """
    share, _, *place = draws[0].tolist()
    short_side = int(short_sides[0] + share * (short_sides[1] + 1 - short_sides[0]))
    side = max(1, min(height, width, round(size * min(height, width) / short_side)))
    return _box_at(place, height, width, side, side)


VIEWS = {"center": center_box, "random_resized": random_resized_box, "scale_jitter": scale_jitter_box}


def _box_at(place, height, width, box_height, box_width) -> Box:
    down, right = place  # both from 0 to less than 1
    return Box(int(down * (height - box_height + 1)), int(right * (width - box_width + 1)), box_height, box_width)


# --- evaluation: uint8 images (h, w, 3) -> uint8 views ---


def resize_short_side(image: np.ndarray, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """The image with its short side resized to `size`, antialiased: the pixels of Pillow and torchvision's `Resize`."""
    height, width = image.shape[:2]
    short = min(height, width)
    return resize(image, size * height // short, size * width // short, interpolation)


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """The image resized to (height, width, 3), antialiased."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), INTERPOLATIONS[interpolation]))


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central (size, size, 3); torchvision's rounding."""
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def center_view(image: np.ndarray, *, size: int, crop_fraction: float, interpolation: str) -> np.ndarray:
    """The short side resized to `size / crop_fraction`, then the central (size, size, 3)."""
    return center_crop(resize_short_side(image, round(size / crop_fraction), interpolation), size)


def single_view(image: np.ndarray, **settings) -> list[np.ndarray]:
    """The `center_view` alone."""
    return [center_view(image, **settings)]


def ten_crop(image: np.ndarray, *, size: int, crop_fraction: float, interpolation: str) -> list[np.ndarray]:
    """Four corners and the centre, and their mirror images (Krizhevsky et al. 2012, section 4.1), after resizing."""
    image = resize_short_side(image, round(size / crop_fraction), interpolation)
    bottom, right = image.shape[0] - size, image.shape[1] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [image[top : top + size, left : left + size] for top, left in corners] + [center_crop(image, size)]
    return crops + [crop[:, ::-1] for crop in crops]


SCALES = (224, 256, 384, 480, 640)


def multi_scale(image: np.ndarray, *, interpolation: str, **_) -> list[np.ndarray]:
    """The whole image at five SCALES, its short side 224 to 640 (He et al. 2015, section 3.4): a net that ends with
    global pooling takes them all. Long sides are rounded to multiples of 32, so that few shapes must be compiled.
    """
    views, (height, width) = [], image.shape[:2]
    for short_side in SCALES:
        long_side = round(short_side * max(height, width) / min(height, width) / 32) * 32
        shape = (long_side, short_side) if height > width else (short_side, long_side)
        views.append(resize(image, *shape, interpolation))
    return views


# (image, size, crop_fraction, interpolation) -> the views of it, over which predictions are averaged
EVALUATION_VIEWS = {"center": single_view, "ten_crop": ten_crop, "multi_scale": multi_scale}
