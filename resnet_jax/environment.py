"""Surroundings of a run: versions, devices, processors, and the cache of compiled programs."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator

import jax

from resnet_jax.errors import UserError
from resnet_jax.workdir import cache_folder

_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint ml_collections numpy grain simplejpeg opencv-python-headless pillow"
).split()


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder; what JAX's own variables say comes first."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder()
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla") if folder else None)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Say what did not fit into the memory of a device, and what to try.

    Args:
      advice: what to try.

    Raises:
      UserError: it did not.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise UserError(f"device memory: {reason}. Try {advice}") from error


def unseen_accelerator(devices: pathlib.Path = pathlib.Path("/dev")) -> str | None:
    """A sentence on an accelerator that is there but not used by JAX; None if there is none.

    Args:
      devices: folder of the device files.
    """
    if jax.default_backend() != "cpu" or jax.config.jax_platforms:
        return None
    kinds = {"nvidia[0-9]*": ("an NVIDIA GPU", "jax[cuda13]"), "accel[0-9]*": ("a TPU", "jax[tpu]")}
    for pattern, (kind, package) in kinds.items():
        if next(devices.glob(pattern), None):
            return f'{kind} is here that JAX does not see; install its build: pip install -U "{package}"'
    return None


def describe_environment() -> dict:
    """Command, versions, devices and git revision, as plain JSON."""
    return {
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": num_cpus(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "xla_flags": xla_flags(),
        "git_revision": git_revision(),
        **{package: _version(package) for package in _PACKAGES},
    }


_version = functools.cache(importlib.metadata.version)  # it reads files


def xla_flags() -> str:
    """The content of XLA_FLAGS: the user's, and those that `resnet_jax.xla_flags` chose."""
    return os.environ.get("XLA_FLAGS", "")


def num_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def git_revision() -> str | None:
    """The commit of the source tree, with "+" if it has local changes; None outside a git checkout."""
    root = pathlib.Path(__file__).parent.parent

    def git(*arguments):
        command = ["git", "-C", root, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
