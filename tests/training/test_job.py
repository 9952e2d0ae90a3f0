"""Jobs of real processes in which one fails, is lost or differs: all end, soon, and say why."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from resnet_jax import UserError
from resnet_jax.errors import DisagreementError
from resnet_jax.job.address import given_address, launcher
from resnet_jax.job.join import join, join_if_wanted
from resnet_jax.training.agreement import check_agreement
from resnet_jax.training.parallel import DataParallel
from tests.jobs import ROOT, ends_of, environment, free_port, run_job, start_job
from tests.training.test_signals import read_until

HOST = socket.gethostname()
JOB = """
resnet_jax.join(address, count, index, timeout=120)
settings = dict(parallel__devices=None, parallel__heartbeat_seconds=5, train__steps=40, log__every_steps=10)
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def fail(error):
    raise error
"""
FAIL = "if index == {index}: at_step(12, lambda: fail({error}))"
TRAIN = "\ntrain(tiny_config(**settings), workdir)"
LOST = os.EX_TEMPFAIL


def check(ended, statuses, *messages):
    """Each process has its status and its message, and no word of a crash."""
    assert [status for status, _, _ in ended] == statuses, "\n".join(error for _, _, error in ended)
    for (_, _, error), message in zip(ended, messages, strict=True):
        assert re.search(message, error) if message else not error, error
        assert "Traceback" not in error and "stack trace" not in error and "Aborted" not in error, error


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "reason"), [(1, "no sign of life for 5 s"), (0, "its connection was closed")])
def test_a_job_that_loses_a_process_ends_with_the_status_for_another_try(tmp_path, victim, reason):
    ended = run_job(f"{JOB}if index == {victim}: at_step(12, kill){TRAIN}", [tmp_path] * 2)
    statuses = [LOST, LOST]
    statuses[victim] = -signal.SIGKILL
    messages = [rf"error: process {victim} \({HOST}\) was lost: {reason}; start the job again"] * 2
    messages[victim] = ""
    check(ended, statuses, *messages)


def job_that_compiles(folder):
    cold = f"os.environ['XDG_CACHE_HOME'] = {str(folder / 'cache')!r}\n"
    processes = start_job(f"{cold}{JOB}settings['model__name'] = 'resnet56'{TRAIN}", [folder / "run"] * 2)
    read_until(processes[0].stdout, "└")  # the end of the start screen
    return processes


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[0, 1], [1]])
def test_a_job_is_stopped_in_a_long_compilation_whichever_process_is_asked(tmp_path, asked):
    processes = job_that_compiles(tmp_path)
    for index in asked:
        processes[index].send_signal(signal.SIGTERM)
    ends = ends_of(processes)
    assert [status for status, _, _ in ends] == [75, 75], ends
    assert "stopped before a step was made; nothing was lost" in ends[0][1]
    assert "Traceback" not in ends[0][2] + ends[1][2]


@pytest.mark.slow
def test_a_second_signal_ends_a_process_of_a_job_at_once(tmp_path):
    processes = job_that_compiles(tmp_path)
    processes[0].send_signal(signal.SIGTERM)
    read_until(processes[0].stdout, "stopping after the next step")
    while processes[0].poll() is None:  # those of the first half second are the same request
        processes[0].send_signal(signal.SIGUSR1)
        os.sched_yield()
    assert [status for status, _, _ in ends_of(processes)] == [128 + signal.SIGUSR1, LOST]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "error", "message", "status"),
    [
        (0, "OSError(5, 'Input/output error', '/lost/disk')", "/lost/disk: Input/output error", 3),
        (1, "OSError(5, 'Input/output error', '/lost/disk')", "/lost/disk: Input/output error", 3),
        (1, "resnet_jax.UserError('data.max_corrupt: too many')", "data.max_corrupt: too many", 2),
        (0, "RuntimeError('of nobody')", "RuntimeError: of nobody", 1),
    ],
    ids=["storage-0", "storage-1", "user-1", "bug-0"],
)
def test_an_error_of_one_process_ends_all_with_its_message_and_status(tmp_path, index, error, message, status):
    ended = run_job(JOB + FAIL.format(index=index, error=error) + TRAIN, [tmp_path] * 2)
    check([ended[1 - index]], [status], rf"error: process {index} \({HOST}\): {message}")
    own_status, _, own = ended[index]
    assert own_status == status and message in own.splitlines()[-1]
    assert ("Traceback" in own) == (status == 1)  # a bug has its traceback, where it is


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused_at_the_start(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    ended = run_job(JOB + TRAIN, folders)
    said = f"workdir: expected a folder that all processes share, found in {folders[1]} nothing"
    check(ended, [2, 2], rf"process 1 \({HOST}\): workdir: {said}", f"^error: {said}")
    assert [list(folder.glob("*")) for folder in folders if folder.exists()] == [[]]


@pytest.mark.slow
def test_processes_with_other_configs_are_refused_by_name(tmp_path):
    ended = run_job(JOB + "settings['seed'] = index == 2" + TRAIN, [tmp_path] * 3, devices=1)
    said = rf"expected the same config in every process, found another in process 2 \({HOST}\) than in the others"
    check(ended, [2, 2, 2], said, said, said)


@pytest.mark.slow
def test_a_process_whose_device_went_wrong_stops_the_job_before_anything_is_saved(tmp_path):
    code = """
