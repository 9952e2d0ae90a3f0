"""Agreement of devices on the state, bit by bit."""

import socket

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import DisagreementError
from resnet_jax.training.hooks import Hook
from resnet_jax.training.parallel import DataParallel
from resnet_jax.training.processes import gather_texts, odd_ones_out


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
    if len(odd := odd_ones_out(sums)):
        hosts = gather_texts(socket.gethostname())
        found = [(device, device.process_index) for device in parallel.mesh.devices.flat[odd]]
        names = ", ".join(f"{device} of process {index} ({hosts[index]})" for device, index in found)
        raise DisagreementError(
            f"{when}: expected the same state on every device, found another on {names}; if all processes have the "
            "same code, config and weights, its memory or its arithmetic is faulty: continue without it"
        )


class CheckAgreement(Hook):
    """Stops where the devices hold different states: at the start, every so many steps, and before an evaluation."""

    def start(self, step, state):
        self._checked = step
        check_agreement(self.run.program.parallel, state, f"step {step}")

    def __call__(self, step, state):
        if self.run.recipe.is_check_due(self._checked, step):
            self.start(step, state)
