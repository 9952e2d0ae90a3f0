"""The story of a run, told once: ask for a batch, step, log, evaluate, save; and again."""

import contextlib
import pathlib
import signal
import threading
from collections.abc import Callable

import jax
import ml_collections
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import Progress

from resnet_jax.build import Run
from resnet_jax.environment import use_compilation_cache
from resnet_jax.errors import DivergedError
from resnet_jax.parallel import is_main_process, join_processes
from resnet_jax.screens import end_screen
from resnet_jax.session import Session, open_session
from resnet_jax.workdir import claim_workdir, read_result


def train(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    console: Console | None = None,
    bars: Progress | None = None,
    stop_requested: Callable[[int], bool] | None = None,
) -> dict:
    """Train, or go on with the run that lies in `workdir`.

    Args:
      config: as from `configs/default.py`.
      workdir: where everything of the run is written.
      console: for what people see; default: the terminal.
      bars: where the progress bar goes, among others; default: one of its own.
      stop_requested: says after each step whether to stop; default: on Ctrl-C or SIGTERM.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: a config or a workdir that cannot be used.
      DivergedError: the loss is not finite.
      InterruptedRun: asked to stop; a checkpoint was saved.
    """
    use_compilation_cache()
    if config.parallel.distributed:
        join_processes()
    console = console or Console(quiet=not is_main_process())
    run = Run(config)
    with claim_workdir(workdir, run.config, write=is_main_process()) as workdir:
        result = read_result(workdir)
        if result and result["completed"]:
            console.print(f"This run is complete: {workdir}", highlight=False, soft_wrap=True)
        else:
            with contextlib.ExitStack() as stack:
                stop_requested = stop_requested or stack.enter_context(stop_requests(console))
                session = stack.enter_context(open_session(run, workdir, console, bars))
                try:
                    result = train_session(session, stop_requested)
                except DivergedError as error:
                    raise session.explained(error) from None
        console.print(end_screen(result, workdir))
    return result


def train_session(session: Session, stop_requested: Callable[[int], bool]) -> dict:
    """The loop itself. Returns the result."""
    run, step, state = session.run, session.step, session.state
    session.probe_layers(step, state)
    while step < run.num_steps:
        count = run.steps_in_dispatch(step)
        with session.window.waiting_for_input():
            feed = run.feed(step)
        state, sums = run.train_steps(count)(state, feed)
        step += count
        shapes = tuple(array.shape for array in jax.tree.leaves(feed.batch))
        session.window.add(
            step, sums, shapes
        )  # reads the sums of the dispatch before: the device never waits for the host
        session.display.advance(step)
        session.after_step(step, state, stopping=stop_requested(step))
    return session.finish(state)


@contextlib.contextmanager
def stop_requests(console: Console):
    """A function of the step that says whether Ctrl-C or SIGTERM has come. A second one ends the process at once.

    Where there are several processes, JAX itself takes SIGTERM, and all of them stop after the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    requests = []

    def on_signal(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        console.print("stopping after the next step; once more to end without saving", highlight=False)

    # Signals can be handled in the main thread only; elsewhere they are the caller's.
    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield lambda step: bool(requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
