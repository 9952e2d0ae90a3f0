"""Image files that a command names: found one by one, read and decoded by threads, given in order."""

import collections
import concurrent.futures
import contextlib
import glob
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.data.decode import CorruptImage, decode, read_size
from resnet_jax.data.files import is_image, read_bytes, walk
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.environment import num_cpus

# Pillow and OpenCV need 3 bytes for each pixel of a decoded image, and 4 more to resize it.
MAX_PIXELS = 2**26
_PIXELS_PER_THREAD = 2**24  # on average; threads wait for each other where images are larger
# Of the longer side to the shorter, which is resized first: one pixel in 65,000 would become 256 in 16 million.
MAX_ASPECT_RATIO = 100


class Found(NamedTuple):
    """A file that may be an image.

    Attributes:
      path: path as it was given or found.
      problem: what is wrong with it; "" if nothing is known to be.
    """

    path: str
    problem: str = ""


class View(NamedTuple):
    """An image as the model sees it, or the reason why it does not.

    Attributes:
      path: path as it was given or found.
      pixels: uint8 (size, size, channels); None if there is a problem.
      problem: why the image cannot be read; "" if it can.
    """

    path: str
    pixels: np.ndarray | None
    problem: str = ""


def find_images(names: Sequence[str]) -> Iterator[Found]:
    """The images that names stand for, in the order of the names.

    Only the entries of one folder, or the files that match one pattern, are in memory at a time.

    Args:
      names: each a file, whatever its suffix; a folder, of which the files with an image's suffix are taken, in
        subfolders, too, sorted, but no hidden ones; or a pattern (`*`, `?`, `[...]`, `**` for any folders) of such.
    """
    for name in map(os.path.expanduser, names):
        if os.path.lexists(name) or not glob.has_magic(name):
            yield from _images_at(name)
            continue
        matches = sorted(glob.iglob(name, recursive=True))
        if "**" in name:  # the files of the folders that it matches are matches themselves
            matches = [match for match in matches if not os.path.isdir(match)]
        if not matches:
            yield Found(name, "no file matches")
        for match in matches:
            yield from _images_at(match)


def _images_at(path: str) -> Iterator[Found]:
    if not os.path.isdir(path):
        yield Found(path, "" if os.path.exists(path) else "no such file")
        return
    is_empty, errors = True, []
    for _, files in walk(path, set(), errors.append):
        for file in files:
            if is_image(file.name):
                is_empty = False
                yield Found(file.path)
    yield from (Found(str(error.filename), error.strerror) for error in errors)
    if is_empty and not errors:
        yield Found(path, "the folder has no images")


def read_views(found: Iterable[Found], preprocessing: Preprocessing, ahead: int) -> Iterator[View]:
    """The central views of images, in the order of the files, made by a thread for each CPU.

    Args:
      found: the files.
      preprocessing: makes the views; images that it would need much memory for are a problem, too: those of more than
        `MAX_PIXELS` pixels, and those with one side more than `MAX_ASPECT_RATIO` times as long as the other.
      ahead: how many views are made before they are asked for.
    """
    pixels = _Allowance(num_cpus() * _PIXELS_PER_THREAD)

    def read(file: Found) -> View:
        if file.problem:
            return View(file.path, None, file.problem)
        try:
            encoded = read_bytes(file.path)
            height, width = read_size(encoded)
            _check_size(height, width)
            with pixels.take(height * width):
                return View(file.path, preprocessing.center_view(decode(encoded)))
        except CorruptImage as error:
            return View(file.path, None, str(error))
        except OSError as error:
            return View(file.path, None, error.strerror or str(error))

    with concurrent.futures.ThreadPoolExecutor(num_cpus()) as threads:
        waiting = collections.deque()
        try:
            for file in found:
                waiting.append(threads.submit(read, file))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise CorruptImage(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise CorruptImage(f"{width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")


class _Allowance:
    """An amount that threads share: one that wants more than is left waits."""

    def __init__(self, amount: int):
        self._amount, self._left, self._given_back = amount, amount, threading.Condition()

    @contextlib.contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Hold `wanted`, or all if it is more, until the end of the block."""
        wanted = min(wanted, self._amount)
        with self._given_back:
            self._given_back.wait_for(lambda: wanted <= self._left)
            self._left -= wanted
        try:
            yield
        finally:
            with self._given_back:
                self._left += wanted
                self._given_back.notify_all()
