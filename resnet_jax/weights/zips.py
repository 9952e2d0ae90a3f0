"""Zip archives whose entries are checked before any is read; nothing is ever extracted."""

import contextlib
import mmap
import pathlib
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from resnet_jax.weights.checks import check_total, map_file, reading, refuse, short

_MAX_ENTRIES = 100_000  # Python's index of an archive takes ten times the bytes that it has in the file
_ENTRY = b"PK\x01\x02"
_LOCAL = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_ENCRYPTED, _UTF8 = 0x1, 0x800


class Archive(NamedTuple):
    """An open zip archive.

    Attributes:
      zip: archive, to read compressed entries from.
      mapped: whole file.
      starts: offset of the (perhaps compressed) content of each entry, by name.
    """

    zip: zipfile.ZipFile
    mapped: mmap.mmap
    starts: dict[str, int]

    def stored(self, name: str) -> memoryview:
        """The bytes of an entry that is not compressed; a view of the file."""
        start = self.starts[name]
        return memoryview(self.mapped)[start : start + self.zip.getinfo(name).file_size]


@contextlib.contextmanager
def open_archive(path: pathlib.Path) -> Iterator[Archive]:
    """A zip archive whose entries lie apart, within the file, and not out of proportion to it.

    Raises:
      UserError: it is corrupt, or made to harm who unpacks it.
    """
    mapped = map_file(path)
    entries = sum(1 for _ in re.finditer(_ENTRY, mapped))
    if entries > _MAX_ENTRIES:
        raise refuse(path, f"an archive of at most {_MAX_ENTRIES:,} entries", f"{entries:,}")
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        yield Archive(archive, mapped, _checked_starts(path, mapped, archive))


def _checked_starts(path, mapped, archive: zipfile.ZipFile) -> dict[str, int]:
    starts, end = {}, 0
    check_total(path, sum(entry.file_size for entry in archive.infolist()), len(mapped))
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        _check_name(path, entry, starts)
        if entry.flag_bits & _ENCRYPTED:
            raise refuse(path, "an archive without a password", f"the encrypted entry {short(entry.filename)}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(path, "stored or deflated entries", f"compression {entry.compress_type}")
        if entry.header_offset < end:
            raise refuse(path, "entries that lie apart", f"{short(entry.filename)}, which overlaps another")
        signature, name_size, extra_size = _LOCAL.unpack_from(mapped, entry.header_offset)
        name_end = entry.header_offset + _LOCAL.size + name_size
        start = name_end + extra_size
        end = start + entry.compress_size
        if signature != b"PK\x03\x04" or end > archive.start_dir:
            raise refuse(path, "whole entries", f"{short(entry.filename)} cut off", "get the file again")
        local_name = mapped[entry.header_offset + _LOCAL.size : name_end]
        if local_name != entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437"):
            raise refuse(path, f"the entry {short(entry.filename)}", f"{short(local_name)} in its place")
        starts[entry.filename] = start
    return starts


def _check_name(path, entry, others) -> None:
    name = entry.orig_filename
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise refuse(path, "names inside the archive", f"{short(name)}; nothing was extracted")
    if entry.filename in others:
        raise refuse(path, "one entry of each name", f"{short(name)} twice")
