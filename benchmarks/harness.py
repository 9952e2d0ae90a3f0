"""Timings side by side: candidates take turns in one process, and each measurement is one JSON line."""

import argparse
import contextlib
import datetime
import functools
import json
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from resnet_jax.commands import command_line
from resnet_jax.environment import num_cpus
from resnet_jax.errors import UserError
from resnet_jax.xla_flags import cpu_features

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "torchvision", "tensorflow")


class _SaveLines(argparse.Action):
    """Lines that are printed go to this file, too. It is opened at once, so that no measurement is lost."""

    def __call__(self, parser, namespace, values, option_string=None):
        path = pathlib.Path(values).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            parser.error(f"--save: {path} cannot be written: {error.strerror}; try another file")
        _FILES.append(path)


_FILES: list[pathlib.Path] = []  # given as --save: `print_line` has many callers, and none should hand a path on


def command_parser(description: str, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: `--rounds`, and `--save` for `print_line`.

    Args:
      description: docstring of the command's module.
      rounds: default of `--rounds`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=rounds, help="timed calls of each candidate")
    parser.add_argument("--save", action=_SaveLines, metavar="FILE", help="append the JSON lines to this file, too")
    return parser


def positive(text: str) -> int:
    """A whole number above 0, for options."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text}")
    return int(text)


@contextlib.contextmanager
def benchmark() -> Iterator[None]:
    """For the body of a benchmark: messages instead of tracebacks, and XLA's flags as in training.

    A package that is not installed is named, as benchmarks also run where only a part of the requirements is.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else a GPU has little memory left for torch
    with command_line():
        try:
            yield
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            raise UserError(f"{benchmark_name()}: expected the package {package}, found none; install it") from None


def compare(
    candidates: Mapping[str, Callable[[], float | None]],
    rounds: int = 5,
    *,
    case: Mapping = {},
    images: int | None = None,
    fastest_seconds: float | None = None,
    about: Mapping[str, Mapping] = {},
) -> list[dict]:
    """Time functions in turns, after one call of each, and print a JSON line for each.

    Args:
      candidates: by name; a function returns when its work is done. The seconds of the call count, or, where only a
        part of it is to count, those that it returns.
      rounds: timed calls of each.
      case: what is measured: the model, the size of the images and so on.
      images: number of images of a call; lines then have images per second.
      fastest_seconds: bound of a call on this device (see `roofline`), of which lines have the fraction reached.
      about: by name, more for that candidate's line.

    Returns:
      The lines. `seconds`, `images_per_second` and `speed_of_first` are [median, min, max]; the latter is how many
      times as fast as this candidate the first one was, by the rounds.
    """
    for function in candidates.values():
        function()
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            seconds[name].append(_seconds(function))
    first, lines = next(iter(seconds.values())), []
    for name, own in seconds.items():
        line = {"case": dict(case), "candidate": name, "seconds": spread(own), "rounds": rounds}
        if images:
            line["images_per_second"] = spread([images / each for each in own])
        if fastest_seconds:
            line["fraction_of_roofline"] = float(f"{fastest_seconds / statistics.median(own):.3g}")
        if len(candidates) > 1:
            line["speed_of_first"] = spread([its / firsts for its, firsts in zip(own, first, strict=True)])
        lines.append(print_line({**line, **about.get(name, {})}))
    return lines


def print_line(measured: dict) -> dict:
    """Print a measurement as a JSON line, append it to the file of `--save`, and return it.

    Args:
      measured: with `case` and `candidate`; surroundings that it lacks are added.
    """
    line = {"benchmark": benchmark_name(), **measured, **surroundings(), **measured}
    print(json.dumps(line), flush=True)
    for path in _FILES:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return line


def spread(values: list[float]) -> list[float]:
    """[median, min, max], to four significant digits."""
    return [float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values))]


def surroundings() -> dict:
    """Device, versions, date and command of a measurement."""
    return {"device": device_name(), "versions": _versions(), "date": _date(), "command": _command()}


def benchmark_name() -> str:
    """`step_time`, for `python -m benchmarks.step_time`."""
    return pathlib.Path(sys.argv[0]).stem


@functools.cache
def device_name() -> str:
    """Name of the accelerator; of CPUs their number, name and widest vectors."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    vectors = [title for flag, title in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in cpu_features()]
    return f"{num_cpus()} CPU cores ({', '.join([name[1] if name else 'unknown', *vectors[:1]])})"


def _seconds(function: Callable[[], float | None]) -> float:
    start = time.perf_counter()
    part = function()
    return time.perf_counter() - start if part is None else part


def _versions() -> str:
    loaded = [package for package in _PACKAGES if package in sys.modules]
    return ", ".join(f"{package} {sys.modules[package].__version__}" for package in loaded)


def _date() -> str:
    return datetime.date.today().isoformat()


def _command() -> str:
    return " ".join(["python", "-m", f"benchmarks.{benchmark_name()}", *sys.argv[1:]])
