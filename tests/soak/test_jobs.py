"""A job of which a process is killed, continued by any number of processes with the same devices."""

import os
import random
import shutil
import signal

import pytest

from tests.jobs import ends_of, run_job, start_job
from tests.runs import assert_the_same_end
from tests.soak.test_faults import SETTINGS, counts, lines_of

CODE = f"""
resnet_jax.join(address, count, index)
settings = {{**{SETTINGS}, "parallel__devices": None, "parallel__heartbeat_seconds": 5.0}}
train(tiny_config(**settings, parallel__distributed=True), workdir)
"""


@pytest.mark.slow
@counts(1, 25)
def test_a_job_of_which_a_process_is_killed_ends_to_the_bit_on_any_number_of_processes(tmp_path, count):
    assert run_job(CODE, [tmp_path / "reference"], devices=4)[0][0] == 0
    rng = random.Random(4)
    for trial in range(count):
        workdir = tmp_path / str(trial)
        processes, lines = start_job(CODE, [workdir] * 2, devices=2), rng.randrange(1, 40)
        while len(lines_of(workdir)) < lines and all(process.poll() is None for process in processes):
            os.sched_yield()
        killed = rng.randrange(2)
        processes[killed].send_signal(signal.SIGKILL)
        ends = ends_of(processes)
        assert ends[killed][0] == -signal.SIGKILL and ends[1 - killed][0] == 75, ends
        number = rng.choice([1, 2, 4])
        ends = run_job(CODE, [workdir] * number, devices=4 // number)
        assert [status for status, _, _ in ends] == [0] * number, ends
        assert_the_same_end(workdir, tmp_path / "reference")
        shutil.rmtree(workdir)
