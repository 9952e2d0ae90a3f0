"""Requests to stop by signals, to any process of a job."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from rich.console import Console

from resnet_jax import signals
from resnet_jax.job.join import ask_others_to_stop, when_asked_to_stop
from resnet_jax.training.preemption import Preemption


@contextlib.contextmanager
def stop_requests(console: Console) -> Iterator[Preemption]:
    """Stop runs by signals; see `signals.stop_requests`.

    In a job, the processes tell each other, and all stop after the same step, which JAX agrees on.
    """
    several = jax.process_count() > 1
    tell_jax = signals.handler_of_libraries(signal.SIGTERM)

    def on_first(number):
        console.print("stopping after the next step; once more to end without saving", highlight=False)
        if several:
            tell_jax(signal.SIGTERM)
            ask_others_to_stop()
        preemption.serve()

    def on_asked():
        console.print("stopping after the next step: another process was asked to", highlight=False)
        preemption.serve()

    with signals.stop_requests(on_first) as requested:
        preemption = Preemption(requested, console)
        try:
            with when_asked_to_stop(on_asked):
                yield preemption
        finally:
            preemption.close()
