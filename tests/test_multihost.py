"""Two processes on this machine, as on a pod: they must train as one process with as many devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from resnet_jax import UserError, loop
from resnet_jax.logs import read_metrics
from resnet_jax.parallel import join_processes
from tests.test_loop import last_state
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {"parallel__devices": None, "norm__scope": "global", "train__steps": 25, "augment__crop": 1}
PROCESS = """
import sys, jax
workdir, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
address = f"127.0.0.1:{port}"
jax.distributed.initialize(address, num_processes=2, process_id=index, coordinator_bind_address=address)
from tests.tiny import tiny_config
config = tiny_config(**SETTINGS, parallel__distributed=True)
"""
TRAIN = """
from resnet_jax import loop
loop.train(config, workdir)
"""
STUDY = """
from rich.console import Console
from resnet_jax.ablate import run_study
from resnet_jax.study import grid, make_study
study = make_study("A study", config, grid({"optim.lr": (0.1, 1e30)}), seeds=(1,))
study.runs_at_once = 2
failed = run_study(study, workdir, Console(quiet=index > 0))
assert len(failed) == 1, failed
"""


def run_two_processes(code, workdir):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = PROCESS.replace("SETTINGS", repr(SETTINGS)) + code
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(workdir), str(port), str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs


@pytest.mark.slow
def test_two_processes_with_two_devices_train_as_one_with_four(tmp_path):
    outputs = run_two_processes(TRAIN, tmp_path / "two")
    assert "Results" in outputs[0]
    assert "Results" not in outputs[1]
    loop.train(tiny_config(**SETTINGS), tmp_path / "one")
    lines = [
        [(line["split"], line["step"], line["loss"], line["accuracy"]) for line in read_metrics(path / "metrics.jsonl")]
        for path in (tmp_path / "two", tmp_path / "one")
    ]
    assert len(lines[0]) == len(lines[1]) > 10
    for two, one in zip(*lines, strict=True):
        assert two[:2] == one[:2]
        np.testing.assert_allclose(two[2:], one[2:], rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, last_state(tmp_path / "two"), last_state(tmp_path / "one"))


@pytest.mark.slow
def test_a_study_on_two_processes_has_one_result_for_each_run(tmp_path):
    run_two_processes(STUDY, tmp_path / "study")
    found = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert [(line["name"], line["seed"]) for line in found] == [("optim.lr=0.1", 1)]
    assert [path.parts[-3] for path in (tmp_path / "study").rglob("error.txt")] == ["optim.lr=1e+30"]
    result = loop.train(tiny_config(**SETTINGS, seed=1), tmp_path / "one")
    assert found[0]["last"]["test"] == pytest.approx(result["last"]["test"], rel=1e-3)


def test_a_job_without_other_processes_is_told_how_to_start(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(UserError, match="parallel.distributed: expected a job of several processes"):
        join_processes()
