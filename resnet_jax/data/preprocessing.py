"""From an image to model input: one definition for training, evaluation and scripts."""

import dataclasses
import functools
import math
import numbers
import pathlib
import reprlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_jax.data.augment import normalize
from resnet_jax.data.crops import EVALUATION_VIEWS, INTERPOLATIONS
from resnet_jax.data.decode import CorruptImage, decode
from resnet_jax.data.files import read_bytes
from resnet_jax.errors import UserError

MAX_SIDE = 8192  # pixels of images that models take
CHANNEL_ORDERS = ("RGB", "BGR", "L")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A function from images to model input; all fields but the names of classes are plain JSON.

    >>> preprocess = resnet_jax.preprocessing("runs/photos")
    >>> logits = model.apply(variables, preprocess("cat.jpg"), train=False)
    >>> preprocess.class_names[logits.argmax()]

    Attributes:
      size: side of the square that is cut from an image, pixels.
      crop_fraction: share of the resized short side that the central square takes; None for images that are stored in
        one size and taken whole.
      interpolation: a key of `crops.INTERPOLATIONS`.
      channel_order: "RGB", "BGR" (Caffe's), or "L" for grey images; views are RGB or grey, model input has this order.
      mean, std: of each channel in that order, on the scale 0..1.
      mean_image: (size, size, channels) nested lists, subtracted instead of `mean`; or None.
      resize: side that the normalised square is resized to; None for as it is.
      class_names: one name per label, in label order.

    Raises:
      UserError: a value that is none of these.
    """

    size: int
    crop_fraction: float | None
    interpolation: str
    channel_order: str
    mean: Sequence[float]
    std: Sequence[float]
    mean_image: Sequence | None = None
    resize: int | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        sides, fraction = f"a whole number from 1 to {MAX_SIDE}", self.crop_fraction
        _require("size", self.size, is_side(self.size), sides)
        _require("resize", self.resize, self.resize is None or is_side(self.resize), f"None or {sides}")
        is_share = fraction is None or (_is_number(fraction) and 0 < fraction <= 1)
        _require("crop_fraction", fraction, is_share, "None, or more than 0 and at most 1")
        for field, known in (("interpolation", INTERPOLATIONS), ("channel_order", CHANNEL_ORDERS)):
            value = getattr(self, field)
            _require(field, value, isinstance(value, str) and value in known, f"one of {', '.join(known)}")
        channels = len(self.channel_order)
        for field in ("mean", "std"):
            value = getattr(self, field)
            holds = isinstance(value, list | tuple) and len(value) == channels and all(map(_is_number, value))
            _require(field, value, holds, f"{channels} numbers, one for each channel")
        if self.mean_image is not None:
            is_image = np.asarray(self.mean_image, np.float32).shape == self.view_shape
            _require("mean_image", self.mean_image, is_image, f"shape {self.view_shape}")

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the central view."""
        return self.size, self.size, len(self.channel_order)

    def views(self, image: np.ndarray, view: str = "center") -> list[np.ndarray]:
        """uint8 views of an image, uint8 (h, w, 1 or 3), for evaluation.

        Args:
          image: decoded.
          view: a key of `crops.EVALUATION_VIEWS`.

        Raises:
          UserError: another view than "center" of images that are taken whole.
        """
        if view != "center" and self.crop_fraction is None:
            raise UserError(
                f"--view: this model takes images of {self.size} pixels whole; expected center, found {view}"
            )
        if self.crop_fraction is None and image.shape == self.view_shape:
            return [image]
        rgb = image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)
        fraction = self.crop_fraction or 1.0
        views = EVALUATION_VIEWS[view](rgb, size=self.size, crop_fraction=fraction, interpolation=self.interpolation)
        return [_grey(view) for view in views] if self.channel_order == "L" else views

    def center_view(self, image: np.ndarray) -> np.ndarray:
        """The central view alone; see `views`."""
        return self.views(image)[0]

    @functools.cached_property
    def normalize(self):
        """The function from uint8 views, or floats of 0..255, (n, h, w, c) to model input, float32 (traceable)."""
        mean, std = np.float32([[[self.mean]]]), np.float32([[[self.std]]])
        if self.mean_image is not None:
            mean, std = np.float32(self.mean_image)[None], np.float32(1)
        normalized = functools.partial(normalize, mean=mean, std=std, size=self.resize)
        return (lambda images: normalized(images[..., ::-1])) if self.channel_order == "BGR" else normalized

    def __call__(self, images) -> jax.Array:
        """Model input, float32 (n, h, w, c), of one image or several.

        Args:
          images: a path, a PIL image, an array uint8 (h, w), (h, w, c) or (n, h, w, c), or a list of such images.

        Raises:
          UserError: a file that is no image, an array of another dtype or rank.
        """
        if isinstance(images, list | tuple) or isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
            decoded = [_decoded(image) for image in images]
        else:
            decoded = [_decoded(images)]
        if not decoded:
            raise UserError("images: expected at least one, found none")
        return jax.jit(self.normalize)(jnp.asarray(np.stack([self.center_view(image) for image in decoded])))


def mean_image(images: np.ndarray) -> list:
    """The mean of uint8 images (n, h, w, c) on the scale 0..1, as nested lists of float32 values."""
    return np.float32(images.mean(axis=0, dtype=np.float64) / 255).tolist()


def is_side(value: object) -> bool:
    """True for a number of pixels, 1 to `MAX_SIDE`."""
    return isinstance(value, numbers.Integral) and 1 <= value <= MAX_SIDE


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _require(field: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"preprocessing.{field}: expected {expected}, found {reprlib.repr(value)}")


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _decoded(image) -> np.ndarray:
    """uint8 (h, w, 1 or 3)."""
    if isinstance(image, str | pathlib.Path):
        try:
            return decode(read_bytes(pathlib.Path(image).expanduser()))
        except OSError as error:
            raise UserError(f"images: {image} cannot be read: {error.strerror}") from None
        except CorruptImage as error:
            raise UserError(f"images: {image} cannot be decoded: {error}") from None
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
        advice = (
            "floats are normalised already" if image.dtype.kind == "f" else "several images are (n, height, width, c)"
        )
        raise UserError(f"images: expected uint8 (height, width, 1 or 3), found {image.dtype} {image.shape}; {advice}")
    return image
