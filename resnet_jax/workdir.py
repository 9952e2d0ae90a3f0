"""The folder of a run: whose it is, and the JSON files in it."""

import json
import os
import pathlib

import ml_collections

from resnet_jax.environment import describe_environment
from resnet_jax.errors import UserError


def claim_workdir(path: str | pathlib.Path, config: ml_collections.ConfigDict, write: bool = True) -> pathlib.Path:
    """Make the folder for this config, or recognise it as this config's; without `write`, leave that to another.

    Returns:
      Its absolute path. It holds `config.json` and `environment.json`.

    Raises:
      UserError: it cannot be written, or belongs to another config; the message shows the difference.
    """
    workdir = pathlib.Path(path).expanduser().absolute()
    if not write:
        return workdir
    given = json.loads(config.to_json())
    if (workdir / "config.json").exists():
        found = read_config(workdir)
        differences = _differences(json.loads(found.to_json()), given)
        if differences:
            raise UserError(
                f"workdir: {workdir} belongs to another config; take another --workdir, or the same config:\n"
                + "\n".join(f"  {line}" for line in differences)
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "environment.json", describe_environment())
        write_json(workdir / "config.json", given)
    except OSError as error:
        raise UserError(f"workdir: expected a folder that can be written, found {workdir}: {error.strerror}") from None
    return workdir


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The locked config of a run.

    Raises:
      UserError: the folder holds no run.
    """
    path = pathlib.Path(workdir).expanduser() / "config.json"
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text())).lock()
    except FileNotFoundError:
        raise UserError(f"workdir: expected the folder of a run, found no config.json in {path.parent}") from None
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"workdir: {path} cannot be read: {error}") from None


def read_result(workdir: pathlib.Path) -> dict | None:
    """What `result.json` holds, or None before there is one."""
    path = workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: pathlib.Path, value: dict) -> None:
    """Write as a whole: a reader sees the old file or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def _differences(found: dict, given: dict, prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*found, *given}):
        left, right = found.get(key, "(no such key)"), given.get(key, "(no such key)")
        if isinstance(left, dict) and isinstance(right, dict):
            lines += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {left!r} in the workdir, {right!r} given")
    return lines
