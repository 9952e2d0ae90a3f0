"""The way of a process into its job of several, and out of it."""

import atexit
import contextlib
import ctypes
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator

import jax

from resnet_jax import signals
from resnet_jax.errors import UserError
from resnet_jax.job.address import Address, detected_address, given_address, host_and_port, launcher
from resnet_jax.job.relay import Relay
from resnet_jax.job.watch import Watch

# Seconds. JAX's own watch over its processes ends them by SIGABRT, with a C++ stack, so ours is to come first.
_NEVER = 24 * 3600

_SHUTDOWN = 60  # seconds; the others are known to be there

_watch: Watch | None = None  # one process is in one job
_relay: Relay | None = None


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    bind: str | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Connect this process to the others of its job. To be called before anything asks for devices.

    >>> resnet_jax.join("10.0.0.1:1234", num_processes=2, process_id=0)  # and with process_id=1 on the other machine

    Without arguments the job is that of the launcher: a TPU pod, SLURM, Open MPI or Kubernetes. There is nothing to do
    if there is none, and if the process has joined already.

    Args:
      coordinator: "HOST:PORT", where process 0 listens.
      num_processes: number of processes in the job. One alone may be a job, too: on CPUs its devices then add up in
        the same order as those of several processes, by Gloo.
      process_id: index of this process, from 0.
      bind: "HOST:PORT" that process 0 binds to; default: `coordinator`. "0.0.0.0:PORT" is every interface.
      timeout: seconds to wait for the others. Then the process ends, with status 75.

    Raises:
      UserError: an address that cannot be used, or a launcher that does not say enough.
    """
    if jax.distributed.is_initialized():
        _watch_over()
        return
    address = given_address(coordinator, num_processes, process_id, bind) or detected_address(timeout)
    if address is None:
        return
    relay = None
    if address.process_id == 0:
        _check_port(address.bind)
    else:
        relay = Relay(address.coordinator)
    with _no_longer_than(timeout, address):
        jax.distributed.initialize(
            relay.address if relay else address.coordinator,
            address.num_processes,
            address.process_id,
            local_device_ids=address.device_ids,
            cluster_detection_method="deactivate",  # all is known
            initialization_timeout=_NEVER,
            heartbeat_timeout_seconds=_NEVER,
            shutdown_timeout_seconds=_SHUTDOWN,
            coordinator_bind_address=address.bind,
        )
    _watch_over(relay)


def join_if_wanted(wanted: bool | None, heartbeat: float) -> None:
    """Join the job of the launcher; see `join`.

    Args:
      wanted: True to refuse a process alone, False to be one, None to take what is there.
      heartbeat: seconds without a sign of life after which a process counts as lost.

    Raises:
      UserError: see `join`; or there is no job.
    """
    if wanted is not False:
        join()
    elif jax.distributed.is_initialized():
        _watch_over()
    if wanted and not jax.distributed.is_initialized():
        raise UserError(
            "parallel.distributed: expected a job of several processes, found none to join; start it with your "
            "cluster's launcher (srun, mpirun, ...), or add --coordinator=HOST:PORT --num_processes=N --process_id=I"
            + (f"; {launcher()} is here, with one process" if launcher() else "")
        )
    if _watch:
        _watch.heartbeat = heartbeat
    if _relay:
        _relay.timeout = heartbeat


def watched_run() -> contextlib.AbstractContextManager:
    """See `Watch.run`; nothing where there is one process."""
    return _watch.run() if _watch else contextlib.nullcontext()


def telling_others() -> contextlib.AbstractContextManager:
    """See `Watch.telling`; nothing where there is one process."""
    return _watch.telling() if _watch else contextlib.nullcontext()


def ask_others_to_stop() -> None:
    """Let `when_asked_to_stop` act in the other processes of the job."""
    if _watch:
        _watch.ask_others_to_stop()


@contextlib.contextmanager
def when_asked_to_stop(act: Callable[[], None]) -> Iterator[None]:
    """Call a function once, in a thread of its own, if another process of the job asks to stop this run meanwhile."""
    if _watch:
        _watch.on_asked = act
    try:
        yield
    finally:
        if _watch:
            _watch.on_asked = None


def _watch_over(relay: Relay | None = None) -> None:
    global _watch, _relay
    state = _jax_state()
    if _watch or state.num_processes == 1:
        return
    _watch, _relay = Watch(state.client, state.process_id, state.num_processes), relay
    if relay:
        relay.on_lost = _watch.coordinator_lost
        relay.holding = True
    atexit.register(_leave, _watch, relay)  # runs before JAX's own, which was registered before


def _leave(watch: Watch, relay: Relay | None) -> None:
    state = _jax_state()
    if watch.leave():
        if relay:
            relay.holding = False
        return
    # JAX would wait for the others at its shutdown, and end this process by SIGABRT as they do not come.
    for each in (state.client, state.service, state.preemption_sync_manager):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))  # for good: what ends them waits, too
    state.client = state.service = state.preemption_sync_manager = None


def _jax_state():
    # Private: the coordinator's store has no public name. The same in jax 0.10 to 0.12.
    from jax._src.distributed import global_state

    return global_state


def _check_port(bind: str) -> None:
    host, port = host_and_port(bind)
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise UserError(
            f"--coordinator: process 0 cannot listen on {bind}: {error.strerror or error}; take another port, or give "
            "an address of this machine as --coordinator_bind"
        ) from None


def _loopback_advice(address: Address) -> str:
    """A remedy if process 0 listens for its own machine alone, as /etc/hosts often has it; else nothing."""
    host, _ = host_and_port(address.bind)
    with contextlib.suppress(OSError, ValueError):
        if address.process_id == 0 and ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            return (
                f"; {host} is an address for this machine alone: if others are on other machines, set "
                "JAX_COORDINATOR_BIND_ADDRESS, or --coordinator_bind, to one that they reach"
            )
    return ""


@contextlib.contextmanager
def _no_longer_than(timeout: float, address: Address):
    """End the process if the body takes longer: JAX's own timeout ends it by SIGABRT."""

    def end():
        where = f"listening on {address.bind}" if address.process_id == 0 else f"looking for {address.coordinator}"
        message = (
            f"error: --coordinator: process {address.process_id} of {address.num_processes} ({socket.gethostname()}), "
            f"{where}, has not met all the others in {timeout:g} s; see that all of them were started with the same "
            f"--coordinator and --num_processes, and that its port can be reached{_loopback_advice(address)}\n"
        )
        os.write(2, message.encode())
        signals.end_process(os.EX_TEMPFAIL)  # they may come the next time

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
