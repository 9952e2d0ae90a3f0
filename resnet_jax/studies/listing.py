"""A list of runs."""

import datetime
import os
import pathlib
from collections.abc import Iterator

from rich.table import Table

from resnet_jax.config.stored import names_in_config
from resnet_jax.errors import UserError
from resnet_jax.training.logs import read_metrics
from resnet_jax.workdir import read_result

_OF_A_RUN = ("config.json", "metrics.jsonl")


def find_runs(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """The run directories in a folder, at any depth, by path; a run itself is one."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if set(_OF_A_RUN) <= set(files):
            folders.clear()  # what a run holds is no run
            yield pathlib.Path(parent)


def runs_table(folder: str | pathlib.Path) -> Table:
    """A line for each run in a folder: model, data, progress, test accuracy of the last and the best weights, time.

    Raises:
      UserError: the folder holds none.
    """
    runs = list(find_runs(folder))
    if not runs:
        raise UserError(f"RUN: expected runs in {folder}, found none; train one: python train.py")
    table = Table()
    table.add_column("run", overflow="fold")
    for column in ("model", "data"):
        table.add_column(column)
    for column in ("steps", "last", "best", "time"):
        table.add_column(column, justify="right")
    for run in runs:
        table.add_row(os.path.relpath(run, folder) if run != pathlib.Path(folder) else str(run), *_row(run))
    table.caption = "last, best: test accuracy of the last weights, and of those that were best on the validation split"
    return table


def _row(run: pathlib.Path) -> list[str]:
    try:
        names, result = names_in_config(run), read_result(run)
        if result is None:
            lines = read_metrics(run / "metrics.jsonl")
            return [*names, f"{lines[-1]['step']:,}, not finished" if lines else "not finished"]
        steps = f"{result['step']:,} of {result['steps']:,}" if "steps" in result else f"{result['step']:,}"
        wanted = {"last": True, "best": "validation" in result.get("best", {})}
        trial = f" of {result['max_examples']}" if result.get("max_examples") else ""
        scores = [
            f"{result[weights]['test']['accuracy']:.2%}{trial}" if shown and result["completed"] else ""
            for weights, shown in wanted.items()
        ]
        return [*names, steps, *scores, str(datetime.timedelta(seconds=round(result["seconds"])))]
    except UserError as error:
        return [str(error)]
    except KeyError as error:
        return [f"{run / 'result.json'}: expected the result of a run, found no {error}; mend or move it"]
