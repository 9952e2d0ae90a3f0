"""The curves of any runs in one picture."""

import pathlib
from collections.abc import Sequence

from resnet_jax.errors import UserError
from resnet_jax.studies import plots
from resnet_jax.training.logs import read_metrics
from resnet_jax.workdir import local_path


def overlay(folders: Sequence[str | pathlib.Path], target: str | pathlib.Path) -> None:
    """Draw the error and loss of any runs into one picture.

    Args:
      folders: run directories.
      target: file of the picture; its suffix is a format that matplotlib knows.

    Raises:
      UserError: a folder holds no run, or a study, or a run without metrics; the picture cannot be written.
    """
    paths = list(dict.fromkeys(local_path(folder).resolve() for folder in folders))
    runs = dict(zip(_distinguishing_names(paths), map(_read_run, paths), strict=True))
    try:
        plots.plot_overlay(runs, target)
    except (OSError, ValueError) as error:
        raise UserError(f"--output: expected a picture that can be written, found {target}: {error}") from None


def _read_run(folder: pathlib.Path) -> list[dict]:
    metrics = folder / "metrics.jsonl"
    if not metrics.exists() and (folder / "cells").is_dir():
        raise UserError(
            f"RUN: expected the folder of a run, found that of a study, {folder}; try python -m resnet_jax.ablate "
            f"--report --workdir={folder}, or the folders of its runs, {folder}/cells/*/seed*"
        )
    if not metrics.exists():
        raise UserError(f"RUN: expected the folder of a run, found no metrics.jsonl in {folder}; look under runs/")
    lines = read_metrics(metrics)
    if not any(line["split"] == "train" for line in lines):
        raise UserError(f"RUN: expected a run that has logged something, found no line of training in {metrics}")
    return lines


def _distinguishing_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    count = 1
    while len({path.parts[-count:] for path in paths}) < len(paths):
        count += 1
    return ["/".join(path.parts[-count:]) for path in paths]
