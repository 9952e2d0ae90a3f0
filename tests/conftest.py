import contextlib
import importlib.metadata
import os
import pathlib
import shutil
import signal
import subprocess
from unittest import mock

# Before JAX starts: four virtual devices, so that data parallelism is tested everywhere, and quick compilation, since
# most programs here run for a moment. (The golden files were made without it and hold; test_ablate does without it.)
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        # Later versions have no other way.
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # several tests, and processes, need the same

import jax
import numpy as np
import pytest

from resnet_jax.config import build
from resnet_jax.environment import use_compilation_cache
from resnet_jax.training import plots

# A job in the background ignores Ctrl-C and closed terminals, and so do its children: tests send these signals.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
jax.config.update("jax_numpy_rank_promotion", "raise")
use_compilation_cache()
build._MAX_LATEST = 60  # tests come back to a program later than studies do


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that in the end no process is left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def fresh_programs():
    """For a test that replaces parts of a program: it gets none that is remembered, and leaves none."""
    build.forget_programs()
    yield
    build.forget_programs()


_plot_run = plots.plot_run


@pytest.fixture(autouse=True, scope="session")
def no_pictures():
    """Runs leave an empty picture, which takes half a second less; `finished` and test_plots.py draw real ones."""
    with mock.patch.object(plots, "plot_run", lambda lines, target, title: pathlib.Path(target).touch()):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run, not to be written to: (workdir, result)."""
    from resnet_jax import train
    from tests.runs import SETTINGS
    from tests.tiny import tiny_config

    workdir = tmp_path_factory.mktemp("finished")
    with mock.patch.object(plots, "plot_run", _plot_run):
        result = train(tiny_config(**SETTINGS), workdir)
    assert result["best"]["test"]["accuracy"] > result["last"]["test"]["accuracy"]
    files = sorted(workdir.rglob("*"))
    yield workdir, result
    assert sorted(workdir.rglob("*")) == files, "a test wrote into the run that all tests share; copy it first"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """20 and 6 JPEGs in 2 classes, cut from photographs."""
    import simplejpeg
    from sklearn.datasets import load_sample_images

    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for index in range(count):
            name = ("china", "flower")[index % 2]
            top, left = rng.integers((427 - 200, 640 - 260))
            cut = load_sample_images().images[index % 2][top : top + 200, left : left + 260]
            path = root / split / name / f"{index:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(cut)))
    return root


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many bytes; it goes with the test."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this needs the right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def as_nobody():
    """A context manager: file permissions count, which they do not for root. The folder is made readable before."""

    @contextlib.contextmanager
    def become(folder):
        if os.geteuid():
            yield
            return
        for path in [*folder.parents, folder, *folder.rglob("*")]:
            mode = path.stat().st_mode
            if mode & 0o700 and not mode & 0o004:  # not what the test has hidden
                path.chmod(mode | 0o055)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return become
