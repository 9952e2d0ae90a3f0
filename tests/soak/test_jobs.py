"""A job that is killed or asked to stop, continued by any number of processes with the same devices."""

import contextlib
import os
import random
import shutil
import signal
import subprocess

import pytest

from tests.jobs import ends_of, run_job, start_job
from tests.runs import assert_the_same_end
from tests.soak.test_faults import SETTINGS, assert_no_step_is_lost, counts, lines_of

CODE = f"""
resnet_jax.join(address, count, index)
settings = {{**{SETTINGS}, "parallel__devices": None, "parallel__heartbeat_seconds": 5.0}}
train(tiny_config(**settings, parallel__distributed=True), workdir)
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A job to which nothing happened."""
    workdir = tmp_path_factory.mktemp("reference")
    assert run_job(CODE, [workdir], devices=4)[0][0] == 0
    return workdir


def wait_for_lines(workdir, lines, processes):
    while len(lines_of(workdir)) < lines and all(process.poll() is None for process in processes):
        os.sched_yield()


def finish(workdir, rng):
    number = rng.choice([1, 2, 4])
    ends = run_job(CODE, [workdir] * number, devices=4 // number)
    assert [status for status, _, _ in ends] == [0] * number, ends


@pytest.mark.slow
@counts(1, 25)
def test_a_job_of_which_a_process_is_killed_ends_to_the_bit_on_any_number_of_processes(reference, tmp_path, count):
    rng = random.Random(4)
    for trial in range(count):
        workdir = tmp_path / str(trial)
        processes = start_job(CODE, [workdir] * 2, devices=2)
        wait_for_lines(workdir, rng.randrange(1, 40), processes)
        killed = rng.randrange(2)
        processes[killed].send_signal(signal.SIGKILL)
        ends = ends_of(processes)
        assert ends[killed][0] == -signal.SIGKILL and ends[1 - killed][0] == 75, ends
        finish(workdir, rng)
        assert_the_same_end(workdir, reference)
        shutil.rmtree(workdir)


@pytest.mark.slow
@counts(1, 25)
def test_a_request_to_stop_a_job_at_any_time_loses_no_step(reference, tmp_path, count):
    rng, stopped = random.Random(5), 0
    while stopped < count:
        workdir = tmp_path / str(stopped)
        processes, asked = start_job(CODE, [workdir] * 2, devices=2), rng.choice([[0, 1], [0], [1]])
        if rng.random() < 0.3:  # while it starts; schedulers then ask all
            asked = [0, 1]
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[0].wait(timeout=rng.uniform(0.3, 10))
        else:
            wait_for_lines(workdir, rng.randrange(1, 42), processes)
        for index in asked:
            processes[index].send_signal(signal.SIGTERM)
        ends = ends_of(processes)
        statuses = {status for status, _, _ in ends}
        assert statuses in ({0}, {75}), ends
        if statuses == {75}:
            stopped += 1
            assert_no_step_is_lost(workdir, ends)
        finish(workdir, rng)
        assert_the_same_end(workdir, reference)
        shutil.rmtree(workdir)
