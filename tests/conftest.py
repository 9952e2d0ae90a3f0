import os

# Before JAX starts: four virtual devices, so that data parallelism is tested everywhere, and quick compilation, since
# most programs here run for a moment. (The golden files were made without it and hold; test_ablate does without it.)
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

from resnet_jax.environment import use_compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")
use_compilation_cache()


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that in the end no process is left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run: (workdir, result)."""
    from resnet_jax import train
    from tests.runs import SETTINGS
    from tests.tiny import tiny_config

    workdir = tmp_path_factory.mktemp("finished")
    result = train(tiny_config(**SETTINGS), workdir)
    assert result["best"]["test"]["accuracy"] > result["last"]["test"]["accuracy"]
    return workdir, result


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
