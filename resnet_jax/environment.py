"""Surroundings of a run: versions, devices, processors, and the cache of compiled programs."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

import jax

from resnet_jax.workdir import cache_folder

_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint ml_collections numpy grain simplejpeg opencv-python-headless pillow"
).split()


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR says where."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder()
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla") if folder else None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


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
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git_revision": git_revision(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }


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
