"""A study: an experiment, the cells that vary it, and the seeds that each cell is run with.

Its folder holds `config.json` (the study), `results.jsonl` (a line for each finished run) and
`cells/NAME/seedN/` (the folders of the runs).
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import ml_collections
from ml_collections.config_dict import placeholder

from resnet_jax.config.checks import check_config
from resnet_jax.config.flags import is_study, resolve_length
from resnet_jax.config.stored import read_config
from resnet_jax.errors import UserError, did_you_mean
from resnet_jax.training.logs import read_metrics
from resnet_jax.workdir import file_name, read_result


def make_study(
    title: str,
    experiment: ml_collections.ConfigDict,
    cells: Iterable[Mapping],
    seeds: Sequence[int] = (0, 1, 2),
) -> ml_collections.ConfigDict:
    """The config of a study, locked.

    Args:
      title: heading of the report.
      experiment: config that all cells vary.
      cells: cells from `cell` or `grid`.
      seeds: every cell is run with each.
    """
    study = ml_collections.ConfigDict()
    study.title = title
    study.experiment = experiment
    study.cells = tuple(cells)
    study.seeds = tuple(seeds)
    study.replicas = placeholder(int)  # runs in one program, alike but for seed and rate; default: see `run`
    return study.lock()


def cell(name: str, overrides: Mapping, series: str = "") -> dict:
    """A cell of a study.

    Args:
      name: label in tables, legends and paths.
      overrides: config keys with dots, like {"optim.lr": 0.2}.
      series: cells of one series and different depths are joined by a line in the report.
    """
    return {"name": name, "overrides": dict(overrides), "series": series}


def grid(axes: Mapping[str, Sequence]) -> list[dict]:
    """All combinations of the values of some config keys, named after them.

    >>> [c["name"] for c in grid({"model.name": ("plain20", "resnet20"), "optim.lr": (0.1, 0.2)})]
    ['plain20, optim.lr=0.1', 'plain20, optim.lr=0.2', 'resnet20, optim.lr=0.1', 'resnet20, optim.lr=0.2']
    """
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [cell(", ".join(_short(key, value) for key, value in each.items()), each) for each in combinations]


def plain_and_residual(depths: Iterable[int]) -> list[dict]:
    """A cell for each depth, plain and residual, for nets called `plain20`, `resnet20` and so on."""
    kinds = (("plain", "plain"), ("resnet", "residual"))
    return [cell(f"{name}{n}", {"model.name": f"{name}{n}"}, series) for name, series in kinds for n in depths]


def check_study(study: ml_collections.ConfigDict) -> None:
    """Refuse a study that cannot run, before anything runs.

    Raises:
      UserError: no cells, two of one name, an unknown key, a value that cannot be.
    """
    if not study.cells:
        raise UserError("cells: expected at least one cell, found an empty grid; does one of its axes have no values?")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"seeds: expected different numbers, at least one, found {tuple(study.seeds)}")
    if study.replicas is not None and study.replicas < 1:
        raise UserError(f"replicas: expected at least 1, found {study.replicas}")
    folders = {}
    for each in study.cells:
        _check_cell(each)
        other = folders.setdefault(file_name(each["name"]), each)
        if other is not each:
            raise UserError(
                f"cells: expected different names, found {other['name']!r} with {other['overrides']} and "
                f"{each['name']!r} with {each['overrides']}"
            )
        for seed in study.seeds:
            try:
                check_config(run_config(study, each, seed))
            except UserError as error:
                raise UserError(f"cell {each['name']!r}: {error}") from None


def _check_cell(cell) -> None:
    if not isinstance(cell, Mapping) or cell.keys() != {"name", "overrides", "series"}:
        raise UserError(f"cells: expected them from study.cell or study.grid, found {cell!r}")
    if not isinstance(cell["name"], str) or not 0 < len(cell["name"]) <= LONGEST_NAME:
        raise UserError(f"cells: expected names of 1 to {LONGEST_NAME} letters, found {cell['name']!r}")
    if not isinstance(cell["overrides"], Mapping):
        raise UserError(f"cell {cell['name']!r}: expected overrides by key, found {cell['overrides']!r}")
    if "seed" in cell["overrides"]:
        raise UserError(f"cell {cell['name']!r}: seed: every cell is run with the seeds of the study; give them there")


def run_config(study: ml_collections.ConfigDict, cell: Mapping, seed: int) -> ml_collections.ConfigDict:
    """The config of one run: the experiment with the overrides of the cell and a seed, locked.

    Raises:
      UserError: an unknown key, or a value of the wrong type.
    """
    config = study.experiment.copy_and_resolve_references().lock()
    for key, value in {**cell["overrides"], "seed": seed}.items():
        _check_key(config, key)
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"{key}: {error}") from None
    resolve_length(config, cell["overrides"])
    return config


def _check_key(config: ml_collections.ConfigDict, key: str) -> None:
    # Not left to update_from_flattened_dict, which knows no names to suggest.
    node = config
    for part in key.split("."):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            known = node if isinstance(node, ml_collections.ConfigDict) else ()
            raise UserError(f"{key}: there is no such key; {did_you_mean(part, known)}")
        node = node[part]


def run_folder(workdir: str | pathlib.Path, cell: Mapping, seed: int) -> pathlib.Path:
    """The folder of a run of the study."""
    return pathlib.Path(workdir) / "cells" / file_name(cell["name"]) / f"seed{seed}"


def read_study(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The study that a folder belongs to.

    Raises:
      UserError: the folder holds none.
    """
    study = read_config(workdir)
    if not is_study(study):
        raise UserError(f"workdir: expected the folder of a study, found that of a run: {workdir}")
    return study


