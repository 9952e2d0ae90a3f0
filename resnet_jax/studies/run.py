"""Studies at work: runs that are not finished yet are trained, one after another or as replicas."""

import datetime
import itertools
import pathlib
import signal
import traceback
from collections.abc import Callable, Iterator

import jax
import ml_collections
from rich.console import Console
from rich.progress import Progress

from resnet_jax.commands import titled_table
from resnet_jax.config.build import Assembly, make_recipe, shared_program
from resnet_jax.config.train import speed_up, train, train_together
from resnet_jax.environment import describe_environment, use_compilation_cache
from resnet_jax.errors import InterruptedRun, UserError, WorkdirInUse
from resnet_jax.progress import progress_bars
from resnet_jax.studies.estimate import Stopwatch
from resnet_jax.studies.grow import claim, grown, write_results
from resnet_jax.studies.study import StudyRun, check_study, collect, run_config
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.stop_requests import stop_requests
from resnet_jax.workdir import absolute, storage_errors, write_json, write_text

_INTERRUPTED = "stopped, and saved what was under way; to continue, give the same command"


class FailedRuns(UserError):
    """Some runs of a study failed; the others are done."""

    exit_status = 3


def run_study(
    study: ml_collections.ConfigDict, workdir: str | pathlib.Path, console: Console, only_cell: int | None = None
) -> list[StudyRun]:
    """Train what is not finished yet: an interrupted run is continued, a failed one is tried again.

    A study that the folder holds already grows by new cells and seeds. Several processes may work on one folder.

    Args:
      study: study from `make_study`.
      workdir: folder of the study.
      console: for what people see.
      only_cell: index of the only cell to run.

    Returns:
      The runs that failed, each with an `error.txt` in its folder. Those that another process is at work on are not
      waited for.

    Raises:
      UserError: a study that cannot run, or a workdir of another study. Nothing has run.
      InterruptedRun: asked to stop; the run under way is saved.
    """
    check_study(study)
    _check_surroundings(study)
    workdir = absolute(workdir)
    study = grown(study, workdir)
    if only_cell is not None and not 0 <= only_cell < len(study.cells):
        raise UserError(f"--cell: expected 0 to {len(study.cells) - 1}, found {only_cell}; see --list")
    if is_main_process():
        study = claim(study, workdir)
        write_json(workdir / "environment.json", describe_environment())
    use_compilation_cache()
    chosen = None if only_cell is None else study.cells[only_cell]["name"]
    runs = [run for run in collect(study, workdir) if chosen in (None, run.cell["name"])]
    unfinished = [run for run in runs if not run.result]
    finished, failed = len(runs) - len(unfinished), []
    if finished:
        console.print(f"{finished} of {len(runs)} runs kept, {len(unfinished)} to do", highlight=False)
    if is_main_process():
        write_results(workdir)
    with storage_errors(workdir), progress_bars(console) as bars, stop_requests(console) as stop_requested:
        task = bars.add_task("runs", total=len(runs), completed=finished)
        for group in _groups(unfinished, study.replicas, console):
            bars.update(task, values=", ".join(map(_name, group)))
            for run, outcome in zip(group, _train(group, bars, stop_requested), strict=True):
                failed += [run] if isinstance(outcome, Exception) and not isinstance(outcome, WorkdirInUse) else []
                finished += 1
                bars.update(task, completed=finished)
                console.print(
                    f"{finished}/{len(runs)}  {_name(run)}: {_summary(outcome)}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
            if is_main_process():
                write_results(workdir)
            # Several processes agree on where to stop within a run only.
            request = jax.process_count() == 1 and finished < len(runs) and stop_requested(finished)
            if request:
                raise InterruptedRun(_INTERRUPTED)
    return failed


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


def _train(
    group: list[StudyRun], bars: Progress, stop_requested: Callable[[int], signal.Signals | None]
) -> list[dict | Exception]:
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
    except WorkdirInUse as error:
        if len(group) > 1:  # which of them is in use, each finds out alone
            return [outcome for run in group for outcome in _train([run], bars, stop_requested)]
        outcomes = [error]
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
    if isinstance(outcome, WorkdirInUse):
        return "left to another process, which is at work on it"
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
    study = grown(study, absolute(workdir))
    runs = collect(study, workdir)
    stopwatch = Stopwatch([(run.config, run.result) for run in runs])
    table = titled_table(study.title)
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
