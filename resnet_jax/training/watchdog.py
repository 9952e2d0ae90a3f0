"""Ends a process in which nothing moves any more: a collective that waits for a host that is gone, a dead disk."""

import contextlib
import faulthandler
import sys
import time
from collections.abc import Iterator

_SHARE_BETWEEN = 0.01  # of the limit: to be told takes the lock of the interpreter, for which input threads wait, too


class Watchdog:
    """Prints the stacks of all threads and ends the process, with status 1, if it is not told to wait in time.

    It is a thread of the interpreter's own, which needs no Python to run.

    Args:
      seconds: max time without a step; 0 for no limit.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._next = 0.0

    def wait(self) -> None:
        """Wait from now on; cheap enough for every step."""
        now = time.monotonic()
        if self._seconds and now >= self._next:
            self._next = now + _SHARE_BETWEEN * self._seconds
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[Watchdog]:
    """A watchdog for as long as a run is at work."""
    try:
        yield Watchdog(seconds)
    finally:
        faulthandler.cancel_dump_traceback_later()
