"""Commands and what they print, which never ends a run."""

import argparse
import contextlib
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from resnet_jax.errors import INTERRUPTED, InterruptedRun, UserError, did_you_mean
from resnet_jax.workdir import absolute


@contextlib.contextmanager
def command_line():
    """For the body of a command: messages instead of tracebacks.

    A `UserError` becomes one message on stderr and its exit status, Ctrl-C becomes status 130, and warnings are shown
    without the place in our code that they come from. What cannot be printed is dropped.
    """
    sys.stdout, sys.stderr = ForgivingFile(sys.stdout), ForgivingFile(sys.stderr)
    warnings.formatwarning = _format_once(set())
    try:
        yield
    except UserError as error:
        print(error if isinstance(error, InterruptedRun) else f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _format_once(said: set[str]):
    def format_warning(message, *_, **__) -> str:
        text = "" if str(message) in said else f"warning: {message}\n"
        said.add(str(message))
        return text

    return format_warning


_WIDTH_OF_FILES = 200
_WIDEST = 1000  # characters
COMMANDS = {
    "python train.py": "train, or resume a run",
    "python -m resnet_jax.doctor": "check a run before it starts, here or on TPUs that are not there",
    "python -m resnet_jax.evaluate RUN": "score a run, on its data or on others; write predictions",
    "python -m resnet_jax.predict RUN IMAGE [IMAGE...]": "name what is on images, and where",
    "python -m resnet_jax.checkpoint ls|verify|diff|average|slim PATH": "look after checkpoints",
    "python -m resnet_jax.convert SOURCE --to OUT": "weights of other libraries to ours, and back",
    "python -m resnet_jax.export RUN OUT": "a model as a StableHLO or ONNX program",
    "python -m resnet_jax.ablate": "run a study and write its report",
    "python -m resnet_jax.report RUN [RUN...]": "curves of runs in one picture; of a folder of runs a list",
    "python -m resnet_jax.summary NAME": "shapes, parameters and cost of a model, or of that of a run",
    "python -m resnet_jax.data.prepare NAME": "prepare a data set",
    "python -m resnet_jax.data.check FOLDER": "look at a folder of images",
}


class Parser(argparse.ArgumentParser):
    """A parser that answers an unknown flag with the nearest one, by `UserError`."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """The arguments of a command line; see argparse."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise UserError(f"{unknown[0]}: there is no such flag; {did_you_mean(unknown[0].split('=')[0], flags)}")
        return found


def new_file(out: str, field: str) -> pathlib.Path:
    """The absolute path of a file to write.

    Args:
      out: path.
      field: argument that it comes from, for errors.

    Raises:
      UserError: it is there already, or its folder is not.
    """
    path = absolute(out)
    if path.exists():
        raise UserError(f"{field}: expected the name of a new file, found {out}; take another name")
    if not path.parent.is_dir():
        raise UserError(f"{field}: expected a file in a folder that is there, found no {path.parent}; make it")
    return path


@contextlib.contextmanager
def writing_file(path: str | pathlib.Path, field: str) -> Iterator[None]:
    """Turn an `OSError` inside into a `UserError` that names the file, and the argument that it comes from."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be written: {error.strerror or error}") from None


def make_console(quiet: bool = False, file: TextIO | None = None) -> Console:
    """A console on a file, or else on stdout, that prints text as it is, and never ends a run."""
    console = Console(file=ForgivingFile(file or sys.stdout), markup=False, highlight=False, quiet=quiet)
    if not (console.is_terminal or console.is_jupyter):
        console.width = _WIDTH_OF_FILES  # else tables are cut at 80 columns
    return console


def titled_table(title: str) -> Table:
    """A table that is as wide as its title, which would be wrapped."""
    return Table(title=title, title_justify="left", min_width=len(title))


def print_whole(console: Console, table: Table) -> None:
    """Print a table with all that is in it: on a terminal that is too narrow, the terminal wraps its lines."""
    wide = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table, crop=False)


class ForgivingFile:
    """A text file that falls silent where it cannot be written: no reader of the pipe, a closed terminal, a full disk.

    Args:
      file: where to write; None, as for a process without a terminal, is silent from the start.
    """

    def __init__(self, file: TextIO | None):
        self._file = file
        self._failed = False

    @property
    def failed(self) -> bool:
        """True once something could not be written."""
        return self._failed or getattr(self._file, "failed", False)

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
        self._failed = True
        # The file keeps what it could not write, and would try again when the process ends.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)