@dataclasses.dataclass
class StudyRun:
    """A run of a study, finished or not.

    Attributes:
      cell: cell from `cell` or `grid`.
      seed: random seed.
      config: experiment with the overrides and the seed.
      folder: run directory.
      result: content of `result.json` if it is finished, or None.
      problem: why it failed or cannot be read; "" if it did not.
    """

    cell: dict
    seed: int
    config: ml_collections.ConfigDict
    folder: pathlib.Path
    result: dict | None
    problem: str

    @functools.cached_property
    def lines(self) -> list[dict]:
        """Lines of its `metrics.jsonl`; none before there are any, or if they cannot be read."""
        try:
            return read_metrics(self.folder / "metrics.jsonl")
        except (FileNotFoundError, UserError):
            return []


def collect(study: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> list[StudyRun]:
    """The runs of a study in the order of the grid, those that are missing too."""
    runs = []
    for each, seed in itertools.product(study.cells, study.seeds):
        folder = run_folder(workdir, each, seed)
        result, problem = None, ""
        try:
            result = read_result(folder)
        except UserError as error:
            problem = str(error)
        if result and not result["completed"]:
            result = None
        elif result and (lacking := _RESULT_KEYS - result.keys()):
            result, problem = None, f"{folder / 'result.json'}: {', '.join(sorted(lacking))} missing; mend or move it"
        if not result and (folder / "error.txt").exists():
            problem = "failed: " + (folder / "error.txt").read_text(encoding="utf-8").partition("\n")[0]
        runs.append(StudyRun(each, seed, run_config(study, each, seed), folder, result, problem))
    return runs


def result_lines(runs: Iterable[StudyRun]) -> str:
    """The text of `results.jsonl`: name, overrides, seed, last and best scores per split, and seconds of each run."""
    return "".join(
        json.dumps(
            {
                "name": run.cell["name"],
                "overrides": run.cell["overrides"],
                "seed": run.seed,
                **{key: run.result[key] for key in ("last", "best", "seconds", "parameters", "multiply_adds")},
            }
        )
        + "\n"
        for run in runs
        if run.result
    )


_RESULT_KEYS = {"last", "best", "seconds", "parameters", "multiply_adds", "depth"}
LONGEST_NAME = 100  # of a cell; it is that of a folder, too


def _short(key: str, value) -> str:
    return str(value) if key == "model.name" else f"{key}={value}"
