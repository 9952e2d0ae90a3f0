import os

# Before JAX starts: four virtual devices, so that data parallelism is tested everywhere.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from resnet_jax.environment import use_compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")
use_compilation_cache()


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
