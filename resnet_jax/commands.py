"""Commands and what they print, which never ends a run."""

import contextlib
import os
import sys
import warnings
from typing import TextIO

from rich.console import Console

from resnet_jax.errors import INTERRUPTED, InterruptedRun, UserError


@contextlib.contextmanager
def command_line():
    """For the body of a command: messages instead of tracebacks.

    A `UserError` becomes one message on stderr and its exit status, Ctrl-C becomes status 130, and warnings are shown
    without the place in our code that they come from. What cannot be printed is dropped.
    """
    sys.stdout, sys.stderr = ForgivingFile(sys.stdout), ForgivingFile(sys.stderr)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    except UserError as error:
        print(error if isinstance(error, InterruptedRun) else f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def make_console(quiet: bool = False) -> Console:
    """A console that prints text as it is, and never ends a run."""
    return Console(file=ForgivingFile(sys.stdout), markup=False, highlight=False, quiet=quiet)


class ForgivingFile:
    """A text file that falls silent where it cannot be written: no reader of the pipe, a closed terminal, a full disk.

    Args:
      file: where to write; None, as for a process without a terminal, is silent from the start.
    """

    def __init__(self, file: TextIO | None):
        self._file = file

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write, or drop what cannot be written."""
        if self._file is not None:
            try:
                self._file.write(text)
            except UnicodeEncodeError:
                self._file.write(text.encode(self._file.encoding, "replace").decode(self._file.encoding))
            except OSError:
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what cannot be written."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError:
                self._fall_silent()

    def _fall_silent(self) -> None:
        # The file keeps what it could not write, and would try again when the process ends.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)