from resnet_jax.training.program import Program
from tests.training.test_job import flipped
make = Program._compile_train_steps
def with_fault(program, count):
    train_steps, calls = make(program, count), iter(range(1000))
    def call(state, inputs):
        state, sums = train_steps(state, inputs)
        return flipped(state, 3, 1, 0, 7) if next(calls) == 5 and index == 1 else (state), sums
    call.lower = train_steps.lower
    return call
Program._compile_train_steps = with_fault
"""
    ended = run_job(JOB + code + TRAIN, [tmp_path] * 2)
    said = rf"step 10: expected the same state on every device, found another on \S+ of process 1 \({HOST}\)"
    check(ended, [3, 3], said, said)
    assert not list((tmp_path / "checkpoints").glob("*"))


def flipped(tree, leaf, device, element, bit):
    """The tree with one bit of one array changed in the copy of one device of this process."""
    leaves, structure = jax.tree.flatten(tree)
    x = leaves[leaf]
    copies = [shard.data for shard in x.addressable_shards]
    values = np.array(copies[device])
    values.reshape(-1).view(np.uint8)[element * x.dtype.itemsize + bit // 8] ^= 1 << bit % 8
    copies[device] = jax.device_put(values, copies[device].devices().pop())
    leaves[leaf] = jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("seed", range(20))
def test_a_single_bit_that_differs_on_one_device_is_found_and_the_device_named(seed):
    rng = np.random.default_rng(seed)
    parallel = DataParallel(jax.devices())
    tree = {
        "kernel": rng.normal(size=(3, 3, 4, 8)).astype(np.float32),
        "half": rng.normal(size=(5,)).astype(jax.numpy.bfloat16),
        "step": np.int32(7),
        "flag": np.array([True, False]),
        "key": np.arange(2, dtype=np.uint32),
    }
    tree = parallel.replicate(tree)
    check_agreement(parallel, tree, "step 0")
    leaf, device = int(rng.integers(5)), int(rng.integers(4))
    x = jax.tree.leaves(tree)[leaf]
    bit = 0 if x.dtype == bool else int(rng.integers(8 * x.dtype.itemsize))
    wrong = flipped(tree, leaf, device, int(rng.integers(x.size)), bit)
    with pytest.raises(DisagreementError, match=rf"step 3: .* another on \S+{device} of process 0") as error:
        check_agreement(parallel, wrong, "step 3")
    assert error.value.exit_status == 3


def test_arrays_that_changed_places_on_one_device_are_found():
    parallel = DataParallel(jax.devices())
    a, b = (parallel.replicate(np.full(6, value, np.float32)) for value in (1, 2))
    mixed = [[shard.data for shard in x.addressable_shards] for x in (a, b)]
    mixed[0][2], mixed[1][2] = mixed[1][2], mixed[0][2]
    tree = [
        jax.make_array_from_single_device_arrays(x.shape, x.sharding, data)
        for x, data in zip((a, b), mixed, strict=True)
    ]
    with pytest.raises(DisagreementError):
        check_agreement(parallel, tree, "step 0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:1234", 2, None), "--process_id: expected a value, found none"),
        ((None, 2, 0), "--coordinator: expected a value, found none; a job needs --coordinator, --num_processes"),
        (("10.0.0.1:1234", None, 0), "--num_processes: expected a value"),
        (("10.0.0.1", 2, 0), "--coordinator: expected HOST:PORT with a port from 1 to 65535, like .*, found 10.0.0.1"),
        (("10.0.0.1:99999", 2, 0), "--coordinator: expected HOST:PORT"),
        (("http://a:1", 2, 0), "--coordinator: expected HOST:PORT"),
        (("10.0.0.1:1234", 2, 2), "--process_id: expected 0 to 1, found 2"),
        (("10.0.0.1:1234", 2, -1), "--process_id: expected 0 to 1, found -1"),
        (("10.0.0.1:1234", 0, 0), "--num_processes: expected at least 1, found 0"),
        (("10.0.0.1:1234", 2, 0, "here"), "--coordinator_bind: expected HOST:PORT"),
        ((None, None, None, "0.0.0.0:1"), "--coordinator_bind: expected --coordinator, "),
    ],
)
def test_an_address_that_cannot_be_is_refused_by_its_flag(monkeypatch, arguments, message):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(UserError, match=message):
        given_address(*arguments)


def test_process_0_binds_to_the_given_address_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    assert given_address("10.0.0.1:7", 2, 1).bind == "10.0.0.1:7"
    assert given_address("10.0.0.1:7", 2, 1, "0.0.0.0:8").bind == "0.0.0.0:8"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "[::1]:9")
    assert given_address(None, 2, 1).coordinator == given_address(None, 2, 1).bind == "[::1]:9"


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("SLURM", {"SLURM_STEP_NODELIST": "node[01-02]", "SLURM_NTASKS": "2"}),
        ("Open MPI", {"OMPI_COMM_WORLD_SIZE": "4"}),
        ("TPU pod", {"TPU_WORKER_HOSTNAMES": "a,b"}),
        ("TPU pod", {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}),
        ("Kubernetes", {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}),
        (None, {"SLURM_STEP_NODELIST": "node01", "SLURM_NTASKS": "1"}),
        (None, {"SLURM_NTASKS": "2"}),  # in the batch script itself
        (None, {"OMPI_COMM_WORLD_SIZE": "1"}),
        (None, {"TPU_WORKER_HOSTNAMES": "localhost"}),
        (None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
        (None, {}),
    ],
)
def test_a_launcher_of_several_processes_is_known_by_its_variables(name, variables):
    assert launcher(variables) == name


def test_a_job_without_other_processes_is_told_how_to_start(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(UserError, match="parallel.distributed: expected a job of several processes, .* --coordinator="):
        join_if_wanted(True, 30.0)
    join_if_wanted(None, 30.0)
    assert not jax.distributed.is_initialized()


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=f"--coordinator: process 0 cannot listen on 127.0.0.1:{port}: Address alre"
        ):
            join(f"127.0.0.1:{port}", 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "what"), [(0, "listening on"), (1, "looking for")])
def test_a_job_that_does_not_come_together_ends_in_one_line(index, what):
    code = f"import resnet_jax; resnet_jax.join('127.0.0.1:{free_port()}', 2, {index}, timeout=3)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=120
    )
    assert process.returncode == LOST
    assert re.fullmatch(rf"error: --coordinator: process {index} of 2 .*{what} 127.0.0.1:\d+, .*\n", process.stderr)
    assert ("127.0.0.1 is an address for this machine alone" in process.stderr) == (index == 0)


@pytest.mark.slow
def test_the_coordinator_listens_on_its_address_alone():
    port = free_port()
    code = f"import resnet_jax; resnet_jax.join('127.0.0.1:{port}', 2, 0, timeout=60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(1))
    try:
        while not (found := _listening(port)):
            assert process.poll() is None
            time.sleep(0.1)
        assert [address[-8:] for address in found] == ["0100007F"]  # 127.0.0.1, its bytes backwards
    finally:
        process.kill()
        process.wait()


def _listening(port):
    """The local addresses that listen on a port, as the kernel writes them."""
    tables = [pathlib.Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port]
