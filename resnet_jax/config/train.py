"""Training from a config: one run, or several that share a program."""

import contextlib
import functools
import multiprocessing
import pathlib
import signal
import tempfile
import time
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import ml_collections
from rich.console import Console
from rich.progress import Progress

from resnet_jax.bucket.mirror import opened
from resnet_jax.commands import make_console
from resnet_jax.config.build import (
    Assembly,
    initial_state,
    make_recipe,
    random_keys,
    resolve,
    shared_program,
)
from resnet_jax.config.flags import is_study
from resnet_jax.config.job import check_job, join_job
from resnet_jax.config.memory import check_memory
from resnet_jax.config.open import finished_result, open_run
from resnet_jax.config.stored import lacks_validation_key, without_validation_split
from resnet_jax.environment import memory_errors, unseen_accelerator, use_compilation_cache
from resnet_jax.errors import DivergedError, UserError
from resnet_jax.job.join import telling_others, watched_run
from resnet_jax.progress import progress_bars, watch
from resnet_jax.training.console import print_end
from resnet_jax.training.logs import read_metrics
from resnet_jax.training.loop import train_run
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.preemption import Asked, Preemption
from resnet_jax.training.probes import make_probes
from resnet_jax.training.processes import from_main
from resnet_jax.training.replicas import seconds_per_step, stack_states, train_replicas
from resnet_jax.training.run import TrainingRun
from resnet_jax.training.stop_requests import stop_requests
from resnet_jax.training.watchdog import watchdog
from resnet_jax.workdir import absolute, is_url, shown, storage_errors, write_json

_LESS_MEMORY = (
    "a smaller train.batch_size, or the same one in parts (train.grad_accum_steps); dtype=bfloat16; a smaller "
    "data.image_size or eval.batch_size; or data.loader=stream for data that do not fit"
)


def train(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    console: Console | None = None,
    bars: Progress | None = None,
    stop_requested: Callable[[int], signal.Signals | None] | None = None,
) -> dict:
    """Train, or continue the run that lies in `workdir`.

    >>> result = resnet_jax.train(resnet_jax.get_config(), "runs/digits")
    >>> result["last"]["test"]["accuracy"]

    Args:
      config: as from `get_config`.
      workdir: directory for everything that the run writes; a local path, or gs://BUCKET/PATH.
      console: for what people see; default: the terminal, or the notebook.
      bars: the progress bar goes among these; default: one of its own.
      stop_requested: says after each step whether to stop, by a signal or True; default: see `signals.STOP_SIGNALS`.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: a config or a workdir that cannot be used.
      DivergedError: a number is not finite.
      StorageError: a full disk, or a workdir that is gone.
      InterruptedRun: asked to stop; a checkpoint was saved.
    """
    started = time.perf_counter()
    _check_call(config)
    use_compilation_cache()
    join_job(config)
    console = console or make_console(quiet=not is_main_process())
    config = resolve(config)
    with watched_run(), contextlib.ExitStack() as stack:
        check_job(config, workdir)
        mirror = stack.enter_context(opened(workdir)) if is_main_process() else None
        if mirror is not None:
            return _train_in(config, mirror.folder, console, bars, stop_requested, started, mirror.publish)
        local = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) if is_url(workdir) else None
        return _train_in(config, local or absolute(workdir), console, bars, stop_requested, started)


def _train_in(config, workdir, console, bars, stop_requested, started, publish=lambda: None) -> dict:
    """Train in a local folder."""
    if from_main(lambda: lacks_validation_key(workdir, config)):
        config = without_validation_split(config)
    result = finished_result(workdir, config)
    if result:
        console.print(f"This run is complete: {shown(workdir)}", highlight=False, soft_wrap=True)
    else:
        recipe = make_recipe(config, workdir)
        if advice := unseen_accelerator():
            console.print(advice, soft_wrap=True)
        with contextlib.ExitStack() as stack:
            bars = bars or stack.enter_context(progress_bars(console))
            assembly = Assembly(recipe, functools.partial(watch, bars))
            stack.enter_context(memory_errors(_LESS_MEMORY))
            preemption = stack.enter_context(_preemption(stop_requested, console))
            run = stack.enter_context(open_run(recipe, assembly, workdir, console, bars, publish))
            run.program = assembly.program(random_keys(config.seed)[0])
            run.program.check = functools.partial(check_memory, recipe)
            run.probes = make_probes(run.program, recipe)
            run.watchdog = stack.enter_context(watchdog(recipe.watchdog_seconds))
            stack.callback(run.program.loader.close)
            run.seconds_before += time.perf_counter() - started
            with telling_others(), memory_errors(_LESS_MEMORY), storage_errors(workdir):
                result = train_run(run, preemption)
                _write_result(run, result)
    print_end(console, result, workdir)
    return result


