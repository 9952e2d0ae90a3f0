"""The exceptions that end a command with a message instead of a traceback."""

import difflib
import os
from collections.abc import Iterable

INTERRUPTED = 130  # exit status, as shells give it


class UserError(ValueError):
    """Bad input. The message says what was expected, what was found and what to try."""

    exit_status = 2


class DivergedError(UserError):
    """The loss, the gradient or the state is not finite any more."""

    exit_status = 3


class DisagreementError(UserError):
    """Devices that should hold the same state do not."""

    exit_status = 3


class InterruptedRun(UserError):
    """The run was asked to stop and has saved a checkpoint.

    Args:
      message: where it stopped, and how to continue.
      by_person: by Ctrl-C; otherwise by a signal after which a scheduler should start it again.
    """

    def __init__(self, message: str, by_person: bool):
        super().__init__(message)
        self.by_person = by_person
        self.exit_status = INTERRUPTED if by_person else os.EX_TEMPFAIL


class WorkdirInUse(UserError):
    """Another process is at work in the folder."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A sentence that names the closest known name; if none is close, it lists them all."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)
