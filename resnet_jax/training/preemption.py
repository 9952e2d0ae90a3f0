"""Requests to stop, for one process or for all of a job."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils
from rich.console import Console

from resnet_jax import signals


@contextlib.contextmanager
def stop_requests(console: Console) -> Iterator[Callable[[int], signal.Signals | None]]:
    """A function of the step that says which signal asks the run to stop, or None; see `signals.stop_requests`.

    Where there are several processes, JAX itself takes SIGTERM, and all of them stop after the same step.
    """
    several = jax.process_count() > 1

    def on_first(number):
        console.print("stopping after the next step; once more to end without saving", highlight=False)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    own = [number for number in signals.STOP_SIGNALS if not several or number != signal.SIGTERM]
    with signals.stop_requests(on_first, own) as requested:

        def stop_requested(step):
            if several and not multihost_utils.reached_preemption_sync_point(step):
                return None
            return requested() or (signal.SIGTERM if several else None)

        yield stop_requested
