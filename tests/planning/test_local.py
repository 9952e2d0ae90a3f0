"""Checks of this machine."""

import collections
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from resnet_jax import train
from resnet_jax.commands import make_console
from resnet_jax.planning import local
from resnet_jax.planning.local import check_machine
from resnet_jax.planning.rates import Rates
from resnet_jax.planning.search import Largest
from resnet_jax.workdir import lock_workdir
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parent.parent.parent
QUIET = make_console(quiet=True)


@pytest.fixture
def quick(monkeypatch):
    """Nothing is measured, and no other batch is compiled."""
    monkeypatch.setattr(local, "measure_rates", lambda recipe: Rates(input=300, step=200))
    monkeypatch.setattr("resnet_jax.planning.plan.search_largest", lambda *a: Largest(1248, None, 1248))


def checks(config, workdir):
    return {check.name: check for check in check_machine(config, workdir)}


def test_all_is_well_with_the_default_run(tmp_path, quick):
    found = checks(tiny_config(parallel__devices=None), tmp_path / "new")
    assert list(found) == ["devices", "versions", "hosts", "workdir", "disk", "memory", "input"]
    assert [name for name, check in found.items() if check.advice] == []
    assert found["devices"].found == "4 x cpu" and found["hosts"].found == "one process"
    assert f"jax {jax.__version__}" in found["versions"].found
    assert found["workdir"].found == f"{tmp_path / 'new'} is new, and can be made"
    assert "a batch of 64 needs" in found["memory"].found and "1,248" in found["memory"].found
    assert not (tmp_path / "new").exists()


def test_idle_devices_and_a_slow_input_are_pointed_out(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(local, "measure_rates", lambda recipe: Rates(input=100, step=200))
    found = checks(tiny_config(), tmp_path)
    assert found["devices"].advice == "parallel.devices=1 leaves 3 of them idle"
    assert found["input"].found == "100 images/s come in, a step takes 200 images/s"
    assert found["input"].advice.startswith("training waits for its input")


def test_the_input_is_measured_for_a_moment(monkeypatch):
    from resnet_jax.config.plan import planned_recipe
    from resnet_jax.planning import rates

    monkeypatch.setattr(rates, "_SECONDS", 0.1)
    stream = {"data__name": "synthetic:600:5", "data__loader": "stream", "data__image_size": 16}
    for settings in ({}, stream):
        found = rates.measure_rates(planned_recipe(tiny_config(parallel__devices=2, **settings)))
        assert found.input > 0 and found.step > 0


def test_a_run_in_the_workdir_is_named(tmp_path, quick):
    config = tiny_config(train__steps=10)
    assert checks(config, tmp_path)["workdir"].found == f"{tmp_path} can be written, and holds no run"
    with pytest.raises(Exception, match="stopped at step 5"):
        train(config, tmp_path, QUIET, stop_requested=lambda step: step == 5)
    found = checks(config, tmp_path)["workdir"]
    assert found.advice is None and "saved at step 5; training continues it" in found.found
    other = checks(tiny_config(train__steps=10, optim__lr=0.5), tmp_path)["workdir"]
    assert other.advice and "optim.lr" in other.found + other.advice
    train(config, tmp_path, QUIET)
    assert checks(config, tmp_path)["workdir"].advice == "nothing to train; take another"


def test_a_workdir_in_use_or_without_rights_is_pointed_out(tmp_path, quick, as_nobody):
    (tmp_path / "run").mkdir()
    with lock_workdir(tmp_path / "run"):
        found = checks(tiny_config(), tmp_path / "run")["workdir"]
    assert "another run is at work" in found.found and "take another" in found.advice
    (tmp_path / "closed").mkdir(mode=0o500)
    with as_nobody(tmp_path):
        found = checks(tiny_config(), tmp_path / "closed" / "new")["workdir"]
    assert "cannot be written: Permission denied" in found.found and "--workdir" in found.advice


def test_a_disk_that_is_too_small_for_the_checkpoints_is_pointed_out(tmp_path, quick, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(local.shutil, "disk_usage", lambda path: usage(30_000))
    found = checks(tiny_config(checkpoint__keep=3), tmp_path / "new")["disk"]
    assert found.found.startswith("30.0 kB free for 5 checkpoints of") and "checkpoint.keep" in found.advice


def test_memory_that_is_too_small_names_the_largest_batch(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("resnet_jax.planning.plan.memory_of", lambda device: 100_000)
    found = checks(tiny_config(), tmp_path)
    assert "which has 100.0 kB" in found["memory"].found
    assert found["memory"].advice.startswith("--config.train.batch_size=1248")
    assert "input" not in found  # a step that does not fit is not tried


def test_memory_that_is_too_small_for_evaluations_alone_names_their_batch(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("resnet_jax.planning.plan.memory_of", lambda device: 1_000_000)
    found = checks(tiny_config(train__batch_size=8, eval__batch_size=360), tmp_path)
    assert "an evaluation of 360 images needs" in found["memory"].found
    assert found["memory"].advice == "a smaller eval.batch_size"


JOB = """
import pathlib, sys, jax
address, index, version = "127.0.0.1:" + sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, num_processes=2, process_id=index, coordinator_bind_address=address)
from resnet_jax.planning import local, rates
from tests.tiny import tiny_config
rates._SECONDS = 0.1
describe = local.describe_environment
local.describe_environment = lambda: {**describe(), "flax": version}
config = tiny_config(parallel__devices=None, parallel__distributed=True)
for check in local.check_machine(config, pathlib.Path(sys.argv[4])):
    print(check.name, check.found, check.advice, sep="; ")
"""


@pytest.mark.slow
@pytest.mark.parametrize("versions", [("1", "1"), ("1", "2")])
def test_the_processes_of_a_job_have_to_agree(tmp_path, versions):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=4", "count=2")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, port, str(index), version, str(tmp_path / "run")],
            **{"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        )
        for index, version in enumerate(versions)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    printed = outputs[0][0]  # Gloo's words may stand between ours
    agree = "hosts; 2 processes agree in versions, code and config; None"
    assert (agree in printed) == (versions[0] == versions[1]), printed
    assert versions[0] == versions[1] or "found another in process 1" in printed
    assert "devices; 4 x cpu; None" in printed and "images/s come in" in printed
