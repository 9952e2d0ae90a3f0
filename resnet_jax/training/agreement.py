"""Agreement of processes on code, config and data; and of devices on the state, bit by bit."""

import socket
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import DisagreementError, UserError
from resnet_jax.training.hooks import Hook
from resnet_jax.training.parallel import DataParallel


def host_name() -> str:
    """This process by its index and its host, for messages."""
    return f"process {jax.process_index()} ({socket.gethostname()})"


def _gather_texts(text: str) -> list[str]:
    """The texts of all processes, each cut at 1,000 bytes."""
    if jax.process_count() == 1:
        return [text]
    content = text.encode()[:1000]
    own = np.frombuffer(content.ljust(1000, bytes(1)), np.uint8)
    return [bytes(row).rstrip(bytes(1)).decode(errors="replace") for row in multihost_utils.process_allgather(own)]


def broadcast(text: str) -> str:
    """The text of process 0."""
    return _gather_texts(text)[0]


def _odd_ones_out(values: np.ndarray) -> np.ndarray:
    """The indices of what differs from most; from the first, where no value is more frequent than its."""
    found, counts = np.unique(values, return_counts=True)
    first = counts[found == values[0]][0]
    usual = values[0] if first == counts.max() else found[counts.argmax()]
    return np.flatnonzero(values != usual)


def check_same_everywhere(content: bytes, what: str) -> None:
    """Refuse what differs between the processes of a job.

    Raises:
      UserError: it does; the processes that differ from most, or from the first, are named.
    """
    if jax.process_count() == 1:
        return
    odd = _odd_ones_out(np.ravel(multihost_utils.process_allgather(np.uint32(zlib.crc32(content)))))
    if len(odd):
        names = _gather_texts(host_name())
        raise UserError(
            f"parallel.distributed: expected the same {what} in every process, found another in "
            f"{', '.join(names[index] for index in odd)} than in the others; start all of them with the same code, "
            "config, data and workdir"
        )


def agreed(function: Callable, what: str):
    """The value of a function; where it refuses in one process, all end, and none waits for it.

    Args:
      function: called in every process.
      what: its value in words, for errors.

    Raises:
      UserError: its own, or else that of another process, with its name.
    """
    value, refusal = None, None
    try:
        value = function()
    except UserError as error:
        refusal = error
    if jax.process_count() > 1:
        said = _gather_texts(f"{host_name()}: {what}: {refusal}" if refusal else "")
        if refusal is None and any(said):
            raise UserError(next(filter(None, said)))
    if refusal:
        raise refusal
    return value


def check_agreement(parallel: DataParallel, tree, when: str) -> None:
    """Compare the copies of a replicated tree that the devices hold, bit by bit.

    Args:
      parallel: devices.
      tree: replicated arrays.
      when: where the run stands, for the error.

    Raises:
      DisagreementError: they differ; the devices that differ from most are named. In all processes alike.
    """
    sums = parallel.checksums(tree)
    sums = np.asarray(sums) if jax.process_count() == 1 else multihost_utils.process_allgather(sums, tiled=True)
    if len(odd := _odd_ones_out(sums)):
        hosts = _gather_texts(socket.gethostname())
        found = [(device, device.process_index) for device in parallel.mesh.devices.flat[odd]]
        names = ", ".join(f"{device} of process {index} ({hosts[index]})" for device, index in found)
        raise DisagreementError(
            f"{when}: expected the same state on every device, found another on {names}; if all processes have the "
            "same code, config and weights, its memory or its arithmetic is faulty: continue without it"
        )


class CheckAgreement(Hook):
    """Stops where the devices hold different states: at the start, every so many steps, and before a checkpoint."""

    def start(self, step, state):
        self._checked = step
        check_agreement(self.run.program.parallel, state, f"step {step}")

    def __call__(self, step, state):
        if self.run.recipe.is_check_due(self._checked, step):
            self.start(step, state)
