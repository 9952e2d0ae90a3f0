"""The start of a job of several processes: do all of them see the same?"""

import functools
import importlib.metadata
import json
import pathlib
import time
import uuid

import jax
import ml_collections

from resnet_jax.config.stored import flatten
from resnet_jax.environment import git_revision
from resnet_jax.errors import UserError
from resnet_jax.job.address import Address
from resnet_jax.job.join import join, join_if_wanted
from resnet_jax.training.parallel import is_main_process
from resnet_jax.training.processes import agreed, check_same_everywhere, from_main
from resnet_jax.workdir import absolute, is_url, make_workdir, write_text, writing

_OF_A_HOST = ("data.data_dir", "data.workers", "data.num_workers")  # data are known by their digest
_TO_SEE = 10.0  # seconds; network file systems show what others write a little later


def join_job(config: ml_collections.ConfigDict, address: Address | None = None) -> None:
    """Join the job at an address, or that of the launcher if the config does not forbid it; see `job.join`.

    Raises:
      UserError: a job that cannot be joined, or none where `parallel.distributed` asks for one.
    """
    if address:
        join(*address[:4])
    join_if_wanted(config.parallel.distributed, config.parallel.heartbeat_seconds)


def check_job(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Check that the processes of a job have the same code, config and workdir.

    Raises:
      UserError: one of them differs; it is named.
    """
    if jax.process_count() == 1:
        return
    code = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    code["git revision"] = git_revision()
    check_same_everywhere(json.dumps(code).encode(), "code version (" + ", ".join(code) + ")")
    values = {key: value for key, value in flatten(config).items() if key not in _OF_A_HOST}
    check_same_everywhere(json.dumps(values, sort_keys=True).encode(), "config")
    if is_url(workdir):
        check_same_everywhere(str(workdir).encode(), "workdir")
    else:
        _check_shared(absolute(workdir))


def _check_shared(workdir: pathlib.Path) -> None:
    name = from_main(lambda: f".job-{uuid.uuid4().hex}")  # a new one: that it was absent is remembered nowhere
    token = workdir / name
    try:
        agreed(functools.partial(_write, token), "workdir")
        agreed(functools.partial(_find, token), "workdir")
    finally:
        if is_main_process():
            token.unlink(missing_ok=True)


def _write(token):
    if is_main_process():
        make_workdir(token.parent)
        with writing(token.parent):
            write_text(token, "")


def _find(token):
    deadline = time.monotonic() + _TO_SEE
    while not token.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"workdir: expected a folder that all processes share, found in {token.parent} "
                "nothing of what process 0 writes there; take one on a network file system, or in a bucket"
            )
        time.sleep(0.1)
