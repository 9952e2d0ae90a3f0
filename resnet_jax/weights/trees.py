"""Names of the same weights here and in another library, and the one strict function that follows them."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import UserError

HEAD = "fc"  # the layer whose size is the number of classes
Flat = dict[str, np.ndarray]  # variables by their path, like "params/stage1_block1/conv1/kernel"


class Layout(NamedTuple):
    """Axes of an array in another library: functions from theirs to ours and back, views where possible."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


AS_IS = Layout(lambda x: x, lambda x: x)
OIHW = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)


class Place(NamedTuple):
    """An array's name in another library, and its layout there."""

    name: str
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of layers and arrays in another library.

    Attributes:
      block: beginning of the names in a block, a format with the fields `stage` and `block` (counted from 1), `stage0`
        and `block0` (from 0), `next_stage` (from 2) and `number0` (of the block in the whole net, from 0).
      in_block: their names of a block's layers, by ours.
      outside: their names of the layers of stem and head, by ours.
      leaves: their names of a layer's arrays, and the layouts, by ours: "kernel4" and "kernel2" (by rank), "bias", and
        of norms "scale", "shift", "mean", "var".
      layouts: layouts of single arrays that lie otherwise, by their names.
      ignored: regular expression of the names of arrays that hold no weights.
    """

    block: str
    in_block: Mapping[str, str]
    outside: Mapping[str, str]
    leaves: Mapping[str, tuple[str, Layout]]
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    ignored: str = r"$^"

    def places(self, model, shapes: Mapping) -> dict[str, Place]:
        """Place of each variable of a model, by its path.

        Args:
          model: network.
          shapes: its variables or their shapes.

        Raises:
          UserError: a layer that the other library does not have.
        """
        blocks = dict(_blocks(model))
        return {path: self._place(path, len(leaf.shape), blocks) for path, leaf in flatten(shapes).items()}

    def blocks(self, model, names: Iterable[str]) -> dict[str, str]:
        """Their names of blocks, or of layers of stem and head, by ours."""
        fields = dict(_blocks(model))
        return {
            name: self.block.format(**fields[name]).rstrip("._/") if name in fields else self.outside[name]
            for name in names
        }

    def _place(self, path: str, rank: int, blocks: Mapping[str, dict]) -> Place:
        _, first, *rest = path.split("/")
        *inner, leaf = rest
        layer = "/".join(inner) if first in blocks else "/".join((first, *inner))
        layers = self.in_block if first in blocks else self.outside
        key = f"{leaf}{rank}" if leaf == "kernel" else leaf
        if leaf == "bias" and re.search(r"bn(\d|_last)?$", layer):
            key = "shift"
        if layer not in layers or key not in self.leaves:
            raise UserError(f"{path}: expected a layer that this library has, found one of ours alone; keep our names")
        beginning = self.block.format(**blocks[first]) if first in blocks else ""
        suffix, layout = self.leaves[key]
        name = f"{beginning}{layers[layer]}{suffix}"
        return Place(name, self.layouts.get(name, layout))


def flatten(variables: Mapping) -> Flat:
    """Variables by path."""
    return traverse_util.flatten_dict(variables, sep="/")


def unflatten(flat: Flat) -> dict:
    """The tree of variables by path, {"params", "batch_stats"}; the second may be empty."""
    return {"batch_stats": {}, **traverse_util.unflatten_dict(flat, sep="/")}


def to_ours(arrays: Flat, places: Mapping[str, Place], shapes: Mapping, where: object, ignored: str = r"$^") -> Flat:
    """Arrays of another library as our variables, by path, if they fit.

    Args:
      arrays: theirs by name.
      places: places of our variables, by path.
      shapes: ours, or their shapes.
      where: file, for errors.
      ignored: regular expression of the names of arrays that hold no weights.

    Raises:
      UserError: some are left over, missing, of another shape, or no finite numbers; both sides are listed.
    """
    expected = flatten(shapes)
    names = {place.name: path for path, place in places.items()}
    left_over = [name for name in arrays if name not in names and not re.search(ignored, name)]
    missing = [name for name in names if name not in arrays]
    found, other, no_weights = {}, [], []
    for name, path in names.items():
        if name in arrays:
            shape = expected[path].shape
            try:
                found[path] = places[path].layout.to_ours(arrays[name])
            except (ValueError, IndexError):  # of another rank
                found[path] = arrays[name]
            if found[path].shape != shape:
                other.append(f"{name} {arrays[name].shape} for {path} {shape}")
            elif not (jnp.issubdtype(found[path].dtype, jnp.floating) and np.isfinite(found[path]).all()):
                no_weights.append(f"{name} {found[path].dtype}")
    problems = {
        "missing": missing,
        "left over": left_over,
        "of another shape": other,
        "not of finite floating-point numbers": no_weights,
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise UserError(
            f"{where}: expected the {len(names)} arrays of this model, found {len(arrays)}, of which "
            f"{len(found) - len(other) - len(no_weights)} fit; {listed}"
        )
    return found


def check_fit(flat: Flat, shapes: Mapping, where: object) -> Flat:
    """Arrays under our names, if nothing is left over, missing, of another shape, or no weight; see `to_ours`."""
    return to_ours(flat, {path: Place(path, AS_IS) for path in flatten(shapes)}, shapes, where)


def to_theirs(flat: Flat, places: Mapping[str, Place]) -> Flat:
    """Our variables under the names, and with the layouts, of another library."""
    return {place.name: np.ascontiguousarray(place.layout.to_theirs(flat[path])) for path, place in places.items()}


def _blocks(model) -> Iterator[tuple[str, dict]]:
    number = 0
    for stage, names in enumerate(getattr(model, "stages", ())):
        for block, name in enumerate(names):
            counted = {"stage": stage + 1, "stage0": stage, "next_stage": stage + 2, "number0": number}
            yield name, {**counted, "block": block + 1, "block0": block}
            number += 1


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
