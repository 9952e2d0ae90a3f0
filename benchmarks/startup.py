"""Seconds from the start of the process to the end of the first training step, without and with compiled programs
in the cache.

    python -m benchmarks.startup

Prints one JSON line for each state of the cache.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

_TRAIN = pathlib.Path(__file__).parent.parent / "train.py"


def seconds_to_first_step(cache: str, workdir: str) -> float:
    """Run the default experiment until it reports its first step."""
    command = [sys.executable, "-u", _TRAIN, "--config.train.steps=1", f"--workdir={workdir}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 1/1"):
            seconds = time.perf_counter() - start
    if process.wait():
        raise SystemExit(f"{command} ended with status {process.returncode}")
    return seconds


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cold = [seconds_to_first_step(f"{folder}/cache{i}", f"{folder}/cold{i}") for i in range(args.repeats)]
        warm = [seconds_to_first_step(f"{folder}/cache0", f"{folder}/warm{i}") for i in range(args.repeats)]
    for name, seconds in (("empty", cold), ("filled", warm)):
        line = {"cache": name, "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
        print(json.dumps({key: value if key == "cache" else round(value, 2) for key, value in line.items()}))


if __name__ == "__main__":
    main()
