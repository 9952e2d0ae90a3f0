"""Time of a step of K runs in one compiled program, against one after another.

    python -m benchmarks.replicas --model resnet20 --runs 2 3

Digits, batches of 128, one device. Prints a JSON line for each K: milliseconds of both (medians), and the speed-up of
each repeat (median, min, max).
"""

import argparse
import json

import jax
import numpy as np

from resnet_jax import get_config
from resnet_jax.config.train import speed_up
from resnet_jax.environment import use_compilation_cache


def measure(name: str, runs: int, repeats: int, steps: int) -> dict:
    """One JSON line, as a dict."""
    configs = []
    for seed in range(runs):
        config = get_config()
        config.model.name, config.seed, config.parallel.devices = name, seed, 1
        configs.append(config)
    pairs = [speed_up(configs, steps) for _ in range(repeats)]
    ratios = [apart / together for apart, together in pairs]
    return {
        "model": name,
        "runs": runs,
        "apart_ms": round(1e3 * float(np.median([apart for apart, _ in pairs])), 3),
        "together_ms": round(1e3 * float(np.median([together for _, together in pairs])), 3),
        "speed_up_median": round(float(np.median(ratios)), 3),
        "speed_up_min": round(min(ratios), 3),
        "speed_up_max": round(max(ratios), 3),
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--runs", type=int, nargs="+", default=[3])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    use_compilation_cache()
    for runs in args.runs:
        print(json.dumps(measure(args.model, runs, args.repeats, args.steps)), flush=True)


if __name__ == "__main__":
    main()
