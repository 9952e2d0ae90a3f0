"""Fixtures of the tests that prepare data."""

import dataclasses
import socket

import pytest

from resnet_jax.data import DATASETS


@pytest.fixture
def tiny_data_sets(monkeypatch):
    """Official splits of `tfds_files.SIZES`."""
    from tensorflow_datasets.image_classification import mnist

    from tests.data.tfds_files import SIZES

    for name, info in DATASETS.items():
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(info, splits=SIZES))
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", SIZES["train"])  # these builders read just so many
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", SIZES["test"])


@pytest.fixture
def no_network(monkeypatch):
    """Every download meets a proxy on a port where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{held.getsockname()[1]}")
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        yield
