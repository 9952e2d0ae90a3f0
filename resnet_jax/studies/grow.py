"""A study that grows in its folder: by cells, by seeds, and by runs that were trained alone."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator

import filelock
import ml_collections

from resnet_jax.config.stored import NOT_OF_THE_RESULT, differences, read_config
from resnet_jax.errors import UserError
from resnet_jax.studies.study import (
    LONGEST_NAME,
    cell,
    check_study,
    collect,
    read_study,
    result_lines,
    run_config,
    run_folder,
)
from resnet_jax.workdir import make_workdir, read_result, storage_errors, write_json, write_text


def grown(study: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The study that a folder holds, with the cells and seeds of this one; this one where there is none yet.

    Raises:
      UserError: the folder holds another experiment, or other cells of the same names.
    """
    if not (workdir / "config.json").exists():
        return study
    stored = read_study(workdir)
    if differing := _differing(stored.experiment, study.experiment):
        key, (old, new) = next(iter(differing.items()))
        raise UserError(
            f"workdir: {workdir} holds a study of another experiment: {len(differing)} keys differ, like {key}: "
            f"{old!r} there, {new!r} given; take another --workdir, or vary that key by cells"
        )
    by_name = {each["name"]: each for each in stored.cells}
    for each in study.cells:
        known = by_name.setdefault(each["name"], each)
        if _plain(known["overrides"]) != _plain(each["overrides"]):
            raise UserError(
                f"cell {each['name']!r}: expected {known['overrides']}, as in {workdir}, found {each['overrides']}; "
                "give the new one another name"
            )
    whole = study.copy_and_resolve_references()
    whole.cells = tuple(by_name.values())
    whole.seeds = tuple(dict.fromkeys([*stored.seeds, *study.seeds]))
    return whole.lock()


def claim(study: ml_collections.ConfigDict, workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Write the grown study to its folder, and return it. Several jobs may do so at once.

    Raises:
      UserError: see `grown`; or the folder cannot be written.
    """
    make_workdir(workdir)
    with _locked(workdir):
        whole = grown(study, workdir)
        identity = whole.copy_and_resolve_references()
        identity.replicas = None  # it makes no other study
        write_json(workdir / "config.json", json.loads(identity.to_json()))
    return whole


def write_results(workdir: pathlib.Path) -> None:
    """Write `results.jsonl` anew from the runs that are finished, whoever trained them."""
    with storage_errors(workdir), _locked(workdir):  # read inside: another job may have let the study grow
        write_text(workdir / "results.jsonl", result_lines(collect(read_study(workdir), workdir)))


def add_run(study: ml_collections.ConfigDict, workdir: pathlib.Path, run: pathlib.Path) -> ml_collections.ConfigDict:
    """Copy a finished run into a study, as the cell that it is, or as a new one named after its differences.

    Returns:
      The grown study.

    Raises:
      UserError: no finished run, or one that the study has already.
    """
    config, result = read_config(run), read_result(run)
    if not result or not result["completed"]:
        raise UserError(f"--add: expected a finished run, found {run}; train it to its end before")
    whole = grown(study, workdir)
    overrides = {key: new for key, (_, new) in _differing(whole.experiment, config).items() if key != "seed"}
    alike = (each for each in whole.cells if not _differing(run_config(whole, each, config.seed), config))
    name = ", ".join(f"{key}={value}" for key, value in overrides.items()) or "the experiment"
    name = name if len(name) <= LONGEST_NAME else f"{run.name}, {len(overrides)} keys changed"
    own = next(alike, None) or cell(name, overrides)
    whole.unlock()
    whole.cells = tuple(whole.cells) + (() if own in whole.cells else (own,))
    whole.seeds = tuple(dict.fromkeys([*whole.seeds, config.seed]))
    check_study(whole.lock())
    folder = run_folder(workdir, own, config.seed)
    if folder.exists():
        raise UserError(f"--add: the study has a run of {own['name']!r} with seed {config.seed} already, in {folder}")
    with storage_errors(workdir):
        claim(whole, workdir)
        shutil.copytree(run, folder)
    return whole


def _differing(one, other) -> dict[str, tuple]:
    return {key: (old, new) for key, old, new in differences(one, other) if key not in NOT_OF_THE_RESULT}


def _plain(overrides) -> str:
    return json.dumps(overrides, sort_keys=True)


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    with filelock.FileLock(workdir / ".study.lock"):
        yield
