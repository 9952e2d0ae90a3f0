"""Seconds and memory of `load_pretrained` for ResNet-50, each time in a new process that has imported the package.

    python -m benchmarks.load_pretrained
    python -m benchmarks.load_pretrained --file resnet50-11ad3fa6.pth

The file is one of random weights under torch's names if none is given. Memory is the peak of the process above what it
had before.
"""

import concurrent.futures
import multiprocessing
import pathlib
import re
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks.harness import benchmark, command_parser, compare, print_line, spread
from resnet_jax import create_model, load_pretrained
from resnet_jax.checkpoint.card import ModelCard
from resnet_jax.weights.native import write_weights

_MODEL = {"name": "resnet50", "num_classes": 1000, "dtype": "float32"}


def load(path: str) -> tuple[float, int]:
    """(seconds, bytes) to load the file once."""
    jnp.zeros(()).block_until_ready()  # JAX has started
    before, start = _memory("VmRSS"), time.perf_counter()
    _, variables = load_pretrained("resnet50", path)
    jax.block_until_ready(variables)
    return time.perf_counter() - start, _memory("VmHWM") - before


def _memory(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024


def _write(path: pathlib.Path) -> None:
    model = create_model(**_MODEL)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))()
    write_weights(path, ModelCard(_MODEL, (224, 224, 3), (), {}, {}, {}), variables, "torch")


def main() -> None:
    """Parse the command line and measure."""
    parser = command_parser(__doc__)
    parser.add_argument("--file", help="of torchvision or timm")
    args = parser.parse_args()
    with benchmark(), tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(args.file or f"{folder}/resnet50.safetensors")
        if not args.file:
            _write(path)
        size, memory = path.stat().st_size, []

        def load_once() -> float:
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                seconds, grown = process.submit(load, str(path)).result()
            memory.append(grown)
            return seconds

        case = {"model": _MODEL["name"], "file": path.suffix, "file_bytes": size}
        compare({"ours": load_once}, args.rounds, case=case)
        print_line({"case": case, "candidate": "ours", "memory_to_file": spread([grown / size for grown in memory])})


if __name__ == "__main__":
    main()
