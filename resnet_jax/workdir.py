"""Run directories: locks, and JSON files that are written atomically."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator

import filelock

from resnet_jax.errors import UserError, WorkdirInUse

_LOCK = ".lock"


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Make a run directory and keep other processes out of it.

    Raises:
      UserError: the directory cannot be written.
      WorkdirInUse: another process holds the lock.
    """
    make_workdir(workdir)
    lock = filelock.FileLock(workdir / _LOCK, timeout=0)
    with writing(workdir):
        try:
            lock.acquire()
        except filelock.Timeout:
            raise WorkdirInUse(f"workdir: another run is at work in {workdir}; wait for it or take another") from None
    try:
        yield
    finally:
        lock.release()


def make_workdir(workdir: pathlib.Path) -> None:
    """Make a directory with its parents, or raise `UserError`."""
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)


def absolute(path: str | pathlib.Path) -> pathlib.Path:
    """The absolute path, `~` expanded."""
    return pathlib.Path(path).expanduser().absolute()


def read_environment(workdir: pathlib.Path) -> dict:
    """The content of `environment.json`, or nothing if it cannot be read."""
    try:
        return read_json(workdir / "environment.json")
    except UserError:
        return {}


def read_result(workdir: pathlib.Path) -> dict | None:
    """The content of `result.json`, or None before there is one.

    Raises:
      UserError: the file is not the result of a run.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    if "completed" not in result or (result["completed"] and not {"last", "best"} <= result.keys()):
        raise UserError(f"{path}: expected the result of a run, found the keys {list(result)}; mend or move it")
    return result


def read_json(path: pathlib.Path) -> dict:
    """A JSON object from a file, or `UserError`."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: not text, or not JSON
        raise UserError(f"{path}: cannot be read: {error}; mend or move it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; mend or move it")
    return value


def write_json(path: pathlib.Path, value: dict) -> None:
    """Write atomically: a reader sees the old file or the new one, never a half."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write atomically, even where several processes write at once."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def writing(workdir: pathlib.Path):
    """Turn an `OSError` inside into a `UserError` that names the directory."""
    try:
        yield
    except OSError as error:
        raise UserError(f"workdir: expected a folder that can be written, found {workdir}: {error.strerror}") from None
