"""One saved step on the disk: arrays by name, and JSON with their digests.

Orbax does not checksum arrays: a flipped bit restores as a wrong weight. So each step carries SHA-256 digests of its
arrays, and one that does not match is refused.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.errors import DivergedError, UserError
from resnet_jax.workdir import path_for_orbax

FORMAT = 2  # of a step; 0 had no card, 1 kept its metrics outside the digests. A fixture of each lies in tests/golden
META = "meta"
_FILE = pathlib.Path(META) / "metadata"  # where Orbax writes JSON


class CorruptCheckpoint(UserError):
    """A checkpoint that cannot be read, or that does not hold what was saved."""


class Meta(NamedTuple):
    """The JSON beside the arrays of a step.

    Attributes:
      step: number of updates; None in format 0.
      metrics: scores on the validation split, or None.
      notes: what `Checkpoints.save` was given.
      card: the model card, or None in format 0.
      digests: SHA-256 by name of a tree.
    """

    step: int | None
    metrics: dict[str, float] | None
    notes: dict
    card: dict | None
    digests: dict[str, str]


def is_step(path: pathlib.Path) -> bool:
    """True for the folder of a committed step."""
    return (path / META).is_dir()


def describe(
    step: int, trees: Mapping[str, object], metrics: dict | None, notes: dict, card: dict | None
) -> tuple[dict[str, dict], dict]:
    """Arrays by item and name, on the host, and the JSON object that is saved beside them.

    Raises:
      DivergedError: a number is not finite.
    """
    items = {name: _to_host(tree) for name, tree in trees.items()}
    for item, arrays in items.items():
        for name, array in arrays.items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                raise DivergedError(f"{item} {name} is not finite after step {step}, so that step is not saved")
    digests = {name: digest(arrays) for name, arrays in items.items()}
    values = {"format": FORMAT, "step": step, "metrics": metrics, "notes": notes, "card": card, "digests": digests}
    return items, {**values, "digest": _text_digest(values)}


def read_meta(path: pathlib.Path) -> Meta:
    """The JSON of a saved step, wherever its folder lies.

    Raises:
      CorruptCheckpoint: it is not there, or does not match its digests.
      UserError: it may not be read, or was saved by a newer version.
    """
    try:
        stored = json.loads((path / _FILE).read_text())
        version = check_format(stored.get("format", 0), FORMAT, f"checkpoint {path}")
        digests, notes, card = dict(stored["digests"]), stored["notes"], stored.get("card")
        if version >= 2:
            found = {META: stored.pop("digest")}
            expected = {META: _text_digest(stored)}
            step, metrics = stored["step"], stored["metrics"]
        else:
            found = digests
            expected = {"notes": _text_digest(notes), **({"card": _text_digest(card)} if version else {})}
            source = (card or {}).get("source", {})
            step = source.get("step")
            metrics = source.get("metrics") if version else _metrics_of_format_0(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read: it has no {_FILE}") from None
    except OSError as error:
        raise _not_readable(error) from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):  # ValueError: not text, or not JSON
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read: its {_FILE} is garbled") from None
    for name, value in expected.items():
        if found.get(name) != value:
            raise _mismatch(path, name)
    return Meta(step, metrics, notes, card, digests)


def read_step(path: pathlib.Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, np.ndarray]], Meta]:
    """(arrays by item and name, the JSON beside them) of a saved step, wherever its folder lies.

    Raises:
      CorruptCheckpoint: it cannot be read, or does not match its digests.
      UserError: it may not be read, or was saved by a newer version.
    """
    meta = read_meta(path)
    arguments = {name: ocp.args.StandardRestore() for name in names}
    try:
        with (
            orbax_logs_silenced(),
            path_for_orbax(path.absolute()) as folder,
            ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
        ):
            restored = checkpointer.restore(folder, args=ocp.args.Composite(**arguments)) if names else {}
        items = {name: restored[name] for name in names}
        found = {name: digest(arrays) for name, arrays in items.items()}
    except MemoryError:  # not corrupt
        raise
    except Exception as error:  # whatever Orbax and its storage say about a broken file
        _check_readable(path)
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read ({type(error).__name__})") from error
    for name in names:
        if found[name] != meta.digests.get(name):
            raise _mismatch(path, name)
    return items, meta


def _mismatch(path, name) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"checkpoint {path} is corrupt: its {name} does not match the digest it was saved with")


def _metrics_of_format_0(path) -> dict | None:
    try:
        return dict(json.loads((path / "metrics" / "metrics").read_text()))
    except (OSError, ValueError, TypeError):  # there were none, or they are garbled: then it is not the best
        return None


def _check_readable(path: pathlib.Path) -> None:
    """Raise `UserError` if a file below cannot be opened: then nothing is known of what it holds."""

    def refuse(error):
        raise error

    try:
        for folder, _, files in os.walk(path, onerror=refuse):
            for name in files:
                os.close(os.open(os.path.join(folder, name), os.O_RDONLY))
    except OSError as error:
        raise _not_readable(error) from None


def _not_readable(error: OSError) -> UserError:
    return UserError(f"checkpoint: {error.filename} cannot be read: {error.strerror}; nothing was changed")


def check_format(found: object, known: int, where: object) -> int:
    """The number of a format, if this version knows it.

    Raises:
      UserError: it is higher, or no number.
    """
    if not isinstance(found, int) or found > known:
        raise UserError(
            f"{where}: expected format {known} or lower, found {found}; update resnet_jax, or mend the file"
        )
    return found


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    result = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        result.update(f"{name} {array.dtype} {array.shape}\n".encode())
        result.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.ndim else array.tobytes())
    return result.hexdigest()


def _text_digest(value: dict | None) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# The names are not those of flax.traverse_util: states of optimizers are no dicts.
def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _to_host(tree) -> dict[str, np.ndarray]:
    # A copy: on CPU the host's view of an array is the device's memory, which the next step asks to be given.
    return {_name(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(template, arrays: Mapping[str, np.ndarray], path: pathlib.Path):
    """The arrays in the structure of a tree of shapes and dtypes.

    Raises:
      UserError: names, shapes or dtypes differ; both sides are listed.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    expected = {_name(key): (leaf.shape, leaf.dtype) for key, leaf in paths}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if expected != found:
        names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        listing = "\n".join(
            f"  {name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
            for name in names[:10]
        )
        raise UserError(f"checkpoint {path} does not fit this model; {len(names)} arrays differ:\n{listing}")
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in expected])


@contextlib.contextmanager
def orbax_logs_silenced():
    """Silence Orbax's logs: of what is meant here, and of errors that it raises, too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
