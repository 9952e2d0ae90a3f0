"""Messages between the processes of a job."""

import json
import socket
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import UserError
from resnet_jax.training.parallel import is_main_process


def host_name() -> str:
    """This process by its index and its host, for messages."""
    return f"process {jax.process_index()} ({socket.gethostname()})"


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, each cut at 1,000 bytes."""
    if jax.process_count() == 1:
        return [text]
    content = text.encode()[:1000]
    own = np.frombuffer(content.ljust(1000, bytes(1)), np.uint8)
    return [bytes(row).rstrip(bytes(1)).decode(errors="replace") for row in multihost_utils.process_allgather(own)]


def odd_ones_out(values: np.ndarray) -> np.ndarray:
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
    odd = odd_ones_out(np.ravel(multihost_utils.process_allgather(np.uint32(zlib.crc32(content)))))
    if len(odd):
        names = gather_texts(host_name())
        raise UserError(
            f"parallel.distributed: expected the same {what} in every process, found another in "
            f"{', '.join(names[index] for index in odd)} than in the others; start all of them with the same code, "
            "config, data and workdir"
        )


def agreed(function: Callable, what: str):
    """The value of a function; where it refuses in one process, all end, and none waits for it.

    Args:
      function: called in every process.
      what: value in words, for errors.

    Raises:
      UserError: its own, or else that of another process, with its name.
    """
    value, refusal = None, None
    try:
        value = function()
    except UserError as error:
        refusal = error
    if jax.process_count() > 1:
        said = gather_texts(f"{host_name()}: {what}: {refusal}" if refusal else "")
        if refusal is None and any(said):
            raise UserError(next(filter(None, said)))
    if refusal:
        raise refusal
    return value


def from_main(function: Callable[[], object] | None) -> object:
    """Call a function in the main process, and return its result, plain JSON, in every process.

    Args:
      function: called in the main process alone.

    Raises:
      UserError: its own, in every process.
    """
    if jax.process_count() == 1:
        return function()
    answer, refusal = {}, None
    if is_main_process():
        try:
            answer = {"value": function()}
        except UserError as error:
            answer, refusal = {"refusal": str(error), "status": error.exit_status}, error
    content = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(np.resize(content, size))))
    if refusal is None and "refusal" in answer:
        refusal = UserError(answer["refusal"])
        refusal.exit_status = answer["status"]
    if refusal is not None:
        raise refusal
    return answer["value"]


def read_by_main(read: Callable[[], tuple[object, object]], like) -> tuple[object, object]:
    """Read arrays in the main process, and return them, with plain JSON, in every process.

    Args:
      read: gives (plain JSON, tree of arrays on the host); called in the main process alone. No arrays if it is None.
      like: a tree of the same shapes and dtypes, in every process.

    Raises:
      UserError: that of `read`, in every process.
    """
    tree = None

    def plain():
        nonlocal tree
        value, tree = read()
        return value

    value = from_main(plain)
    return value, None if value is None else _broadcast(tree, like)


def _broadcast(tree, like):
    if jax.process_count() == 1:
        return tree
    if not is_main_process():
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return multihost_utils.broadcast_one_to_all(tree)
