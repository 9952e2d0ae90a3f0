"""Decode images, whole or only what a crop needs.

The pixels are those of Pillow's `convert("RGB")`, as in torchvision: the first frame of an animation, without alpha,
not turned by EXIF; but 16-bit images are scaled to 8 bits, which Pillow would clip. An image is corrupt if Pillow
cannot decode it to the end (a truncated file), or if its header promises more than Pillow's limit of pixels. A crop
for training does not notice what is corrupt behind it.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from resnet_jax.data.crops import Box
from resnet_jax.data.files import FORMATS

_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses "decompression bombs"
_MAX_PIXELS_OF_PILLOW = 2**26  # it needs up to 10 bytes for each, however small the file

_NOTHING = np.empty(0, np.uint8)
_reused = threading.local()

warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; here, as catch_warnings is not for threads
cv2.setNumThreads(0)  # images are worked on side by side; threads inside one would only get in the way


class CorruptImage(ValueError):
    """Bytes that are no image, or only a part of one."""


def decode(encoded: bytes) -> np.ndarray:
    """All pixels of an image file, exactly those of Pillow: uint8 (h, w, 3).

    Raises:
      CorruptImage: with the reason.
    """
    try:
        _jpeg_size(encoded)
        return simplejpeg.decode_jpeg(encoded)
    except ValueError:  # not a JPEG, a corrupt one, or one of unusual colours
        return _decode_by_pillow(encoded)


def read_size(encoded: bytes) -> tuple[int, int]:
    """Height and width of an image, from its header: nothing is decoded.

    Raises:
      CorruptImage: it is no image, or too large.
    """
    try:
        return _jpeg_size(encoded)
    except ValueError:
        with _opened_by_pillow(encoded) as image:
            return image.height, image.width


def decode_crop(encoded: bytes, choose_box: Callable[[int, int], Box], out: np.ndarray) -> None:
    """Decode a part of an image and resize it bilinearly.

    No more of a JPEG is decoded than is needed: decoding ends with the last row of the box, and a box at
    least twice as large as `out` is decoded at a half, quarter or eighth of the resolution. That is faster, and it
    averages pixels, which the bilinear resize that follows does not; the resize shrinks by less than two.

    Args:
      encoded: an image file.
      choose_box: a pure function (height, width) -> Box.
      out: uint8 (size, size, 3), written to.

    Raises:
      CorruptImage: with the reason.
    """
    try:
        height, width = _jpeg_size(encoded)
        box = choose_box(height, width)
        room = min(box.height, box.width) // len(out)
        shrink = 8 if room >= 8 else 4 if room >= 4 else 2 if room >= 2 else 1
        shortened, height = _first_rows(encoded, box.top + box.height, height)
        smallest = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        quick = {"fastdct": True, "fastupsample": True, "strict": False}
        buffer = _reused_buffer(3 * smallest["min_height"] * smallest["min_width"])
        image = simplejpeg.decode_jpeg(shortened, buffer=buffer, **smallest, **quick)
        box = Box(box.top // shrink, box.left // shrink, box.height // shrink, box.width // shrink)
    except ValueError:
        image = decode(encoded)
        box = choose_box(*image.shape[:2])
    crop_and_resize(image, box, out)


def crop_and_resize(image: np.ndarray, box: Box, out: np.ndarray) -> None:
    """Write the box, resized bilinearly without antialiasing, to `out`, uint8 (size, size, channels)."""
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if out.shape[-1] == 1:  # OpenCV knows no third axis then
        cut, out = cut[..., 0], out[..., 0]
    cv2.resize(cut, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)


def _first_rows(encoded: bytes, rows: int, height: int) -> tuple[bytes, int]:
    """A JPEG of so many rows, where libjpeg will stop, and how many it has: all, if it is progressive.

    Needs `strict=False`, since more data follow.

    Raises:
      ValueError: it ends without an end marker: truncated, maybe above that row.
    """
    if not encoded.endswith(b"\xff\xd9"):
        raise ValueError("no end marker")
    start = 2
    while encoded[start : start + 1] == b"\xff" and encoded[start + 1] != 0xDA:  # until the scan starts
        if encoded[start + 1] == 0xFF:  # a fill byte
            start += 1
        elif encoded[start + 1] in (0xC0, 0xC1):  # a sequential frame: length, precision, height (ITU T.81, B.2.2)
            return encoded[: start + 5] + rows.to_bytes(2, "big") + encoded[start + 7 :], rows
        else:
            start += 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
    return encoded, height


def _reused_buffer(size: int) -> np.ndarray:
    # Fresh memory for every image takes a tenth of the time that decoding does.
    if getattr(_reused, "buffer", _NOTHING).size < size:
        _reused.buffer = np.empty(size, np.uint8)
    return _reused.buffer


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    if colours in ("CMYK", "YCCK") or height * width > _MAX_PIXELS:
        raise ValueError("for Pillow")
    return height, width


@contextlib.contextmanager
def _opened_by_pillow(encoded: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS_OF_PILLOW:
                raise CorruptImage(f"{image.width}x{image.height} pixels are more than {_MAX_PIXELS_OF_PILLOW:,}")
            yield image
    except CorruptImage:
        raise
    except UnidentifiedImageError:
        raise CorruptImage("it is no image of a known format" if encoded else "it is empty") from None
    except Exception as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
        raise CorruptImage(f"{type(error).__name__}: {error}") from None


def _decode_by_pillow(encoded: bytes) -> np.ndarray:
    with _opened_by_pillow(encoded) as image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
