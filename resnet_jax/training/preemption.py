"""Requests to stop a run, for one process or for all of a job, in whatever it is at."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils
from rich.console import Console

from resnet_jax import signals
from resnet_jax.errors import UserError

NOTHING_LOST = "stopped before a step was made; nothing was lost"
_PATIENCE = 2.0  # seconds that the main thread has to see a request by itself
_DEADLINE = 20.0  # seconds after which people are told that a run is not stopped yet


class Preemption:
    """Says whether a run is asked to stop; and stops it where its main thread cannot look.

    The main thread asks after each call of the training step and between batches of an evaluation. While it is in
    something that takes long and cannot look, such as a compilation, it is in `interruptible`: then another thread may
    save the run and end the process.

    Args:
      requested: the signal that came, or None.
      console: for messages.

    Attributes:
      request: the signal that asks the run to stop, or None; once it is set it stays.
    """

    def __init__(self, requested: Callable[[], signal.Signals | None], console: Console):
        self.request: signal.Signals | None = None
        self._requested, self._console = requested, console
        self._polls = 0
        self._at_work = threading.Lock()  # held by the main thread outside of `interruptible`
        self._rescue: Callable[[], str] | None = lambda: NOTHING_LOST
        self._serving = threading.Lock()  # never released

    def __call__(self, step: int) -> signal.Signals | None:
        """The request, after a step of the run; all processes of a job see it after the same one."""
        return self.poll()

    def poll(self) -> signal.Signals | None:
        """The request. To be asked by all processes of a job at the same places."""
        self._polls += 1
        if self.request is None:
            if jax.process_count() == 1:
                self.request = self._requested()
            elif multihost_utils.reached_preemption_sync_point(self._polls):
                self.request = self._requested() or signal.SIGTERM
        return self.request

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While inside, but not inside of `interruptible`, no other thread may touch the run."""
        with self._at_work:
            try:
                yield
            finally:
                self._rescue = None  # the rest takes but a moment

    @contextlib.contextmanager
    def interruptible(self, rescue: Callable[[], str]) -> Iterator[None]:
        """While inside, another thread may call `rescue`, which saves the run and says so, and end the process."""
        self._rescue = rescue
        self._at_work.release()
        try:
            yield
        finally:
            self._at_work.acquire()  # for ever, if the other thread is at it

    def close(self) -> None:
        """Leave what the process does from here on to its main thread."""
        with self._at_work:
            self._rescue = None

    def serve(self) -> None:
        """Stop the run, in a thread of its own, if the main one does not see the request in time."""
        if jax.process_index() > 0 or not self._serving.acquire(blocking=False):
            return  # the main process saves; when it has ended, so do the others
        time.sleep(_PATIENCE)  # the process ends meanwhile, if all goes well
        if self._at_work.acquire(timeout=_DEADLINE - _PATIENCE):
            if self._rescue is not None:
                self._end_by(self._rescue)
            self._at_work.release()
            return
        self._console.print(
            f"not stopped within {_DEADLINE:.0f} s: a step or a save takes longer. The checkpoints on the disk stay "
            "whole, whatever ends this process",
            highlight=False,
            soft_wrap=True,
        )

    def _end_by(self, rescue) -> None:
        try:
            message, status = rescue(), os.EX_TEMPFAIL
        except UserError as error:  # a full disk
            message, status = f"error: {error}", error.exit_status
        except Exception as error:  # else the main thread would wait for this one for ever
            message, status = f"error: not saved: {type(error).__name__}: {error}", 1
        self._console.print(message, highlight=False, soft_wrap=True)
        signals.end_process(status)


class Asked(Preemption):
    """A preemption by a function of the step, as a caller of `train` may give it."""

    def __init__(self, stop_requested: Callable[[int], signal.Signals | None], console: Console):
        super().__init__(lambda: None, console)
        self._stop_requested = stop_requested

    def __call__(self, step: int) -> signal.Signals | None:
        """The answer of the function."""
        self.request = self.request or self._stop_requested(step)
        return self.request

    def poll(self) -> signal.Signals | None:
        """The last answer of the function."""
        return self.request
