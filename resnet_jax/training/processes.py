"""What one process of a job says to the others."""

import json
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import UserError
from resnet_jax.training.parallel import is_main_process


def from_main(function: Callable[[], object] | None) -> object:
    """What a function returns in the main process, plain JSON, in every process; or its refusal.

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


def broadcast(tree, like):
    """Arrays of the main process in every process, on the host.

    Args:
      tree: the arrays; what other processes give is not looked at.
      like: a tree of the same shapes and dtypes, in every process.
    """
    if jax.process_count() == 1:
        return tree
    if not is_main_process():
        tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return multihost_utils.broadcast_one_to_all(tree)
