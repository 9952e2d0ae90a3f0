"""The keys that a study varies, and the cells that differ in one of them alone."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections

from resnet_jax.config.stored import flatten
from resnet_jax.studies.study import StudyRun


class Pair(NamedTuple):
    """Two cells that are compared.

    Attributes:
      name, baseline: names of the cells.
      keys: config keys that they differ in.
    """

    name: str
    baseline: str
    keys: tuple[str, ...]


def varied_values(cells: Mapping[str, Sequence[StudyRun]]) -> dict[str, dict[str, object]]:
    """Values of the config keys that differ between cells: by key, then by cell.

    Args:
      cells: runs by name of cell, in the order of the grid.
    """
    keys = dict.fromkeys(key for runs in cells.values() for key in runs[0].cell["overrides"])
    configs = {name: flatten(runs[0].config) for name, runs in cells.items()}
    values = {key: {name: config[key] for name, config in configs.items()} for key in keys}
    return {key: by_cell for key, by_cell in values.items() if len(set(map(repr, by_cell.values()))) > 1}


def baseline_values(
    varied: Mapping[str, Mapping[str, object]], experiment: ml_collections.ConfigDict
) -> dict[str, object]:
    """For each varied key its value in the experiment, or in the first cell if no cell has that."""
    found = flatten(experiment)
    return {
        key: found[key] if found[key] in by_cell.values() else next(iter(by_cell.values()))
        for key, by_cell in varied.items()
    }


def pairs(varied: Mapping[str, Mapping[str, object]], baseline: Mapping[str, object]) -> list[Pair]:
    """Each cell with those that differ from it in one key alone, which has its baseline value there.

    Cells without such a partner are compared with the cell that has most baseline values, and with each other where
    they differ in one key.

    >>> pairs({"lr": {"a": 0.1, "b": 0.2}}, {"lr": 0.1})
    [Pair(name='b', baseline='a', keys=('lr',))]
    """
    names = list(next(iter(varied.values()), ()))
    cells = {name: {key: by_cell[name] for key, by_cell in varied.items()} for name in names}
    by_values = {repr(values): name for name, values in reversed(cells.items())}
    alone, found = dict.fromkeys(names), []
    for key, value in baseline.items():
        for name, own in cells.items():
            partner = by_values.get(repr({**own, key: value}))
            if own[key] != value and partner:
                found.append(Pair(name, partner, (key,)))
                alone.pop(name, None)
                alone.pop(partner, None)
    first = max(names, key=lambda name: sum(cells[name][key] == baseline[key] for key in baseline), default=None)
    alone.pop(first, None)

    def differing(name, other):
        return tuple(key for key in baseline if cells[name][key] != cells[other][key])

    found += [Pair(name, first, keys) for name in alone if (keys := differing(name, first))]
    neighbours = [(name, other) for other, name in itertools.combinations(alone, 2)]
    return found + [Pair(*both, keys) for both in neighbours if len(keys := differing(*both)) == 1]


def lines_along(varied: Mapping[str, Mapping[str, object]], key: str) -> dict[str, dict[str, object]]:
    """Values of a key by cell, for each group of cells that are alike in all others; groups of one are left out."""
    groups = {}
    for name, value in varied[key].items():
        others = ", ".join(f"{other}={by_cell[name]}" for other, by_cell in varied.items() if other != key)
        groups.setdefault(others, {})[name] = value
    return {label: group for label, group in groups.items() if len(group) > 1}
