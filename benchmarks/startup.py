"""Seconds from the start of the process to the end of the first training step, with compiled programs in the cache, and
without.

    python -m benchmarks.startup
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import benchmark, command_parser, compare
from resnet_jax.errors import UserError

_TRAIN = pathlib.Path(__file__).parent.parent / "train.py"


def seconds_to_first_step(cache: str) -> float:
    """Run the default experiment with a folder for the cache until it reports its first step."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-u", str(_TRAIN), "--config.train.steps=1", f"--workdir={workdir}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**os.environ, "XDG_CACHE_HOME": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds, output = None, []
        for line in process.stdout:
            output.append(line)
            if line.startswith("step 1/1"):
                seconds = time.perf_counter() - start
        if process.wait() or seconds is None:
            raise UserError(f"startup: {' '.join(command)} ended with status {process.returncode}: {output[-1:]}")
    return seconds


def with_empty_cache() -> float:
    """`seconds_to_first_step` with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        return seconds_to_first_step(cache)


def main() -> None:
    """The command."""
    args = command_parser(__doc__, rounds=3).parse_args()
    with benchmark(), tempfile.TemporaryDirectory() as cache:
        candidates = {"filled cache": lambda: seconds_to_first_step(cache), "empty cache": with_empty_cache}
        compare(candidates, args.rounds, case={"config": "default"})


if __name__ == "__main__":
    main()
