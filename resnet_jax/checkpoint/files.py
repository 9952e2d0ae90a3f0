"""One saved step on the disk: arrays by name, and JSON with their digests.

Orbax does not checksum arrays: a flipped bit restores as a wrong weight. So each step carries SHA-256 digests of its
arrays, and one that does not match is refused.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.errors import UserError

FORMAT = 1  # of a step; 0 had no card. A fixture of each lies in tests/golden
META = "meta"


class CorruptCheckpoint(UserError):
    """A checkpoint that cannot be read, or that does not hold what was saved."""


def is_step(path: pathlib.Path) -> bool:
    """True for the folder of a committed step."""
    return (path / META).is_dir()


def describe(trees: Mapping[str, object], notes: dict, card: dict | None) -> tuple[dict[str, dict], dict]:
    """Arrays by item and name, on the host, and the JSON object that is saved beside them."""
    items = {name: _to_host(tree) for name, tree in trees.items()}
    digests = {name: digest(arrays) for name, arrays in items.items()}
    meta = {"format": FORMAT, "notes": notes, "card": card}
    return items, {**meta, "digests": {**digests, "notes": _text_digest(notes), "card": _text_digest(card)}}


def read_step(path: pathlib.Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, np.ndarray]], dict, dict | None]:
    """(arrays by item and name, notes, card or None) of a saved step, wherever its folder lies.

    Raises:
      CorruptCheckpoint: it cannot be read, or does not match its digests.
      UserError: it was saved by a newer version.
    """
    arguments = {name: ocp.args.StandardRestore() for name in names}
    try:
        with orbax_warnings_silenced(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                path.absolute(), args=ocp.args.Composite(**{META: ocp.args.JsonRestore()}, **arguments)
            )
        items = {name: restored[name] for name in names}
        meta = restored[META]
        digests, notes, card = meta["digests"], meta["notes"], meta.get("card")
    except (MemoryError, PermissionError):  # not corrupt
        raise
    except Exception as error:  # whatever Orbax and its storage say about a broken file
        raise CorruptCheckpoint(f"checkpoint {path} cannot be read ({type(error).__name__})") from error
    check_format(meta.get("format", 0), FORMAT, f"checkpoint {path}")
    found = {name: digest(arrays) for name, arrays in items.items()} | {"notes": _text_digest(notes)}
    if "card" in digests:
        found["card"] = _text_digest(card)
    for name in found:
        if found[name] != digests.get(name):
            raise CorruptCheckpoint(
                f"checkpoint {path} is corrupt: its {name} does not match the digest it was saved with"
            )
    return items, notes, card


def check_format(found: object, known: int, where: object) -> None:
    """Refuse the number of a format that this version does not know.

    Raises:
      UserError: it is higher, or no number.
    """
    if not isinstance(found, int) or found > known:
        raise UserError(
            f"{where}: expected format {known} or lower, found {found}; update resnet_jax, or mend the file"
        )


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
def orbax_warnings_silenced():
    """Silence Orbax's warnings of what is meant here: folders opened read-only, saves without metrics."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