def _preemption(stop_requested, console) -> contextlib.AbstractContextManager[Preemption]:
    if stop_requested is None:
        return stop_requests(console)
    given = isinstance(stop_requested, Preemption)
    return contextlib.nullcontext(stop_requested if given else Asked(stop_requested, console))


def _check_call(config) -> None:
    if not isinstance(config, ml_collections.ConfigDict) or is_study(config):
        raise UserError("train: expected the config of an experiment, as from get_config; for a study see ablate")
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing's own check has it
        raise UserError(
            "train: expected to be called in the main process, found a worker process that imports the script: put the "
            'call under if __name__ == "__main__": (data.workers=processes starts the script again in each worker)'
        )


def train_together(
    configs: Sequence[ml_collections.ConfigDict],
    workdirs: Sequence[str | pathlib.Path],
    console: Console,
    bars: Progress,
    stop_requested: Callable[[int], signal.Signals | None],
) -> list[dict | DivergedError]:
    """Train runs at once, or continue them; each ends as it does alone (`train`), to float tolerance.

    Runs that were stopped at different steps are trained in groups that stand at the same one.

    Args:
      configs: that differ in `seed` and `optim.lr` alone.
      workdirs: one for each.
      console, bars, stop_requested: see `train`.

    Returns:
      For each the content of its `result.json`, or the error that ended it.

    Raises:
      UserError: configs of different programs; otherwise see `train`.
      InterruptedRun: asked to stop; all were saved.
    """
    started = time.perf_counter()
    use_compilation_cache()
    if len({shared_program(config) for config in configs}) > 1:
        raise UserError("train_together: expected configs that differ in seed and optim.lr alone")
    pairs = zip(configs, workdirs, strict=True)
    recipes = [make_recipe(resolve(config), absolute(workdir)) for config, workdir in pairs]
    assembly = Assembly(recipes[0])

    def make_program(runs: Sequence[TrainingRun]):
        keys = [random_keys(run.recipe.config.seed)[0] for run in runs]
        return assembly.program(jnp.stack(keys) if len(keys) > 1 else keys[0])

    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(open_run(recipe, assembly, absolute(workdir), console, bars))
            for recipe, workdir in zip(recipes, workdirs, strict=True)
        ]
        shared = stack.enter_context(watchdog(recipes[0].watchdog_seconds))
        for run in runs:
            run.watchdog = shared
            run.seconds_before += time.perf_counter() - started
        preemption = stack.enter_context(_preemption(stop_requested, console))
        outcomes = train_replicas(runs, make_program, preemption)
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, dict):
                _write_result(run, outcome)
    return outcomes


def speed_up(configs: Sequence[ml_collections.ConfigDict], steps: int = 10) -> tuple[float, float]:
    """Seconds for a step of all runs one after another, and in one program; both after compilation."""
    recipes = [make_recipe(config) for config in configs]
    assembly = Assembly(recipes[0])
    keys = [random_keys(recipe.config.seed)[0] for recipe in recipes]
    replicate = assembly.parallel.replicate
    states = replicate(stack_states([initial_state(recipe) for recipe in recipes]))
    programs = assembly.program(keys[0]), assembly.program(jnp.stack(keys))
    alone = seconds_per_step(programs[0], replicate(initial_state(recipes[0])), steps)
    together = seconds_per_step(programs[1], states, steps)
    for program in programs:
        program.loader.close()  # programs are remembered; what they hold on the devices must not be
    return len(recipes) * alone, together


def _write_result(run: TrainingRun, result: dict) -> None:
    if not is_main_process():
        return
    from resnet_jax.training import plots  # on use: it brings matplotlib, which the start of a run should not wait for

    model = run.recipe.config.model.name
    lines = read_metrics(run.workdir / "metrics.jsonl")
    plots.plot_run(lines, run.workdir / "curves.png", f"{model} on {run.recipe.data_name}")
    write_json(run.workdir / "result.json", result)  # last: a run that has it is complete
