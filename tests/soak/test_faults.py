"""Faults at random places: whatever happens to a run, it ends as the one to which nothing happened.

Each test has a quick form, which is part of the suite; `python -m pytest -m soak` runs the full counts.
"""

import os
import random
import shutil
import signal
import subprocess

import pytest
from rich.console import Console

from resnet_jax import train
from resnet_jax.checkpoint import Checkpoints, SavedSteps
from resnet_jax.training.logs import read_metrics
from tests.checkpoint.test_checkpoint import assert_same, fill, items_of, scores
from tests.runs import assert_the_same_end, start_process
from tests.tiny import tiny_config

# A checkpoint about every second step, besides those of evaluations.
SETTINGS = {
    "train__ema_decay": 0.9,
    "train__steps": 40,
    "eval__every_epochs": 1.0,
    "checkpoint__every_minutes": 1e-4,
    "log__every_steps": 1,
}
QUIET = Console(quiet=True)


def counts(quick, full):
    return pytest.mark.parametrize("count", [quick, pytest.param(full, marks=pytest.mark.soak)])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run to which nothing happened, in a process of its own, as those that are compared with it."""
    workdir = tmp_path_factory.mktemp("reference")
    process = start_process(workdir, **SETTINGS)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return workdir


def end_somewhere(process, workdir, number, rng):
    """Send a signal at a random place of a run, if it has not ended by then; returns its status and what it printed."""
    if rng.random() < 0.25:  # while it starts
        lines, seconds = 0, rng.uniform(0.3, 6)
    else:
        lines, seconds = rng.randrange(1, 42), rng.uniform(0, 0.4)
    while len(lines_of(workdir)) < lines and process.poll() is None:
        os.sched_yield()
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        output = process.communicate()[0]
    return process.returncode, output


def lines_of(workdir):
    try:
        return read_metrics(workdir / "metrics.jsonl")
    except OSError:
        return []


def assert_no_step_is_lost(workdir, output):
    made = max((line["step"] for line in lines_of(workdir)), default=0)
    assert max(SavedSteps(workdir).steps(), default=0) >= made, output


def finish(workdir):
    output = (process := start_process(workdir, **SETTINGS)).communicate()[0]
    assert process.returncode == 0, output


@pytest.mark.slow
@counts(2, 100)
def test_a_run_that_is_killed_at_any_time_ends_to_the_bit_as_if_it_had_not(reference, tmp_path, count):
    rng, kills = random.Random(0), 0
    for trial in range(count):
        workdir = tmp_path / str(trial)
        for _ in range(rng.randrange(1, 3)):
            process = start_process(workdir, **SETTINGS)
            status, output = end_somewhere(process, workdir, signal.SIGKILL, rng)
            assert status in (0, -signal.SIGKILL), output
            kills += status != 0
        finish(workdir)
        assert_the_same_end(workdir, reference)
        shutil.rmtree(workdir)
    assert kills >= count / 2


@pytest.mark.slow
@counts(2, 50)
def test_a_request_to_stop_at_any_time_loses_no_step(reference, tmp_path, count):
    rng, stopped = random.Random(1), 0
    while stopped < count:
        workdir = tmp_path / str(stopped)
        process = start_process(workdir, **SETTINGS)
        number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
        status, output = end_somewhere(process, workdir, number, rng)
        assert status in (0, 75), output
        if status == 75:
            stopped += 1
            assert_no_step_is_lost(workdir, output)
            finish(workdir)
        assert_the_same_end(workdir, reference)
        shutil.rmtree(workdir)


@pytest.mark.slow
@counts([7, 20, 40], range(1, 41))
def test_a_run_resumed_from_any_step_ends_to_the_bit_as_if_it_had_not_stopped(tmp_path, count):
    config = tiny_config(**{**SETTINGS, "checkpoint__every_minutes": 0.0})
    train(config, tmp_path / "whole", QUIET)
    for step in count:
        workdir = tmp_path / str(step)
        with pytest.raises(Exception, match=f"stopped at step {step} of 40"):
            train(config, workdir, QUIET, stop_requested=lambda at, step=step: at == step)
        train(config, workdir, QUIET)
        assert_the_same_end(workdir, tmp_path / "whole")


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file, rng):
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


MUTATIONS = {
    "flip": flip,
    "truncate": truncate,
    "delete": lambda file, rng: file.unlink(),
    "empty": lambda file, rng: file.write_bytes(b""),
}


@counts(40, 500)
def test_any_file_of_a_checkpoint_that_is_changed_is_noticed_and_the_step_before_is_used(tmp_path, count):
    fill(tmp_path / "whole", scores(0.5, 0.6))
    rng = random.Random(2)
    for trial in range(count):
        workdir = shutil.copytree(tmp_path / "whole", tmp_path / str(trial))
        folder = workdir / "checkpoints" / "2"
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        mutation = rng.choice(sorted(MUTATIONS))
        MUTATIONS[mutation](file, rng)
        with Checkpoints(workdir) as checkpoints:
            step, trees, _ = checkpoints.restore_latest(items_of(0))
            assert step == 1, (mutation, file)
            assert_same(trees, items_of(1))
            assert len(checkpoints.messages) == 1 and "moved to checkpoints_corrupt/" in checkpoints.messages[0]
        shutil.rmtree(workdir)
