"""Saving and restoring the state of ResNet-50 with SGD: what training waits for, and the whole.

    python -m benchmarks.checkpoints

205 MB: parameters, statistics, momentum. `blocked` is the time until `Checkpoints.save` returns, which copies the
arrays to the host; `saved` that until the step is on the disk with its manifest; `verified` that of comparing all files
with the manifest; `restored` that of verifying and reading the arrays.
"""

import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.harness import benchmark, command_parser, compare


def main() -> None:
    """The command."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", default="resnet50")
    args = parser.parse_args()
    with benchmark(), tempfile.TemporaryDirectory() as folder:
        from resnet_jax.checkpoint import Checkpoints
        from resnet_jax.checkpoint.manifest import read_manifest, verify_files
        from resnet_jax.models import create_model

        state = ours.random_state(create_model(args.model, num_classes=1000), 64)
        items = {"model": {"params": state.params, "batch_stats": state.batch_stats}, "optimizer": state.opt_state}
        copies = [jax.tree.map(jnp.copy, items) for _ in range(2)]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        checkpoints, step = Checkpoints(pathlib.Path(folder)), iter(range(1, 10**6))

        def blocked() -> float:
            checkpoints.wait()
            number = next(step)
            jax.block_until_ready(copies)
            start = time.perf_counter()
            checkpoints.save(number, copies[number % 2], metrics=None, notes={})
            return time.perf_counter() - start

        def saved() -> float:
            checkpoints.wait()
            start = time.perf_counter()
            checkpoints.save(next(step), items, metrics=None, notes={})
            checkpoints.wait()
            return time.perf_counter() - start

        def verified() -> None:
            checkpoints.wait()
            path = checkpoints.path(checkpoints.steps()[-1])
            verify_files(path, read_manifest(path))

        def restored() -> None:
            checkpoints.wait()
            checkpoints.restore_latest(items)

        candidates = {"blocked": blocked, "saved": saved, "verified": verified, "restored": restored}
        with checkpoints:
            compare(candidates, args.rounds, case={"model": args.model, "bytes": size})


if __name__ == "__main__":
    main()
