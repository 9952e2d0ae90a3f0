"""Helpers for tests of reports: study folders that are written by hand."""

import functools
import json
import math
import re

import numpy as np

from resnet_jax.studies.study import cell, run_folder

# Training and test error of the last weights, percent, of seeds 0, 1, 2.
ERRORS = {
    "plain20": ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
    "plain56": ([80.0, 82.0, 84.0], [81.0, 82.0, 86.0]),
    "resnet20": ([1.0, 2.0, 3.0], [3.0, 3.5, 4.0]),
    "resnet56": ([2.0, 2.5, 4.5], [3.5, 3.0, 4.5]),
}


def make_cells(names=ERRORS):
    return [cell(name, {"model.name": name}, "plain" if "plain" in name else "residual") for name in names]


def write_run(workdir, one_cell, seed, train_error, test_error, depth, **diagnosed):
    """A finished run: 3 points a curve that end at these errors, and 2 looks at 1 + 2 layers in 2 blocks."""
    folder = run_folder(workdir, one_cell, seed)
    folder.mkdir(parents=True)
    lines = [layers_line(0, seed)]
    for step in (10, 20, 30):
        for split, error in (("train", train_error), ("validation", test_error), ("test", test_error)):
            accuracy = 1 - (error + 30 - step) / 200 if step < 30 else 1 - error / 100
            scores = {"loss": 2 - accuracy, "accuracy": accuracy, "top5": 1.0, "learning_rate": 0.1}
            lines.append({"step": step, "epoch": step / 10, "split": split, **scores})
    lines.append(layers_line(30, seed))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = {line["split"]: {"accuracy": line["accuracy"]} for line in lines[-4:-1]}
    result = {
        "completed": True,
        "depth": depth,
        "parameters": 1000 * depth,
        "multiply_adds": 2_000_000 * depth,
        "seconds": 60.0 + 10 * seed,
        "last": {"step": 30, **last},
        "best": {"step": 20, **last, "test": {"accuracy": last["test"]["accuracy"] - 0.01}},
        **diagnosed,
    }
    (folder / "result.json").write_text(json.dumps(result))


def layers_line(step, seed):
    norms = ("bn1", "stage1_block1/bn1", "stage1_block2/bn1")
    return {
        "step": step,
        "epoch": step / 10,
        "split": "layers",
        "response_std": dict(zip(norms, (0.5 + seed, 3.0, 1.0), strict=True)),
        "grad_norm": {"conv1": 9.0, "stage1_block1": 0.1 + step, "stage1_block2": 0.2 + step, "fc": 9.0},
        "branch_to_skip": {"stage1_block1": 0.5, "stage1_block2": 0.25},
        "norm_scale": dict(zip(norms, (1.0, 0.9, 0.8), strict=True)),
    }


DIAGNOSED = {
    "lesions": {
        "accuracy": 0.9,
        "removed": {"stage1_block1": 0.5, "stage1_block2": 0.8},
        "swapped": {"stage1_block1, stage1_block2": 0.7},
    },
    "batch_statistics": {"running": {"accuracy": 0.9}, "precise": {"accuracy": 0.92}},
}


def table_rows(text):
    """The rows of the table of results, each as {column: cell}."""
    table = text.split("## Results\n\n")[1].split("\n\n")[0].split("\n")
    cells = functools.partial(re.split, r"(?<!\\)\|")  # not the escaped ones
    rows = [[part.strip() for part in cells(line.strip("|"))] for line in (table[0], *table[2:])]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def table_row(text, name):
    """The row of one cell."""
    return next(row for row in table_rows(text) if row["cell"] == name)


def screen_rows(screen):
    """The rows of the first table on a screen, as lists of cells."""
    lines = screen.split("└")[0].splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def p_of_three(differences):
    """Two-sided p of a t-test with 2 degrees of freedom, whose distribution has a closed form."""
    t = np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(3))
    return 1 - abs(t) / math.sqrt(2 + t**2)
