"""The folder of a run: whose it is, and the JSON files in it."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator

import ml_collections

from resnet_jax.environment import describe_environment
from resnet_jax.errors import UserError, WorkdirInUse

try:
    import fcntl
except ImportError:  # not on Windows: there two runs in one folder are not told apart
    fcntl = None


@contextlib.contextmanager
def claim_workdir(
    path: str | pathlib.Path, config: ml_collections.ConfigDict, write: bool = True
) -> Iterator[pathlib.Path]:
    """Make the folder for this config, or recognise it as this config's, and keep other runs out of it meanwhile.

    Without `write`, leave all that to another process. Gives its absolute path; it holds `config.json` and
    `environment.json`.

    Raises:
      UserError: it cannot be written, is in use, or belongs to another config; the message shows the difference.
    """
    workdir = pathlib.Path(path).expanduser().absolute()
    if not write:
        yield workdir
        return
    with contextlib.ExitStack() as stack:
        with _writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            folder = os.open(workdir, os.O_RDONLY)
            stack.callback(os.close, folder)
            _lock(folder, workdir)
        name_workdir(workdir, config)
        yield workdir


def name_workdir(path: str | pathlib.Path, config: ml_collections.ConfigDict, write: bool = True) -> pathlib.Path:
    """As `claim_workdir`, but others with the same config may use it at the same time."""
    workdir = pathlib.Path(path).expanduser().absolute()
    if not write:
        return workdir
    check_workdir(workdir, config)
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "environment.json", describe_environment())
        write_json(workdir / "config.json", json.loads(config.to_json()))
    return workdir


def check_workdir(path: str | pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raise `UserError`, which shows the difference, if the folder belongs to another config."""
    path = pathlib.Path(path).expanduser().absolute() / "config.json"
    differences = _differences(_read_object(path), json.loads(config.to_json())) if path.exists() else []
    if differences:
        raise UserError(
            f"workdir: {path.parent} belongs to another config; take another --workdir, or the same config:\n"
            + "\n".join(f"  {line}" for line in differences)
        )


def read_environment(workdir: pathlib.Path) -> dict:
    """What `environment.json` holds, or nothing if it cannot be read."""
    try:
        return _read_object(workdir / "environment.json")
    except UserError:
        return {}


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The locked config of a run.

    Raises:
      UserError: the folder holds no run.
    """
    path = pathlib.Path(workdir).expanduser() / "config.json"
    if not path.exists():
        raise UserError(f"workdir: expected the folder of a run, found no config.json in {path.parent}")
    return ml_collections.ConfigDict(_read_object(path)).lock()


def read_result(workdir: pathlib.Path) -> dict | None:
    """What `result.json` holds, or None before there is one.

    Raises:
      UserError: the file is not what a run writes.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    result = _read_object(path)
    if "completed" not in result or (result["completed"] and not {"last", "best"} <= result.keys()):
        raise UserError(f"{path}: expected the result of a run, found the keys {list(result)}; mend or move it")
    return result


def write_json(path: pathlib.Path, value: dict) -> None:
    """Write as a whole: a reader sees the old file or the new one, never a half."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write as a whole, even where several processes write at once."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def _writing(workdir: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise UserError(f"workdir: expected a folder that can be written, found {workdir}: {error.strerror}") from None


def _lock(folder: int, workdir: pathlib.Path) -> None:
    try:
        if fcntl:
            fcntl.flock(
                folder, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # until it is closed, or the process ends however it ends
    except OSError:
        raise WorkdirInUse(f"workdir: another run is at work in {workdir}; wait for it or take another") from None


def _read_object(path: pathlib.Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: not text, or not JSON
        raise UserError(f"{path}: cannot be read: {error}; mend or move it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; mend or move it")
    return value


def _differences(found: dict, given: dict, prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*found, *given}):
        left, right = found.get(key, "(no such key)"), given.get(key, "(no such key)")
        if isinstance(left, dict) and isinstance(right, dict):
            lines += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {left!r} in the workdir, {right!r} given")
    return lines
