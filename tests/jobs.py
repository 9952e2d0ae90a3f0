"""Real processes on this machine that are one job, as on a pod."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
START = """
import os, signal, sys
from resnet_jax import signals
signals.end_outside_of_training()
from resnet_jax.commands import command_line
address, count, index, workdir = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with command_line():
    import jax, resnet_jax
    from resnet_jax import train
    from resnet_jax.training import hooks
    from tests.tiny import tiny_config

    def at_step(step, action):
        inner = hooks.ShowProgress.__call__
        def call(hook, now, state):
            if now == step:
                action()
            inner(hook, now, state)
        hooks.ShowProgress.__call__ = call

"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Variables of a process with so many virtual devices, and with a fixed number of threads: bits depend on it."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last one counts
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "4"}


def start_job(code: str, workdirs, devices: int = 2) -> list[subprocess.Popen]:
    """Processes that run a body of `START` each; `workdirs` has one for each."""
    address, count = f"127.0.0.1:{free_port()}", len(workdirs)
    body = START + "".join(f"    {line}\n" for line in code.splitlines())
    arguments = [[address, str(count), str(index), str(workdir)] for index, workdir in enumerate(workdirs)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", body, *each],
            cwd=ROOT,
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in arguments
    ]


def run_job(code: str, workdirs, devices: int = 2, timeout: float = 400) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of the processes of a job, once all have ended; see `start_job`."""
    return ends_of(start_job(code, workdirs, devices), timeout)


def ends_of(processes: list[subprocess.Popen], timeout: float = 400) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of processes, once all have ended."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
