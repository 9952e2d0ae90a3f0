"""Image files of a data set, and their bytes: regular files of a sane size, and nothing that may hang."""

import os
import pathlib
import stat
from collections.abc import Callable, Iterator

from PIL import Image

# Pillow reads these, each by a decoder in its own process: an EPS file, say, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
MAX_FILE_BYTES = 2**28
Image.init()
IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))
# Left in folders and archives by macOS and by file servers; names that begin with a dot are left out, too.
_NOT_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")


def is_data(name: str) -> bool:
    """False for the name of a file or folder that is none of the user's: hidden, or left behind by a system."""
    return not name.startswith(".") and name not in _NOT_DATA


def is_image(name: str) -> bool:
    """True if the suffix is one of `IMAGE_SUFFIXES`, in any case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def walk(
    folder: str | pathlib.Path, seen: set[tuple[int, int]], on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """(path, files) of a folder and of all below it, sorted; each real folder once, though links lead to it.

    Files are all but folders: links that lead nowhere and pipes, too.

    Args:
      folder: where to begin.
      seen: device and inode of the folders that were walked before; added to.
      on_error: called with the error of each folder that cannot be read, which is left out; None to raise it.

    Raises:
      OSError: a folder cannot be read.
    """
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if is_data(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    yield str(folder), [entry for entry in found if not entry.is_dir()]
    for entry in found:
        if entry.is_dir():
            yield from walk(entry.path, seen, on_error)


def read_bytes(path: str | pathlib.Path, offset: int = 0, size: int | None = None) -> bytes:
    """A file, or a part of it.

    Raises:
      OSError: it cannot be read, is no regular file (a pipe may never answer, a device never end), or is larger than
        `MAX_FILE_BYTES`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # not kept open: there may be thousands
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file", str(path))
        size = status.st_size - offset if size is None else size
        if size > MAX_FILE_BYTES:
            raise OSError(0, f"{size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read", str(path))
        file.seek(offset)
        return file.read(size)
