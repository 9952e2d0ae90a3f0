"""The plain Flax net in a process of its own, with XLA's flags as its user would have them and not as ours are."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable

from resnet_jax.errors import UserError
from resnet_jax.xla_flags import CHOSEN


def training(*case, **settings) -> Callable[[], None]:
    """A function that trains as that of `flax_baseline.training`, in a process that ends with this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.flax_baseline", json.dumps([case, settings])],
        env={**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace(CHOSEN, "")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def train() -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended
            print("train", file=process.stdin, flush=True)
        if process.stdout.readline() != "trained\n":
            raise UserError(f"flax: the plain Flax net ended with status {process.wait()}; its error is above")

    return train
