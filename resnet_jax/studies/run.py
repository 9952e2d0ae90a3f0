"""Studies at work: runs that are not finished yet are trained, one after another or as replicas."""

import datetime
import itertools
import json
import pathlib
import traceback
from collections.abc import Callable, Iterator

import jax
import ml_collections
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from resnet_jax.config.build import Assembly, make_recipe
from resnet_jax.config.stored import check_same_config
from resnet_jax.config.train import shared_program, speed_up, train, train_together
from resnet_jax.environment import describe_environment, use_compilation_cache
from resnet_jax.errors import InterruptedRun, UserError, WorkdirInUse
from resnet_jax.studies.estimate import Stopwatch
from resnet_jax.studies.study import StudyRun, check_study, collect, result_lines, run_config
from resnet_jax.training.console import progress_bars
from resnet_jax.training.loop import stop_requests
from resnet_jax.training.parallel import is_main_process
from resnet_jax.workdir import absolute, make_workdir, write_json, write_text

_INTERRUPTED = "stopped, and saved what was under way; to continue, give the same command"


class FailedRuns(UserError):
    """Some runs of a study failed; the others are done."""

    exit_status = 1


def run_study(
    study: ml_collections.ConfigDict, workdir: str | pathlib.Path, console: Console, only_cell: int | None = None
) -> list[StudyRun]:
    """Train what is not finished yet: an interrupted run is continued, a failed one is tried again.

    Args:
      study: study from `make_study`.
      workdir: folder of the study.
      console: for what people see.
      only_cell: index of the only cell to run.

    Returns:
      The runs that failed, each with an `error.txt` in its folder, or that another process is at work on.

    Raises:
      UserError: a study that cannot run, or a workdir of another study. Nothing has run.
      InterruptedRun: asked to stop; the run under way is saved.
    """
    check_study(study)
    _check_surroundings(study)
    if only_cell is not None and not 0 <= only_cell < len(study.cells):
        raise UserError(f"--cell: expected 0 to {len(study.cells) - 1}, found {only_cell}; see --list")
    workdir = absolute(workdir)
    if is_main_process():
        _claim(workdir, study)
    use_compilation_cache()
    chosen = study.cells if only_cell is None else [study.cells[only_cell]]
    runs = [run for run in collect(study, workdir) if run.cell in chosen]
    unfinished = [run for run in runs if not run.result]
    finished, failed = len(runs) - len(unfinished), []
    write_results(study, workdir)
    with progress_bars(console) as bars, stop_requests(console) as stop_requested:
        task = bars.add_task("runs", total=len(runs), completed=finished, values="")
        for group in _groups(unfinished, study.replicas, console):
            bars.update(task, values=", ".join(map(_name, group)))
            for run, outcome in zip(group, _train(group, bars, stop_requested), strict=True):
                failed += [run] if isinstance(outcome, Exception) else []
                finished += 1
                bars.update(task, completed=finished)
                console.print(
                    f"{finished}/{len(runs)}  {_name(run)}: {_summary(outcome)}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
            write_results(study, workdir)
            # Several processes agree on where to stop within a run only.
            if jax.process_count() == 1 and stop_requested(finished) and finished < len(runs):
                raise InterruptedRun(_INTERRUPTED)
    return failed


def write_results(study: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Write `results.jsonl` anew from the runs that are finished."""
    if is_main_process():
        write_text(workdir / "results.jsonl", result_lines(collect(study, workdir)))


def _claim(workdir: pathlib.Path, study: ml_collections.ConfigDict) -> None:
    # Not locked: the cells of a study may be shared out to several processes.
    check_same_config(workdir, _identity(study))
    make_workdir(workdir)
    write_json(workdir / "environment.json", describe_environment())
    write_json(workdir / "config.json", json.loads(_identity(study).to_json()))


def _identity(study: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The study without the number of replicas, which does not make it another one."""
    identity = study.copy_and_resolve_references()
    identity.replicas = None
    return identity


def _check_surroundings(study: ml_collections.ConfigDict) -> None:
    for cell in study.cells:
        try:
            Assembly(make_recipe(run_config(study, cell, study.seeds[0])))  # refuses what cannot run
        except UserError as error:
            raise UserError(f"cell {cell['name']!r}: {error}") from None


def _groups(runs: list[StudyRun], replicas: int | None, console: Console) -> Iterator[list[StudyRun]]:
    """Runs that share a program, so many as are to be trained at once."""
    # One after another is faster on CPU; and several processes must not decide by their own clocks.
    can_gain = jax.default_backend() != "cpu" and jax.process_count() == 1
    for _, group in itertools.groupby(runs, key=lambda run: shared_program(run.config)):
        alike = list(group)
        at_once = min(len(alike), replicas or (len(alike) if can_gain else 1))
        if at_once > 1:
            faster = _is_faster([run.config for run in alike[:at_once]], console)
            at_once = at_once if faster or replicas else 1
        yield from (alike[start : start + at_once] for start in range(0, len(alike), at_once))


def _is_faster(configs: list[ml_collections.ConfigDict], console: Console) -> bool:
    """True if these runs take less time in one program; prints how much."""
    try:
        apart, together = speed_up(configs)
    except Exception as error:  # most likely, they do not fit into memory; if not, they will say so when they run
        console.print(f"{len(configs)} runs at once: {_one_line(error)}", highlight=False, markup=False)
        return False
    console.print(
        f"{len(configs)} runs at once: {apart / together:.2f} times as fast as one after another "
        f"(a step of all: {1e3 * together:.1f} ms against {1e3 * apart:.1f} ms)",
        highlight=False,
    )
    return together < apart


def _train(group: list[StudyRun], bars: Progress, stop_requested: Callable[[int], bool]) -> list[dict | Exception]:
    """The result of each run, or the error that is written to its folder."""
    quiet = Console(quiet=True)
    configs, folders = [run.config for run in group], [run.folder for run in group]
    try:
        if len(group) == 1:
            outcomes = [train(configs[0], folders[0], quiet, bars, stop_requested)]
        else:
            outcomes = train_together(configs, folders, quiet, bars, stop_requested)
    except InterruptedRun:
        raise InterruptedRun(_INTERRUPTED) from None
    except Exception as error:  # whatever goes wrong in one cell, the others are worth running
        outcomes = [error] * len(group)
    for folder, outcome in zip(folders, outcomes, strict=True):
        if is_main_process() and not isinstance(outcome, WorkdirInUse):
            _write_error(folder, outcome)
    return outcomes


def _write_error(folder: pathlib.Path, outcome: dict | Exception) -> None:
    if isinstance(outcome, Exception):
        folder.mkdir(parents=True, exist_ok=True)
        details = [] if isinstance(outcome, UserError) else ["", *traceback.format_exception(outcome)]
        write_text(folder / "error.txt", "\n".join([_one_line(outcome), *details]))
    else:
        (folder / "error.txt").unlink(missing_ok=True)


def _name(run: StudyRun) -> str:
    return f"{run.cell['name']}, seed {run.seed}"


def _summary(outcome: dict | Exception) -> str:
    if isinstance(outcome, Exception):
        return f"FAILED: {_one_line(outcome)}"
    errors = ", ".join(
        f"{split} error {100 * (1 - scores['accuracy']):.2f}%"
        for split, scores in outcome["last"].items()
        if isinstance(scores, dict)
    )
    return f"{errors}, {outcome['seconds']:.0f} s"


def _one_line(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def print_cells(study: ml_collections.ConfigDict, workdir: pathlib.Path, console: Console) -> None:
    """A table of the cells: number for --cell, name, what it changes, runs finished, and the time left."""
    check_study(study)
    check_same_config(absolute(workdir), _identity(study))
    runs = collect(study, workdir)
    stopwatch = Stopwatch([(run.config, run.result) for run in runs])
    table = Table(title=study.title, title_justify="left")
    for column in ("cell", "name", "changes", "finished", "time left"):
        table.add_column(column, justify="left" if column in ("name", "changes") else "right", overflow="fold")
    total = 0.0
    for index, cell in enumerate(study.cells):
        own = [run for run in runs if run.cell == cell]
        left = sum(stopwatch.seconds(run.config) for run in own if not run.result)
        total += left
        changes = ", ".join(f"{key}={value}" for key, value in cell["overrides"].items())
        finished = f"{sum(bool(run.result) for run in own)} of {len(own)}"
        table.add_row(str(index), cell["name"], changes, finished, _duration(left))
    console.print(table)
    console.print(f"time left: {_duration(total)}, {stopwatch.basis}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    return "unknown" if seconds != seconds else str(datetime.timedelta(seconds=round(seconds)))


def check_failures(failed: list[StudyRun]) -> None:
    """Raise `FailedRuns` if any run failed."""
    if failed:
        names = "; ".join(map(_name, failed))
        raise FailedRuns(
            f"{len(failed)} of the runs failed: {names}. See error.txt in their folders, like {failed[0].folder}; they "
            "are tried again when you give the same command"
        )
