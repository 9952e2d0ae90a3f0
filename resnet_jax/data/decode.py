"""Encoded images to pixels.

An image is what Pillow makes of it by `convert("RGB")`, as in torchvision: the first frame of an animation, without
alpha, not turned by EXIF; 16-bit images are scaled to 8 bits, which Pillow would clip. It is damaged if Pillow cannot
decode it to the end (a truncated file), or if its header promises more than Pillow's limit of pixels.
"""

import io
import threading
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from resnet_jax.data.crops import Box

_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses "decompression bombs"

_NOTHING = np.empty(0, np.uint8)
_reused = threading.local()

cv2.setNumThreads(0)  # images are worked on side by side; threads inside one would only get in the way


class DamagedImage(ValueError):
    """Bytes that are no image, or only a part of one."""


def decode(encoded: bytes) -> np.ndarray:
    """All pixels, exactly those of Pillow: uint8 (h, w, 3).

    Raises:
      DamagedImage: and why.
    """
    try:
        _jpeg_size(encoded)
        return simplejpeg.decode_jpeg(encoded)
    except ValueError:  # not a JPEG, a damaged one, or one of unusual colours
        return _decode_by_pillow(encoded)


def decode_crop(encoded: bytes, choose_box: Callable[[int, int], Box], size: int) -> np.ndarray:
    """A part of an image, resized bilinearly: uint8 (size, size, 3).

    Of a JPEG no more is decoded than is needed: a box at least twice as large as `size` is decoded at a half, quarter
    or eighth of the resolution. That is faster, and it averages pixels, which the bilinear resize after it does not;
    this one is left to shrink by less than two.

    Args:
      encoded: the file.
      choose_box: a pure function of the image's (height, width).
      size: of the result.

    Raises:
      DamagedImage: and why.
    """
    try:
        height, width = _jpeg_size(encoded)
        box = choose_box(height, width)
        shrink = next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(box.height, box.width) >= factor * size)
        small = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        buffer = _reused_buffer(3 * small["min_height"] * small["min_width"])
        image = simplejpeg.decode_jpeg(encoded, fastdct=True, fastupsample=True, buffer=buffer, **small)
        box = Box(*(side // shrink for side in box))
    except ValueError:
        image = _decode_by_pillow(encoded)
        box = choose_box(*image.shape[:2])
    return crop_and_resize(image, box, size)


def crop_and_resize(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The box, resized bilinearly without antialiasing: uint8 (size, size, channels)."""
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, -1)


def _reused_buffer(size: int) -> np.ndarray:
    # Fresh memory for every image costs a tenth of the time that its decoding takes.
    if getattr(_reused, "buffer", _NOTHING).size < size:
        _reused.buffer = np.empty(size, np.uint8)
    return _reused.buffer


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    if height * width > _MAX_PIXELS:
        raise ValueError("too large")
    return height, width


def _decode_by_pillow(encoded: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as image:
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
        raise DamagedImage(f"{type(error).__name__}: {error}") from None
