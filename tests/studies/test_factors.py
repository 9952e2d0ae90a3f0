"""What a study varies, against a search through all pairs of cells."""

import itertools

import pytest

from resnet_jax.studies.factors import lines_along, pairs

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


def test_nothing_varied_gives_no_pairs():
    assert pairs({}, {}) == []


def test_lines_along_a_key_join_cells_that_are_alike_in_all_others():
    found = lines_along(varied(GRID), "lr")
    assert list(found) == [f"norm={norm}, depth={depth}" for norm in VALUES["norm"] for depth in VALUES["depth"]]
    for label, line in found.items():
        cells = [GRID[int(name)] for name in line]
        assert list(line.values()) == [cell["lr"] for cell in cells] == [0.1, 0.2, 0.4]
        assert {f"norm={cell['norm']}, depth={cell['depth']}" for cell in cells} == {label}
