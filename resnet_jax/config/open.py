"""A run at work, opened in its directory; or the result of one that is finished."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import ml_collections
from rich.console import Console
from rich.progress import Progress

from resnet_jax.checkpoint import Checkpoints
from resnet_jax.config.build import Assembly, initial_state
from resnet_jax.config.recipe import Recipe
from resnet_jax.config.resume import start_or_resume
from resnet_jax.config.stored import LENGTH, changes
from resnet_jax.environment import describe_environment, xla_flags
from resnet_jax.training.accumulator import Accumulator
from resnet_jax.training.agreement import CheckAgreement
from resnet_jax.training.console import TrainingDisplay, start_screen
from resnet_jax.training.logs import MetricsLog
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.processes import from_main
from resnet_jax.training.run import TrainingRun
from resnet_jax.training.tensorboard import Events
from resnet_jax.workdir import lock_workdir, read_environment, read_result, shown, storage_errors, write_json


def finished_result(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> dict | None:
    """The result of a finished run; None before it is, or if it is to be made longer. Needs no data.

    Raises:
      UserError: the workdir belongs to another config.
    """

    def read():
        longer = changes(workdir, config).keys() & set(LENGTH)
        result = read_result(workdir)
        return result if result and result["completed"] and not longer else None

    return from_main(read)


@contextlib.contextmanager
def open_run(
    recipe: Recipe,
    assembly: Assembly,
    workdir: pathlib.Path,
    console: Console,
    bars: Progress,
    publish: Callable[[], None] = lambda: None,
) -> Iterator[TrainingRun]:
    """A run at its start, or where its last checkpoint left it; its workdir is locked meanwhile.

    Args:
      recipe: recipe of the run.
      assembly: devices and data.
      workdir: run directory; used by the main process alone.
      console, bars: for what people see.
      publish: uploads the run directory; called after each checkpoint.

    Raises:
      UserError: the workdir cannot be used.
      StorageError: it cannot be used any more, here or in the body.
    """
    config, main = recipe.config, is_main_process()
    plain = json.loads(config.to_json())
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(workdir))
        if main:
            stack.enter_context(lock_workdir(workdir))
        changed = from_main(lambda: changes(workdir, config))
        keep, best = config.checkpoint.keep, config.checkpoint.best_metric
        checkpoints = None
        if main:
            checkpoints = stack.enter_context(Checkpoints(workdir, keep, best, recipe.is_eval_step, publish))
        devices = [device.device_kind for device in assembly.parallel.mesh.devices.flat]
        console.print(start_screen(recipe.describe(devices, xla_flags(), shown(workdir))))
        state, step, notes = start_or_resume(recipe, initial_state(recipe), checkpoints, assembly, changed, console)
        environment = describe_environment()
        card = recipe.card({"config": plain, "environment": environment}, assembly.mean_image)
        if main:
            _describe_run(workdir, plain, environment, card.to_json(), changed)
        events = functools.partial(Events, workdir, plain)
        settings = {"test_curve": recipe.test_curve, "tolerant": recipe.on_save_error == "continue"}
        log = stack.enter_context(MetricsLog(workdir, events, step, enabled=main, **settings))
        length = recipe.num_steps, recipe.epoch(recipe.num_steps)
        display = stack.enter_context(TrainingDisplay(console, bars, step, *length))
        in_a_row = notes.get("skipped_in_a_row", 0)
        accumulator = Accumulator(notes["sums"], in_a_row, config.train.max_nonfinite)
        seconds, data = notes["seconds"], assembly.data
        run = TrainingRun(
            *(recipe, workdir, console, card.to_json(), data, checkpoints, log, display, accumulator, seconds),
            *(step, state, notes.get("evaluated", True), functools.partial(initial_state, recipe)),
            rollbacks=notes.get("rollbacks", 0),
            publish=publish,
        )
        run.checks = (CheckAgreement(run),) if assembly.parallel.shards > 1 else ()
        yield run


def _describe_run(workdir, config, environment, card, changed) -> None:
    """Write what a run is: its environment with all that was changed since it began, its config and its card."""
    at = environment["started"]
    recorded = [{"at": at, "key": key, "from": old, "to": new} for key, (old, new) in changed.items()]
    environment["changes"] = [*read_environment(workdir).get("changes", []), *recorded]
    result = read_result(workdir)
    if result and changed.keys() & set(LENGTH):
        (workdir / "result.json").replace(workdir / f"result-{result['step']}.json")
    for name, content in (("environment", environment), ("config", config), ("card", card)):
        write_json(workdir / f"{name}.json", content)
