"""What a study varies, against a search through all pairs of cells."""

import itertools
import json
import pathlib

import pytest

from resnet_jax.config import default
from resnet_jax.config.stored import upgrade
from resnet_jax.studies.factors import baseline_values, lines_along, pairs, varied_values
from resnet_jax.studies.study import StudyRun, cell, make_study, run_config

VALUES = {"lr": (0.1, 0.2, 0.4), "norm": ("batch", "group"), "depth": (20, 56)}
GRID = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]


def varied(cells):
    return {key: {str(index): values[key] for index, values in enumerate(cells)} for key in VALUES}


@pytest.mark.parametrize(
    "baseline", [{"lr": 0.2, "norm": "batch", "depth": 20}, {"lr": 0.4, "norm": "group", "depth": 56}]
)
@pytest.mark.parametrize("left_out", [0, 5])
def test_all_pairs_of_one_key_and_the_baseline_are_found_and_no_others(baseline, left_out):
    cells = GRID[left_out:]
    expected = set()
    for (one, a), (two, b) in itertools.permutations(enumerate(cells), 2):
        different = [key for key in VALUES if a[key] != b[key]]
        if len(different) == 1 and b[different[0]] == baseline[different[0]]:
            expected.add((str(one), str(two), different[0]))
    found = pairs(varied(cells), baseline)
    assert {(pair.name, pair.baseline, *pair.keys) for pair in found} == expected
    assert len(found) == len(expected)


def test_a_cell_without_a_partner_is_compared_with_the_baseline_cell():
    cells = [GRID[0], {"lr": 0.4, "norm": "group", "depth": 56}]
    assert [tuple(pair) for pair in pairs(varied(cells), GRID[0])] == [("1", "0", ("lr", "norm", "depth"))]


def test_cells_without_a_baseline_partner_are_compared_with_each_other_where_they_differ_in_one_key():
    cells = {"lr": {"a": 0.5, "b": 0.6, "c": 0.7}, "momentum": {"a": 0.5, "b": 0.6, "c": 0.6}}
    found = {tuple(pair) for pair in pairs(cells, {"lr": 0.5, "momentum": 0.5})}
    assert found == {("b", "a", ("lr", "momentum")), ("c", "a", ("lr", "momentum")), ("c", "b", ("lr",))}


def test_values_that_are_lists_of_pairs_can_be_compared_and_drawn():
    experiment = default.get_config()
    experiment.data.loader = "stream"
    cells = [cell(str(sizes), {"augment.sizes": sizes}) for sizes in ((), ((0.0, 8), (0.5, 16)), ((0.0, 4),))]
    study = make_study("Sizes", experiment, cells, seeds=(0,))
    stored = upgrade(json.loads(experiment.to_json()))  # as read from a file
    runs = {each["name"]: collect_one(study, each, stored) for each in study.cells}
    values = varied_values(runs)["augment.sizes"]
    assert len(set(values.values())) == 3  # hashable, and told apart
    assert baseline_values(varied_values(runs), experiment) == {"augment.sizes": ()}


def collect_one(study, each, experiment):
    config = run_config(make_study("x", experiment, study.cells), json.loads(json.dumps(each)), 0)
    return [StudyRun(each, 0, config, pathlib.Path(), None, "")]


def test_nothing_varied_gives_no_pairs():
    assert pairs({}, {}) == []


def test_lines_along_a_key_join_cells_that_are_alike_in_all_others():
    found = lines_along(varied(GRID), "lr")
    assert list(found) == [f"norm={norm}, depth={depth}" for norm in VALUES["norm"] for depth in VALUES["depth"]]
    for label, line in found.items():
        cells = [GRID[int(name)] for name in line]
        assert list(line.values()) == [cell["lr"] for cell in cells] == [0.1, 0.2, 0.4]
        assert {f"norm={cell['norm']}, depth={cell['depth']}" for cell in cells} == {label}
