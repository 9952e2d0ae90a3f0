"""Pictures of class activation maps over the images that they are of."""

import hashlib
import os
import pathlib

import cv2
import numpy as np
from PIL import Image

from resnet_jax.commands import writing_file
from resnet_jax.workdir import file_name, local_path

_SMALLEST = 224  # pixels of a side: digits of 8x8 are enlarged until people see something
_LONGEST_NAME = 80  # characters; file systems take 255 bytes


def overlay(view: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The map in colours, half transparent over the image: from blue, where it is 0 or less, to red at its maximum.

    Args:
      view: uint8 (height, width, 1 or 3), what the model saw.
      heat: float (h, w), its map, which is resized bilinearly.

    Returns:
      uint8 (height, width, 3), RGB; a multiple of the size of views smaller than 224 pixels.
    """
    scale = -(-_SMALLEST // min(view.shape[:2]))
    large = view.repeat(scale, axis=0).repeat(scale, axis=1)
    positive = np.maximum(heat, 0)
    share = np.float32(positive / max(positive.max(), np.finfo(np.float32).tiny))
    share = cv2.resize(share, large.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.uint8(np.rint(255 * share)), cv2.COLORMAP_JET)[..., ::-1]  # OpenCV's are BGR
    return ((large.astype(np.uint16) + colours + 1) // 2).astype(np.uint8)


def overlay_folder(path: str) -> pathlib.Path:
    """The folder for overlays, made if it is not there.

    Raises:
      UserError: it cannot be made.
    """
    folder = local_path(path)
    with writing_file(folder, "--cam"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def overlay_file(folder: pathlib.Path, image: str) -> pathlib.Path:
    """A file in the folder for the overlay of an image, another one for each path: NAME-DIGITS.png."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(image))).hexdigest()[:16]
    return folder / f"{file_name(pathlib.Path(image).stem)[:_LONGEST_NAME]}-{digest}.png"


def write_overlay(file: pathlib.Path, view: np.ndarray, heat: np.ndarray) -> None:
    """Write an `overlay` as PNG.

    Raises:
      UserError: the file cannot be written.
    """
    with writing_file(file, "--cam"):
        Image.fromarray(overlay(view, heat)).save(file)
