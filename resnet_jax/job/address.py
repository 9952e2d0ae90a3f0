"""The place of a process in its job: as given, or as a launcher says."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from resnet_jax.errors import UserError

COORDINATOR = "JAX_COORDINATOR_ADDRESS"


class Address(NamedTuple):
    """The place of a process in its job, and the address of the coordinator.

    Attributes:
      coordinator: "HOST:PORT", where process 0 listens.
      num_processes: number of processes in the job.
      process_id: index of this one, from 0.
      bind: "HOST:PORT" that process 0 binds to.
      device_ids: devices of this machine that the process uses; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    bind: str
    device_ids: list[int] | None = None


def given_address(
    coordinator: str | None, num_processes: int | None, process_id: int | None, bind: str | None = None
) -> Address | None:
    """The address that was given; None if nothing was.

    Args:
      coordinator: "HOST:PORT" of process 0; default: the variable JAX_COORDINATOR_ADDRESS.
      num_processes: number of processes in the job.
      process_id: index of this process.
      bind: "HOST:PORT" that process 0 binds to; default: the variable JAX_COORDINATOR_BIND_ADDRESS, else `coordinator`.

    Raises:
      UserError: one of them is missing, or out of range.
    """
    if coordinator is None and num_processes is None and process_id is None:
        if bind is not None:
            raise UserError("--coordinator_bind: expected --coordinator, --num_processes and --process_id beside it")
        return None
    coordinator = coordinator or os.environ.get(COORDINATOR)
    values = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if missing := [name for name, value in values.items() if value is None]:
        raise UserError(f"{missing[0]}: expected a value, found none; a job needs {', '.join(values)}")
    if num_processes < 1:
        raise UserError(f"--num_processes: expected at least 1, found {num_processes}")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id: expected 0 to {num_processes - 1}, found {process_id}")
    _check("--coordinator", coordinator)
    return Address(coordinator, num_processes, process_id, _bind(bind, coordinator))


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of "HOST:PORT"; the host may be an IPv6 address in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _bind(bind: str | None, coordinator: str) -> str:
    # Without it, JAX listens on every interface: whoever reaches the port can end the job.
    bind = bind or os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or coordinator
    _check("--coordinator_bind", bind)
    return bind


def _check(name: str, address: str) -> None:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]/]+):(\d+)", address)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise UserError(f"{name}: expected HOST:PORT with a port from 1 to 65535, like 10.0.0.1:1234, found {address}")


def launcher(environ: Mapping[str, str] = os.environ) -> str | None:
    """The launcher that started several processes, by the variables that it sets; None if there is none.

    A TPU VM whose environment says nothing of its pod is not seen here: only Google's metadata server knows.
    """
    tpus = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    found = {
        "SLURM": "SLURM_STEP_NODELIST" in environ and _number(environ, "SLURM_NTASKS") > 1,
        "Open MPI": _number(environ, "OMPI_COMM_WORLD_SIZE") > 1,
        "TPU pod": "," in tpus or _number(environ, "MEGASCALE_NUM_SLICES") > 1,
        "Kubernetes": "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ,
    }
    return next((name for name, here in found.items() if here), None)


def _number(environ, name) -> int:
    value = environ.get(name, "")
    return int(value) if value.isdigit() else 0


def detected_address(timeout: float) -> Address | None:
    """The address that the launcher, or a TPU pod, gives this process; None where there is no job of several.

    Raises:
      UserError: there is a job, but not all that is needed to join it.
    """
    name = launcher()
    if name is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return None  # a pod of its own: JAX would ask the cluster for its job
    from jax._src.clusters import ClusterEnv  # private: jax.distributed.initialize says nothing of what it found

    coordinator, count, process, devices = os.environ.get(COORDINATOR), None, None, None
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(coordinator, None, None, None, None, int(timeout))
        coordinator, count, process, devices = found
    except Exception as error:  # of somebody's cluster: requests, kubernetes, int(...)
        if name:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{name}: the other processes were not found: {reason[0]}; {_BY_HAND}") from error
    if count is None or process is None:
        if name:
            raise UserError(f"{name}: found several processes, but not their coordinator; {_BY_HAND}")
        return None
    return Address(coordinator, count, process, _bind(None, coordinator), devices) if count > 1 else None


_BY_HAND = (
    "give --coordinator=HOST:PORT --num_processes=N --process_id=I, or --config.parallel.distributed=False to train "
    "in this process alone"
)
