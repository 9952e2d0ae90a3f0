"""The exceptions that end a command with a message instead of a traceback."""

import contextlib
import difflib
import sys
import warnings
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message says what was expected, what was found and what to try."""

    exit_status = 2


class DivergedError(UserError):
    """The loss, or the gradient, is not finite any more."""

    exit_status = 1


class InterruptedRun(UserError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved a checkpoint."""

    exit_status = 130


class WorkdirInUse(UserError):
    """Another process is at work in the folder."""


@contextlib.contextmanager
def command_line():
    """For the body of a command: messages instead of tracebacks.

    A `UserError` becomes one message on stderr and its exit status, Ctrl-C becomes status 130, and warnings are shown
    without the place in our code that they come from.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    except UserError as error:
        print(error if isinstance(error, InterruptedRun) else f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(InterruptedRun.exit_status) from None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A sentence that names the closest known name, if one is close, and lists them all."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    listing = "known: " + ", ".join(known)
    return f"did you mean {close[0]!r}? ({listing})" if close else listing
