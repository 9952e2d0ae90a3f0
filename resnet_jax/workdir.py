"""Run directories: locks, and JSON files that are written atomically."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shlex
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator

import filelock

from resnet_jax.errors import UserError, WorkdirInUse

_LOCK = ".lock"


class StorageError(UserError):
    """A disk, or what lies on it, failed a run at work."""

    exit_status = 3


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


def cache_folder() -> pathlib.Path | None:
    """The folder for what can be made again, in the user's cache; None where there is no home, as in containers."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(base) / "resnet_jax"
    try:
        return pathlib.Path.home() / ".cache" / "resnet_jax"
    except RuntimeError:
        return None


def make_workdir(workdir: pathlib.Path) -> None:
    """Make a directory with its parents, or raise `UserError`."""
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)


def absolute(path: str | pathlib.Path) -> pathlib.Path:
    """The absolute path; see `local_path`."""
    return local_path(path).absolute()


def local_path(path: str | pathlib.Path) -> pathlib.Path:
    """The path, `~` expanded.

    Raises:
      UserError: a URL, where only a local path will do.
    """
    if is_url(path):
        raise UserError(f"{path}: expected a local path, found a URL; copy it to the local disk first")
    return pathlib.Path(path).expanduser()


def is_url(path: object) -> bool:
    """True for gs://bucket/run and other URLs, False for a local path."""
    return "://" in str(path)


_shown: dict[pathlib.Path, str] = {}


@contextlib.contextmanager
def shown_as(folder: pathlib.Path, name: str) -> Iterator[None]:
    """Let `shown`, and errors, call a folder by another name: that of the bucket that it is a copy of."""
    _shown[folder] = name
    try:
        yield
    except UserError as error:
        error.args = (shown(str(error)),)
        raise
    finally:
        del _shown[folder]


def shown(path: pathlib.Path | str) -> str:
    """A path, or a text with paths, as people know it."""
    text = str(path)
    for folder, name in _shown.items():
        text = text.replace(str(folder), name)
    return text


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
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; mend or move it") from None
    except (ValueError, RecursionError) as error:  # not text, or not JSON
        raise UserError(f"{path}: cannot be read: it is not JSON ({error}); mend or move it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; mend or move it")
    return value


def write_json(path: pathlib.Path, value: dict) -> None:
    """Write atomically: a reader sees the old file or the new one, never a half."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write atomically, even where several processes write at once."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: pathlib.Path, content: bytes, durable: bool = False) -> None:
    """Write atomically, even where several processes write at once; durably, for a loss of power just after."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with naming(path):
        try:
            temporary.write_bytes(content)
            if durable:
                fsync(temporary)
            os.replace(temporary, path)
            if durable:
                fsync(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def fsync(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
    """Let an `OSError` inside name this file, as those of writes to an open file do not."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
    """Turn an `OSError` inside into a `UserError` that names the directory."""
    try:
        yield
    except OSError as error:
        raise UserError(f"workdir: expected a folder that can be written, found {workdir}: {error.strerror}") from None


@contextlib.contextmanager
def storage_errors(workdir: pathlib.Path) -> Iterator[None]:
    """Turn an `OSError` of a run at work into one line: what failed, and what to do.

    Raises:
      StorageError: see there.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(describe_failure(error, workdir)) from error


def describe_failure(error: BaseException, workdir: pathlib.Path) -> str:
    """The file and the reason of an error of the storage, and what to do."""
    cause = error
    while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, OSError):
        reason = f"{cause.filename or workdir}: {cause.strerror or cause}"
    else:
        reason = f"{workdir}: {[type(error).__name__, *str(error).splitlines()][-1]}"
    if not workdir.is_dir():
        return f"{reason}; the folder {workdir} was moved or removed during the run. Move it back to continue"
    full = "No space left" in reason or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
    if full:
        reason += f" ({_size(shutil.disk_usage(workdir).free)} are free)"
    remedy = "Make room" if full else "Mend that"
    return f"{reason}. {remedy}, then continue: {resume_command(workdir)}"


def file_name(text: str) -> str:
    """A name of a file or folder that any file system takes, with what it can keep of a text."""
    return re.sub(r"[^A-Za-z0-9._=+]+", "-", text).strip("-.") or "-"


def resume_command(workdir: pathlib.Path) -> str:
    """The command that continues a run of this process; in words, if that is neither `train.py` nor a study."""
    program, *arguments = sys.argv
    if os.path.basename(program) == "ablate.py":
        return shlex.join(["python", "-m", "resnet_jax.ablate", *arguments])
    option = f"--workdir={shown(workdir)}"
    if os.path.basename(program) != "train.py":
        return f"the same command with {shlex.quote(option)}"
    named = any(argument.startswith(("--workdir", "-workdir")) for argument in arguments)
    return shlex.join(["python", program, *arguments, *([] if named else [option])])


_OF_STORAGE = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|NOT_FOUND|DATA_LOSS|UNAVAILABLE|No space left|os_error_code"


def is_of_storage(error: BaseException) -> bool:
    """True for an error of a disk, as Python, TensorStore or we say it; False for a mistake in the code."""
    while error is not None:
        if isinstance(error, OSError | UserError) or re.search(_OF_STORAGE, str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_room(workdir: pathlib.Path, size: int) -> None:
    """Raise `OSError` if fewer than `size` bytes are free: what writes to a full disk fails late and says little."""
    free = shutil.disk_usage(workdir).free
    if free < size:
        raise OSError(errno.ENOSPC, f"No space left on device for a checkpoint of {_size(size)}", str(workdir))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextlib.contextmanager
def path_for_orbax(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to the same folder without `*`, `?` and `[`: Orbax takes its own paths for patterns, and finds nothing."""
    if not set("*?[") & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="resnet_jax_") as folder:
        link = pathlib.Path(folder) / "link"
        link.symlink_to(path)
        yield link
