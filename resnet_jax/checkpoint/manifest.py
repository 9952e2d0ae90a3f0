"""The manifest of a saved step: what it holds, with digests. It is written last, and only a step that has one exists.

Orbax does not checksum arrays: a flipped bit restores as a wrong weight. So a manifest has the SHA-256 of each file.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from resnet_jax.checkpoint.earlier import is_earlier_step, read_meta
from resnet_jax.checkpoint.errors import CorruptCheckpoint, check_format, garbled, mismatch, not_readable
from resnet_jax.errors import UserError
from resnet_jax.workdir import fsync, write_bytes

FORMAT = 3  # of a step; for the others see `earlier`
FILE = "manifest.json"


class Manifest(NamedTuple):
    """The content of a step.

    Attributes:
      step: number of updates; None in format 0.
      metrics: scores on the validation split, or None.
      notes: plain JSON, given to `Checkpoints.save`.
      card: the model card, or None in format 0.
      arrays: `[dtype, shape]` by item and name of an array; None in formats 0 to 2.
      files: `[bytes, SHA-256]` by path below the step; None in formats 0 to 2.
      digests: of formats 0 to 2, SHA-256 of the arrays of each item; otherwise empty.
    """

    step: int | None
    metrics: dict[str, float] | None
    notes: dict
    card: dict | None
    arrays: dict[str, dict[str, list]] | None = None
    files: dict[str, list] | None = None
    digests: Mapping[str, str] = {}


def is_step(path: pathlib.Path) -> bool:
    """True for the folder of a step, of any format."""
    return (path / FILE).is_file() or is_earlier_step(path)


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
    """Describe the files of a folder, whose writing it ends: all of them are on the disk before their manifest is."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in [*files, *(folder for folder in path.rglob("*") if folder.is_dir())]:
        fsync(file)
    described = dict(zip((str(file.relative_to(path)) for file in files), _describe(files), strict=True))
    _write(path, manifest._replace(files=described))


def amend_manifest(path: pathlib.Path, metrics: dict | None, notes: dict, card: dict | None) -> None:
    """Say something else of a step whose arrays stay as they are."""
    _write(path, read_manifest(path)._replace(metrics=metrics, notes=notes, card=card))


def _write(path: pathlib.Path, manifest: Manifest) -> None:
    values = {"format": FORMAT, **manifest._asdict(), "tree": _digest(manifest.arrays)}
    del values["digests"]
    write_bytes(path / FILE, _canonical({**values, "digest": _digest(values)}), durable=True)


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of a step, of any format. Its files are not looked at.

    Raises:
      CorruptCheckpoint: there is none, or it does not match its digest.
      UserError: it may not be read, or was saved by a newer version.
    """
    if not (path / FILE).exists():
        if not is_earlier_step(path):
            raise CorruptCheckpoint(f"checkpoint {path} cannot be read: it has no {FILE}")
        return Manifest(**read_meta(path))
    try:
        content = (path / FILE).read_bytes()
        values = json.loads(content)
        digest = values.pop("digest")
        # Byte by byte, so that no change goes unseen.
        if digest != _digest(values) or content != _canonical({**values, "digest": digest}):
            raise mismatch(path, FILE)
        check_format(values["format"], FORMAT, f"checkpoint {path}")
        fields = {name: values[name] for name in Manifest._fields if name != "digests"}
    except OSError as error:
        raise not_readable(error) from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # ValueError: not text, or not JSON
        raise garbled(path, FILE) from None
    return Manifest(**fields)


def verify_files(path: pathlib.Path, manifest: Manifest, items: Sequence[str] | None = None) -> None:
    """Compare the files of a step with its manifest.

    Args:
      path: folder of the step.
      manifest: manifest to compare with; one of an earlier format lists no files.
      items: names of the items whose files are compared; default: all.

    Raises:
      CorruptCheckpoint: a file is missing, or is not what was saved.
      UserError: a file may not be read.
    """
    listed = manifest.files or {}
    names = [name for name in listed if items is None or "/" not in name or name.split("/")[0] in items]
    try:
        for name in names:
            if (path / name).stat().st_size != listed[name][0]:
                raise mismatch(path, name)
        found = _describe([path / name for name in names])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        missing = pathlib.Path(error.filename).relative_to(path)
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read: it has no {missing}") from None
    except OSError as error:
        raise not_readable(error) from None
    for name, description in zip(names, found, strict=True):
        if description != listed[name]:
            raise mismatch(path, name)


def _describe(files: Sequence[pathlib.Path]) -> list[list]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # hashing gives up the lock of Python
        return list(threads.map(_describe_file, files))


def _describe_file(path: pathlib.Path) -> list:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
