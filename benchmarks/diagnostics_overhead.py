"""Wall time per step of the training loop that looks inside the net (`diagnostics.layers`) against one that does not.

    python -m benchmarks.diagnostics_overhead

The two take turns in one process, at the default interval of 100 steps. Prints one JSON line: milliseconds per step of
both, and the ratio of each pair (median, min, max).
"""

import argparse
import json

import jax
import numpy as np

from benchmarks.loop_overhead import loop_seconds
from resnet_jax import get_config


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--steps", type=int, default=300, help="a multiple of 100")
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = get_config()
    config.model.name = args.model
    config.train.epochs = None
    config.train.steps = args.warmup + args.steps
    config.eval.every_epochs = 1e6
    looking = config.copy_and_resolve_references()
    looking.diagnostics.layers = True
    pairs = [(loop_seconds(looking, args.warmup), loop_seconds(config, args.warmup)) for _ in range(args.repeats)]
    ratios = [with_measures / without for with_measures, without in pairs]
    result = {
        "with_ms_per_step": round(1e3 * float(np.median([with_measures for with_measures, _ in pairs])), 3),
        "without_ms_per_step": round(1e3 * float(np.median([without for _, without in pairs])), 3),
        "ratio_median": round(float(np.median(ratios)), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "steps": args.steps,
        "repeats": args.repeats,
        "model": args.model,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
