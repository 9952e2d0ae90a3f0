"""The exceptions that end a command with a message instead of a traceback."""

import difflib
import os
from collections.abc import Iterable

INTERRUPTED = 130  # exit status, as shells give it


class UserError(ValueError):
    """Bad input. The message says what was expected, what was found and what to try."""

    exit_status = 2


class DivergedError(UserError):
    """The loss, the gradient or the state is not finite any more.

    Args:
      message: what, and what is left.
      step: the first at which it was seen, or None.
    """

    exit_status = 3

    def __init__(self, message: str, step: int | None = None):
        super().__init__(message)
        self.step = step


class DisagreementError(UserError):
    """Devices that should hold the same state do not."""

    exit_status = 3


class InterruptedRun(UserError):
    """The run was asked to stop and has saved a checkpoint.

    Args:
      message: where it stopped, and how to continue.
    """

    exit_status = os.EX_TEMPFAIL  # to a scheduler: start it again


class WorkdirInUse(UserError):
    """Another process is at work in the folder."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A sentence that names the closest known name; if none is close, it lists them all."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)
